"""Commands in control groups of their own: limited, measured from the group, and confined as far as a task asks.

A task's processes are in its group before their first instruction; its supervisor is not
(:mod:`cameleer.drivers.supervisor`). Readings come from the group's files, which stay open.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import Capabilities, Driver, Fingerprint, Leftover, RunningTask
from cameleer.drivers.cgroup.mode import CgroupMode, detect
from cameleer.drivers.exec import devices
from cameleer.drivers.exec.settings import ExecConfig, ExecTaskConfig
from cameleer.drivers.exec.task import ExecTask, NamedGroup
from cameleer.errors import ConfigError, DriverError, TaskNotFound
from cameleer.threads import Pool

if TYPE_CHECKING:
    from cameleer.drivers.cgroup.group import Cgroups, Group
    from cameleer.drivers.supervisor.confinement import Confinement
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.node import NodeInfo
    from cameleer.task import TaskHandle

T = TypeVar("T")

_FRESH_S: Final = 60.0
"""A group without a record may belong to a start that is going on, for so long."""
_THREADS: Final = 4
_GROUP: Final = "group:"


class Exec(Driver):
    """Runs commands in groups of their own."""

    name: ClassVar[str] = "exec"
    task_type: ClassVar[type[RunningTask]] = ExecTask
    config_schema: ClassVar[type[msgspec.Struct]] = ExecConfig
    task_schema: ClassVar[type[msgspec.Struct]] = ExecTaskConfig
    reads_never_block: ClassVar[bool] = True
    capabilities: ClassVar[Capabilities] = Capabilities(
        honours=frozenset(
            {
                "user",
                "mounts",
                "devices",
                "cgroup_path",
                "cpu_mhz",
                "cpu_quota_cores",
                "cpuset_cpus",
                "memory_bytes",
                "memory_max_bytes",
                "swap_bytes",
                "pids",
                "io_weight",
                "oom_score_adj",
            }
        ),
        mount_configs=True,
        dynamic_workload_users=True,
    )

    def __init__(self, config: ExecConfig, node: NodeInfo) -> None:
        super().__init__(config, node)
        self._supervisors: Supervisors | None = None
        self._groups: Cgroups | None = None
        self._pool: Pool | None = None
        self._clearing: set[asyncio.Task[None]] = set()
        self._starting: set[str] = set()

    # -- what tasks share ----------------------------------------------------------------------------------------

    @property
    def supervisors(self) -> Supervisors:
        """Those of this driver's tasks."""
        if self._supervisors is None:
            from cameleer.drivers.supervisor.supervisors import Supervisors

            self._supervisors = Supervisors(self.node)
        return self._supervisors

    @property
    def groups(self) -> Cgroups:
        """The groups of this host's tasks, in a folder that no other host on this machine uses."""
        if self._groups is None:
            from cameleer.drivers.cgroup.group import Cgroups

            node = self.node
            name = ".".join(filter(None, (node.node_name or node.node_id or "node", node.host_id)))
            self._groups = Cgroups(
                detect(self.config.parent),
                node=name,
                total_mhz=node.total_mhz,
                move_ourselves=self.config.leave_group,
            )
        return self._groups

    def in_thread(self, function: Callable[[], T], late: Callable[[T], object] | None = None) -> asyncio.Future[T]:
        """Call something that may wait for the kernel."""
        if self._pool is None:
            self._pool = Pool("cameleer-exec", _THREADS)
        return self._pool.call(function, late)

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Healthy where groups can be made; else the reason, and the command that would help."""
        yield _fingerprint(detect(self.config.parent))

    async def close(self) -> None:
        """Let go of all tasks, which live on where a later host can find them; finish what was being cleared up."""
        if self._supervisors is not None:
            await self._supervisors.close()
        if self._clearing:
            await asyncio.wait(set(self._clearing))
        if self._pool is not None:
            self._pool.close()

    # -- start ---------------------------------------------------------------------------------------------------

    async def start(self, task: TaskConfig) -> RunningTask:
        """Start a command in a group of its own; returns when it was executed.

        :raises CommandNotFound: there is no such command in the ``PATH`` of the task's environment.
        :raises CommandNotExecutable: there is, and it cannot be executed.
        :raises NotSupported: no groups can be made here, or a limit cannot be held: names it.
        :raises StartError: its user, folder, a mount or a stream is not there; the message names it.
        :raises StartRecoverable: not now.
        """
        wish = _Wish.of(task, self.config)
        group = await self._make_group(wish)
        key = _folder(group)
        self._starting.add(key)
        try:
            return await self.supervisors.start(
                task,
                lambda config, supervisors, folder: ExecTask(config, supervisors, folder, self, NamedGroup.of(group)),
                wish.confinement(group, self._devices(group)),
            )
        except asyncio.CancelledError:
            self._clear_up(group)
            raise
        except Exception as exc:
            try:
                await asyncio.shield(self.in_thread(lambda: self._remove(group)))
            except DriverError as undoing:
                both = [exc, undoing]
                raise ExceptionGroup("a task could not be started, nor its group removed", both) from exc
            raise
        finally:
            self._starting.discard(key)

    async def _make_group(self, wish: _Wish) -> Group:
        task, groups = wish.task, self.groups
        names = task.alloc_id or task.id, task.name

        def make() -> Group:
            if task.cgroup_path is not None:
                group = groups.join(task.cgroup_path, *names, task.resources)
            else:
                group = groups.make(*names, task.resources)
            path = self._devices(group) if wish.confined.root else None
            if path is not None:
                try:
                    devices.make(path, wish.allowed)
                except BaseException:
                    self._remove(group)
                    raise
            return group

        return await self.in_thread(make, self._clear_up)

    def _clear_up(self, group: Group) -> None:
        """Remove a group that nobody waits for any more."""

        async def remove() -> None:
            await self.in_thread(lambda: self._remove(group))

        ending = asyncio.get_running_loop().create_task(remove())
        self._clearing.add(ending)
        ending.add_done_callback(self._clearing.discard)

    def _devices(self, group: Group) -> str | None:
        """Folder of the list of devices beside a task's group; None: the kernel has none, or it is not ours."""
        freezer = group.own.get("freezer")
        return None if freezer is None else devices.folder(self.groups.mode.bases["freezer"], freezer)

    def _remove(self, group: Group) -> None:
        """Remove a group, and the list of devices beside it; waits."""
        group.remove()
        path = self._devices(group)
        if path is not None:
            devices.remove(path)

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Find a task again, also one that ended meanwhile, with its result and the same counters.

        :raises TaskNotFound: it is gone for good.
        """
        named = NamedGroup.kept_in(handle.driver_state)
        if named is None:  # its host was killed before it knew: by name
            config = handle.config
            found = self.groups.find(config.alloc_id or config.id, config.name)
            named = NamedGroup() if found is None else NamedGroup.of(found)
        known = named
        try:
            return await self.supervisors.recover(
                handle, lambda config, supervisors, folder: ExecTask(config, supervisors, folder, self, known)
            )
        except TaskNotFound:
            await self._remove_lost(known)
            raise

    async def attach(self, ref: str) -> RunningTask:
        """Measure a group that somebody else made: ``cgroup:/path``, as in ``/proc/PID/cgroup``.

        :raises TaskNotFound: there is no such group, or that is no path of one.
        """
        from cameleer.drivers.exec.attached import attached

        return attached(ref, detect(self.config.parent))

    async def _remove_lost(self, named: NamedGroup) -> None:
        """Remove the group of a task that is gone for good, unless another run of it has taken its name."""
        if named.paths is None:
            return
        folder = _folder(self.groups.restore(named.paths, named.joined))
        if folder not in self._starting | self.supervisors.groups_in_use(()):
            await self.remove_group(named)

    async def remove_group(self, named: NamedGroup, *, if_empty: bool = False) -> None:
        """Kill what is left in a task's group and remove it, as far as it is ours.

        :param if_empty: only where nothing is left.
        :raises RecoverableError: processes did not die in time.
        """
        if named.paths is not None:
            group = self.groups.restore(named.paths, named.joined)
            if not (if_empty and group.pids()):
                await self.in_thread(lambda: self._remove(group))

    # -- what is left over ---------------------------------------------------------------------------------------

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find what supervisors that were killed left behind: processes, records, groups."""
        found = list(await self.supervisors.leftovers(claimed))
        kept = self._starting | self.supervisors.groups_in_use(claimed)
        for group in await self.in_thread(self.groups.all):
            folder = _folder(group)
            if folder not in kept and _age_s(folder) > _FRESH_S:
                found.append(Leftover(task_id="", ref=f"{_GROUP}{folder}", description=f"group {group.name}"))
        return found

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Remove one of them."""
        if not leftover.ref.startswith(_GROUP):
            await self.supervisors.remove_leftover(leftover)
            return
        folder = leftover.ref.removeprefix(_GROUP)
        for group in await self.in_thread(self.groups.all):
            if _folder(group) == folder and folder not in self._starting:
                await self.in_thread(functools.partial(self._remove, group))


@dataclass(frozen=True)
class _Wish:
    """What a task asks for, checked before anything is made."""

    task: TaskConfig
    allowed: Sequence[str]
    confined: Confinement

    @classmethod
    def of(cls, task: TaskConfig, driver: ExecConfig) -> _Wish:
        """Check it all: settings, user, paths.

        :raises DriverError: the first that is wrong.
        """
        from cameleer.drivers.exec import capabilities, root
        from cameleer.drivers.supervisor import account
        from cameleer.drivers.supervisor.confinement import Confinement

        settings = task.settings(ExecTaskConfig)
        user = None if task.user is None else account.find(task.user)
        if not task.command:
            raise ConfigError("TaskConfig.command is '': this driver has no image that would bring one")
        is_root = os.geteuid() == 0
        if settings.chroot and not is_root:
            raise ConfigError("driver_config.chroot is true: only root can give a task a root of its own")
        if not settings.chroot:
            for name in ("mounts", "devices"):
                if getattr(task, name):
                    raise ConfigError(f"TaskConfig.{name} is {getattr(task, name)!r}: only with driver_config.chroot")
        root.make_layout(task, user)
        own_root = settings.chroot
        env = root.variables(task, own_root=own_root)
        confined = Confinement(
            own_processes=_is_private("pid_mode", settings.pid_mode or driver.pid_mode, task, is_root),
            own_ipc=_is_private("ipc_mode", settings.ipc_mode or driver.ipc_mode, task, is_root),
            root=own_root,
            binds=root.binds(task, settings.chroot_paths or driver.chroot_paths, user) if own_root else (),
            devices=[(each.source, _device(each.target or each.source)) for each in task.devices],
            capabilities=capabilities.kept(settings.cap_drop, settings.cap_add, own_root=own_root),
            no_new_privileges=settings.no_new_privileges,
            env=env if own_root else {key: value for key, value in env.items() if key not in task.env},
        )
        return cls(task, devices.rules(task.devices), confined)

    def confinement(self, group: Group, device_list: str | None) -> Confinement:
        """The same with the group that was made for it.

        :param device_list: group of the controller of devices.
        """
        import dataclasses

        own: dict[str, str] = dict(group.own)
        enter = group.entry.files
        if device_list is not None and self.confined.root:
            own["devices"] = device_list
            enter = (f"{device_list}/cgroup.procs", *enter)
        return dataclasses.replace(
            self.confined,
            enter=enter,
            version=group.paths.version,
            kill_group=own.get("freezer") or own.get("unified"),
            own_groups=tuple(own[name] for name in sorted(own, key=lambda each: each == "freezer")),
        )


def _is_private(name: str, mode: str, task: TaskConfig, is_root: bool) -> bool:
    if mode == "private":
        if not is_root:
            raise ConfigError(f"driver_config.{name} is 'private': only root can give a task a namespace of its own")
        if name == "pid_mode" and task.terminal == "inherit":
            raise ConfigError("driver_config.pid_mode is 'private' with the caller's terminal: use 'host'")
        return True
    return not mode and is_root and not (name == "pid_mode" and task.terminal == "inherit")


def _device(target: str) -> str:
    if not target.startswith("/dev/"):
        raise ConfigError(f"TaskConfig.devices has the target {target!r}: it must be below /dev")
    return target


def _folder(group: Group) -> str:
    folders = group.paths.folders
    return folders.get("freezer") or next(iter(folders.values()))


def _age_s(folder: str) -> float:
    try:
        return time.time() - os.stat(folder).st_mtime
    except OSError:
        return 0.0


def _fingerprint(mode: CgroupMode) -> Fingerprint:
    attributes: dict[str, tuple[str | int | float | bool, str]] = {"cgroup.mode": (str(mode.mode), "")}
    if mode.version is not None:
        attributes["cgroup.version"] = (mode.version, "")
        attributes["cgroup.controllers"] = (",".join(sorted(mode.controllers)), "")
    attributes["devices.enforced"] = (mode.version == 1 and devices.mount_point() is not None, "")
    if mode.usable:
        return Fingerprint(attributes=attributes)
    hint = f"; try: {mode.remedy}" if mode.remedy else ""
    return Fingerprint(health="unhealthy", description=f"{mode.reason}{hint}", attributes=attributes)
