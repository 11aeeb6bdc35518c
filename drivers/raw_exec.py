"""A plain process with nothing around it: no isolation, no limits.

A task is its command and everything that comes of it, also what has become a daemon. Each has a small supervisor, so
that it outlives the host and nothing of it is lost (:mod:`cameleer.drivers.supervisor`). Where control groups can be
made, it is counted by one of its own, which limits nothing; elsewhere from /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import threading
from typing import TYPE_CHECKING, ClassVar, Final, Literal

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import AttachedTask, Capabilities, Driver, Fingerprint, RunningTask
from cameleer.drivers.supervisor.grouped import GroupedTask, NamedGroup
from cameleer.drivers.supervisor.task import NotInGroup
from cameleer.errors import DriverError, TaskNotFound
from cameleer.log import log
from cameleer.status import Exit
from cameleer.usage import NO_CPU, NO_IO, NO_MEMORY, CpuUsage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence
    from typing import Any

    from cameleer.driver import Leftover, Tick
    from cameleer.drivers.cgroup.group import Group
    from cameleer.drivers.cgroup.mode import CgroupMode
    from cameleer.drivers.procfs import ProcessIdentity, ProcessTable, TreeCounters
    from cameleer.drivers.supervisor.groups import TaskGroups
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.node import NodeInfo
    from cameleer.task import TaskHandle
    from cameleer.usage import Counters


_COUNTED: Final = (("cpu", NO_CPU), ("memory", NO_MEMORY), ("io", NO_IO))


class RawExecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the driver.

    :ivar accounting: what counts a task: ``cgroup``, a control group of its own without limits, or it is not started;
        ``procfs``, its processes in /proc; ``auto``: a group where one can be made.
    :ivar memory: from /proc, what stands for "memory in use" of a task: ``rss``, the sum of its processes' resident
        sets, cheap and an upper bound where they share pages; or ``pss``, their proportional share, which the kernel
        counts page by page. A group counts what it has, page cache included.
    :ivar process_stats_ttl: how old a reading of PSS may get: ``5s``, or seconds.
    :ivar parent: group inside our own in which the tasks' groups are made.
    :ivar leave_group: this process may be moved into a leaf of its delegated part of the tree (version 2), without
        which no group can be made there; not for a library in somebody's process.
    :ivar idle_after: of a group: once its CPU counter has stood still for so long, the rest is read every ``refresh``
        only: ``3s``, or seconds; below 3 s ``memory.stat`` may lag behind.
    :ivar refresh: how old the figures of a group that does nothing may get: ``30s``, or seconds.
    """

    accounting: Literal["auto", "cgroup", "procfs"] = "auto"
    memory: Literal["rss", "pss"] = "rss"
    process_stats_ttl: str = "5s"
    parent: str = "cameleer"
    leave_group: bool = False
    idle_after: str = "3s"
    refresh: str = "30s"


