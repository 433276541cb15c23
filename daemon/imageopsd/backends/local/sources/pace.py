"""Whether a source delivers fast enough to be worth a slot."""


class Pace:
    """Window after window, the average of a source. A window is time spent waiting for the source: what we take
    ourselves, when the disk is slow, is not its fault."""

    def __init__(self, rate: int, window: float) -> None:
        """`rate` in bytes per second, over `window` seconds; 0 for either asks nothing."""
        self._rate = rate
        self._window = window
        self._arrived = 0
        self._waited = 0.0

    def keeps_up(self, count: int, *, waited: float) -> bool:
        """`count` more bytes came after `waited` seconds: was the window that ends with them good?"""
        self._arrived += count
        self._waited += waited
        if not self._window or self._waited < self._window:
            return True
        good = self._arrived >= self._rate * self._waited
        self._arrived, self._waited = 0, 0.0
        return good
