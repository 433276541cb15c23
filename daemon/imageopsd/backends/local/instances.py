"""A Compute Instance as JSON, as far as a machine image keeps it; `saved` makes the answer of it.

Reading an instance through these structs leaves out whatever else it has (an instance's own state, a newer API's
fields, a disk's raw key) and finds values that no answer may carry.
"""

from http import HTTPStatus
from typing import Literal

import msgspec

from imageopsd.backends.local.instance_parts import (
    AcceleratorConfig,
    AdvancedMachineFeatures,
    ConfidentialInstanceConfig,
    GuestOsFeature,
    InitialState,
    Metadata,
    NetworkInterface,
    NetworkPerformanceConfig,
    ReservationAffinity,
    Scheduling,
    ServiceAccount,
    ShieldedInstanceConfig,
    Tags,
    WorkloadIdentityConfig,
)
from imageopsd.model.errors import PermanentFailure, shown
from imageopsd.model.image import Int64, decode_hook
from imageopsd.model.operation import Record
from imageopsd.model.references import Reference


class ShownKey(Record, frozen=True):
    """What of a CustomerEncryptionKey may be seen."""

    kms_key_name: str | None = None
    kms_key_service_account: str | None = None
    sha256: str | None = None


class AttachedDisk(Record, frozen=True):
    """What AttachedDisk and SavedAttachedDisk have."""

    source: str | None = None
    architecture: Literal["ARCHITECTURE_UNSPECIFIED", "ARM64", "X86_64"] | None = None
    auto_delete: bool = False
    boot: bool = False
    device_name: str | None = None
    disk_encryption_key: ShownKey | None = None
    disk_size_gb: Int64 | None = None
    disk_type: str | None = None
    guest_os_features: tuple[GuestOsFeature, ...] = ()
    interface: Literal["NVME", "SCSI"] | None = None
    licenses: tuple[str, ...] = ()
    mode: Literal["READ_ONLY", "READ_WRITE"] = "READ_WRITE"
    saved_state: Literal["DISK_SAVED_STATE_UNSPECIFIED", "PRESERVED"] | None = None
    shielded_instance_initial_state: InitialState | None = None
    type: Literal["PERSISTENT", "SCRATCH"] = "PERSISTENT"


class Instance(Record, frozen=True):
    """`name` is only compared with the file's; `disks` are in the order in which they are attached."""

    name: str | None = None
    disks: tuple[AttachedDisk, ...] = ()
    advanced_machine_features: AdvancedMachineFeatures | None = None
    can_ip_forward: bool | None = None
    confidential_instance_config: ConfidentialInstanceConfig | None = None
    deletion_protection: bool | None = None
    description: str | None = None
    guest_accelerators: tuple[AcceleratorConfig, ...] = ()
    key_revocation_action_type: Literal["KEY_REVOCATION_ACTION_TYPE_UNSPECIFIED", "NONE", "STOP"] | None = None
    labels: dict[str, str] | None = None
    local_ssd_encryption_mode: (
        Literal["EPHEMERAL_KEY_ENCRYPTION", "LOCAL_SSD_ENCRYPTION_MODE_UNSPECIFIED", "STANDARD_ENCRYPTION"] | None
    ) = None
    machine_type: str | None = None
    metadata: Metadata | None = None
    min_cpu_platform: str | None = None
    network_interfaces: tuple[NetworkInterface, ...] = ()
    network_performance_config: NetworkPerformanceConfig | None = None
    post_key_revocation_action_type: (
        Literal["NOOP", "POST_KEY_REVOCATION_ACTION_TYPE_UNSPECIFIED", "SHUTDOWN"] | None
    ) = None
    private_ipv6_google_access: (
        Literal[
            "ENABLE_BIDIRECTIONAL_ACCESS_TO_GOOGLE", "ENABLE_OUTBOUND_VM_ACCESS_TO_GOOGLE", "INHERIT_FROM_SUBNETWORK"
        ]
        | None
    ) = None
    reservation_affinity: ReservationAffinity | None = None
    resource_policies: tuple[str, ...] = ()
    scheduling: Scheduling | None = None
    service_accounts: tuple[ServiceAccount, ...] = ()
    shielded_instance_config: ShieldedInstanceConfig | None = None
    tags: Tags | None = None
    workload_identity_config: WorkloadIdentityConfig | None = None


def read_instance(data: bytes, reference: Reference) -> Instance:
    """Raises PermanentFailure that names the resource and the first thing that is wrong with it."""
    try:
        instance = msgspec.json.decode(data, type=Instance, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise invalid_resource(reference, f"{shown(error, limit=256)}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid_resource(reference, "It is not JSON.") from None
    if instance.name not in (None, reference.name):
        raise invalid_resource(reference, f"It describes an instance with the name '{shown(instance.name)}'.")
    if not instance.disks:
        raise invalid_resource(reference, "It has no disks.")
    return instance


def invalid_resource(reference: Reference, reason: str) -> PermanentFailure:
    """`reason` is a whole sentence on what was found."""
    return PermanentFailure(
        "INVALID_RESOURCE", f"The resource '{reference.path}' is not valid. {reason}", HTTPStatus.BAD_REQUEST
    )
