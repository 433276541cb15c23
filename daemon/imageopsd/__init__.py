"""imageopsd: disk-image jobs in, trustworthy Operation records out.

`daemon/ARCHITECTURE.md` draws the floors; each package's docstring says what belongs there.
"""
