"""IAM bodies (`schemas_iam.v1.json`): kept and given back, not enforced."""

from typing import Any

import msgspec

from imageopsd.model.policy import Binding, Permissions, Policy
from imageopsd.wire.json_body import convert, without_empties


class _SetPolicy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Compute's GlobalSetPolicyRequest: the policy, or its two old forms beside it."""

    policy: Policy | None = None
    bindings: tuple[Binding, ...] = ()
    etag: str | None = None


def read_policy(body: Any) -> Policy:
    """Raises InvalidRequest."""
    asked = convert(without_empties(body, "resource"), _SetPolicy, "resource")
    return asked.policy or Policy(bindings=asked.bindings, etag=asked.etag)


def read_permissions(body: Any) -> Permissions:
    """Raises InvalidRequest."""
    return convert(without_empties(body, "resource"), Permissions, "resource")
