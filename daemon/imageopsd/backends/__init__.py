"""Those who carry image work out, one file or folder each. They are found by entry point, so nobody imports them.

A backend keeps the promises of `ports.Backend` and `tests/backends/contract.py` checks that it does. What you will
not find here: retries, leases, records.
"""
