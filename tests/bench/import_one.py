"""One import in a process of its own, so that its memory is its own: prints its seconds and how many bytes its peak was
above idle."""

import sys
from pathlib import Path
from time import perf_counter

import anyio

from imageopsd.backends.local import LocalBackend
from imageopsd.model.image import Image, Int64, RawDisk
from imageopsd.model.operation import OperationWarning
from imageopsd.ports import InsertTask


class Silent:
    """A reporter that nobody reads."""

    def progress(self, percent: int, message: str | None = None) -> None: ...

    def warn(self, warning: OperationWarning) -> None: ...

    def transferred(self, size: int) -> None: ...

    async def checkpoint(self, data: bytes) -> None: ...


def memory(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


async def main(url: str, data_dir: Path, resume_rate: int) -> None:
    image = Image(id=Int64(1), name="i", raw_disk=RawDisk(source=url))
    options = LocalBackend.Options(
        allow_networks=("127.0.0.0/8",), allow_files=("/",), resume_rate=resume_rate, free_space_margin=0
    )
    data_dir.mkdir()
    async with LocalBackend(options, data_dir) as backend:
        idle, began = memory("VmRSS"), perf_counter()
        await backend.insert_image(InsertTask(operation_id="1", project="p", image=image), Silent())
        print(perf_counter() - began, memory("VmHWM") - idle)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
