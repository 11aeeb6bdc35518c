"""What a group used, as the counters of the contract, for the price of a few reads of open files.

::

    counters = CgroupCounters(group.paths)
    counters.read(tick)  # Counters
    counters.close()

Where each field comes from is in :mod:`cameleer.drivers.cgroup.fields`. Nothing here waits: a driver that reads by this
alone may say ``reads_never_block``.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from time import monotonic_ns, time_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Final, NoReturn, TypeVar

from cameleer.drivers.cgroup import kernel, parse
from cameleer.drivers.cgroup.fields import files, given_by, group
from cameleer.drivers.cgroup.files import SHORTAGE, Files
from cameleer.drivers.cgroup.inside import Inside
from cameleer.drivers.cgroup.network import NetworkCounters
from cameleer.errors import RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.usage import (
    NO_CPU,
    NO_IO,
    NO_MEMORY,
    NO_NETWORK,
    NO_PRESSURE,
    NO_PROCESSES,
    Counters,
    CpuUsage,
    IoUsage,
    MemoryUsage,
    MissingReason,
    NetworkUsage,
    PressureUsage,
    ProcessUsage,
)

if TYPE_CHECKING:
    from cameleer.driver import Tick
    from cameleer.drivers.cgroup.paths import GroupPaths

T = TypeVar("T")

NUMBER_BYTES: Final = 24
CLOSED: Final = -1
"""In place of a file."""
NEVER_NS: Final = 1 << 62
NOT_KEPT: Final[tuple[bytes, ...]] = ()
"""In place of texts of a task that runs: kept for each of many tasks they would only fill the processor's cache."""
_SMALL_BYTES: Final = 256
_PIDLIST_NS: Final = 1_500_000_000
"""Version 1 keeps a list of processes for a second after its last use, and hands it out again to the same open file."""

_reasons: dict[tuple[tuple[str, MissingReason], ...], Mapping[str, MissingReason]] = {}  # equal ones are one object


class _UnixTime:
    """How far Unix time is ahead of the monotonic clock; looked up once for all tasks of a sweep.

    :ivar tick: the sweep for which it was.
    """

    __slots__ = ("ahead_ns", "tick")

    def __init__(self) -> None:
        self.tick: object = None
        self.ahead_ns = 0

    def look(self, tick: object) -> None:
        self.ahead_ns = time_ns() - monotonic_ns()
        self.tick = tick


_UNIX: Final = _UnixTime()


class _SmallFile:
    """A file of the extended tier whose text the kernel hands out in one piece.

    :ivar data: what it said last, not parsed again while it is the same; None: nothing yet, which is not empty.
    """

    __slots__ = ("data", "handle", "name", "size")

    def __init__(self, name: str, handle: int) -> None:
        self.name = name
        self.handle = handle
        self.size = _SMALL_BYTES
        self.data: bytes | None = None


