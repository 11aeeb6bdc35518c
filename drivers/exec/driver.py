"""Commands in control groups of their own: limited, measured from the group, and confined as far as a task asks.

A task's processes are in its group before their first instruction; its supervisor is not
(:mod:`cameleer.drivers.supervisor`). Readings come from the group's files, which stay open.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import Capabilities, Driver, Fingerprint, Leftover, RunningTask
from cameleer.drivers.cgroup.mode import CgroupMode, detect
from cameleer.drivers.exec import devices
from cameleer.drivers.exec.settings import ExecConfig, ExecTaskConfig
from cameleer.drivers.exec.task import ExecTask
from cameleer.drivers.supervisor.groups import TaskGroups, cgroups_of
from cameleer.errors import ConfigError
from cameleer.schema import duration_s

if TYPE_CHECKING:
    from cameleer.drivers.cgroup.group import Group
    from cameleer.drivers.supervisor.confinement import Confinement
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.node import NodeInfo
    from cameleer.task import TaskHandle


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
        self._idle_after_s = duration_s(config.idle_after, "idle_after")
        self._refresh_s = duration_s(config.refresh, "refresh")
        self._supervisors: Supervisors | None = None
        self._groups: ExecGroups | None = None

    @property
    def supervisors(self) -> Supervisors:
        """Those of this driver's tasks."""
        if self._supervisors is None:
            from cameleer.drivers.supervisor.supervisors import Supervisors

            self._supervisors = Supervisors(self.node)
        return self._supervisors

    @property
    def groups(self) -> ExecGroups:
        """The groups of this driver's tasks."""
        if self._groups is None:
            made = cgroups_of(self.node, detect(self.config.parent), move_ourselves=self.config.leave_group)
            self._groups = ExecGroups(
                self.supervisors, made, idle_after_s=self._idle_after_s, refresh_s=self._refresh_s
            )
        return self._groups

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Healthy where groups can be made; else the reason, and the command that would help."""
        yield _fingerprint(detect(self.config.parent), may_move=self.config.leave_group)

    async def close(self) -> None:
        """Let go of all tasks, which live on where a later host can find them; finish what was being cleared up."""
        if self._supervisors is not None:
            await self._supervisors.close()
        if self._groups is not None:
            await self._groups.close()

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
        groups = self.groups
        return await groups.start(
            task,
            lambda: groups.make(wish),
            ExecTask,
            lambda group: wish.confined.within(group, groups.devices(group) if wish.confined.root else None),
        )

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Find a task again, also one that ended meanwhile, with its result and the same counters.

        :raises TaskNotFound: it is gone for good.
        """
        return await self.groups.recover(handle, ExecTask)

    async def attach(self, ref: str) -> RunningTask:
        """Measure a group that somebody else made: ``cgroup:/path``, as in ``/proc/PID/cgroup``.

        :raises TaskNotFound: there is no such group, or that is no path of one.
        """
        from cameleer.drivers.exec.attached import attached

        return attached(ref, detect(self.config.parent), idle_after_s=self._idle_after_s, refresh_s=self._refresh_s)

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find what supervisors that were killed left behind: processes, records, groups."""
        return [*await self.supervisors.leftovers(claimed), *await self.groups.leftovers(claimed)]

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Remove one of them."""
        if not await self.groups.remove_leftover(leftover):
            await self.supervisors.remove_leftover(leftover)


class ExecGroups(TaskGroups):
    """Groups with the list of devices that a task in a root of its own may use."""

    def make(self, wish: _Wish) -> Group:
        """Make a task's group, or join the one that it was handed; waits.

        :raises DriverError: as the groups; nothing is left.
        """
        task = wish.task
        names = task.alloc_id or task.id, task.name
        if task.cgroup_path is not None:
            group = self.cgroups.join(task.cgroup_path, *names, task.resources)
        else:
            group = self.cgroups.make(*names, task.resources)
        path = self.devices(group) if wish.confined.root else None
        if path is not None:
            try:
                devices.make(path, wish.allowed)
            except BaseException:
                self.undo(group)
                raise
        return group

    def devices(self, group: Group) -> str | None:
        """Folder of the list of devices beside a task's group; None: the kernel has none, or it is not ours."""
        freezer = group.own.get("freezer")
        return None if freezer is None else devices.folder(self.cgroups.mode.bases["freezer"], freezer)

    def undo(self, group: Group) -> None:
        """Remove a group, and the list of devices beside it; waits."""
        super().undo(group)
        path = self.devices(group)
        if path is not None:
            devices.remove(path)


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


def _fingerprint(mode: CgroupMode, *, may_move: bool = False) -> Fingerprint:
    from cameleer.drivers.cgroup.group import obstacle

    attributes: dict[str, tuple[str | int | float | bool, str]] = {"cgroup.mode": (str(mode.mode), "")}
    if mode.version is not None:
        attributes["cgroup.version"] = (mode.version, "")
        attributes["cgroup.controllers"] = (",".join(sorted(mode.controllers)), "")
    attributes["devices.enforced"] = (mode.version == 1 and devices.mount_point() is not None, "")
    reason, remedy = obstacle(mode, may_move=may_move)
    if not reason:
        return Fingerprint(attributes=attributes)
    hint = f"; try: {remedy}" if remedy else ""
    return Fingerprint(health="unhealthy", description=f"{reason}{hint}", attributes=attributes)
