"""What the simulated backend did, in a file that outlives it: the provider's side of the story in a crash test.

One JSON object a line, safe against power loss before the backend goes on: `begun` and `made` frame an effect, `found`
stands for one that an earlier process had made.
"""

import json
import os
from pathlib import Path

from imageopsd.crashpoints import crash_point


class Journal:
    """Blocks the event loop for each line: nothing for a daemon that has anything else to do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: set[tuple[str, str]] = set()
        self._descriptor = -1

    def open(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        for text in self._path.read_text().splitlines():
            line = json.loads(text)
            if line["what"] == "made":
                self._made.add((line["operation"], line["verb"]))

    def close(self) -> None:
        os.close(self._descriptor)

    def begin(self, operation_id: str, verb: str, target: int | None) -> bool:
        """Notes that the effect on the resource `target` is begun; or returns False if it was made before."""
        made = (operation_id, verb) in self._made
        self._write("found" if made else "begun", operation_id, verb, target)
        return not made

    def end(self, operation_id: str, verb: str) -> None:
        """From here on the effect is made; once."""
        if (operation_id, verb) not in self._made:
            self._write("made", operation_id, verb)
            self._made.add((operation_id, verb))

    def _write(self, what: str, operation_id: str, verb: str, target: int | None = None) -> None:
        line = {"what": what, "operation": operation_id, "verb": verb, "target": target, "process": os.getpid()}
        crash_point("effect.journal.before")
        os.write(self._descriptor, json.dumps(line).encode() + b"\n")
        os.fsync(self._descriptor)
        crash_point("effect.journal.after")
