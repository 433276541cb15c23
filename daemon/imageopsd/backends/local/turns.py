"""How many imports may run at once, of one project and from one server."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from imageopsd.model.errors import NotYet


class Turns:
    """Counts what runs in this process. A limit of 0 is none."""

    def __init__(self, per_project: int = 0, per_server: int = 0) -> None:
        self.limit(per_project, per_server)
        self._running: Counter[tuple[str, str]] = Counter()

    def limit(self, per_project: int, per_server: int) -> None:
        """Other limits, for whoever comes next."""
        self._limits = {"project": per_project, "server": per_server}

    @contextmanager
    def take(self, project: str, server: str | None) -> Iterator[None]:
        """Raises NotYet where the limit is reached; `server` is `None` for a source on this host."""
        wanted = [("project", project), *([("server", server)] if server else [])]
        for kind, name in wanted:
            if self._limits[kind] and self._running[kind, name] >= self._limits[kind]:
                raise NotYet(f"Waiting for other imports of the {kind} '{name}'")
        self._running.update(wanted)
        try:
            yield
        finally:
            self._running.subtract(wanted)
            self._running += Counter()  # without those that are back at zero
