"""A supervised task in a control group of its own: the host's side."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import Tick
from cameleer.drivers.supervisor.task import SupervisedTask
from cameleer.errors import DriverError, UnrecoverableError
from cameleer.log import log
from cameleer.status import Exit
from cameleer.usage import NO_IO, NO_MEMORY, CpuUsage

if TYPE_CHECKING:
    from collections.abc import Callable

    from cameleer.drivers.cgroup.group import Group
    from cameleer.drivers.cgroup.paths import GroupPaths
    from cameleer.drivers.cgroup.reader import CgroupCounters
    from cameleer.drivers.supervisor.groups import TaskGroups
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.usage import Counters


class NamedGroup(NamedTuple):
    """What is kept of a task's group in its handle.

    :ivar paths: None: it has none, or nobody knows.
    :ivar joined: controllers whose folder somebody else made.
    """

    paths: GroupPaths | None = None
    joined: tuple[str, ...] = ()

    @classmethod
    def of(cls, group: Group) -> NamedGroup:
        """From the group itself."""
        return cls(paths=group.paths, joined=tuple(sorted(group.joined)))

    @classmethod
    def kept_in(cls, state: bytes) -> NamedGroup | None:
        """From ``driver_state``; None: there is nothing of it."""
        from cameleer.drivers.cgroup.paths import GroupPaths

        parts = state.split(b" ", 2)
        if len(parts) < 3:
            return None
        found = msgspec.json.decode(parts[2])
        version, folders, joined = found["version"], found["folders"], found["joined"]
        return cls(paths=GroupPaths(version=version, folders=folders), joined=tuple(joined))

    def kept(self) -> bytes:
        """For ``driver_state``."""
        if self.paths is None:
            return b""
        found = {"version": self.paths.version, "folders": dict(self.paths.folders), "joined": self.joined}
        return b" " + msgspec.json.encode(found)


class GroupedTask(SupervisedTask):
    """A command in a group of its own. Drivers derive from it, and add ``read``.

    :ivar group: where it is; without paths it is a task as any other.
    """

    def __init__(
        self, config: TaskConfig, supervisors: Supervisors, folder: str, groups: TaskGroups | None, group: NamedGroup
    ) -> None:
        super().__init__(config, supervisors, folder)
        self.group = group
        self._groups = groups
        self._counters: CgroupCounters | None = None
        self._is_closed = False

    def keep_state(self, supervisor: int, start: int) -> None:
        """Note who looks after it, and where its group is."""
        super().keep_state(supervisor, start)
        self.driver_state += self.group.kept()

    def read_group(self, tick: Tick) -> Counters:
        """Count the task's group; one reading at a time.

        :raises UnrecoverableError: the group is gone.
        """
        if self._counters is None:
            self._counters = self._open()
        return self._counters.read(tick)

    def _open(self) -> CgroupCounters:
        from cameleer.drivers.cgroup.reader import CgroupCounters

        if self.group.paths is None or self._is_closed:
            raise UnrecoverableError(f"the group of task {self.config.id} is not known")
        make = cast("Callable[[GroupPaths], CgroupCounters]", CgroupCounters)  # which makes the form for the version
        return make(self.group.paths)

    def ended(self, end: Exit) -> None:
        """Keep the end, with what the group counted over the whole run."""
        if self.end is None and self.group.paths is not None and self.driver_state:  # else it never ran
            end = self._with_counters(end)
        super().ended(end)

    def _with_counters(self, end: Exit) -> Exit:
        try:
            counters = self.read_group(Tick(time.monotonic_ns(), extended=True, fresh=True))
        except DriverError:  # the group is gone: what the supervisor knows
            return end
        except Exception:  # whatever it is: nobody may wait for the end for ever
            log.exception("cannot read the last counters of task %s", self.config.id)
            return end
        kills = counters.memory.oom_kills
        if end.counters is not None:
            counters = _completed(counters, end.counters)
        return dataclasses.replace(end, counters=counters, oom_killed=None if kills is None else kills > 0)

    async def destroy(self, force: bool = False) -> None:
        """End it, remove its group, and let go of what it was read from."""
        if self._destroyed:
            return
        leaves = self._left > 0 and self.config.leave_rest and self.is_supervised
        await super().destroy(force)
        if self._groups is not None:
            await self._groups.remove(self.group, if_empty=leaves)  # else it goes with the rest, by the supervisor

    def let_go(self) -> None:
        """Close the connection and the group's files."""
        super().let_go()
        self.close_group()

    def close_group(self) -> None:
        """Close the group's files; not under a reading."""
        self._is_closed = True
        if self._counters is not None:
            self._counters.close()


def _completed(counters: Counters, waited: Counters) -> Counters:
    """The group's totals; what it does not count is as wait4 knows it: switches, and what lacks a controller."""
    missing = dict(counters.missing)
    io, memory, cpu = counters.io, counters.memory, counters.cpu
    if io is NO_IO:
        io = waited.io
        missing.pop("io", None)
    if memory is NO_MEMORY:
        memory = waited.memory
        missing.pop("memory", None)
    if cpu.total_ns is None:
        cpu = waited.cpu
        missing.pop("cpu", None)
    return msgspec.structs.replace(
        counters,
        missing=missing,
        cpu=_divided(cpu, waited.cpu),
        memory=memory,
        io=io,
        processes=msgspec.structs.replace(
            counters.processes,
            voluntary_switches=waited.processes.voluntary_switches,
            involuntary_switches=waited.processes.involuntary_switches,
        ),
    )


def _divided(cpu: CpuUsage, waited: CpuUsage) -> CpuUsage:
    """The group's total, parted into user and system time as wait4 has it: version 1 counts those in ticks of 10 ms.

    Neither part is less than the group said before.
    """
    total, user, system = cpu.total_ns, cpu.user_ns, cpu.system_ns
    if total is None or user is None or system is None or not waited.total_ns or waited.user_ns is None:
        return cpu
    if user + system >= total:
        return cpu
    user = min(max(total * waited.user_ns // waited.total_ns, user), total - system)
    return msgspec.structs.replace(cpu, user_ns=user, system_ns=total - user)