class RawExecTask(GroupedTask):
    """A command and its tree."""

    def __init__(
        self,
        config: TaskConfig,
        supervisors: Supervisors,
        folder: str,
        groups: TaskGroups | None,
        group: NamedGroup,
        *,
        driver: RawExec,
    ) -> None:
        super().__init__(config, supervisors, folder, groups, group)
        self._driver = driver
        self._tree: TreeCounters | None = None
        self._last: Counters | None = None
        self._seen: Counters | None = None
        self._reading = threading.Lock()

    def read(self, tick: Tick) -> Counters:
        """Count the group, or else the tree; hand over the kernel's totals once it has ended.

        :raises TaskNotFound: it is just ending, and was never read before.
        """
        end = self.end
        if end is not None and end.counters is not None:
            return end.counters
        if self.group.paths is None:
            return self._read_tree(tick)
        counted = self.read_group(tick)
        if self.end is not None:  # meanwhile: there is no tree any more
            return self.end.counters or counted
        if counted.extended_at_ns is None or tick.per_process or counted.cpu is NO_CPU or counted.memory is NO_MEMORY:
            with contextlib.suppress(TaskNotFound):  # it is ending: what was seen of it last stays
                self._seen = self._look_at_tree(tick)
        return counted if self._seen is None else _joined(counted, self._seen, per_process=tick.per_process)

    def _read_tree(self, tick: Tick) -> Counters:
        try:
            self._last = self._look_at_tree(tick)
        except TaskNotFound:
            if self._last is None:
                raise
        return self._last

    def _look_at_tree(self, tick: Tick) -> Counters:
        """Count the tree. The supervisor is its root and does not count; ended processes' CPU time is in its own."""
        if self._tree is None:
            self._tree = self._driver.counters(self.supervisor_pid, include_root=False)
        return self._tree.read(tick)

    def read_group(self, tick: Tick) -> Counters:
        """Count the group. In the driver's thread, or in the loop when it has ended."""
        with self._reading:
            return super().read_group(tick)

    def ended(self, end: Exit) -> None:
        """Keep the end. Its CPU time is not less than was read: /proc also counts the moment before the exec."""
        final, last = end.counters, self._last
        if final is not None and last is not None:
            end = dataclasses.replace(end, counters=msgspec.structs.replace(final, cpu=_larger(final.cpu, last.cpu)))
        super().ended(end)

    async def destroy(self, force: bool = False) -> None:
        """End and remove it, and let go of what it was read from."""
        await super().destroy(force)
        if self._tree is not None:
            self._tree.close()

    def close_group(self) -> None:
        """Close the group's files."""
        with self._reading:
            super().close_group()


class AttachedProcess(AttachedTask):
    """A process that somebody else runs, and its descendants."""

    def __init__(self, config: TaskConfig, identity: ProcessIdentity, pidfd: int, counters: TreeCounters) -> None:
        super().__init__(config)
        self._identity = identity
        self._pidfd = pidfd
        self._counters = counters
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._ended)

    def what(self) -> str:
        """A process, by its id."""
        return f"process {self._identity.pid}"

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self._end.done():
            self._end.set_result(Exit(error="somebody else's process has ended: only its parent knows how"))

    async def wait(self) -> Exit:
        """Wait for the end of the process; its exit code is its parent's to know."""
        return await asyncio.shield(self._end)

    def read(self, tick: Tick) -> Counters:
        """Count the process and its descendants; after its end, the last reading again."""
        return self._counters.read(tick)

    async def destroy(self, force: bool = False) -> None:
        """Let go of it; it is not touched."""
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
            self._counters.close()

    async def inspect(self) -> dict[str, str]:
        """Pid and start of the process."""
        return {"pid": str(self._identity.pid), "start_ticks": str(self._identity.start_ticks)}


