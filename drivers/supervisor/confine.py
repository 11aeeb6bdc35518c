"""What a supervisor and its child do to confine a command: groups, namespaces, a root of its own, capabilities.

Import-free, as those two. What is to be done comes as plain fields of the task's specification, from ``confinement``:
``enter`` (files of groups), ``own_group`` and ``group_parent`` (folders), ``kill_group``, ``root``…
"""

# ruff: noqa: SIM105 # contextlib would be one more import
from __future__ import annotations

import errno
import posix

from . import syscalls
from .protocol import Message, number
from .syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_PRIVATE, MS_RDONLY, MS_REC, MS_REMOUNT, MS_SLAVE

_SIGKILL = 9
_FOLDER, _LINK, _KIND = 0o040000, 0o120000, 0o170000
_CHARACTERS = 0o020000
_DEVICES = ((b"null", 1, 3), (b"zero", 1, 5), (b"full", 1, 7), (b"random", 1, 8), (b"urandom", 1, 9), (b"tty", 5, 0))
_LINKS = (
    (b"ptmx", b"pts/ptmx"),
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
)
_NULL = posix.makedev(1, 3)
_HIDDEN = (b"kcore", b"keys", b"timer_list", b"sched_debug")
_READ_ONLY = (b"bus", b"fs", b"irq", b"sys", b"sysrq-trigger")
_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 23, 24, 38, 47, 4
_PR_SET_DUMPABLE = 4
_LAST_CAPABILITY = 63


class Failed(Exception):
    """A step failed: the message says which."""


class NotEntered(Failed):
    """A group could not be entered."""


def write(path: str | bytes, data: bytes) -> None:
    """Write to a file of the kernel's in one call."""
    fd = posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC)
    try:
        posix.write(fd, data)
    finally:
        posix.close(fd)


# the supervisor's part


def own_processes() -> tuple[int, int]:
    """For the first process of a new namespace: see only its own in /proc.

    :returns: the old /proc, and our pid there.
    """
    outside = posix.open("/proc", posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC)
    try:
        pid = int(posix.readlink("self", dir_fd=outside))
        own_mounts(MS_SLAVE)  # what the host unmounts goes here too, so that a task pins nothing
        syscalls.mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except BaseException:
        posix.close(outside)
        raise
    return outside, pid


def own_mounts(kind: int) -> None:
    """Leave the host's mounts; from now on what is mounted here is seen nowhere else, and goes with its last user.

    :param kind: ``MS_SLAVE``: what the host mounts and unmounts is seen here; ``MS_PRIVATE``: it is not.
    """
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", None, MS_REC | kind)


def kill_group(spec: Message) -> bool:
    """SIGKILL everything in the task's own group, frozen meanwhile; whether anything was there."""
    folder = spec["kill_group"][0]
    if number(spec, "group_version") == 2:
        try:
            write(folder + b"/cgroup.kill", b"1")
        except FileNotFoundError:
            pass
        else:
            return bool(_members(folder))
    frozen = folder + (b"/cgroup.freeze" if number(spec, "group_version") == 2 else b"/freezer.state")
    on, off = (b"1", b"0") if frozen.endswith(b"freeze") else (b"FROZEN", b"THAWED")
    found = _members(folder)
    if not found:
        return False
    try:
        write(frozen, on)
    except OSError:  # it is gone, or cannot be frozen now
        pass
    for pid in _members(folder):
        try:
            posix.kill(pid, _SIGKILL)
        except OSError:
            continue
    try:
        write(frozen, off)
    except OSError:
        pass
    return True


def _members(folder: bytes) -> list[int]:
    found: list[int] = []
    for each in _tree(folder):
        try:
            fd = posix.open(each + b"/cgroup.procs", posix.O_RDONLY | posix.O_CLOEXEC)
        except OSError:
            continue
        try:
            while data := posix.read(fd, 65536):
                found += [int(word) for word in data.split()]  # the kernel hands over whole lines
        except OSError:
            pass
        finally:
            posix.close(fd)
    return [pid for pid in found if pid > 0]  # 0: in a namespace that we do not see


