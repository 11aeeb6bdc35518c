"""Which groups a process is in, from ``/proc/PID/cgroup``."""

from __future__ import annotations

from typing import Final

from cameleer.drivers.cgroup.parse import garbled

UNIFIED: Final = "unified"
"""Stands for version 2, as in :class:`~cameleer.drivers.cgroup.mode.CgroupMode`."""
DELETED: Final = " (deleted)"
"""What the kernel writes behind the path of a group that was removed while a dead process was still listed in it."""


def parse(data: bytes, source: str = "/proc/PID/cgroup") -> dict[str, str]:
    """Path of the group by controller (``name=systemd`` for a hierarchy that only has a name), version 2's by UNIFIED.

    A path begins with ``/..`` where the group is outside of the reader's cgroup namespace.

    :param data: the whole text.
    :param source: the file's path, for the error.
    :raises RecoverableError: the text is cut short or garbled.
    """
    if not data.endswith(b"\n"):
        raise garbled(source, data)
    found: dict[str, str] = {}
    for line in data[:-1].decode("utf-8", "surrogateescape").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not (number.isascii() and number.isdigit() and path.startswith("/")):
            raise garbled(source, data)
        for name in controllers.split(",") if controllers else (UNIFIED,):
            found[name] = path
    return found
