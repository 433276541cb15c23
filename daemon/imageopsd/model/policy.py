"""An image's IAM policy: kept for the clients that read and write it; tokens decide who may do what."""

import base64
from hashlib import sha256
from typing import Literal

import msgspec
from msgspec.structs import replace

from imageopsd.model.errors import PolicyChanged
from imageopsd.model.image import Part


class Expr(Part, frozen=True):
    description: str | None = None
    expression: str | None = None
    location: str | None = None
    title: str | None = None


class Binding(Part, frozen=True):
    role: str | None = None
    members: tuple[str, ...] = ()
    condition: Expr | None = None


class AuditLogConfig(Part, frozen=True):
    exempted_members: tuple[str, ...] = ()
    log_type: str | None = None


class AuditConfig(Part, frozen=True):
    service: str | None = None
    audit_log_configs: tuple[AuditLogConfig, ...] = ()


class Policy(Part, frozen=True):
    """`etag` changes with the content; a writer that names one says which content it has seen."""

    version: Literal[0, 1, 3] | None = None
    bindings: tuple[Binding, ...] = ()
    audit_configs: tuple[AuditConfig, ...] = ()
    etag: str | None = None

    def stamped(self) -> "Policy":
        content = replace(self, etag=None, version=self.version or 1)
        digest = sha256(msgspec.json.encode(content)).digest()[:8]
        return replace(content, etag=base64.b64encode(digest).decode())


def replaced(now: Policy, wanted: Policy) -> Policy:
    """The policy after `setIamPolicy`. Raises PolicyChanged if the writer has seen another one."""
    if wanted.etag is not None and wanted.etag != now.etag:
        raise PolicyChanged
    return wanted.stamped()


class Permissions(Part, frozen=True):
    """Compute's TestPermissionsRequest and, being the same, its response."""

    permissions: tuple[str, ...] = ()
