"""What the catalogue holds: images and machine images, each in its collection."""

from imageopsd.model.image import Image
from imageopsd.model.machine_image import MachineImage, machine_image_link, machine_image_path
from imageopsd.model.names import image_link, image_path

Resource = Image | MachineImage

IMAGES = "images"
MACHINE_IMAGES = "machineImages"


def resource_path(collection: str, project: str, name: str) -> str:
    """The partial URL that error texts name it by."""
    return image_path(project, name) if collection == IMAGES else machine_image_path(project, name)


def resource_link(collection: str, project: str, name: str, version: str = "v1") -> str:
    make = image_link if collection == IMAGES else machine_image_link
    return make(project, name, version)


def collection_of(resource: Resource) -> str:
    return IMAGES if isinstance(resource, Image) else MACHINE_IMAGES
