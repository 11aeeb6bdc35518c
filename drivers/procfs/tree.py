"""One task's processes and what they used: the reading side of the shared table.

Counters are sums over the root's waited-for children and every live member, read parents before children, so a process
that ends in between is missed for one reading rather than counted twice; what is shown never falls. Nothing here is
divided by time. What ended without being waited for by anybody of the tree (its parent ignores SIGCHLD, or it was
re-parented out of a tree whose root is no subreaper) is known only as far as it was seen alive; a cgroup sees it all.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cameleer.drivers.procfs.identity import GONE, translate
from cameleer.drivers.procfs.member import Member
from cameleer.drivers.procfs.parse import STAT_BYTES, parse_io, parse_smaps_rollup, parse_stat
from cameleer.drivers.procfs.units import NS_PER_TICK, PAGE_BYTES
from cameleer.errors import TaskNotFound, UnrecoverableError

if TYPE_CHECKING:
    from cameleer.drivers.procfs.files import ProcFiles
    from cameleer.usage import MissingReason, ProcessRow

_Read = TypeVar("_Read")


class TreeUsage(msgspec.Struct, frozen=True, gc=False):
    """What a tree used, from one line of /proc for each process; counters never fall.

    CPU time comes in clock ticks, usually of 10 ms, and is rounded down for each process.

    :ivar cpu_user_ns: CPU time in user mode, ended processes included, nanoseconds; counter.
    :ivar cpu_system_ns: CPU time in the kernel, likewise; counter.
    :ivar rss_bytes: the members' resident memory added up: an upper bound, since a page that several of them share
        counts for each.
    :ivar minor_faults: page faults without IO, ended processes included; counter.
    :ivar major_faults: page faults with IO, ended processes included; counter.
    :ivar processes: members now, zombies included.
    :ivar threads: threads of the members now.
    :ivar seen: processes that were ever seen in the tree: a lower bound, since one that comes and goes between two
        scans is not seen; counter.
    """

    cpu_user_ns: int
    cpu_system_ns: int
    rss_bytes: int
    minor_faults: int
    major_faults: int
    processes: int
    threads: int
    seen: int


class TreeExtended(msgspec.Struct, frozen=True, gc=False):
    """What a tree used as far as it is dear to read: two more files for each process; counters never fall.

    Each value is None when it can be read of no process of the tree.

    :ivar read_bytes: bytes fetched from storage, ended processes included; counter.
    :ivar write_bytes: bytes sent to storage or its cache, ended processes included; counter.
    :ivar read_ops: system calls of the read family, on whatever kind of file; counter.
    :ivar write_ops: system calls of the write family; counter.
    :ivar io_missing: why there are no IO counters; None when there are. Where only some processes may not be read
        (another user's) the counters lack theirs until they have ended and were waited for.
    :ivar voluntary_switches: context switches of all threads because they waited. The kernel shows them for live
        threads only: those that ended are in as last seen. Counter.
    :ivar involuntary_switches: the same because their time was up; counter.
    :ivar swap_bytes: swapped out memory of the members, added up; shared pages count for each.
    :ivar peak_process_bytes: the most memory that any single process of the tree was seen to have had (VmHWM).
    """

    read_bytes: int | None
    write_bytes: int | None
    read_ops: int | None
    write_ops: int | None
    io_missing: MissingReason | None
    voluntary_switches: int | None
    involuntary_switches: int | None
    swap_bytes: int | None
    peak_process_bytes: int | None


class Rising:
    """A sum of counters that is shown without ever falling.

    The sum falls for one reading while a process ends between the reading of its reaper and its own: then the last
    value is held. It falls for good when a process ended that nobody of the tree waited for: then what is lost is
    added from there on, so that new work shows at once. Either way the value stays a lower bound of the truth.
    """

    __slots__ = ("lost", "value")

    def __init__(self) -> None:
        self.lost = 0
        self.value = 0

    def update(self, total: int, settled: bool) -> int:
        """Take a new sum and return what to show.

        :param total: the sum as read.
        :param settled: no process ended while it was read, so a fall is for good.
        """
        value = total + self.lost
        if value >= self.value:
            self.value = value
        elif settled:
            self.lost = self.value - total
        return self.value


class Tree:
    """A task's processes. Made by :meth:`ProcessTable.track`; :meth:`ProcessTable.refresh` finds new ones.

    Its methods may be called from any thread; calls of one tree wait for each other, those of others go on.

    :ivar root_pid: the process below which the tree grows.
    :ivar root_start_ticks: that process's start, clock ticks after boot.
    :ivar include_root: whether that process itself counts.
    :ivar untracked: it was let go of and can no longer be read.
    """

    def __init__(self, files: ProcFiles, pid: int, include_root: bool) -> None:
        root = Member(files, pid)
        if not root.read():
            raise TaskNotFound(f"there is no process {pid}")
        self.root_pid = pid
        self.root_start_ticks = int(root.start)
        self.include_root = include_root
        self.untracked = False
        self._files = files
        self._root = root
        self._members: dict[int, Member] = {}  # parents before children: in the order in which they were attached
        self._arrived: deque[Member] = deque()  # put there by the table, in whatever thread
        self._lock = threading.Lock()
        self._gone = False
        self._seen = 1 if include_root else 0
        self._user = Rising()
        self._system = Rising()
        self._minor = Rising()
        self._major = Rising()
        self._io = (Rising(), Rising(), Rising(), Rising())
        self._ended_voluntary = 0
        self._ended_involuntary = 0
        self._peak: int | None = None

    def __repr__(self) -> str:
        return f"<Tree of process {self.root_pid}, {len(self._members)} members below it>"

    @property
    def gone(self) -> bool:
        """Whether a reading found that the root is gone, and with it the tree."""
        return self._gone

    @property
    def pids(self) -> tuple[int, ...]:
        """The members as far as the last refresh and reading know, parents before children."""
        with self._lock:
            self._take_arrived()
            below = tuple(self._members)
        return (self.root_pid, *below) if self.include_root and not self._gone else below

    def usage(self) -> TreeUsage:
        """Read CPU time, memory, faults and counts: one kept descriptor for each process.

        Does not look for new processes: call :meth:`ProcessTable.refresh` before.

        :raises TaskNotFound: the root is gone, and with it the tree.
        :raises UnrecoverableError: the tree is not tracked.
        :raises RecoverableError: a line of /proc is garbled, or descriptors are used up.
        """
        return self._locked(self._usage)

    def extended(self) -> TreeExtended:
        """Read IO, context switches, swap and peaks: two files opened for each process, and one for each thread.

        Takes the members as they are: call :meth:`usage` before. Errors as there.
        """
        return self._locked(self._extended)

    def pss(self) -> int | None:
        """Read proportional memory, bytes: each shared page divided by the number of processes that map it.

        The kernel walks every page of every process, so ask seldom. A member whose figure may not be read (another
        user's) counts with its resident set. None when that goes for all of them, or the kernel has no such figure
        (before 4.14). Takes the members as they are: call :meth:`usage` before. Errors as there.
        """
        return self._locked(self._pss)

    def rows(self) -> tuple[ProcessRow, ...]:
        """One row for each member, parents before children, as the last :meth:`usage` read them."""
        return self._locked(lambda: tuple(member.row() for member in self._counted()))

    def root_state(self) -> str:
        """The state letter of the root now; Z says that it ended and nobody has waited for it yet. Errors as above."""
        self._locked(self._read_root)
        return parse_stat(self._root.data, self._root.stat_path).state

    def _locked(self, read: Callable[[], _Read]) -> _Read:
        lock = self._lock
        lock.acquire()
        try:
            if self.untracked:
                raise UnrecoverableError(f"the tree of process {self.root_pid} is no longer tracked")
            if self._gone:
                raise TaskNotFound(f"process {self.root_pid}, the root of the tree, is gone")
            return read()
        finally:
            lock.release()
            if self.untracked:  # while it was read
                self._close()

    def _read_root(self) -> None:
        if not self._root.read():
            self._gone = True
            self._close_members()
            raise TaskNotFound(f"process {self.root_pid}, the root of the tree, is gone")

    def _usage(self) -> TreeUsage:
        if self._arrived:
            self._take_arrived()
        self._read_root()
        root = self._root
        user, system, minor, major = root.user, root.system, root.minor, root.major
        if self.include_root:
            processes, threads, rss_pages = 1, root.threads, root.rss_pages
        else:
            processes = threads = rss_pages = 0
            user -= root.own_user
            system -= root.own_system
            minor -= root.own_minor
            major -= root.own_major
        settled = self._read_members()
        for member in self._members.values():
            user += member.user
            system += member.system
            minor += member.minor
            major += member.major
            rss_pages += member.rss_pages
            threads += member.threads
        return TreeUsage(
            self._user.update(user, settled) * NS_PER_TICK,
            self._system.update(system, settled) * NS_PER_TICK,
            rss_pages * PAGE_BYTES,
            self._minor.update(minor, settled),
            self._major.update(major, settled),
            processes + len(self._members),
            threads,
            self._seen,
        )

    def _read_members(self) -> bool:
        """Read every member's line, parents before children; false when one was found gone."""
        pread = os.pread
        gone: list[Member] | None = None
        for member in self._members.values():
            if member.fd >= 0:
                try:
                    data = pread(member.fd, STAT_BYTES, 0)
                except OSError as exc:
                    if exc.errno not in GONE:
                        raise translate(exc, member.stat_path) from exc
                else:
                    if data == member.data or member.load(data):
                        continue
            elif member.read():
                continue
            gone = [member] if gone is None else [*gone, member]
        if gone is None:
            return True
        for member in gone:
            self._let_go(member)
        return False

    def _take_arrived(self) -> None:
        arrived = self._arrived
        while arrived:
            member = arrived.popleft()
            before = self._members.get(member.pid)
            if before is not None:  # ended, and its pid has a new owner
                self._let_go(before)
            self._members[member.pid] = member
            self._seen += 1

    def _let_go(self, member: Member) -> None:
        """Forget a process that ended, keeping what only live ones show."""
        del self._members[member.pid]
        self._ended_voluntary += member.voluntary or 0
        self._ended_involuntary += member.involuntary or 0
        member.close()

    def _counted(self) -> list[Member]:
        return [self._root, *self._members.values()] if self.include_root else list(self._members.values())

    def _extended(self) -> TreeExtended:
        # A process's IO counts the children that it waited for, as its CPU time does: so the root is read first, and
        # also where it does not count itself. The few lines that a supervisor writes cannot be told apart.
        swap_bytes = voluntary = involuntary = None
        io = [0, 0, 0, 0]
        readable = forbidden = 0
        settled = True
        for member in (self._root, *self._members.values()):
            of_one = None
            try:
                data = member.file("io")
                if data:
                    of_one = parse_io(data, member.stat_path.removesuffix("stat") + "io")
            except PermissionError:
                forbidden += 1
            status = member.status() if self.include_root or member is not self._root else None
            if not member.read():  # then the pid may have had another owner already
                settled = False
                continue
            if of_one is not None:
                readable += 1
                io[0] += of_one.read_bytes
                io[1] += of_one.write_bytes
                io[2] += of_one.read_ops
                io[3] += of_one.write_ops
            if status is None:
                continue
            if status.peak_rss_bytes is not None and (self._peak is None or status.peak_rss_bytes > self._peak):
                self._peak = status.peak_rss_bytes
            if status.swap_bytes is not None:
                swap_bytes = (swap_bytes or 0) + status.swap_bytes
            if member.voluntary is not None and member.involuntary is not None:
                voluntary = (voluntary or 0) + member.voluntary
                involuntary = (involuntary or 0) + member.involuntary
        io_missing: MissingReason | None = None
        totals: list[int | None] = [None, None, None, None]
        if readable:
            totals = [rising.update(total, settled) for rising, total in zip(self._io, io, strict=True)]
        else:
            io_missing = "not permitted" if forbidden else "unsupported"
        if voluntary is not None or self._ended_voluntary or self._ended_involuntary:
            voluntary = (voluntary or 0) + self._ended_voluntary
            involuntary = (involuntary or 0) + self._ended_involuntary
        return TreeExtended(
            totals[0],
            totals[1],
            totals[2],
            totals[3],
            io_missing,
            voluntary,
            involuntary,
            swap_bytes,
            self._peak,
        )

    def _pss(self) -> int | None:
        pss_bytes = 0
        known, members = False, self._counted()
        for member in members:
            try:
                data = member.file("smaps_rollup")
            except PermissionError:
                data = None
            if not member.read():  # then the pid may have had another owner already
                continue
            if data is None:
                pss_bytes += member.rss_pages * PAGE_BYTES
                continue
            known = True
            if data:
                pss_bytes += parse_smaps_rollup(data, member.stat_path.removesuffix("stat") + "smaps_rollup").pss_bytes
        return pss_bytes if known or not members else None

    def attach(self, pid: int, start_ticks: bytes) -> None:
        """Count a process to the tree from its next reading on. For the table: never waits."""
        self._arrived.append(Member(self._files, pid, start_ticks))
        if self.untracked:
            self._close()

    def untrack(self) -> None:
        """Close the descriptors, at once or when the running read has ended; twice without error. Never waits."""
        self.untracked = True
        self._close()

    def _close(self) -> None:
        # Who holds the lock looks at `untracked` after letting go of it, so one of the two always gets here.
        if self._lock.acquire(blocking=False):
            try:
                self._close_members()
                self._root.close()
            finally:
                self._lock.release()

    def _close_members(self) -> None:
        self._arrived.clear()
        for member in self._members.values():
            member.close()
        self._members.clear()
