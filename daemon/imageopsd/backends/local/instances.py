"""A Compute Instance as JSON, as far as a machine image keeps it; `saved` makes the answer of it.

The structs are the fields of Compute's SourceInstanceProperties and of what it references; v1's, which are beta's but
for `NetworkInterface.macAddress` and two of `Scheduling`. Reading an instance through them leaves out whatever else it
has (an instance's own state, a newer API's fields, a disk's raw key) and finds values that no answer may carry.
"""

from http import HTTPStatus
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

from imageopsd.model.errors import PermanentFailure, shown
from imageopsd.model.image import Int64, decode_hook
from imageopsd.model.operation import Record
from imageopsd.model.references import Reference

Int32 = Annotated[int, Meta(ge=-(2**31), lt=2**31)]


class AcceleratorConfig(Record, frozen=True):
    accelerator_count: Int32 | None = None
    accelerator_type: str | None = None


class AccessConfig(Record, frozen=True):
    external_ipv6: str | None = None
    external_ipv6_prefix_length: Int32 | None = None
    ip_collection: str | None = None
    kind: Literal["compute#accessConfig"] | None = None
    name: str | None = None
    nat_ip: str | None = field(default=None, name="natIP")
    network_tier: Literal["FIXED_STANDARD", "PREMIUM", "STANDARD", "STANDARD_OVERRIDES_FIXED_STANDARD"] | None = None
    public_ptr_domain_name: str | None = None
    security_policy: str | None = None
    set_public_ptr: bool | None = None
    type: Literal["DIRECT_IPV6", "ONE_TO_ONE_NAT"] | None = None


class AliasIpRange(Record, frozen=True):
    ip_cidr_range: str | None = None
    subnetwork_range_name: str | None = None


class NetworkInterface(Record, frozen=True):
    access_configs: tuple[AccessConfig, ...] = ()
    alias_ip_ranges: tuple[AliasIpRange, ...] = ()
    alias_ipv6_ranges: tuple[AliasIpRange, ...] = ()
    enable_vpc_scoped_dns: bool | None = None
    fingerprint: bytes | None = None
    igmp_query: Literal["IGMP_QUERY_DISABLED", "IGMP_QUERY_V2"] | None = None
    internal_ipv6_prefix_length: Int32 | None = None
    ipv6_access_configs: tuple[AccessConfig, ...] = ()
    ipv6_access_type: Literal["EXTERNAL", "INTERNAL"] | None = None
    ipv6_address: str | None = None
    kind: Literal["compute#networkInterface"] | None = None
    name: str | None = None
    network: str | None = None
    network_attachment: str | None = None
    network_ip: str | None = field(default=None, name="networkIP")
    nic_type: Literal["GVNIC", "IDPF", "IRDMA", "MRDMA", "UNSPECIFIED_NIC_TYPE", "VIRTIO_NET"] | None = None
    parent_nic_name: str | None = None
    queue_count: Int32 | None = None
    service_class_id: str | None = None
    stack_type: Literal["IPV4_IPV6", "IPV4_ONLY", "IPV6_ONLY"] | None = None
    subnetwork: str | None = None
    vlan: Int32 | None = None


class MetadataItem(Record, frozen=True):
    key: Annotated[str, Meta(pattern=r"\A[a-zA-Z0-9_-]{1,128}\Z")]
    value: str | None = None


class Metadata(Record, frozen=True):
    fingerprint: bytes | None = None
    items: tuple[MetadataItem, ...] = ()
    kind: Literal["compute#metadata"] | None = None


class Duration(Record, frozen=True):
    nanos: Int32 | None = None
    seconds: Int64 | None = None


class GracefulShutdown(Record, frozen=True):
    enabled: bool | None = None
    max_duration: Duration | None = None


class NodeAffinity(Record, frozen=True):
    key: str | None = None
    operator: Literal["IN", "NOT_IN", "OPERATOR_UNSPECIFIED"] | None = None
    values: tuple[str, ...] = ()


class OnInstanceStopAction(Record, frozen=True):
    discard_local_ssd: bool | None = None


class Scheduling(Record, frozen=True):
    automatic_restart: bool | None = None
    availability_domain: Int32 | None = None
    expose_host_topology: bool | None = None
    graceful_shutdown: GracefulShutdown | None = None
    host_error_timeout_seconds: Int32 | None = None
    instance_termination_action: Literal["DELETE", "INSTANCE_TERMINATION_ACTION_UNSPECIFIED", "STOP"] | None = None
    local_ssd_recovery_timeout: Duration | None = None
    location_hint: str | None = None
    max_run_duration: Duration | None = None
    min_node_cpus: Int32 | None = None
    node_affinities: tuple[NodeAffinity, ...] = ()
    on_host_maintenance: Literal["MIGRATE", "TERMINATE"] | None = None
    on_instance_stop_action: OnInstanceStopAction | None = None
    preemptible: bool | None = None
    preemption_notice_duration: Duration | None = None
    protection_tier: (
        Literal["PROTECTION_TIER_CAPACITY_OPTIMIZED", "PROTECTION_TIER_STANDARD", "PROTECTION_TIER_UNSPECIFIED"] | None
    ) = None
    provisioning_model: Literal["FLEX_START", "RESERVATION_BOUND", "SPOT", "STANDARD"] | None = None
    skip_guest_os_shutdown: bool | None = None
    termination_time: str | None = None


class ServiceAccount(Record, frozen=True):
    email: str | None = None
    scopes: tuple[str, ...] = ()


class Tags(Record, frozen=True):
    fingerprint: bytes | None = None
    items: tuple[str, ...] = ()


class GuestOsFeature(Record, frozen=True):
    type: str


class ShownKey(Record, frozen=True):
    """What of a CustomerEncryptionKey may be seen."""

    kms_key_name: str | None = None
    kms_key_service_account: str | None = None
    sha256: str | None = None


class AttachedDisk(Record, frozen=True):
    """What AttachedDisk and SavedAttachedDisk share, and `architecture`, which the SavedDisk shows."""

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
    type: Literal["PERSISTENT", "SCRATCH"] = "PERSISTENT"


class Instance(Record, frozen=True):
    """`name` is only compared with the file's; `disks` are in the order in which they are attached."""

    name: str | None = None
    disks: tuple[AttachedDisk, ...] = ()
    can_ip_forward: bool | None = None
    deletion_protection: bool | None = None
    description: str | None = None
    guest_accelerators: tuple[AcceleratorConfig, ...] = ()
    key_revocation_action_type: Literal["KEY_REVOCATION_ACTION_TYPE_UNSPECIFIED", "NONE", "STOP"] | None = None
    labels: dict[str, str] | None = None
    machine_type: str | None = None
    metadata: Metadata | None = None
    min_cpu_platform: str | None = None
    network_interfaces: tuple[NetworkInterface, ...] = ()
    post_key_revocation_action_type: (
        Literal["NOOP", "POST_KEY_REVOCATION_ACTION_TYPE_UNSPECIFIED", "SHUTDOWN"] | None
    ) = None
    scheduling: Scheduling | None = None
    service_accounts: tuple[ServiceAccount, ...] = ()
    tags: Tags | None = None


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
