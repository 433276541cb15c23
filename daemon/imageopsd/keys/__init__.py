"""The daemon's own keys, which keep customers' keys from lying anywhere in clear.

Why it is done this way stands in `daemon/decisions/0006-customer-keys.md`. No rules on requests stand here, and nothing
about disks.
"""

from imageopsd.keys.keyring import Keyring

__all__ = ["Keyring"]
