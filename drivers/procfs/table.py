"""Which processes belong to which task, found by one scan of /proc for all tasks of a host.

Nothing is scanned while nothing was created: the kernel tells the last pid it gave out. Else one listing of /proc is
compared with the one before by pid and inode (a reused pid has a new inode), only what is new is read, and each new
process is counted to the trees of its parent. Membership is remembered: an orphan stays where it was. What escapes is a
process whose parent came and went between two scans, unless the root is a subreaper and so inherits it.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NamedTuple

from cameleer.drivers.procfs.files import ProcFiles
from cameleer.drivers.procfs.identity import GONE
from cameleer.drivers.procfs.parse import PPID, START, STAT_BYTES, STAT_SPLITS, garbled, parse_last_pid, stat_fields
from cameleer.drivers.procfs.tree import Tree
from cameleer.drivers.procfs.units import CLOCK_TICKS_PER_S
from cameleer.errors import RecoverableError

FULL_SCAN_NS = 30_000_000_000
"""The longest time without a listing: the last pid may come round to the same value."""

YOUNG_TICKS = CLOCK_TICKS_PER_S // 5
"""A root so young, 0.2 s, has its descendants among the pids given out since: nobody can use up all pids so fast."""

_LOADAVG_BYTES = 128


class _Owner(NamedTuple):
    """A live process of one or several trees.

    :ivar start: its start as the kernel writes it.
    :ivar trees: where its children belong.
    """

    start: bytes
    trees: tuple[Tree, ...]


class ProcessTable:
    """The processes of all tasks of one host; one table for each mount of proc is enough.

    May be used from any threads; :meth:`track` and :meth:`untrack` never wait for a scan or a reading.

    :ivar scans: listings taken so far.
    :param proc_root: where proc is mounted.
    """

    def __init__(self, proc_root: str = "/proc") -> None:
        self.scans = 0
        self._root = proc_root
        self._files = ProcFiles(proc_root)
        self._lock = threading.Lock()
        self._tick: object | None = None
        self._trees: set[Tree] = set()
        self._arrived: list[Tree] = []  # not searched for yet
        self._listing: dict[str, int] = {}  # name: inode
        self._owners: dict[str, _Owner] = {}  # by name
        self._unplaced: set[str] = set()  # read once, with a parent that is not in the listing
        self._last_pid: int | None = None
        self._settled = False
        self._scan_due_ns = 0
        self._loadavg = -1
        self._same_namespace: bool | None = None

    def track(self, pid: int, include_root: bool = True) -> Tree:
        """Begin to count a process and its descendants, those that exist and those to come.

        :param include_root: whether the process itself counts. Without it only its ended children and its descendants
            do: so a supervisor is left out.
        :raises TaskNotFound: there is no such process.
        :raises RecoverableError: descriptors are used up.
        """
        tree = Tree(self._files, pid, include_root)
        self._trees.add(tree)
        self._arrived.append(tree)
        self._tick = None
        return tree

    def untrack(self, tree: Tree) -> None:
        """Let go of a tree; twice without error. Its descriptors are closed, but never under a running read."""
        self._trees.discard(tree)
        tree.untrack()

    def refresh(self, tick: object | None = None) -> None:
        """Find out about new processes, once for each tick.

        :param tick: the sweep's own object; the same one again costs nothing. None: look now.
        :raises RecoverableError: /proc cannot be listed, or a line of it is garbled.
        """
        if tick is not None and tick is self._tick:
            return
        with self._lock:
            if tick is not None and tick is self._tick:
                return
            self._tick = tick  # before the scan: a tree that arrives meanwhile takes it away again
            try:
                self._follow()
            except OSError as exc:
                self._tick = None
                raise RecoverableError(f"cannot list {self._root}: {exc.strerror}") from exc
            except BaseException:
                self._tick = None
                raise

    def close(self) -> None:
        """Let go of every tree and close every descriptor; twice without error."""
        for tree in list(self._trees):
            self.untrack(tree)
        with self._lock:
            self._files.close()
            if self._loadavg >= 0:
                os.close(self._loadavg)
                self._loadavg = -1

    def _follow(self) -> None:
        if not self._trees:
            self._listing, self._owners, self._last_pid = {}, {}, None
            return
        last_pid = self._read_last_pid()
        now_ns = time.monotonic_ns()
        unchanged = last_pid is not None and last_pid == self._last_pid
        if unchanged and self._settled and not self._arrived and now_ns < self._scan_due_ns:
            return
        # A pid is given out some microseconds before /proc shows it: one more listing, a tick later, settles it.
        self._settled = unchanged
        self._last_pid = last_pid
        self._scan_due_ns = now_ns + FULL_SCAN_NS
        try:
            self._scan()
        except BaseException:
            self._last_pid = None
            raise

    def _read_last_pid(self) -> int | None:
        """The pid or thread id given out last; None where it says nothing about this mount of proc."""
        if self._same_namespace is None:
            try:
                self._same_namespace = os.readlink(f"{self._root}/self") == str(os.getpid())
            except OSError:
                self._same_namespace = False
        if not self._same_namespace:
            return None
        path = f"{self._root}/loadavg"
        if self._loadavg < 0:
            self._loadavg = self._files.keep(path)
        if self._loadavg < 0:
            return parse_last_pid(self._files.read(path, _LOADAVG_BYTES), path)
        return parse_last_pid(os.pread(self._loadavg, _LOADAVG_BYTES, 0), path)

    def _scan(self) -> None:
        self.scans += 1
        arrived, self._arrived = self._arrived, []
        try:
            known = self._listing
            listing = self._files.inodes(self._root)
            get = known.get
            new = [name for name, inode in listing.items() if get(name) != inode] if known else []
            self._forget_ended(listing)
            for tree in arrived:
                name = str(tree.root_pid)
                owner = self._owners.get(name)
                start = b"%d" % tree.root_start_ticks
                trees = owner.trees if owner is not None and owner.start == start else ()
                self._owners[name] = _Owner(start, (*trees, tree))
            if arrived:
                new = list(dict.fromkeys((*new, *self._candidates(arrived, listing))))
            found: dict[str, tuple[str, bytes]] = {}
            for name in new:
                if name.isdigit():
                    self._read(name, listing, found)
            self._place(found)
            self._listing = listing
        except BaseException:
            self._arrived.extend(arrived)
            raise

    def _forget_ended(self, listing: dict[str, int]) -> None:
        for name, owner in list(self._owners.items()):
            if name not in listing:
                del self._owners[name]
            elif any(tree.untracked for tree in owner.trees):
                trees = tuple(tree for tree in owner.trees if not tree.untracked)
                if trees:
                    self._owners[name] = _Owner(owner.start, trees)
                else:
                    del self._owners[name]

    def _candidates(self, arrived: list[Tree], listing: dict[str, int]) -> list[str]:
        """Which processes may be descendants of new roots; their parents are read, whether known or not."""
        last = self._read_last_pid()  # after the listing, so that it bounds what the listing shows
        now_ticks = time.clock_gettime(time.CLOCK_BOOTTIME) * CLOCK_TICKS_PER_S
        names = [name for name in listing if name.isdigit()]
        if last is None or any(not 0 <= now_ticks - tree.root_start_ticks < YOUNG_TICKS for tree in arrived):
            return names
        # Pids are given out in rising order and begin again at the limit; the earliest root stands for all.
        _, first = min((tree.root_pid <= last, tree.root_pid) for tree in arrived)
        if first <= last:
            return [name for name in names if first <= int(name) <= last]
        return [name for name in names if int(name) >= first or int(name) <= last]

    def _read(self, name: str, listing: dict[str, int], found: dict[str, tuple[str, bytes]]) -> None:
        path = f"{self._root}/{name}/stat"
        try:
            data = self._files.read(path, STAT_BYTES)
        except OSError as exc:
            if exc.errno in GONE or isinstance(exc, PermissionError):  # somebody else's, under hidepid
                return
            raise
        fields = stat_fields(data)
        if len(fields) <= STAT_SPLITS:
            raise garbled(path, data)
        parent = fields[PPID].decode("ascii", "replace")
        found[name] = parent, fields[START]
        # A parent that the listing lacks came after its place in it had passed, or may not be seen: look once more.
        if parent != "0" and parent not in listing and name not in self._unplaced:
            self._unplaced.add(name)
            self._settled = False
            del listing[name]
        else:
            self._unplaced.discard(name)

    def _place(self, found: dict[str, tuple[str, bytes]]) -> None:
        """Count each found process to the trees of its parent, parents first."""
        owners = self._owners
        placed: set[str] = set()
        for name in found:
            chain = []
            link = name
            while link in found and link not in placed:
                placed.add(link)
                chain.append(link)
                link = found[link][0]
            for link in reversed(chain):
                parent_name, start = found[link]
                parent, owner = owners.get(parent_name), owners.get(link)
                trees = owner.trees if owner is not None and owner.start == start else ()
                added = [tree for tree in parent.trees if tree not in trees] if parent is not None else []
                if trees or added:
                    owners[link] = _Owner(start, (*trees, *added))
                elif owner is not None:
                    del owners[link]
                for tree in added:
                    tree.attach(int(link), start)
