"""A row for each process of a group, on request: there is no cheap way to have them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from cameleer.drivers.cgroup import kernel
from cameleer.errors import RecoverableError, TaskNotFound

if TYPE_CHECKING:
    from cameleer.driver import Tick
    from cameleer.usage import Counters, ProcessRow

MOST: Final = 500
"""Processes that get a row, those with the lowest pids: a reading of more would hold up those of other tasks."""


def with_rows(counters: Counters, tick: Tick, folder: str) -> Counters:
    """Counters of a group with a row for each process, where the tick asks for that.

    :raises TaskNotFound: the group is gone.
    :raises RecoverableError: as :func:`rows`.
    """
    return msgspec.structs.replace(counters, per_process=rows(folder)) if tick.per_process else counters


def rows(folder: str, proc: str = "/proc") -> tuple[ProcessRow, ...]:
    """One row for each process of a group and of the groups inside, by pid; at most ``MOST``.

    A process that ends meanwhile, or may not be read, has none.

    :param folder: of the group, of version 2 or of any controller of version 1.
    :param proc: where proc is mounted.
    :raises TaskNotFound: the group is gone.
    :raises RecoverableError: a line is garbled; descriptors are used up.
    """
    try:
        pids = sorted(kernel.all_members(folder))[:MOST]
        if not pids and not os.path.isdir(folder):
            raise TaskNotFound(f"the group {folder} was removed")
        return tuple(found for pid in pids if (found := _row(f"{proc}/{pid}/stat")) is not None)
    except OSError as exc:
        raise RecoverableError(f"cannot read {exc.filename or folder}: {exc.strerror}") from exc


def _row(path: str) -> ProcessRow | None:
    from cameleer.drivers.procfs.identity import GONE  # seldom asked for, and no start should pay for it
    from cameleer.drivers.procfs.member import row
    from cameleer.drivers.procfs.parse import STAT_BYTES

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return row(os.read(fd, STAT_BYTES), path)
        finally:
            os.close(fd)
    except PermissionError:
        return None
    except OSError as exc:
        if exc.errno in GONE:
            return None
        raise