def _tree(folder: bytes) -> list[bytes]:
    """A group and those inside, parents first."""
    found = [folder]
    for each in found:
        try:
            names = posix.listdir(each)
        except OSError:
            continue
        found += [each + b"/" + name for name in names if _kind(each + b"/" + name) == _FOLDER]
    return found


def remove_groups(spec: Message) -> None:
    """Remove the task's own groups, as far as they are empty, and the folders above that only they were in."""
    for folder in spec.get("own_group", ()):
        for each in reversed(_tree(folder)):
            _remove(each)
    for folder in spec.get("group_parent", ()):
        _remove(folder)


def _remove(folder: bytes) -> None:
    try:
        posix.rmdir(folder)
    except OSError:
        pass


def _kind(path: bytes) -> int:
    try:
        return posix.lstat(path).st_mode & _KIND
    except OSError:
        return 0


# the child's part


def open_groups(spec: Message) -> list[int]:
    """Descriptors of the files that take a process into its groups: they are out of reach in another root."""
    found = []
    for path in spec.get("enter", ()):
        try:
            found.append(posix.open(path, posix.O_WRONLY | posix.O_CLOEXEC))
        except OSError as exc:
            raise NotEntered(f"cannot enter the group {_text(path)}: {posix.strerror(exc.errno or 0)}") from exc
    return found


def enter_groups(opened: list[int], spec: Message) -> None:
    """Enter them: from here on what this process uses counts as the task's."""
    for fd, path in zip(opened, spec.get("enter", ()), strict=True):
        try:
            posix.write(fd, b"0")
        except OSError as exc:
            raise NotEntered(f"cannot enter the group {_text(path)}: {posix.strerror(exc.errno or 0)}") from exc


