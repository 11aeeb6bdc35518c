"""The few file operations that groups of both versions are made of. Errors are the kernel's own: callers name them."""

from __future__ import annotations

import errno
import os

GONE = (errno.ENOENT, errno.ENODEV)
"""A group that was removed: before its file was opened, or after."""
_NO_PROCESSES_HERE = errno.EOPNOTSUPP
"""A threaded group of version 2: its processes are listed by the group above."""


def read(path: str) -> str:
    """The text of a file.

    :raises OSError: as ``open(2)`` and ``read(2)``; ENODEV: the group was removed while the file was open.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    except OSError as exc:
        exc.filename = path
        raise
    finally:
        os.close(fd)
    return b"".join(parts).decode("utf-8", "replace")


def write(path: str, text: str) -> None:
    """Write to a file that exists, in one call, as the kernel wants it.

    :raises OSError: as ``open(2)`` and ``write(2)``.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as exc:
        exc.filename = path
        raise
    finally:
        os.close(fd)


def make(folder: str) -> bool:
    """Make one group; whether it is new.

    :raises OSError: as ``mkdir(2)``, but for EEXIST.
    """
    try:
        os.mkdir(folder, 0o755)
    except FileExistsError:
        return False
    return True


def remove(folder: str) -> bool:
    """Remove one group; whether it is gone now. False: processes or groups are in it.

    :raises OSError: as ``rmdir(2)``, but for these and for one that is gone already.
    """
    try:
        os.rmdir(folder)
    except OSError as exc:
        if exc.errno in (errno.EBUSY, errno.ENOTEMPTY, errno.EEXIST):
            return False
        if exc.errno not in GONE:
            raise
    return True


def children(folder: str) -> list[str]:
    """The groups directly inside; empty when it is gone."""
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as exc:
        if exc.errno in GONE:
            return []
        raise


def nested(folder: str) -> list[str]:
    """All groups inside, parents before children; a group that a task makes may be any number of levels deep."""
    found: list[str] = []
    new = children(folder)
    while new:
        found += new
        new = [below for each in new for below in children(each)]
    return found


def members(folder: str) -> list[int]:
    """Processes of this one group; empty when it is gone. Those outside our pid namespace, listed as 0, are missing."""
    try:
        words = read(f"{folder}/cgroup.procs").split()
    except OSError as exc:
        if exc.errno in GONE or exc.errno == _NO_PROCESSES_HERE:
            return []
        raise
    return [pid for pid in map(int, words) if pid > 0]


def all_members(folder: str) -> set[int]:
    """Processes of a group and of all groups inside."""
    found = set(members(folder))
    for each in nested(folder):
        found.update(members(each))
    return found
