"""Who hears what happened: observers get every event, waiters wake when their operation is DONE."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from imageopsd.model.events import Change, Happening
from imageopsd.model.operation import Status

Observer = Callable[[Happening], None]


class EventBus:
    """Synchronous and in-process: an observer is a short function that neither blocks nor raises. What is published
    here is durable already."""

    def __init__(self) -> None:
        self._observers: list[Observer] = []
        self._waiters: defaultdict[str, set[anyio.Event]] = defaultdict(set)
        self._stopping = False

    def subscribe(self, observer: Observer) -> None:
        self._observers.append(observer)

    def publish(self, happening: Happening) -> None:
        for observer in self._observers:
            observer(happening)
        if isinstance(happening, Change) and happening.operation.status is Status.DONE:
            for event in self._waiters.get(happening.operation.id, ()):
                event.set()

    def wake_all(self) -> None:
        """Ends every wait, also those still to come: the daemon stops, and who waits is answered with the record as
        it is."""
        self._stopping = True
        for events in self._waiters.values():
            for event in events:
                event.set()

    @contextmanager
    def end_of(self, operation_id: str) -> Iterator[anyio.Event]:
        """An event that is set when the operation becomes DONE during the block."""
        event = anyio.Event()
        if self._stopping:
            event.set()
        self._waiters[operation_id].add(event)
        try:
            yield event
        finally:
            self._waiters[operation_id].discard(event)
            if not self._waiters[operation_id]:
                del self._waiters[operation_id]
