"""What the daemon is like at the moment somebody asks. Nothing here is kept up to date in between, so that a daemon
that is not scraped spends nothing on it."""

import math
from collections.abc import Callable, Collection, Mapping

from prometheus_client import Gauge

CREDENTIALS = ("tls_certificate", "tls_client_ca")
FILES = ("tokens_file", *CREDENTIALS[:1])
"""Options of `server` whose files are read again while the daemon runs."""


CONFIGURATION = "configuration"
"""The file of all options, which is read again on SIGHUP."""


class Vitals:
    """`gauge` makes one in the registry with every label pair at zero."""

    def __init__(self, gauge: Callable[..., Gauge]) -> None:
        self._ready = gauge("ready", "1 while new work is taken and can be done, as /readyz says.")
        self._possible = gauge("start_possible", "1 while an operation is due, a slot is free and nothing is against "
                               "it: for longer than a moment only if the worker hangs.")  # fmt: skip
        self._stuck = gauge("loops_stuck", "Loops of the daemon that hang, as /livez says.")
        self._oldest = gauge("oldest_running_operation_age_seconds",
                             "Age of the operation that was begun first of those that run; 0 if none.")  # fmt: skip
        self._free = gauge("data_dir_free_bytes", "Room for the daemon on the file system with data_dir.")
        self._size = gauge("data_dir_size_bytes", "Size of the file system with data_dir.")
        self._expiry = gauge("credential_expiry_timestamp_seconds",
                             "When the first certificate of the file runs out; +Inf if there is no such file.",
                             credential=CREDENTIALS)  # fmt: skip
        self._read = gauge("config_last_reload_successful", "0 while a file has become bad and its old content counts.",
                           file=(CONFIGURATION, *FILES))  # fmt: skip
        self._read.labels(CONFIGURATION).set(1)
        for credential in CREDENTIALS:
            self._expiry.labels(credential).set(math.inf)
        for file in FILES:
            self._read.labels(file).set(1)

    def set_configured(self, good: bool) -> None:
        """Whether the configuration could be taken over when it was last read again."""
        self._read.labels(CONFIGURATION).set(good)

    def set_state(self, ready: bool, stuck: int, oldest_age: float) -> None:
        self._ready.set(ready)
        self._stuck.set(stuck)
        self._oldest.set(oldest_age)

    def set_start_possible(self, possible: bool) -> None:
        self._possible.set(possible)

    def set_space(self, free: int, size: int) -> None:
        """In bytes."""
        self._free.set(free)
        self._size.set(size)

    def set_credentials(self, ends: Mapping[str, float], refused: Collection[str]) -> None:
        """`ends` in seconds since 1970, by credential; `refused` are the files that have become bad."""
        for credential, end in ends.items():
            self._expiry.labels(credential).set(end)
        for file in FILES:
            self._read.labels(file).set(file not in refused)
