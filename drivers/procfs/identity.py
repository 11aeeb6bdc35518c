"""Which process a pid means: pid, start time and boot together name a process for good, a pid alone does not."""

from __future__ import annotations

import errno
import functools
import os

import msgspec

from cameleer.drivers.procfs.parse import STAT_BYTES, parse_stat
from cameleer.errors import RecoverableError, TaskNotFound, UnrecoverableError

#: What the kernel answers for a process that is gone: no such entry, or the entry was open and its process ended.
GONE = (errno.ENOENT, errno.ESRCH)


class ProcessIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """One process, told from every other that had or will have its pid.

    :ivar pid: the process.
    :ivar start_ticks: its start, clock ticks after boot.
    :ivar boot_id: the boot, as the kernel names it.
    """

    pid: int
    start_ticks: int
    boot_id: str

    def exists(self, proc_root: str = "/proc") -> bool:
        """Whether this very process still has its pid; a zombie has.

        :param proc_root: where proc is mounted.
        :raises RecoverableError: its line in /proc cannot be read or is garbled.
        """
        try:
            return process_identity(self.pid, proc_root) == self
        except TaskNotFound:
            return False


def translate(exc: OSError, path: str) -> RecoverableError | UnrecoverableError:
    """Make the error that a driver raises of one that reading a process's file gave.

    :param exc: the foreign error.
    :param path: the file.
    """
    if exc.errno in GONE:
        return TaskNotFound(f"cannot read {path}: the process is gone ({exc.strerror})")
    if exc.errno in (errno.EACCES, errno.EPERM):
        return UnrecoverableError(
            f"cannot read {path}: {exc.strerror}; the process belongs to somebody else, or proc is mounted with hidepid"
        )
    return RecoverableError(f"cannot read {path}: {exc.strerror}")


@functools.cache
def boot_id(proc_root: str = "/proc") -> str:
    """The kernel's name of this boot; another one means that every pid and start time is void.

    :param proc_root: where proc is mounted.
    :raises RecoverableError: it cannot be read.
    """
    path = f"{proc_root}/sys/kernel/random/boot_id"
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError as exc:
        raise RecoverableError(f"cannot read {path}: {exc.strerror}") from exc


def start_ticks(pid: int, proc_root: str = "/proc") -> int:
    """When a process started, in clock ticks after boot (``starttime`` of proc(5)).

    :param pid: the process.
    :param proc_root: where proc is mounted.
    :raises TaskNotFound: there is no such process.
    :raises UnrecoverableError: its line may not be read.
    :raises RecoverableError: its line is garbled, or descriptors are used up.
    """
    path = f"{proc_root}/{pid}/stat"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, STAT_BYTES)
        finally:
            os.close(fd)
    except OSError as exc:
        raise translate(exc, path) from exc
    return parse_stat(data, path).start_ticks


def process_identity(pid: int, proc_root: str = "/proc") -> ProcessIdentity:
    """Name the process that has this pid now.

    :param pid: the process.
    :param proc_root: where proc is mounted.
    :raises TaskNotFound: there is no such process.
    :raises UnrecoverableError: its line may not be read.
    :raises RecoverableError: its line is garbled, or descriptors are used up.
    """
    return ProcessIdentity(pid=pid, start_ticks=start_ticks(pid, proc_root), boot_id=boot_id(proc_root))
