"""Which of a request's keys is for what: to encrypt with, or of a source, which must be the right one."""

from imageopsd.model.image import Image
from imageopsd.model.keys import IMAGE_KEYS, MACHINE_IMAGE_KEY, Keys, check_source_key, source_disk_key
from imageopsd.model.machine_image import MachineImage, MachineImageKeys
from imageopsd.model.names import image_path, parse_image_reference
from imageopsd.model.references import parse_disk_reference
from imageopsd.ports import ImageKeys


def image_keys(keys: Keys, source: Image | None) -> ImageKeys:
    """`source` is the image to copy from, if that is the source. What disks and snapshots are encrypted with is for the
    backend to know. Raises PermanentFailure for a key that is missing, wrong or not needed."""
    of_source = next(
        (keys[field] for name, field in IMAGE_KEYS.items() if name.startswith("source") and field in keys), None
    )
    if source is not None:
        project, name, _ = parse_image_reference(source.self_link or "", "", "resource.sourceImage")
        shown = source.image_encryption_key
        check_source_key(of_source, shown.sha256 if shown else None, image_path(project, name))
    return ImageKeys(image=keys.get(IMAGE_KEYS["image_encryption_key"]), source=of_source)


def machine_image_keys(keys: Keys, project: str, wanted: MachineImage) -> MachineImageKeys:
    """`project` is where partial URLs of disks begin."""
    disks = {}
    for i, source in enumerate(wanted.source_disk_encryption_keys):
        if (key := keys.get(source_disk_key(i))) is not None:
            disks[parse_disk_reference(source.source_disk or "", project, "resource.sourceDisk").path] = key
    return MachineImageKeys(bundle=keys.get(MACHINE_IMAGE_KEY), disks=disks)
