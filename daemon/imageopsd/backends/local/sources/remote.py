"""What sources on servers have in common: an archive comes in as many answers as it takes, each from where the last one
ended, after the part that an earlier try left."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing

from imageopsd.backends.local.options import Options
from imageopsd.backends.local.pipe import Pipe, in_thread
from imageopsd.backends.local.sources.pace import Pace
from imageopsd.backends.local.sources.ranges import Version
from imageopsd.backends.local.sources.source import SourceChanged, unavailable
from imageopsd.backends.local.spool import Spool
from imageopsd.model.errors import TemporaryFailure

FRUIT = 1024**2
"""Bytes that make a connection worth another one after it."""
MAX_FRUITLESS = 3
PAUSE = 0.5
"""Seconds before the connection that follows a fruitless one; longer with each. The worker waits longer still."""
CUT = "the connection was closed in the middle"
LATE = "it did not answer in time"


class Interrupted(Exception):
    """An answer ended before its time. `reason` completes a sentence that begins with the source; it says nothing that
    a library or a server said, for their texts have URLs in them, signatures included."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class RemoteSource(ABC):
    """An archive on its way; an answer that breaks is followed by the next one, from where it broke. `_offset` is
    where the next begins; without a `_version` there is none, for nobody could tell whether it belongs to the first."""

    def __init__(self, url: str, options: Options, spool: Spool) -> None:
        self._url = url
        self._options = options
        self._spool = spool
        self._pace = Pace(options.min_rate, options.rate_window)
        self._version: Version | None = None
        self.length: int | None = None
        self.content_type: str | None = None
        self.kept = self._offset = spool.mark
        if spool.head is not None:
            self._version, self.length = spool.head.version, spool.head.length
            self.content_type = spool.head.content_type

    @abstractmethod
    async def _ask(self) -> bool:
        """Asks for what follows `_offset`, if nobody has yet; whether there is anything. Raises BackendFailure or
        SourceChanged."""

    @abstractmethod
    def _answer(self) -> AsyncGenerator[bytes, None]:
        """What the server gives of that. Raises Interrupted, BackendFailure or SourceChanged."""

    async def pour(self, pipe: Pipe[bytes]) -> None:
        if self.kept:
            await in_thread("replay", lambda: self._spool.replay(pipe), pipe.break_off)
        try:
            await self._pour_answers(pipe)
        except TemporaryFailure:
            await pipe.drained()  # what came is kept for the next try, once the stages have seen it
            raise
        pipe.close()

    async def _pour_answers(self, pipe: Pipe[bytes]) -> None:
        """As many as it takes."""
        fruitless = 0
        while await self._ask():
            began = self._offset
            reason = await self._pour_answer(pipe)
            if self._offset == self.length or (reason is None and self.length is None):
                break
            fruitless = 0 if self._offset - began >= FRUIT else fruitless + 1
            if self._version is None or fruitless > MAX_FRUITLESS:
                raise unavailable(self._url, reason or CUT)
            await asyncio.sleep(PAUSE * fruitless)

    async def _pour_answer(self, pipe: Pipe[bytes]) -> str | None:
        """All that one answer has; why it ended before its time, if it did."""
        clock = asyncio.get_running_loop().time
        asked = clock()
        async with aclosing(self._answer()) as blocks:
            try:
                async for block in blocks:
                    waited = clock() - asked
                    self._spool.waited += waited
                    if not self._pace.keeps_up(len(block), waited=waited):
                        rate, window = self._options.min_rate, self._options.rate_window
                        raise unavailable(self._url, f"it delivered less than {rate} bytes a second for {window!s}")
                    self._offset += len(block)
                    if self.length is not None and self._offset > self.length:
                        raise SourceChanged("it is longer than its server said")
                    await pipe.send(block, len(block))
                    asked = clock()
            except Interrupted as interruption:
                return interruption.reason
        return None
