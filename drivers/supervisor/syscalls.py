"""System calls that Python's library lacks: by the C part of ctypes alone, since the whole costs 3 ms and 0.1 MB more.

Looked up at import, so that it is done once, in the launcher, and not in every supervisor.
"""

from __future__ import annotations

import _ctypes
import posix

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 4096, 1 << 14, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000

_PROGRAM_ITSELF: str = None  # type: ignore[assignment] # as dlopen(3) has it; the stub lacks it
_PLAIN, _KEEPS_ERRNO = 0x1, 0x8
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_SYS_MOUNT_SETATTR = 442
_CAPABILITY_VERSION_3 = 0x20080522


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg] # cannot be subscripted at run time
    _type_ = "i"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _PLAIN | _KEEPS_ERRNO
    _restype_ = _Int


_library = _ctypes.dlopen(_PROGRAM_ITSELF, 0)
_prctl, _mount, _umount2, _unshare, _setns, _pivot_root, _capset, _syscall = (
    _Function(_ctypes.dlsym(_library, name))
    for name in ("prctl", "mount", "umount2", "unshare", "setns", "pivot_root", "capset", "syscall")
)


def _done(result: int, path: bytes | None = None) -> None:
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, posix.strerror(number), path)


def prctl(option: int, value: int, third: int = 0) -> None:
    """Set an attribute of this process.

    :raises OSError: refused, or the kernel has no such option.
    """
    _done(_prctl(option, value, third, 0, 0))


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones; of processes: for children."""
    _done(_unshare(flags))


def setns(fd: int, kind: int) -> None:
    """Join a namespace; of processes: for children."""
    _done(_setns(fd, kind))


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    """``mount(2)``."""
    _done(_mount(source, target, kind, flags, data), target)


def unmount(target: bytes) -> None:
    """Detach a mount, with all below it; what is in use goes when its last user does."""
    _done(_umount2(target, MNT_DETACH), target)


def pivot_root(new: bytes, old: bytes) -> None:
    """``pivot_root(2)``."""
    _done(_pivot_root(new, old), new)


def protect_tree(target: bytes, *, read_only: bool) -> None:
    """Without set-id programs and devices, and read-only if asked: a mount and all below it, in one call.

    :raises OSError: ENOSYS before Linux 5.12.
    """
    attributes = _ATTR_NOSUID | _ATTR_NODEV | (_ATTR_RDONLY if read_only else 0)
    words = attributes.to_bytes(8, "little") + bytes(24)  # set, clear, propagation, user namespace
    _done(_syscall(_SYS_MOUNT_SETATTR, _AT_FDCWD, target, _AT_RECURSIVE, words, len(words)), target)


def set_capabilities(effective: int, permitted: int, inheritable: int) -> None:
    """``capset(2)`` of this process."""
    header = _CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4)
    half = 0xFFFFFFFF
    data = b"".join(
        (each >> shift & half).to_bytes(4, "little")
        for shift in (0, 32)
        for each in (effective, permitted, inheritable)
    )
    _done(_capset(header, data))
