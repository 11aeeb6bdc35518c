"""Control groups of one driver's supervised tasks: made before a start, found again, removed, also when left over.

What waits for the kernel runs in threads of our own.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final, TypeVar

from cameleer.drivers.supervisor.grouped import NamedGroup
from cameleer.errors import DriverError, TaskNotFound
from cameleer.state import Starts
from cameleer.threads import Pool

if TYPE_CHECKING:
    from cameleer.config import TaskConfig
    from cameleer.driver import Leftover
    from cameleer.drivers.cgroup.baseline import Baseline
    from cameleer.drivers.cgroup.group import Cgroups, Group
    from cameleer.drivers.cgroup.mode import CgroupMode
    from cameleer.drivers.cgroup.paths import GroupPaths
    from cameleer.drivers.supervisor.confinement import Confinement
    from cameleer.drivers.supervisor.grouped import GroupedTask
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.node import NodeInfo
    from cameleer.task import TaskHandle

    G = TypeVar("G", bound=GroupedTask)
    Maker = Callable[[TaskConfig, Supervisors, str, "TaskGroups", NamedGroup], G]
T = TypeVar("T")

_THREADS: Final = 4
_GROUP: Final = "group:"
_COUNTERS: Final = frozenset({"unified", "cpu", "cpuacct", "memory", "blkio"})
"""Controllers whose groups count on from one task to the next."""


class TaskGroups:
    """Groups of the tasks of one driver, which no other host on this machine and no other driver touches.

    A driver that makes more for a task than its group derives from it.

    :ivar cgroups: makes and finds the groups themselves.
    :ivar idle_after_s: as :class:`~cameleer.drivers.cgroup.reader.CgroupCounters` has it.
    :ivar refresh_s: likewise.
    """

    def __init__(
        self, supervisors: Supervisors, cgroups: Cgroups, *, idle_after_s: float = 3.0, refresh_s: float = 30.0
    ) -> None:
        self.cgroups = cgroups
        self.idle_after_s = idle_after_s
        self.refresh_s = refresh_s
        self._supervisors = supervisors
        self._pool: Pool | None = None
        self._clearing: set[asyncio.Task[None]] = set()
        self._starting: set[str] = set()
        self._starts = Starts()

    def undo(self, group: Group) -> None:
        """Remove a group, and what was made with it; waits. In a thread of ours."""
        group.remove()

    def in_thread(self, function: Callable[[], T], late: Callable[[T], object] | None = None) -> asyncio.Future[T]:
        """Call something that may wait for the kernel."""
        if self._pool is None:
            self._pool = Pool("cameleer-groups", _THREADS)
        return self._pool.call(function, late)

    async def close(self) -> None:
        """Finish what is being cleared up."""
        if self._clearing:
            await asyncio.wait(set(self._clearing))
        if self._pool is not None:
            self._pool.close()

    # -- start ---------------------------------------------------------------------------------------------------

    async def start(
        self, task: TaskConfig, group: Callable[[], Group], make: Maker[G], confine: Callable[[Group], Confinement]
    ) -> G:
        """Make a group and start a task in it; of what fails or is cancelled nothing is left.

        :param group: makes it, in a thread of ours.
        :param make: makes the driver's own task object.
        :param confine: how the task gets into it, and what else is done with it.
        :raises DriverError: as the supervisors and what makes the group.
        """
        made = await self.in_thread(group, self._clear_up)
        key = folder_of(made)
        self._starting.add(key)
        try:
            named = self._named(made)
            if made.joined & _COUNTERS:
                before = await self.in_thread(lambda: _counted(made))
                named = named._replace(before=before)
            return await self._supervisors.start(
                task,
                lambda config, supervisors, folder: make(config, supervisors, folder, self, named),
                confine(made),
            )
        except asyncio.CancelledError:
            self._clear_up(made)
            raise
        except Exception as exc:
            try:
                await asyncio.shield(self.in_thread(lambda: self.undo(made)))
            except DriverError as undoing:
                both = [exc, undoing]
                raise ExceptionGroup("a task could not be started, nor its group removed", both) from exc
            raise
        finally:
            self._starting.discard(key)

    def _named(self, group: Group) -> NamedGroup:
        return NamedGroup.of(group, self.cgroups.mode.parent)

    def _clear_up(self, group: Group) -> None:
        """Remove a group that nobody waits for any more."""

        async def remove() -> None:
            await self.in_thread(lambda: self.undo(group))

        ending = asyncio.get_running_loop().create_task(remove())
        self._clearing.add(ending)
        ending.add_done_callback(self._clearing.discard)

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, handle: TaskHandle, make: Maker[G]) -> G:
        """Find a task again, also one that ended meanwhile, with its group.

        :raises TaskNotFound: it is gone for good, and now its group too.
        """
        named = self._kept(handle)
        try:
            return await self._supervisors.recover(
                handle, lambda config, supervisors, folder: make(config, supervisors, folder, self, named)
            )
        except TaskNotFound:
            await self._remove_lost(named)
            raise

    def _kept(self, handle: TaskHandle) -> NamedGroup:
        """What is known of a task's group; where its host was killed before it knew, by its record, else its name."""
        named = NamedGroup.kept_in(handle.driver_state)
        if named is None and not handle.driver_state:
            config = handle.config
            folder = self._supervisors.group_of(config.id)
            if folder is None:
                found = self.cgroups.find(config.alloc_id or config.id, config.name)
            else:
                found = self.cgroups.at(folder)
            named = None if found is None else self._named(found)
        return named or NamedGroup()

    async def _remove_lost(self, named: NamedGroup) -> None:
        """Remove the group of a task that is gone for good, unless another run of it has taken its name."""
        if named.paths is None:
            return
        folder = folder_of(self._restored(named, named.paths))
        if folder not in self._starting | self._supervisors.groups_in_use(()):
            await self.remove(named)

    async def remove(self, named: NamedGroup, *, if_empty: bool = False) -> None:
        """Kill what is left in a task's group and remove it, as far as it is ours.

        :param if_empty: only where nothing is left.
        :raises RecoverableError: processes did not die in time.
        """
        if named.paths is not None:
            group = self._restored(named, named.paths)
            if not (if_empty and group.pids()):
                await self.in_thread(lambda: self.undo(group))

    def _restored(self, named: NamedGroup, paths: GroupPaths) -> Group:
        return self.cgroups.restore(paths, named.joined, named.shared, named.parent)

    # -- what is left over ---------------------------------------------------------------------------------------

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find groups whose supervisor was killed and that no handle claims."""
        from cameleer.driver import Leftover

        found = []
        kept = self._starting | self._supervisors.groups_in_use(claimed)
        for group in await self.in_thread(self.cgroups.all):
            folder = folder_of(group)
            if folder not in kept and not self._starts.may_own(folder):
                found.append(Leftover(task_id="", ref=f"{_GROUP}{folder}", description=f"group {group.name}"))
        return found

    async def remove_leftover(self, leftover: Leftover) -> bool:
        """Remove such a group; False: this leftover is none."""
        if not leftover.ref.startswith(_GROUP):
            return False
        folder = leftover.ref.removeprefix(_GROUP)
        for group in await self.in_thread(self.cgroups.all):
            if folder_of(group) == folder and folder not in self._starting:
                await self.in_thread(functools.partial(self.undo, group))
        return True


def cgroups_of(node: NodeInfo, mode: CgroupMode, *, driver: str = "", move_ourselves: bool = False) -> Cgroups:
    """Groups in a folder that no other host on this machine uses.

    :param driver: whose groups only count, and have a folder of their own; empty: groups with limits.
    :param move_ourselves: version 2, delegated: this process may be moved into a leaf.
    """
    from cameleer.drivers.cgroup.group import Cgroups

    name = ".".join(filter(None, (node.node_name or node.node_id or "node", node.host_id, driver)))
    return Cgroups(mode, node=name, total_mhz=node.total_mhz, move_ourselves=move_ourselves, plain=bool(driver))


def folder_of(group: Group) -> str:
    """The folder that stands for a group: the one that is killed as a whole."""
    folders = group.paths.folders
    return folders.get("freezer") or next(iter(folders.values()))


def _counted(group: Group) -> Baseline:
    """What a group has counted until now.

    :raises DriverError: it is gone.
    """
    import time
    from typing import cast

    from cameleer.driver import Tick
    from cameleer.drivers.cgroup.baseline import Baseline
    from cameleer.drivers.cgroup.reader import CgroupCounters

    make = cast("Callable[[GroupPaths], CgroupCounters]", CgroupCounters)  # which makes the form for the version
    counters = make(group.paths)
    try:
        return Baseline.of(counters.read(Tick(time.monotonic_ns(), extended=True, fresh=True)))
    finally:
        counters.close()