class RawExec(Driver):
    """Runs commands as plain processes.

    ``reads_never_block`` stays false: ``smaps_rollup`` and ``io`` in /proc take locks of the process that is read, and
    one that hangs in the kernel may hold them.
    """

    name: ClassVar[str] = "raw_exec"
    task_type: ClassVar[type[RunningTask]] = RawExecTask
    config_schema: ClassVar[type[msgspec.Struct]] = RawExecConfig
    capabilities: ClassVar[Capabilities] = Capabilities(honours=frozenset({"user", "oom_score_adj"}))

    def __init__(self, config: RawExecConfig, node: NodeInfo) -> None:
        super().__init__(config, node)
        self._ttl_s, self._idle_after_s, self._refresh_s = _durations_s(config)
        self._supervisors: Supervisors | None = None
        self._groups: TaskGroups | None = None
        self._mode: CgroupMode | None = None
        self._table: ProcessTable | None = None

    @property
    def supervisors(self) -> Supervisors:
        """Those of this driver's tasks."""
        if self._supervisors is None:
            from cameleer.drivers.supervisor.supervisors import Supervisors

            self._supervisors = Supervisors(self.node)
        return self._supervisors

    @property
    def mode(self) -> CgroupMode:
        """Which groups can be made here, inside our own: what limits us holds for the tasks too."""
        if self._mode is None:
            from cameleer.drivers.cgroup.mode import detect

            self._mode = detect(self.config.parent, inside=True)
        return self._mode

    @property
    def groups(self) -> TaskGroups:
        """The groups of this driver's tasks."""
        if self._groups is None:
            from cameleer.drivers.supervisor.groups import TaskGroups, cgroups_of

            cgroups = cgroups_of(self.node, self.mode, driver=self.name, move_ourselves=self.config.leave_group)
            self._groups = TaskGroups(
                self.supervisors, cgroups, idle_after_s=self._idle_after_s, refresh_s=self._refresh_s
            )
        return self._groups

    def _obstacle(self) -> tuple[str, str]:
        """Why no group can be made, and what would help; both empty: one can."""
        if not self.mode.must_move:
            return self.mode.reason, self.mode.remedy
        from cameleer.drivers.cgroup.group import obstacle

        return obstacle(self.mode, may_move=self.config.leave_group)

    def counters(self, pid: int, *, include_root: bool) -> TreeCounters:
        """Begin to read the tree of a process; all share one scan of /proc for each sweep.

        :raises TaskNotFound: there is no such process.
        """
        from cameleer.drivers.procfs import ProcessTable, TreeCounters

        if self._table is None:
            self._table = ProcessTable()
        return TreeCounters(
            self._table,
            pid,
            include_root=include_root,
            memory=self.config.memory,
            process_stats_ttl_s=self._ttl_s,
        )

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Healthy, unless a group must count each task and none can be made; says what counts them."""
        asked = self.config.accounting
        reason, remedy = ("", "") if asked == "procfs" else self._obstacle()
        if asked == "cgroup" and reason:
            hint = f"; try: {remedy}" if remedy else ""
            yield Fingerprint(health="unhealthy", description=f"{reason}{hint}")
        else:
            by = "procfs" if asked == "procfs" or reason else "cgroup"
            yield Fingerprint(attributes={"accounting": (by, "")})

    async def close(self) -> None:
        """Let go of all tasks, which live on where a later host can find them; end what starts supervisors."""
        if self._supervisors is not None:
            await self._supervisors.close()
        if self._groups is not None:
            await self._groups.close()
        if self._table is not None:
            self._table.close()

    def _plain(self, config: TaskConfig, supervisors: Supervisors, folder: str) -> RawExecTask:
        return RawExecTask(config, supervisors, folder, None, NamedGroup(), driver=self)

    def _grouped(
        self, config: TaskConfig, supervisors: Supervisors, folder: str, groups: TaskGroups, group: NamedGroup
    ) -> RawExecTask:
        return RawExecTask(config, supervisors, folder, groups, group, driver=self)

    async def start(self, task: TaskConfig) -> RunningTask:
        """Start a command; returns when it was executed.

        :raises CommandNotFound: there is no such command in the ``PATH`` of the task's environment.
        :raises CommandNotExecutable: there is, and it cannot be executed.
        :raises StartError: its folder, user or a stream is not there; the message names it.
        :raises StartRecoverable: no processes, descriptors or disk space are left now.
        """
        accounting = self.config.accounting
        if accounting == "cgroup" or (accounting == "auto" and not self._obstacle()[0]):
            try:
                return await self._start_in_group(task)
            except NotInGroup as exc:
                if accounting == "cgroup":
                    raise
                log.debug("task %s is counted from /proc: %s", task.id, exc)
        return await self.supervisors.start(task, self._plain)

    async def _start_in_group(self, task: TaskConfig) -> RunningTask:
        from cameleer.drivers.supervisor.confinement import Confinement

        groups = self.groups

        def make() -> Group:
            try:
                return groups.cgroups.make(task.alloc_id or task.id, task.name)
            except (DriverError, ExceptionGroup) as exc:
                raise NotInGroup(str(exc)) from exc

        return await groups.start(task, make, self._grouped, Confinement().within)

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Find a task again, also one that ended meanwhile, with its result.

        :raises TaskNotFound: it is gone for good.
        """
        kept = NamedGroup.kept_in(handle.driver_state)
        if kept is None and (handle.driver_state or not self.mode.usable):
            return await self.supervisors.recover(handle, self._plain)
        return await self.groups.recover(handle, self._grouped)

    async def attach(self, ref: str) -> RunningTask:
        """Measure a process that somebody else runs, by its pid.

        :raises TaskNotFound: there is no such process.
        """
        from cameleer.drivers.procfs import process_identity

        if not (ref.isascii() and ref.isdigit()):
            raise TaskNotFound(f"{ref!r} is no process id")
        pid = int(ref)
        try:
            pidfd = os.pidfd_open(pid)
        except (OSError, OverflowError) as exc:
            raise TaskNotFound(f"there is no process {ref}") from exc
        try:
            identity = process_identity(pid)
            signal.pidfd_send_signal(pidfd, 0)  # it lives, so the identity is its own
            counters = self.counters(pid, include_root=True)
        except ProcessLookupError as exc:
            os.close(pidfd)
            raise TaskNotFound(f"process {ref} has ended") from exc
        except PermissionError:  # another user's: it lives
            counters = self.counters(pid, include_root=True)
        except BaseException:
            os.close(pidfd)
            raise
        return AttachedProcess(TaskConfig(name=_name_of(pid)), identity, pidfd, counters)

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find what supervisors that were killed left behind and no handle claims: processes, records, groups."""
        found = [*await self.supervisors.leftovers(claimed)]
        return [*found, *await self.groups.leftovers(claimed)] if self.mode.usable else found

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Kill such a process, or remove such a record or group."""
        if not (self.mode.usable and await self.groups.remove_leftover(leftover)):
            await self.supervisors.remove_leftover(leftover)


