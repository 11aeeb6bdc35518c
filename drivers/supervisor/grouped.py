"""A supervised task in a control group of its own: the host's side."""

from __future__ import annotations

import dataclasses
import os
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

    from cameleer.drivers.cgroup.baseline import Baseline
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
    :ivar shared: of these, the ones that are not this task's alone; None: nobody knows.
    :ivar parent: our parent group when it was made; empty: nobody knows.
    :ivar before: what a joined group had counted when the task began; None: nothing.
    """

    paths: GroupPaths | None = None
    joined: tuple[str, ...] = ()
    shared: tuple[str, ...] | None = None
    parent: str = ""
    before: Baseline | None = None

    @property
    def folder(self) -> str:
        """The folder that stands for the group, with all its processes; empty: it has none."""
        folders = {} if self.paths is None else self.paths.folders
        return folders.get("freezer") or next(iter(folders.values()), "")

    @classmethod
    def of(cls, group: Group, parent: str, before: Baseline | None = None) -> NamedGroup:
        """From the group itself."""
        return cls(
            paths=group.paths,
            joined=tuple(sorted(group.joined)),
            shared=tuple(sorted(group.shared)),
            parent=parent,
            before=before,
        )

    @classmethod
    def kept_in(cls, state: bytes) -> NamedGroup | None:
        """From ``driver_state``; None: there is nothing of it."""
        from cameleer.drivers.cgroup.paths import GroupPaths

        parts = state.split(b" ", 2)
        if len(parts) < 3:
            return None
        found = msgspec.json.decode(parts[2])
        shared, before = found.get("shared"), found.get("before")  # older states have none
        if before:
            from cameleer.drivers.cgroup.baseline import Baseline

            before = Baseline.kept_in(before)
        return cls(
            paths=GroupPaths(version=found["version"], folders=found["folders"]),
            joined=tuple(found["joined"]),
            shared=None if shared is None else tuple(shared),
            parent=found.get("parent", ""),
            before=before,
        )

    def kept(self) -> bytes:
        """For ``driver_state``."""
        if self.paths is None:
            return b""
        found = {
            "version": self.paths.version,
            "folders": dict(self.paths.folders),
            "joined": self.joined,
            "shared": self.shared,
            "parent": self.parent,
            "before": None if self.before is None else self.before.kept(),
        }
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
        self._is_ending = False
        self._is_removed = False
        self._stays = False

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
        counted = self._counters.read(tick)
        return counted if self.group.before is None else self.group.before.since(counted)

    def _open(self) -> CgroupCounters:
        from cameleer.drivers.cgroup.reader import CgroupCounters

        if self.group.paths is None or self._is_closed or self._groups is None:
            raise UnrecoverableError(f"the group of task {self.config.id} is not known")
        make = cast("Callable[..., CgroupCounters]", CgroupCounters)  # which makes the form for the version
        return make(
            self.group.paths,
            idle_after_s=self._groups.idle_after_s,
            refresh_s=self._groups.refresh_s,
            network_pid=None if self._is_ending else _in_another_network(self.pid),
        )

    def ended(self, end: Exit) -> None:
        """Keep the end, with what the group counted over the whole run."""
        self._is_ending = True  # its pid may be another's by now
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
        """End it, remove its group, and let go of what it was read from.

        Again, where the group could not be removed, to try that again.
        """
        if self._is_removed:
            return
        if not self._destroyed:
            self._stays = self._left > 0 and self.config.leave_rest and self.is_supervised
        await super().destroy(force)
        if self._groups is not None:
            await self._groups.remove(self.group, if_empty=self._stays)  # else it goes with the rest, by the supervisor
        self._is_removed = True

    def let_go(self) -> None:
        """Close the connection and the group's files."""
        super().let_go()
        self.close_group()

    def close_group(self) -> None:
        """Close the group's files; not under a reading."""
        self._is_closed = True
        if self._counters is not None:
            self._counters.close()


def _in_another_network(pid: int) -> int | None:
    """This process, if it is in a network namespace that is not ours."""
    try:
        own, ours = (os.readlink(f"/proc/{each}/ns/net") for each in (pid, "self"))
    except OSError:  # it has ended, or is another user's
        return None
    return None if own == ours else pid


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
