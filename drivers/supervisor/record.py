"""The record of a task on disk: whose it is, who looks after it, how it ended. Imports only ``posix``.

A folder ``tasks/<digest of the id>`` holds the file ``record`` and, for tasks that can be found again, the socket
``control``. The file has its full size from the start, so that a disk that fills up later cannot lose the result; each
of its three slots is written once, in place, and counts only when its last field is there.
"""

# ruff: noqa: SIM105 # contextlib would be one more import
from __future__ import annotations

import posix

from .protocol import Message, Value, fields, parse

NAME = b"record"
SOCKET = b"control"

SUPERVISOR = (0, 4096)
"""id, supervisor (pid), supervisor_start, boot, terminal, leave_rest, recoverable; group (the one killed as a whole)"""
COMMAND = (4096, 1024)
"""pid, start, session (0: the caller's)"""
RESULT = (5120, 7168)
"""what the message ``exited`` holds"""

SIZE = RESULT[0] + RESULT[1]
_LAST = "complete"


def create(folder: bytes) -> int:
    """Make the file at its full size; its descriptor."""
    fd = posix.open(
        folder + b"/" + NAME, posix.O_RDWR | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC | posix.O_NOFOLLOW, 0o600
    )
    zeros = bytes(SIZE)
    while zeros:
        zeros = zeros[posix.write(fd, zeros) :]
    return fd


def fits(slot: tuple[int, int], **values: Value) -> bool:
    """Whether these fields find room."""
    return len(fields(**values, complete=1)) <= slot[1]


def write(fd: int, slot: tuple[int, int], **values: Value) -> None:
    """Fill a slot."""
    data = fields(**values, complete=1)
    if len(data) > slot[1]:
        raise ValueError("the fields do not fit into their slot")
    posix.pwrite(fd, data, slot[0])


def read(folder: bytes, slot: tuple[int, int]) -> Message | None:
    """The fields of a slot; None while it is empty or half written.

    :raises FileNotFoundError: there is no such record.
    """
    fd = posix.open(folder + b"/" + NAME, posix.O_RDONLY | posix.O_CLOEXEC | posix.O_NOFOLLOW)
    try:
        found = parse(posix.pread(fd, slot[1], slot[0]))
    finally:
        posix.close(fd)
    return found if _LAST in found else None


def remove(folder: bytes) -> None:
    """Remove the folder and what we put into it; twice without error."""
    for name in (SOCKET, NAME):
        try:
            posix.unlink(folder + b"/" + name)
        except OSError:
            continue
    try:
        posix.rmdir(folder)
    except FileNotFoundError:
        pass