def enter_root(spec: Message) -> None:
    """Build the task's own root, in mounts of our own, and leave the host's for good."""
    _check_program()
    base = spec["root"][0]
    old_mask = posix.umask(0)
    try:
        own_mounts(MS_PRIVATE)
        _mount(b"tmpfs", base, b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=0755,size=4m")
        for kind, source, target in zip(
            spec.get("bind_kind", ()), spec.get("bind_source", ()), spec.get("bind_target", ()), strict=True
        ):
            _attach(base, kind, source, target)
        _make_devices(base + b"/dev", spec)
        _make_processes(base + b"/proc", base + b"/dev/null")
        _mount(None, base, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
        posix.chdir(base)
        try:
            syscalls.pivot_root(b".", b".")  # the old root is then mounted on top of the new one
            syscalls.unmount(b".")
        except OSError as exc:
            raise _failed("change the root to", base, exc) from exc
        posix.chdir("/")
    except OSError as exc:
        path = exc.filename if isinstance(exc.filename, bytes) else base
        raise _failed("build the task's root at", path, exc) from exc
    finally:
        posix.umask(old_mask)


def _check_program() -> None:
    """Refuse where root in the task could change what we run, which is the host's: see ``readonly``."""
    path = "/proc/self/exe"
    if not posix.statvfs(path).f_flag & posix.ST_RDONLY and not posix.readlink(path).startswith("/memfd:"):
        raise Failed(f"the task could change {posix.readlink(path)}, which it is forked from")


def use_own_null() -> None:
    """In the task's root: have its own ``/dev/null`` as those standard streams that are the host's.

    Root may change whatever it has open, such as the mode of the host's device.
    """
    for target in range(3):
        if posix.fstat(target).st_rdev == _NULL:
            fd = posix.open("/dev/null", posix.O_RDWR | posix.O_NOCTTY | posix.O_CLOEXEC)
            posix.dup2(fd, target, True)
            posix.close(fd)


def _attach(base: bytes, kind: bytes, source: bytes, target: bytes) -> None:
    """Show a path of the host (``ro``, ``rw``), as it is where it is a link; or make a folder in memory (``tmp``)."""
    name, _, mode = kind.partition(b":")
    target = _inside(base, target)
    if name == b"tmp":
        _make_folders(base, target)
        _mount(b"tmpfs", target, b"tmpfs", MS_NOSUID | MS_NODEV, b"mode=" + mode)
        return
    what = _kind(source)
    if what == _LINK and mode == b"link":
        if _kind(target) == 0:
            _make_folders(base, target.rpartition(b"/")[0])
            posix.symlink(posix.readlink(source), target)
        return
    fd = posix.open(source, posix.O_PATH | posix.O_CLOEXEC | (posix.O_NOFOLLOW if name == b"own" else 0))
    try:
        what = posix.fstat(fd).st_mode & _KIND
        if what == _LINK:
            raise OSError(errno.ELOOP, posix.strerror(errno.ELOOP), source)
        if what == _FOLDER:
            _make_folders(base, target)
        else:
            _make_folders(base, target.rpartition(b"/")[0])
            if _kind(target) == 0:
                posix.close(posix.open(target, posix.O_CREAT | posix.O_EXCL | posix.O_WRONLY | posix.O_CLOEXEC, 0o644))
        if _kind(target) == _LINK:
            raise OSError(errno.ELOOP, posix.strerror(errno.ELOOP), target)
        _mount(b"/proc/self/fd/%d" % fd, target, None, MS_BIND | MS_REC)  # what was looked at, whatever is there now
    finally:
        posix.close(fd)
    _protect(target, read_only=name == b"ro")


def _inside(base: bytes, path: bytes) -> bytes:
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts or not parts:
        raise OSError(errno.EINVAL, posix.strerror(errno.EINVAL), path)
    return base + b"/" + b"/".join(parts)


def _make_folders(base: bytes, path: bytes) -> None:
    """Make a folder of the new root; a link on the way, which would lead out of it, is refused."""
    at = base
    for part in path[len(base) :].split(b"/"):
        if not part:
            continue
        at = at + b"/" + part
        what = _kind(at)
        if what == 0:
            posix.mkdir(at, 0o755)
        elif what != _FOLDER:
            raise OSError(errno.ENOTDIR, posix.strerror(errno.ENOTDIR), at)


def _protect(target: bytes, *, read_only: bool) -> None:
    try:
        syscalls.protect_tree(target, read_only=read_only)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        flags = MS_REMOUNT | MS_BIND | MS_NOSUID | MS_NODEV | (MS_RDONLY if read_only else 0)
        for each in _mounted_below(target):
            _mount(None, each, None, flags)


def _mounted_below(target: bytes) -> list[bytes]:
    fd = posix.open("/proc/self/mountinfo", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        data = b""
        while chunk := posix.read(fd, 65536):
            data += chunk
    finally:
        posix.close(fd)
    points = [_plain(line.split(b" ", 5)[4]) for line in data.splitlines()]
    return [point for point in points if point == target or point.startswith(target + b"/")]


def _plain(path: bytes) -> bytes:
    for octal, byte in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(octal, byte)
    return path


def _make_processes(proc: bytes, null: bytes) -> None:
    """A fresh /proc, without what would let the task's root change the machine; it is empty there.

    :param null: the task's own; its mode could be changed through what it hides, but for a mount that is read-only.
    """
    posix.mkdir(proc, 0o755)
    _mount(b"proc", proc, b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in _READ_ONLY:
        path = proc + b"/" + name
        if _kind(path):
            _mount(path, path, None, MS_BIND | MS_REC)
            _mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name in _HIDDEN:
        path = proc + b"/" + name
        if _kind(path):
            _mount(null, path, None, MS_BIND)
            _mount(None, path, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)


def _make_devices(dev: bytes, spec: Message) -> None:
    posix.mkdir(dev, 0o755)
    _mount(b"tmpfs", dev, b"tmpfs", MS_NOSUID | MS_NOEXEC, b"mode=0755,size=64k")
    for name, major, minor in _DEVICES:
        posix.mknod(dev + b"/" + name, _CHARACTERS | 0o666, posix.makedev(major, minor))
    for source, target in zip(spec.get("device_source", ()), spec.get("device_target", ()), strict=True):
        found = posix.stat(source)
        path = _inside(dev, target.removeprefix(b"/dev/"))
        _make_folders(dev, path.rpartition(b"/")[0])
        posix.mknod(path, found.st_mode, found.st_rdev)
        posix.chown(path, found.st_uid, found.st_gid)
    for name, to in _LINKS:
        posix.symlink(to, dev + b"/" + name)
    for name, kind, options in (
        (b"pts", b"devpts", b"newinstance,ptmxmode=0666,mode=0620,gid=5"),
        (b"shm", b"tmpfs", b"mode=1777,size=64m"),
    ):
        posix.mkdir(dev + b"/" + name, 0o755)
        flags = MS_NOSUID | MS_NOEXEC | (MS_NODEV if name == b"shm" else 0)
        _mount(kind, dev + b"/" + name, kind, flags, options)
    _mount(None, dev, None, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NOEXEC)


def _mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int, data: bytes | None = None) -> None:
    try:
        syscalls.mount(source, target, kind, flags, data)
    except OSError as exc:
        raise _failed("mount", target, exc) from exc


def enter_mounts(fd: int) -> None:
    """Enter the root of a task that runs."""
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWNS)
    except OSError as exc:
        raise _failed("enter the task's", b"root", exc) from exc


def keep_out_of_reach(spec: Message) -> None:
    """Of what is still the host's: our memory and files, until the exec, and the keys of its session.

    A task that is no more confined than another command of its user keeps the keys, as that would.

    :raises OSError: the user has too many keys.
    """
    if not number(spec, "own_ipc") and not {"uid", "root", "capabilities"} & spec.keys():
        return
    syscalls.prctl(_PR_SET_DUMPABLE, 0)  # a process of the task with our rights may see us come: a further command
    try:
        syscalls.own_keyring()
    except OSError as exc:
        if exc.errno not in (errno.ENOSYS, errno.EPERM):  # EPERM: a container's filter, which the task is under too
            raise


def limit_capabilities(spec: Message) -> None:
    """Take capabilities from what this process and all it starts can ever get; before it changes its user."""
    if "capabilities" not in spec:
        return
    kept = number(spec, "capabilities")
    try:
        for each in range(_LAST_CAPABILITY + 1):
            if kept >> each & 1:
                continue
            try:
                syscalls.prctl(_PR_CAPBSET_DROP, each)
            except OSError as exc:
                if exc.errno != errno.EINVAL:  # beyond the kernel's last one
                    raise
                break
    except OSError as exc:
        raise Failed(f"cannot drop capabilities: {posix.strerror(exc.errno or 0)}") from exc


def drop_privileges(spec: Message) -> None:
    """After the user was changed: nothing is inherited, nothing can be gained."""
    if "capabilities" in spec:
        syscalls.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        kept = number(spec, "capabilities") & _permitted() if posix.geteuid() == 0 else 0
        syscalls.set_capabilities(kept, kept, 0)
    if number(spec, "no_new_privileges"):
        syscalls.prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _permitted() -> int:
    fd = posix.open("/proc/self/status", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        status = posix.read(fd, 8192)
    finally:
        posix.close(fd)
    return int(status.partition(b"\nCapPrm:")[2].split(None, 1)[0], 16)


def _failed(what: str, path: bytes, exc: OSError) -> Failed:
    return Failed(f"cannot {what} {_text(path)}: {posix.strerror(exc.errno or 0)}")


def _text(path: bytes) -> str:
    return path.decode("utf-8", "replace")
