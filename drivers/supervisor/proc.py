"""What a supervisor reads of /proc: its children, their descendants, the members of a session. Imports only ``posix``.

A scan here is rare (a kill, a signal, an end that leaves processes); what is read at every tick is in
``cameleer.drivers.procfs``.
"""

from __future__ import annotations

import posix

ZOMBIE = b"Z"


class Process:
    """One line of ``/proc/PID/stat``; times in clock ticks, memory in pages.

    :ivar user: CPU time in user mode.
    :ivar system: CPU time in the kernel.
    :ivar children_user: the same of its children that it has waited for.
    :ivar children_system: likewise.
    """

    __slots__ = (
        "children_system",
        "children_user",
        "name",
        "parent",
        "pid",
        "rss",
        "session",
        "start",
        "state",
        "system",
        "threads",
        "user",
    )

    def __init__(self, pid: int, data: bytes) -> None:
        closing = data.rindex(b")")
        rest = data[closing + 2 :].split(None, 22)
        self.pid = pid
        self.name = data[data.index(b"(") + 1 : closing]
        self.state = rest[0]
        self.parent, self.session = int(rest[1]), int(rest[3])
        self.user, self.system = int(rest[11]), int(rest[12])
        self.children_user, self.children_system = int(rest[13]), int(rest[14])
        self.threads = int(rest[17])
        self.start = int(rest[19])
        self.rss = int(rest[21])

    @property
    def row(self) -> bytes:
        """For a message; the name comes last, since it may hold anything but NUL."""
        numbers = b"%d %d %s %d %d %d %d %d " % (
            self.pid,
            self.parent,
            self.state,
            self.start,
            self.user,
            self.system,
            self.rss,
            self.threads,
        )
        return numbers + self.name


def read_file(path: str) -> bytes:
    """The first 4 KB of a file."""
    fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(fd, 4096)
    finally:
        posix.close(fd)


def process(pid: int) -> Process | None:
    """One process; None: it is gone, or hidden from us."""
    try:
        return Process(pid, read_file(f"/proc/{pid}/stat"))
    except (OSError, ValueError, IndexError):
        return None


def start_of(pid: int) -> int | None:
    """Start of a process, clock ticks after boot; None: it is gone."""
    found = process(pid)
    return None if found is None else found.start


def boot_id() -> str:
    """The kernel's name of this boot."""
    return read_file("/proc/sys/kernel/random/boot_id").decode("ascii").strip()


def processes() -> list[Process]:
    """All processes."""
    found = []
    for name in posix.listdir("/proc"):
        if name.isdigit():
            each = process(int(name))
            if each is not None:
                found.append(each)
    return found


def below(roots: set[int], among: list[Process]) -> list[Process]:
    """All descendants of these, parents before children."""
    children: dict[int, list[Process]] = {}
    for each in among:
        children.setdefault(each.parent, []).append(each)
    found: list[Process] = []
    new = list(roots)
    while new:
        generation = [child for parent in new for child in children.pop(parent, ())]
        found += generation
        new = [each.pid for each in generation]
    return found


def children(pid: int) -> list[int]:
    """Direct children of a process with one thread: from one file, or by a scan where the kernel has no such file."""
    try:
        fd = posix.open(f"/proc/{pid}/task/{pid}/children", posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return [each.pid for each in processes() if each.parent == pid]
    try:
        data = b""
        while chunk := posix.read(fd, 65536):
            data += chunk
    finally:
        posix.close(fd)
    return [int(word) for word in data.split()]


def public_pid(outside: int, supervisor: int, pid: int) -> int:
    """The pid that a child has in another /proc; 0: it is not there.

    :param outside: that /proc.
    :param supervisor: the parent's pid there.
    :param pid: the child's pid in its own namespace.
    """
    try:
        for each in _children_there(outside, supervisor):
            try:
                fd = posix.open(f"{each}/status", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=outside)
            except OSError:
                continue
            try:
                status = posix.read(fd, 4096)
            finally:
                posix.close(fd)
            parent = status.partition(b"\nPPid:")[2].split(None, 1)[0]
            if (
                int(parent) == supervisor
                and int(status.partition(b"\nNSpid:")[2].split(b"\n", 1)[0].split()[-1]) == pid
            ):
                return int(each)
    except (OSError, ValueError, IndexError):
        pass
    return 0


def public_pids(outside: int) -> dict[int, int]:
    """The pids that the processes of our own namespace have in another /proc."""
    own = posix.stat("/proc/self/ns/pid")
    found = {}
    for name in posix.listdir(outside):
        if not name.isdigit():
            continue
        try:
            there = posix.stat(f"{name}/ns/pid", dir_fd=outside)
            if (there.st_dev, there.st_ino) != (own.st_dev, own.st_ino):
                continue
            fd = posix.open(f"{name}/status", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=outside)
        except OSError:
            continue
        try:
            status = posix.read(fd, 4096)
        except OSError:
            continue
        finally:
            posix.close(fd)
        inside = status.partition(b"\nNSpid:")[2].split(b"\n", 1)[0].split()
        if inside:
            found[int(inside[-1])] = int(name)
    return found


def _children_there(outside: int, pid: int) -> list[str]:
    """Candidates for children of a process of another /proc; all processes where the kernel lists none."""
    try:
        fd = posix.open(f"{pid}/task/{pid}/children", posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=outside)
    except OSError:
        return [name for name in posix.listdir(outside) if name.isdigit()]
    try:
        data = b""
        while chunk := posix.read(fd, 65536):
            data += chunk
    finally:
        posix.close(fd)
    return data.decode("ascii").split()
