"""A task of ``exec``: the host's side."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import Tick
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.drivers.supervisor.task import SupervisedTask
from cameleer.errors import DriverError, UnrecoverableError
from cameleer.log import log
from cameleer.status import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from cameleer.drivers.cgroup.group import Group
    from cameleer.drivers.cgroup.reader import CgroupCounters
    from cameleer.drivers.exec.driver import Exec
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.usage import Counters


@dataclass(frozen=True, kw_only=True)
class NamedGroup:
    """What is kept of a task's group in its handle.

    :ivar paths: None: nobody knows.
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
        parts = state.split(b" ", 2)
        if len(parts) < 3:
            return None
        found = json.loads(parts[2])
        version, folders, joined = found["version"], found["folders"], found["joined"]
        return cls(paths=GroupPaths(version=version, folders=folders), joined=tuple(joined))

    def kept(self) -> bytes:
        """For ``driver_state``."""
        if self.paths is None:
            return b""
        found = {"version": self.paths.version, "folders": dict(self.paths.folders), "joined": self.joined}
        return b" " + json.dumps(found, separators=(",", ":")).encode()


class ExecTask(SupervisedTask):
    """A command in a group of its own."""

    def __init__(
        self, config: TaskConfig, supervisors: Supervisors, folder: str, driver: Exec, group: NamedGroup
    ) -> None:
        super().__init__(config, supervisors, folder)
        self._driver = driver
        self._counters: CgroupCounters | None = None
        self.group = group

    def keep_state(self, supervisor: int, start: int) -> None:
        """Note who looks after it, and where its group is."""
        super().keep_state(supervisor, start)
        self.driver_state += self.group.kept()

    def read(self, tick: Tick) -> Counters:
        """Count the task's group.

        :raises UnrecoverableError: the group is gone.
        """
        if self._counters is None:
            self._counters = self._open()
        return self._counters.read(tick)

    def _open(self) -> CgroupCounters:
        from cameleer.drivers.cgroup.reader import CgroupCounters

        if self.group.paths is None:
            raise UnrecoverableError(f"the group of task {self.config.id} is not known")
        make = cast("Callable[[GroupPaths], CgroupCounters]", CgroupCounters)  # which makes the form for the version
        return make(self.group.paths)

    def ended(self, end: Exit) -> None:
        """Keep the end, with what the group counted over the whole run."""
        super().ended(end if self.end is not None else self._with_counters(end))

    def _with_counters(self, end: Exit) -> Exit:
        if not self.driver_state:  # it never ran
            return end
        try:
            counters = self.read(Tick(time.monotonic_ns(), extended=True, fresh=True))
        except DriverError:  # the group is gone: what the supervisor knows
            return end
        except Exception:  # whatever it is: nobody may wait for the end for ever
            log.exception("cannot read the last counters of task %s", self.config.id)
            return end
        kills = counters.memory.oom_kills
        return dataclasses.replace(
            end, counters=_completed(counters, end.counters), oom_killed=None if kills is None else kills > 0
        )

    async def destroy(self, force: bool = False) -> None:
        """End it, remove its group, and let go of what it was read from."""
        if self._destroyed:
            return
        leaves = self._left > 0 and self.config.leave_rest and self.is_supervised
        await super().destroy(force)
        await self._driver.remove_group(self.group, if_empty=leaves)  # else it goes with the rest, by the supervisor

    def let_go(self) -> None:
        """Close the connection and the group's files; they are read in this thread alone."""
        super().let_go()
        if self._counters is not None:
            self._counters.close()


def _completed(counters: Counters, waited: Counters | None) -> Counters:
    """The group's totals, with the switches that only wait4 knows."""
    if waited is None:
        return counters
    processes = msgspec.structs.replace(
        counters.processes,
        voluntary_switches=waited.processes.voluntary_switches,
        involuntary_switches=waited.processes.involuntary_switches,
    )
    return msgspec.structs.replace(counters, processes=processes)
