"""The rules that a new machine image must meet before anything is recorded; see `rules` for those of images."""

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.names import NAME_RULE
from imageopsd.model.references import parse_disk_reference, parse_instance_reference
from imageopsd.model.values import check_description, check_labels, check_locations, check_name


def check_machine_image(machine_image: MachineImage, project: str) -> None:
    """Raises InvalidRequest for the first rule it breaks. The source instance may be of another project: whether the
    caller may read that one is for the door to decide."""
    if machine_image.name is None:
        raise InvalidRequest.missing("resource.name", NAME_RULE)
    check_name("resource.name", machine_image.name)
    check_description(machine_image.description)
    if machine_image.source_instance is None:
        raise InvalidRequest.missing(
            "resource.sourceInstance", "Expected an instance URL such as 'projects/P/zones/Z/instances/I'"
        )
    parse_instance_reference(machine_image.source_instance, project, "resource.sourceInstance")
    check_locations(machine_image.storage_locations)
    check_labels(machine_image.labels or {})
    params = machine_image.params
    if params is not None and params.included_disks and params.excluded_disks:
        field = "resource.params.excludedDisks"
        raise InvalidRequest(
            field, f"Invalid value for field '{field}'. Only one of includedDisks and excludedDisks may be given."
        )
    for i, key in enumerate(machine_image.source_disk_encryption_keys):
        if key.source_disk is not None:
            parse_disk_reference(key.source_disk, project, f"resource.sourceDiskEncryptionKeys[{i}].sourceDisk")
