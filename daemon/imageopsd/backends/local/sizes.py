"""From the bytes of a disk to the whole number of GB that an image has."""

from collections.abc import Callable

from imageopsd.backends.local.gunzip import invalid_file
from imageopsd.model.errors import ReservationExceeded
from imageopsd.model.image import GIB
from imageopsd.model.operation import OperationWarning
from imageopsd.model.quota import Metric

CheckSize = Callable[[int], None]
"""Called with the size of a disk, in bytes, as soon as that is known; raises BackendFailure for one that may not be."""


def disk_size(content: int, asked_gb: int | None) -> tuple[int, list[OperationWarning]]:
    """The size in GB of an image with `content` bytes for which somebody asked `asked_gb`, and what to tell them.

    A disk may grow, by a hole at its end, and never shrinks.
    """
    whole = -(-content // GIB)
    warnings = []
    if content % GIB:
        warnings.append(
            OperationWarning.of(
                "FIELD_VALUE_OVERRIDEN",  # sic, as the schema spells it
                f"The disk has {content} bytes, not a whole number of GB. It was extended to {whole} GB.",
                field="resource.diskSizeGb",
                size_bytes=content,
                disk_size_gb=whole,
            )
        )
    if asked_gb is not None and asked_gb > whole:
        warnings.append(
            OperationWarning.of(
                "DISK_SIZE_LARGER_THAN_IMAGE_SIZE",
                f"Disk size: '{asked_gb} GB' is larger than image size: '{whole} GB'. The image was extended; "
                "the file system in it must be grown by whoever uses it.",
                disk_size_gb=asked_gb,
                image_size_gb=whole,
            )
        )
        return int(asked_gb), warnings
    if asked_gb is not None and asked_gb < whole:
        warnings.append(
            OperationWarning.of(
                "FIELD_VALUE_OVERRIDEN",
                f"The disk does not fit into the {asked_gb} GB asked for. The image has {whole} GB.",
                field="resource.diskSizeGb",
                size_bytes=content,
                disk_size_gb=whole,
            )
        )
    return whole, warnings


def check_reserved(content: int, asked_gb: int | None, reserved_gb: int | None) -> None:
    """Raises ReservationExceeded for an image that would be larger than may be."""
    size_gb = max(-(-content // GIB), int(asked_gb or 0))
    if reserved_gb is not None and size_gb > reserved_gb:
        raise ReservationExceeded(
            f"The image would have {size_gb} GB, more than the {reserved_gb} GB that were left for it.", Metric.IMAGE_GB
        )


def check_whole(content: int) -> None:
    """For those who want no disk extended. Raises PermanentFailure."""
    if content % GIB:
        raise invalid_file(
            f"The disk has {content} bytes, not a whole number of GB, which backends.local.strict_sizes asks for."
        )


def check_asked_size(asked_gb: int | None, max_gb: int) -> None:
    """Raises PermanentFailure for a size that this backend may not make."""
    if asked_gb is not None and asked_gb > max_gb:
        raise invalid_file(
            f"The {asked_gb} GB asked for are more than the {max_gb} GB that backends.local.max_disk_gb allows."
        )
