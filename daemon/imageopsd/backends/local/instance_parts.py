"""What a Compute Instance is made of, as far as a machine image keeps it: the parts of `instances.Instance`.

Fields and values are those of the schemas that Compute's SourceInstanceProperties and InstanceProperties reference:
v1's, which are most of beta's (`diff_v1_beta.json`).
"""

from typing import Annotated, Literal

from msgspec import Meta, field

from imageopsd.model.image import Int64
from imageopsd.model.operation import Record

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


class AdvancedMachineFeatures(Record, frozen=True):
    enable_nested_virtualization: bool | None = None
    enable_uefi_networking: bool | None = None
    performance_monitoring_unit: (
        Literal["ARCHITECTURAL", "ENHANCED", "PERFORMANCE_MONITORING_UNIT_UNSPECIFIED", "STANDARD"] | None
    ) = None
    threads_per_core: Int32 | None = None
    turbo_mode: str | None = None
    visible_core_count: Int32 | None = None


class AliasIpRange(Record, frozen=True):
    ip_cidr_range: str | None = None
    subnetwork_range_name: str | None = None


class ConfidentialParavisorConfig(Record, frozen=True):
    confidential_tpm_type: Literal["CONFIDENTIAL_TPM_TYPE_UNSPECIFIED", "EPHEMERAL", "NO_CC_TPM"] | None = None
    sev_snp_irq_mode: Literal["RESTRICTED", "SEV_SNP_IRQ_MODE_UNSPECIFIED", "UNRESTRICTED"] | None = None


class ConfidentialInstanceConfig(Record, frozen=True):
    confidential_instance_type: (
        Literal["BMSAI", "CCA", "CONFIDENTIAL_INSTANCE_TYPE_UNSPECIFIED", "SEV", "SEV_SNP", "TDX"] | None
    ) = None
    confidential_paravisor_config: ConfidentialParavisorConfig | None = None
    enable_confidential_compute: bool | None = None


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


class NetworkPerformanceConfig(Record, frozen=True):
    total_egress_bandwidth_tier: Literal["DEFAULT", "TIER_1"] | None = None


class ReservationAffinity(Record, frozen=True):
    consume_reservation_type: (
        Literal["ANY_RESERVATION", "NO_RESERVATION", "SPECIFIC_RESERVATION", "UNSPECIFIED"] | None
    ) = None
    key: str | None = None
    values: tuple[str, ...] = ()


class ShieldedInstanceConfig(Record, frozen=True):
    enable_integrity_monitoring: bool | None = None
    enable_secure_boot: bool | None = None
    enable_vtpm: bool | None = None


class WorkloadIdentityConfig(Record, frozen=True):
    identity: str | None = None
    identity_certificate_enabled: bool | None = None
    identity_type: Literal["AGENT_IDENTITY", "IDENTITY_TYPE_UNSPECIFIED", "SERVICE_ACCOUNT"] | None = None


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


class FileContentBuffer(Record, frozen=True):
    content: bytes | None = None
    file_type: Literal["BIN", "UNDEFINED", "X509"] | None = None


class InitialState(Record, frozen=True):
    """Secure-boot keys: certificates, nothing secret."""

    pk: FileContentBuffer | None = None
    keks: tuple[FileContentBuffer, ...] = ()
    dbs: tuple[FileContentBuffer, ...] = ()
    dbxs: tuple[FileContentBuffer, ...] = ()
