"""Groups of version 2: one folder, whose controllers the folders above must hand down.

A group that hands controllers down may hold no process, the root of the tree excepted. So in a delegated subtree our
own process has to leave the subtree's root for a leaf, once; that is done only where the caller allows it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
from collections.abc import Iterable, Sequence
from typing import Final

from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.mode import DEFAULT_PARENT
from cameleer.errors import ConfigError, NotSupported

_OURS: Final = "user.cameleer"
"""Attribute of the levels that we made."""
_TRIES: Final = 50


def enable(folder: str, controllers: Iterable[str]) -> None:
    """Hand controllers down to the groups inside. One that the kernel refuses is left out: its limits then say so.

    :raises NotSupported: processes are in the folder.
    :raises OSError: the folder is gone, no permission.
    """
    path = f"{folder}/cgroup.subtree_control"
    missing = set(controllers) - set(kernel.read(path).split())
    if not missing:
        return
    try:
        kernel.write(path, " ".join(f"+{name}" for name in sorted(missing)))
        return
    except OSError as exc:
        if exc.errno == errno.EBUSY:
            raise NotSupported(_busy(folder)) from exc
        if exc.errno in kernel.GONE and not os.path.isdir(folder):
            raise
    for name in sorted(missing):
        try:
            kernel.write(path, f"+{name}")
        except OSError as exc:
            if exc.errno == errno.EBUSY:
                raise NotSupported(_busy(folder)) from exc
            if exc.errno not in (errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP):
                raise


def make_level(folder: str) -> None:
    """Make a level above tasks' groups, if it is not there, and mark it as ours.

    :raises OSError: the level above is missing, no permission.
    """
    if kernel.make(folder):
        with contextlib.suppress(OSError):  # before Linux 5.7
            os.setxattr(folder, _OURS, b"1")


def protect(node: str, *, less: bool = False) -> None:
    """Let the ``memory.low`` of the groups in a node's folder hold: no group is protected beyond what those above are.

    The folder, and the levels above that we made, get the sum of those inside: with more than that, where the mount has
    ``memory_recursiveprot``, all other groups inside would be protected too. Levels of others stay as they are.

    :param less: a group has gone: nothing to do where nothing was protected.
    :raises OSError: no permission.
    """
    level = node
    while level == node or _is_ours(level):
        try:
            _add_up(level, less=less)
        except OSError as exc:
            if exc.errno not in kernel.GONE:  # the level is, or has no memory controller
                raise
        level = os.path.dirname(level)


def _is_ours(level: str) -> bool:
    try:
        return bool(os.getxattr(level, _OURS))
    except OSError:
        return os.path.basename(level) == DEFAULT_PARENT


def _add_up(folder: str, *, less: bool) -> None:
    """Set what a level is protected by; until it is right, since others may do so too."""
    path = f"{folder}/memory.low"
    for _ in range(_TRIES):
        now = kernel.read(path).strip()
        if less and now == "0":
            return
        wanted = _sum(_low(each) for each in kernel.children(folder))
        if now == wanted:
            return
        kernel.write(path, wanted)


def _low(folder: str) -> str:
    try:
        return kernel.read(f"{folder}/memory.low").strip()
    except OSError as exc:
        if exc.errno in kernel.GONE:
            return "0"
        raise


def _sum(amounts: Iterable[str]) -> str:
    found = list(amounts)
    return "max" if "max" in found else str(sum(map(int, found)))


def enabled(folder: str) -> frozenset[str]:
    """Controllers that groups inside have."""
    return frozenset(kernel.read(f"{folder}/cgroup.subtree_control").split())


def leave(base: str, leaf: str, pids: Iterable[int]) -> None:
    """Move processes from a subtree's root into a leaf of it.

    :raises OSError: no permission.
    """
    target = f"{base}/{leaf}"
    kernel.make(target)
    for pid in pids:
        try:
            kernel.write(f"{target}/cgroup.procs", str(pid))
        except ProcessLookupError:
            continue


def confirm_cpus(folder: str, asked: str) -> None:
    """Check that the processors asked for are those that a group got: version 2 accepts any number.

    :raises ConfigError: others are in effect.
    """
    from cameleer.drivers.cgroup.limits import cpus

    effective = kernel.read(f"{folder}/cpuset.cpus.effective")
    if cpus(effective) != cpus(asked):
        raise ConfigError(
            f"Resources.cpuset_cpus is {asked!r}: of these, {folder} can have {effective.strip() or 'none'!r}"
        )


def freeze(folder: str, timeout_s: float) -> bool:
    """Stop all processes of a group and of those inside where they are; whether all have stopped in time."""
    kernel.write(f"{folder}/cgroup.freeze", "1")
    return wait_for(folder, "frozen 1", timeout_s)


def thaw(folder: str) -> None:
    """Let all processes run, also those in groups inside that were frozen by themselves."""
    for each in (folder, *kernel.nested(folder)):
        try:
            kernel.write(f"{each}/cgroup.freeze", "0")
        except OSError as exc:
            if exc.errno not in kernel.GONE:
                raise


def wait_for(folder: str, line: str, timeout_s: float) -> bool:
    """Wait until ``cgroup.events`` has a line, such as ``populated 0``; True also when the group is gone."""
    deadline = time.monotonic() + timeout_s
    try:
        fd = os.open(f"{folder}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        poll = select.poll()
        poll.register(fd, select.POLLPRI)
        while line not in os.pread(fd, 4096, 0).decode().splitlines():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll.poll(left * 1000)
    except OSError as exc:
        if exc.errno == errno.ENODEV:
            return True
        raise
    finally:
        os.close(fd)
    return True


def _busy(folder: str) -> str:
    pids: Sequence[int] = kernel.members(folder)
    shown = ", ".join(map(str, pids[:5]))
    return f"controllers cannot be enabled for groups inside {folder}: processes are in it ({shown})"