def _durations_s(config: RawExecConfig) -> tuple[float, ...]:
    from cameleer.schema import duration_s

    return tuple(duration_s(getattr(config, name), name) for name in ("process_stats_ttl", "idle_after", "refresh"))


def _joined(counted: Counters, seen: Counters, *, per_process: bool) -> Counters:
    """What a group counted, with what only /proc has: processes seen, switches, PSS, and what lacks a controller."""
    lacking = {}
    missing = counted.missing
    for name, nothing in _COUNTED:
        if getattr(counted, name) is nothing and (found := getattr(seen, name)) is not nothing:
            lacking[name] = found
            missing = {reason: missing[reason] for reason in missing if reason != name}
    if "memory" not in lacking and seen.memory.pss_bytes is not None:
        lacking["memory"] = msgspec.structs.replace(counted.memory, pss_bytes=seen.memory.pss_bytes)
    processes = seen.processes
    return msgspec.structs.replace(
        counted,
        missing=missing,
        processes=msgspec.structs.replace(
            counted.processes,
            seen=processes.seen,
            voluntary_switches=processes.voluntary_switches,
            involuntary_switches=processes.involuntary_switches,
        ),
        per_process=seen.per_process if per_process else None,
        **lacking,
    )


def _larger(final: CpuUsage, last: CpuUsage) -> CpuUsage:
    user_ns = max(final.user_ns or 0, last.user_ns or 0)
    system_ns = max(final.system_ns or 0, last.system_ns or 0)
    if user_ns + system_ns <= (final.total_ns or 0):
        return final
    return CpuUsage(total_ns=user_ns + system_ns, user_ns=user_ns, system_ns=system_ns)


def _name_of(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="backslashreplace") as file:
            return file.read().strip()
    except OSError:
        return str(pid)


def __getattr__(name: str) -> Any:
    """``ShellCommands`` for the conformance suite, which nobody else should pay for."""
    if name == "ShellCommands":
        from cameleer.testing.adapter import ShellCommands

        return ShellCommands
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
