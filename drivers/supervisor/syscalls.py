"""System calls that Python's library lacks: by the C part of ctypes alone, since the whole costs 3 ms and 0.1 MB more.

Looked up at import, so that it is done once, in the launcher, and not in every supervisor.
"""

from __future__ import annotations

import _ctypes
import errno
import posix

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 4096, 1 << 14, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID = 0x00020000, 0x08000000, 0x20000000

_PROGRAM_ITSELF: str = None  # type: ignore[assignment] # as dlopen(3) has it; the stub lacks it
_PLAIN, _KEEPS_ERRNO = 0x1, 0x8
_AT_RECURSIVE, _AT_EMPTY_PATH, _AT_FDCWD = 0x8000, 0x1000, -100
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, posix.O_CLOEXEC
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_SYS_OPEN_TREE, _SYS_MOUNT_SETATTR = 428, 442  # the same everywhere
_KEYCTL = {
    **dict.fromkeys(("aarch64", "riscv64", "loongarch64"), 219),
    "x86_64": 250,
    "ppc64": 271,
    "ppc64le": 271,
    "s390x": 280,
}
"""Its number where processes are of 64 bits."""
_JOIN_SESSION_KEYRING = 1
_LONG_BYTES = 8
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


def copy_tree(target: bytes) -> int:
    """Descriptor of a copy of a mount and all below it, which goes with it; mounted nowhere.

    :raises OSError: ENOSYS before Linux 5.2.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_RECURSIVE
    fd = _syscall(_SYS_OPEN_TREE, _AT_FDCWD, target, flags)
    _done(fd, target)
    return int(fd)


def protect_tree(target: bytes, *, read_only: bool, at: int = _AT_FDCWD) -> None:
    """Without set-id programs and devices, and read-only if asked: a mount and all below it, in one call.

    :param target: empty: what ``at`` is open on.
    :raises OSError: ENOSYS before Linux 5.12.
    """
    attributes = _ATTR_NOSUID | _ATTR_NODEV | (_ATTR_RDONLY if read_only else 0)
    words = attributes.to_bytes(8, "little") + bytes(24)  # set, clear, propagation, user namespace
    flags = _AT_RECURSIVE | (0 if target else _AT_EMPTY_PATH)
    _done(_syscall(_SYS_MOUNT_SETATTR, at, target, flags, words, len(words)), target)


def own_keyring() -> None:
    """Leave the session's keyring for an empty one without a name.

    :raises OSError: EDQUOT: the user has too many keys; ENOSYS: the kernel has no keyrings, or we do not know how.
    """
    number = _KEYCTL.get(posix.uname().machine)
    if number is None or memoryview(b"").cast("l").itemsize != _LONG_BYTES:
        raise OSError(errno.ENOSYS, posix.strerror(errno.ENOSYS))
    _done(_syscall(number, _JOIN_SESSION_KEYRING, None))


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
