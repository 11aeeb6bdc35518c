"""A plain process with nothing around it: no isolation, no limits, measured from /proc.

A task is its command and everything that comes of it, also what has become a daemon. Each has a small supervisor, so
that it outlives the host and nothing of it is lost (:mod:`cameleer.drivers.supervisor`).
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import Capabilities, Driver, RunningTask
from cameleer.drivers.supervisor.task import SupervisedTask
from cameleer.errors import NotSupported, TaskNotFound
from cameleer.status import Exit
from cameleer.usage import CpuUsage

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from typing import Any

    from cameleer.driver import Leftover, Tick
    from cameleer.drivers.procfs import ProcessIdentity, ProcessTable, TreeCounters
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.node import NodeInfo
    from cameleer.task import TaskHandle
    from cameleer.usage import Counters


class RawExecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the driver.

    :ivar memory: what stands for "memory in use" of a task: ``rss``, the sum of its processes' resident sets, cheap and
        an upper bound where they share pages; or ``pss``, their proportional share, which the kernel counts page by
        page.
    :ivar process_stats_ttl: how old a reading of PSS may get: ``5s``, or seconds.
    """

    memory: Literal["rss", "pss"] = "rss"
    process_stats_ttl: str = "5s"


class RawExecTask(SupervisedTask):
    """A command and its tree."""

    def __init__(self, config: TaskConfig, supervisors: Supervisors, folder: str, driver: RawExec) -> None:
        super().__init__(config, supervisors, folder)
        self._driver = driver
        self._counters: TreeCounters | None = None
        self._last: Counters | None = None

    def read(self, tick: Tick) -> Counters:
        """Count the tree, or hand over the kernel's totals once it has ended.

        The supervisor is the root and does not count itself; the CPU time of ended processes is in its own.

        :raises TaskNotFound: it is just ending, and was never read before.
        """
        end = self.end
        if end is not None and end.counters is not None:
            return end.counters
        try:
            if self._counters is None:
                self._counters = self._driver.counters(self.supervisor_pid, include_root=False)
            self._last = self._counters.read(tick)
        except TaskNotFound:
            if self._last is None:
                raise
        return self._last

    def ended(self, end: Exit) -> None:
        """Keep the end. Its CPU time is not less than was read: /proc also counts the moment before the exec."""
        final, last = end.counters, self._last
        if final is not None and last is not None:
            end = dataclasses.replace(end, counters=msgspec.structs.replace(final, cpu=_larger(final.cpu, last.cpu)))
        super().ended(end)

    async def destroy(self, force: bool = False) -> None:
        """End and remove it, and let go of what it was read from."""
        await super().destroy(force)
        if self._counters is not None:
            self._counters.close()


class AttachedTask(RunningTask):
    """A process that somebody else runs, and its descendants."""

    def __init__(self, config: TaskConfig, identity: ProcessIdentity, pidfd: int, counters: TreeCounters) -> None:
        super().__init__(config)
        self._identity = identity
        self._pidfd = pidfd
        self._counters = counters
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(pidfd, self._ended)

    def _ended(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        if not self._end.done():
            self._end.set_result(Exit(error="somebody else's process has ended: only its parent knows how"))

    async def wait(self) -> Exit:
        """Wait for the end of the process; its exit code is its parent's to know."""
        return await asyncio.shield(self._end)

    async def signal(self, signum: int) -> None:
        """Refused: it is not ours.

        :raises NotSupported: always.
        """
        raise NotSupported(f"process {self._identity.pid} is somebody else's: it is only measured")

    async def stop(self, timeout_s: float, signum: int) -> None:
        """Refused: it is not ours.

        :raises NotSupported: always.
        """
        await self.signal(signum)

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
        self._ttl_s = _ttl_s(config)
        self._supervisors: Supervisors | None = None
        self._table: ProcessTable | None = None

    @property
    def supervisors(self) -> Supervisors:
        """Those of this driver's tasks."""
        if self._supervisors is None:
            from cameleer.drivers.supervisor.supervisors import Supervisors

            self._supervisors = Supervisors(self.node)
        return self._supervisors

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

    async def close(self) -> None:
        """Let go of all tasks, which live on where a later host can find them; end what starts supervisors."""
        if self._supervisors is not None:
            await self._supervisors.close()
        if self._table is not None:
            self._table.close()

    def _task(self, config: TaskConfig, supervisors: Supervisors, folder: str) -> RawExecTask:
        return RawExecTask(config, supervisors, folder, self)

    async def start(self, task: TaskConfig) -> RunningTask:
        """Start a command; returns when it was executed.

        :raises CommandNotFound: there is no such command in the ``PATH`` of the task's environment.
        :raises CommandNotExecutable: there is, and it cannot be executed.
        :raises StartError: its folder, user or a stream is not there; the message names it.
        :raises StartRecoverable: no processes, descriptors or disk space are left now.
        """
        return await self.supervisors.start(task, self._task)

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Find a task again, also one that ended meanwhile, with its result.

        :raises TaskNotFound: it is gone for good.
        """
        return await self.supervisors.recover(handle, self._task)

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
        return AttachedTask(TaskConfig(name=_name_of(pid)), identity, pidfd, counters)

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find records that no handle claims and whose supervisor is gone, and the processes that it left."""
        return await self.supervisors.leftovers(claimed)

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Kill such a process, or remove such a record."""
        await self.supervisors.remove_leftover(leftover)


def _ttl_s(config: RawExecConfig) -> float:
    from cameleer.schema import duration_s

    return duration_s(config.process_stats_ttl, "process_stats_ttl")


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