class CgroupCounters:
    """Turns the files of one group into :class:`~cameleer.usage.Counters`. One :meth:`read` at a time.

    The core tier (CPU, throttling, memory) is read each time: at most 6 files on version 1, 5 on version 2. The rest is
    read when the tick asks, else handed over again under its own time (``extended_at_ns``). Descriptors stay open;
    where there are not enough, each file is opened for each read, and a warning in the log says so once.

    A task that does nothing costs one read: once its CPU counter has stood still for ``idle_after_s``, the rest is
    handed out again under its true age, read anew every ``refresh_s``, and at once when the counter moves or a fresh
    reading is asked for.
    """

    _parsers: ClassVar[Mapping[str, Callable[[bytes, str], object]]]
    """How the small files of the extended tier are parsed."""
    _first_bytes: ClassVar[int]
    """Enough of the first file; small texts are dearer where a large one is asked for."""
    _has_news: bool
    _inside: Inside
    _small: tuple[_SmallFile, ...]
    _unknown: dict[str, MissingReason]
    _values: dict[str, object]
    __slots__ = (
        "_core",
        "_cpu",
        "_extended",
        "_extended_at_ns",
        "_first",
        "_first_data",
        "_folders",
        "_has_news",
        "_has_quota",
        "_idle_after_ns",
        "_idle_until_ns",
        "_inodes",
        "_inside",
        "_io",
        "_memory",
        "_memory_at_ns",
        "_missing",
        "_network",
        "_network_usage",
        "_owes_extended",
        "_pread",
        "_pressure",
        "_processes",
        "_procs_at_ns",
        "_refresh_ns",
        "_settles_at_ns",
        "_small",
        "_unknown",
        "_values",
        "_version",
        "is_closed",
    )

    def __new__(
        cls,
        paths: GroupPaths,
        *,
        has_quota: bool | None = None,
        adaptive: bool = True,
        idle_after_s: float = 3.0,
        refresh_s: float = 30.0,
        network_pid: int | None = None,
    ) -> CgroupCounters:
        """Make the form for the version of the group."""
        if cls is not CgroupCounters:
            return object.__new__(cls)
        if paths.version == 1:
            from cameleer.drivers.cgroup.reader_v1 import CgroupCountersV1

            return object.__new__(CgroupCountersV1)
        from cameleer.drivers.cgroup.reader_v2 import CgroupCountersV2

        return object.__new__(CgroupCountersV2)

    def __init__(
        self,
        paths: GroupPaths,
        *,
        has_quota: bool | None = None,
        adaptive: bool = True,
        idle_after_s: float = 3.0,
        refresh_s: float = 30.0,
        network_pid: int | None = None,
    ) -> None:
        """Open the files.

        :param paths: the group.
        :param has_quota: whether it has a CPU quota; None: looked up now. Without one the throttling counters of
            version 1 are read in the extended tier only, until they move.
        :param adaptive: read only the CPU counter of a task that does nothing.
        :param idle_after_s: how long that counter must have stood still; below 3 s ``memory.stat`` may lag behind.
        :param refresh_s: how old the rest may get.
        :param network_pid: a process of the task, for the figures of its network namespace.
        :raises TaskNotFound: there is no such group.
        """
        self._version = paths.version
        self._folders = dict(paths.folders)
        self._has_quota = has_quota
        self._idle_after_ns = int(idle_after_s * 1e9) if adaptive else NEVER_NS
        self._refresh_ns = int(refresh_s * 1e9)
        self._cpu: CpuUsage = NO_CPU
        self._memory: MemoryUsage = NO_MEMORY
        self._io: IoUsage = NO_IO
        self._processes: ProcessUsage = NO_PROCESSES
        self._pressure: PressureUsage = NO_PRESSURE
        self._network_usage: NetworkUsage = NO_NETWORK
        self._missing: Mapping[str, MissingReason] = {}
        self._first_data = b""
        self._memory_at_ns = 0
        self._extended_at_ns = 0
        self._settles_at_ns = 0
        self._idle_until_ns = 0
        self._procs_at_ns = 0
        self._owes_extended = True
        self.is_closed = False
        self._network: NetworkCounters | None = None
        self._open()
        if network_pid is not None:
            self._network = NetworkCounters(network_pid)
            self._explain()

    def read(self, tick: Tick) -> Counters:
        """Say what the group used so far, in nanoseconds and bytes. Never waits.

        :raises TaskNotFound: the group was removed.
        :raises RecoverableError: a text is garbled or cut short; descriptors are used up.
        :raises UnrecoverableError: it was closed.
        """
        at_ns = monotonic_ns()
        if _UNIX.tick is not tick:
            _UNIX.look(tick)
        taken_at_ns = at_ns + _UNIX.ahead_ns
        try:
            data = self._pread(self._first, self._first_bytes, 0)
            if data != self._first_data:
                self._settles_at_ns = at_ns + self._idle_after_ns
            elif (
                at_ns < self._idle_until_ns
                and not tick.fresh
                and (not tick.extended or self._extended_at_ns >= self._settles_at_ns)
            ):
                if tick.extended:
                    self._owes_extended = True
                return Counters(
                    at_ns=at_ns,
                    taken_at_ns=taken_at_ns,
                    memory_at_ns=self._memory_at_ns,
                    extended_at_ns=self._extended_at_ns,
                    missing=self._missing,
                    cpu=self._cpu,
                    memory=self._memory,
                    io=self._io,
                    network=self._network_usage,
                    processes=self._processes,
                    pressure=self._pressure,
                )
            extended = tick.extended or tick.fresh or self._owes_extended or 0 < self._idle_until_ns <= at_ns
            if extended:
                self._read_extended(at_ns)
            self._read_core(data, extended)
        except BaseException as exc:
            self._idle_until_ns, self._owes_extended = 0, True
            if isinstance(exc, OSError):
                self._broken(exc)
            raise
        self._memory_at_ns = at_ns
        self._idle_until_ns = at_ns + self._refresh_ns if at_ns >= self._settles_at_ns else 0
        return Counters(
            at_ns=at_ns,
            taken_at_ns=taken_at_ns,
            extended_at_ns=None if extended else self._extended_at_ns,
            missing=self._missing,
            cpu=self._cpu,
            memory=self._memory,
            io=self._io,
            network=self._network_usage,
            processes=self._processes,
            pressure=self._pressure,
        )

    def close(self) -> None:
        """Close the files; twice without error. Not under a running :meth:`read`."""
        self.is_closed = True
        self._first = CLOSED
        self._core.close()
        self._extended.close()
        if self._network is not None:
            self._network.close()

    # -- what the versions differ in -----------------------------------------------------------------------------

    def _opened(self) -> None:
        """Take the handles of the core tier, and forget what was read."""
        raise NotImplementedError

    def _read_core(self, data: bytes, extended: bool) -> None:
        """Read CPU and memory.

        :param data: of the first file, which may be what it was.
        :param extended: the extended part of the memory group may have changed.
        """
        raise NotImplementedError

    def _take_memory(self) -> None:
        """Take the part of the memory group that is in the extended tier."""
        raise NotImplementedError

    def _count_io(self) -> IoUsage:
        """Add up IO."""
        raise NotImplementedError

    def _folder(self, controller: str) -> str | None:
        """Where the files of a controller are; empty: those that every controller has."""
        raise NotImplementedError

    # -- the extended tier ---------------------------------------------------------------------------------------

    def _read_extended(self, at_ns: int) -> None:
        self._inside.look(at_ns)
        processes = self._count_processes(at_ns)
        self._read_files()
        if self._has_news:
            self._io = self._count_io()
            self._pressure = self._count_pressure()
        if self._has_news or processes != self._processes.processes:
            threads, limit = self._value("pids.current", int), self._value("pids.max", int)
            self._processes = ProcessUsage(processes=processes, threads=threads, limit=limit)
        self._has_news = False
        self._take_memory()
        if self._network is not None:
            self._network_usage = self._network.read()
            if self._network.missing is not None and "network" not in self._missing:
                self._explain()
        self._extended_at_ns = at_ns
        self._owes_extended = False

    def _count_processes(self, at_ns: int) -> int | None:
        """Processes of the group and of those inside; None where the kernel does not list them."""
        if "cgroup.procs" not in self._extended.handles:
            return None
        folder = self._folder("")
        assert folder is not None
        soon = self._version == 1 and at_ns - self._procs_at_ns < _PIDLIST_NS
        self._procs_at_ns = at_ns
        source = f"{folder}/cgroup.procs"
        try:
            data = kernel.read(source).encode() if soon else self._extended.whole("cgroup.procs")
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            self._drop("cgroup.procs", "unsupported")  # a threaded group
            return None
        return parse.processes(data, source) + self._inside.processes

    def _count_pressure(self) -> PressureUsage:
        of_cpu = self._value("cpu.pressure", parse.Pressure)
        of_memory = self._value("memory.pressure", parse.Pressure)
        of_io = self._value("io.pressure", parse.Pressure)
        if of_cpu is of_memory is of_io is None:
            return NO_PRESSURE
        return PressureUsage(
            cpu_some_ns=None if of_cpu is None else of_cpu.some_ns,
            cpu_full_ns=None if of_cpu is None else of_cpu.full_ns,
            memory_some_ns=None if of_memory is None else of_memory.some_ns,
            memory_full_ns=None if of_memory is None else of_memory.full_ns,
            io_some_ns=None if of_io is None else of_io.some_ns,
            io_full_ns=None if of_io is None else of_io.full_ns,
        )

    def _read_files(self) -> None:
        """Read the small files of the extended tier, and parse those that say something else than before."""
        pread = self._extended.pread
        for file in self._small:
            try:
                data = pread(file.handle, file.size, 0)
                while len(data) == file.size:
                    file.size *= 2
                    data = pread(file.handle, file.size, 0)
            except OSError as exc:
                if exc.errno != errno.EOPNOTSUPP:
                    raise
                self._drop(file.name, "disabled")
                continue
            if data != file.data:
                self._values[file.name] = self._parsers[file.name](data, self._path(file.name))
                file.data, self._has_news = data, True

    def _value(self, name: str, kind: type[T]) -> T | None:
        """What a file of the extended tier said; None: it is not there, or holds no limit."""
        value = self._values.get(name)
        return value if isinstance(value, kind) else None

    def _drop(self, name: str, reason: MissingReason) -> None:
        self._extended.drop(name, reason)
        self._values.pop(name, None)
        self._has_news = True
        self._small = tuple(each for each in self._small if each.name != name)
        self._explain()

    # -- files ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open all files anew.

        :raises TaskNotFound: there is no such group.
        :raises RecoverableError: they cannot be opened.
        """
        try:
            self._inodes = {folder: os.stat(folder).st_ino for folder in self._folders.values()}
            self._core = Files(self._wanted(core=True))
            try:
                self._extended = Files(self._wanted(core=False), seldom=True)
            except BaseException:
                self._core.close()
                raise
        except OSError as exc:
            if exc.errno in kernel.GONE or exc.errno == errno.ENOTDIR:
                raise TaskNotFound(f"there is no group {self._shown()}") from exc
            raise RecoverableError(f"cannot open the files of the group {self._shown()}: {exc.strerror}") from exc
        self._pread = self._core.pread
        self._first = CLOSED
        self._first_data = b""
        self._values = {}
        self._unknown = {}
        self._has_news = True
        self._small = tuple(
            _SmallFile(name, self._extended.handles[name]) for name in self._parsers if name in self._extended.handles
        )
        self._inside = Inside(self._folder("") or self._shown(), counts_kills=self._version == 1)
        self._owes_extended = True
        self._idle_until_ns = 0
        try:
            self._opened()
        except BaseException:
            self.close()
            raise
        self._explain()

    def _wanted(self, *, core: bool) -> list[tuple[str, str]]:
        found = []
        for name, older in files(self._version, core):
            folder = self._folder(name.partition(".")[0])
            if folder is not None:
                chosen = older if older and not os.path.exists(f"{folder}/{name}") else name
                found.append((folder, chosen))
        return found

    def _path(self, name: str) -> str:
        """A file's path, for messages."""
        return f"{self._folder(name.partition('.')[0]) or self._folder('')}/{name}"

    def _shown(self) -> str:
        return next(iter(self._folders.values()), "(no folder)")

    def _explain(self) -> None:
        """Say why groups and single fields are missing."""
        lacking: dict[str, MissingReason] = {}
        for core, opened in ((True, self._core), (False, self._extended)):
            for name, older in files(self._version, core):
                if name not in opened.handles and older not in opened.handles:
                    reason = opened.missing.get(name) or opened.missing.get(older) or "unsupported"
                    if reason == "unsupported":
                        reason = self._unsupported(name)
                    lacking.update(dict.fromkeys(given_by(self._version, name), reason))
        reasons: dict[str, MissingReason] = {}
        for name, reason in lacking.items():
            kind = name.partition(".")[0]
            reasons[kind if group(self._version, kind) <= lacking.keys() else name] = reason
        if self._version == 1:
            reasons["pressure"] = "unsupported"
        if self._network is None:
            reasons["network"] = "unsupported"
        elif self._network.missing is not None:
            reasons["network"] = self._network.missing
        reasons |= self._unknown
        key = tuple(sorted(reasons.items()))
        self._missing = _reasons.setdefault(key, MappingProxyType(dict(key)))

    def _unsupported(self, name: str) -> MissingReason:
        """A file is not there: because of the kernel, or because its controller is off."""
        controller = name.partition(".")[0]
        if self._version == 1 or name.endswith(".pressure") or controller == "cgroup":
            return "unsupported"
        try:
            enabled = kernel.read(f"{self._folder('')}/cgroup.controllers").split()
        except OSError:
            return "unsupported"
        return "unsupported" if controller in enabled else "disabled"

    def _broken(self, error: OSError) -> NoReturn:
        if self.is_closed:
            raise UnrecoverableError(f"the group {self._shown()} is not read any more: closed") from error
        if error.errno in kernel.GONE:
            if any(_inode(folder) != inode for folder, inode in self._inodes.items()):
                raise TaskNotFound(f"the group {self._shown()} was removed") from error
            self._core.close()
            self._extended.close()
            self._open()
            raise RecoverableError(
                f"a controller of the group {self._shown()} was switched off or on: its files were opened anew"
            ) from error
        if error.errno in SHORTAGE:
            raise RecoverableError(f"cannot open {error.filename}: {error.strerror}") from error
        raise RecoverableError(f"cannot read {error.filename or self._shown()}: {error.strerror}") from error


def _inode(folder: str) -> int | None:
    try:
        return os.stat(folder).st_ino
    except OSError:
        return None
