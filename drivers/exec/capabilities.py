"""Names of the kernel's capabilities, and the mask of those that a task may ever have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cameleer.errors import ConfigError

_NAMES: Final = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
]
ALL: Final = (1 << 64) - 1
"""Also what later kernels add."""
_HARMLESS: Final = (
    "audit_write chown dac_override fowner fsetid kill net_bind_service setfcap setgid setpcap setuid sys_chroot"
)


def mask(names: Sequence[str], field: str) -> int:
    """The bits of names such as ``net_raw``, ``CAP_NET_RAW`` or ``all``.

    :raises ConfigError: there is no such capability.
    """
    bits = 0
    for position, name in enumerate(names):
        word = name.lower().removeprefix("cap_")
        if word == "all":
            return ALL
        if word not in _NAMES:
            raise ConfigError(f"driver_config.{field}[{position}] is {name!r}: there is no such capability")
        bits |= 1 << _NAMES.index(word)
    return bits


def kept(drop: Sequence[str], add: Sequence[str], *, own_root: bool) -> int | None:
    """The bounding set of a task; None: it is left as it is.

    In a root of its own the short list is where it starts from: with all capabilities no root is one that root cannot
    leave.
    """
    dropped, added = mask(drop, "cap_drop"), mask(add, "cap_add")
    if not own_root and not drop:
        return None
    start = mask(_HARMLESS.split(), "") if own_root else ALL
    return (start & ~dropped) | added
