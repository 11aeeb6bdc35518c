"""A program that root in a root of its own cannot change through ``/proc/self/exe``.

Until its exec a task's process has that of whoever forked it, and a command named ``/proc/self/exe``, or a link to it,
or a script with it in its first line, executes that again and keeps it: the host's own file, in the host's own mount.
So the program is executed from a copy of the mounts that is read-only and that nobody can make anything else of.
"""

from __future__ import annotations

import fcntl
import os

from cameleer.drivers.supervisor import syscalls

_MFD_EXEC = 0x10
"""Since Linux 6.3; without it an administrator may have forbidden executing."""
_CHUNK = 1 << 20


def program(path: str) -> tuple[int, str]:
    """Make such a program of one of the host's.

    :return: a descriptor that must be open, also in the new process, until that has begun to run; and what to execute.
    :raises OSError: it cannot be made.
    """
    real = os.path.realpath(path)  # an absolute link would lead out of the copy
    try:
        mounts = syscalls.copy_tree(b"/")
    except OSError:
        return _in_memory(real)
    try:
        syscalls.protect_tree(b"", read_only=True, at=mounts)
    except OSError:
        os.close(mounts)
        return _in_memory(real)
    return mounts, f"/proc/self/fd/{mounts}{real}"


def _in_memory(path: str) -> tuple[int, str]:
    """For kernels before 5.12: a copy of the file, which is nobody's but that process's."""
    fd = _memory(os.path.basename(path))
    try:
        with open(path, "rb") as file:
            while os.sendfile(fd, file.fileno(), None, _CHUNK):
                pass
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW)
    except BaseException:  # whatever it is: a copy that is not sealed must not be left open
        os.close(fd)
        raise
    return fd, f"/proc/self/fd/{fd}"


def _memory(name: str) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create(name, flags | _MFD_EXEC)
    except OSError:
        return os.memfd_create(name, flags)
