"""A group of ours around each container, which outlives it: what it counted can be read when the container is gone.

::

    parents = Parents(node, "cgroupfs", 1)
    parent = parents.make(task)  # None: parents.reason
    ...  # a container with HostConfig.CgroupParent = parent.cgroup_parent runs, ends, is removed
    parent.totals()  # Counters
    parent.remove()

Where the runtime makes the groups (``cgroupfs``) it is ``/<parent>/docker.<node>.<host id>/<task>.<task id>``, made
before the container in every hierarchy, those that nothing is counted in too: the runtime would make that path in all
of them, and could not while somebody removes its upper levels as empty. Where systemd makes them it is a slice
(:mod:`cameleer.drivers.docker.stats.slices`).

All calls may wait for the kernel: not for an event loop. Nothing is ever killed here.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Literal, cast

import msgspec

from cameleer.config import Resources
from cameleer.driver import Tick
from cameleer.drivers.cgroup import kernel, limits, v1, v2
from cameleer.drivers.cgroup.group import Cgroups
from cameleer.drivers.cgroup.mode import DEFAULT_PARENT, V1_CONTROLLERS, CgroupMode, detect
from cameleer.drivers.cgroup.names import group_name
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.errors import ConfigError, DriverError, NotSupported, RecoverableError, StartError, StartRecoverable
from cameleer.log import log
from cameleer.state import Starts

if TYPE_CHECKING:
    from collections.abc import Callable

    from cameleer.config import TaskConfig
    from cameleer.drivers.cgroup.reader import CgroupCounters
    from cameleer.node import NodeInfo
    from cameleer.usage import Counters, MissingReason

REMOVE_S: Final = 5.0
MARK: Final = "docker."
"""Begins the name of our folder of a node. ``exec`` has another, and takes all that it finds there for its own."""
_CUT: Final = "~~"
"""In a name that was too long, before the digest."""
_TRIES: Final = 50
"""A level above ours may be removed as empty by another host between two of our steps, again and again."""
_FIRST_GAP_S: Final = 0.001
_LONGEST_GAP_S: Final = 0.05
_LEVEL: Final = re.compile(r"[A-Za-z0-9_~-][A-Za-z0-9_.~-]*")
_OF_ONE_GROUP: Final = ("cpu.periods", "cpu.throttled_periods", "cpu.throttled_ns")
"""Counted for each group by itself: a group around another does not have it."""


class Parent:
    """The group around one container.

    :ivar cgroup_parent: for ``HostConfig.CgroupParent``.
    :ivar path: below each mount.
    """

    def __init__(self, mode: CgroupMode, cgroup_parent: str, path: str) -> None:
        self.cgroup_parent = cgroup_parent
        self.path = path
        self.mode = mode

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.cgroup_parent}>"

    @property
    def label(self) -> str:
        """What tells it from others of its host: ``<task>.<task id>``, escaped."""
        return os.path.basename(self.path)

    def own_folders(self) -> list[str]:
        """Its folder in every hierarchy, whether it is there or not."""
        return [f"{point}{self.path}" for point in _points(self.mode)]

    def folders(self) -> list[str]:
        """What is to be removed, in this order, when the container is gone: its folders, then those of the host."""
        own = self.own_folders()
        return [*own, *map(os.path.dirname, own)]

    def exists(self) -> bool:
        """It has not been removed, or not everywhere."""
        return any(map(os.path.isdir, self.own_folders()))

    def may_be_of(self, starts: Starts) -> bool:
        """Whether a start that is going on may have made it; also where it has gone."""
        return starts.may_own(next(filter(os.path.isdir, self.own_folders()), self.path))

    def was_used(self) -> bool:
        """A container ran in it: so the engine is on this machine."""
        return self.totals() is not None

    def totals(self) -> Counters | None:
        """What the kernel counted in it over its whole life, also when the container is gone; None: nothing ran.

        CPU time and peak memory of the container, as exact as its own. Faults and what kind of memory is in use the
        kernel adds up late, up to 2 s: they may be short of the truth until then. What is counted of each group by
        itself is missing: throttling, and on version 1 OOM kills, which the engine knows. Limits are the container's.
        """
        from cameleer.drivers.cgroup.reader import CgroupCounters

        make = cast("Callable[[GroupPaths], CgroupCounters]", CgroupCounters)  # which makes the form for the version
        try:
            reader = make(self.paths())
            try:
                counters = reader.read(Tick(time.monotonic_ns(), extended=True, fresh=True))
            finally:
                reader.close()
        except DriverError:
            return None
        return _of_whole_run(counters, self.mode.version) if counters.cpu.total_ns else None

    def remove(self, timeout_s: float = REMOVE_S) -> None:
        """Remove it in every hierarchy, with empty groups inside and empty levels above; again without error.

        :raises RecoverableError: something is still in it: names processes.
        """
        deadline = time.monotonic() + timeout_s
        gap = _FIRST_GAP_S
        while not self.remove_folders():
            if time.monotonic() >= deadline:
                raise RecoverableError(f"cannot remove the group {self.path}: {self._what_is_in_it()}")
            time.sleep(gap)  # the last process of a group has gone a little before the group may
            gap = min(2 * gap, _LONGEST_GAP_S)
        self.remove_levels_above()

    def remove_folders(self) -> bool:
        """Remove what is empty; whether all is gone.

        :raises RecoverableError: no permission.
        """
        gone = True
        for folder in self.own_folders():
            try:
                for each in (*reversed(kernel.nested(folder)), folder):
                    gone = kernel.remove(each) and gone
            except OSError as exc:
                raise RecoverableError(f"cannot remove {exc.filename or folder}: {exc.strerror}") from exc
        return gone

    def kept(self) -> dict[str, str]:
        """For ``driver_state``; :meth:`Parents.restore` takes it."""
        return {"path": self.path}

    def pids(self) -> set[int]:
        """All processes in it."""
        found: set[int] = set()
        for folder in self.own_folders():
            with suppress(OSError):
                found |= kernel.all_members(folder)
        return found

    def paths(self) -> GroupPaths:
        """Its folders that are there, for reading."""
        version, mounts = self.mode.version or 1, self.mode.mounts
        names = V1_CONTROLLERS if version == 1 else ("unified",)
        folders = {name: f"{mounts[name]}{self.path}" for name in names if name in mounts}
        there = {name: folder for name, folder in folders.items() if os.path.isdir(folder)}
        return GroupPaths(version=version, folders=there)

    def remove_levels_above(self) -> None:
        """Remove those that are empty; the next group makes them again."""
        for folder in self.own_folders():
            node = os.path.dirname(folder)
            above = os.path.dirname(node)
            with suppress(OSError):
                if kernel.remove(node) and os.path.basename(above) == DEFAULT_PARENT:
                    kernel.remove(above)

    def _what_is_in_it(self) -> str:
        pids = sorted(self.pids())
        return f"processes are in it ({', '.join(map(str, pids[:5]))})" if pids else "the kernel holds it"


class Parents:
    """The groups of one host around its containers.

    :ivar reason: why there was none for the last container; empty: there was, or none was asked for.
    """

    def __init__(
        self,
        node: NodeInfo,
        driver: Literal["cgroupfs", "systemd"],
        version: int,
        *,
        parent: str = DEFAULT_PARENT,
        default_cpu_mhz: int = 0,
        mode: CgroupMode | None = None,
        systemd: str = "/run/systemd/system",
    ) -> None:
        """Look at what is mounted; makes nothing.

        :param driver: what makes the engine's groups.
        :param version: of the engine's groups.
        :param parent: group below which ours are made.
        :param default_cpu_mhz: share of a task that asks for none; 0: the kernel's default.
        :param mode: None: detected now.
        :param systemd: exists where systemd manages the machine.
        """
        self._mode = detect(parent) if mode is None else mode
        self._node = ".".join(filter(None, (f"{MARK}{node.node_name or node.node_id or 'node'}", node.host_id)))
        self._total_mhz = node.total_mhz
        self._starts = Starts()
        self._default_cpu_mhz = default_cpu_mhz
        self._parent = parent
        self._is_systemd = driver == "systemd"
        self._groups = Cgroups(self._mode, node=self._node)
        self._never = self._why_never(version, os.path.isdir(systemd))
        self._said = False
        self.reason = self._never

    def make(self, task: TaskConfig) -> Parent | None:
        """Make the group around a task's container; None where there can be none, and :attr:`reason` says why.

        It has the container's weights for processors and IO, which count among the groups of one level only.

        :raises ConfigError: a weight out of range.
        :raises NotSupported: the kernel cannot hold a weight.
        :raises StartRecoverable: a group of that name is in use.
        """
        if self._never:
            self._say(self._never)
            return None
        weights = self._weights(task)
        parent = self.of(task)
        if parent.pids() or not parent.remove_folders():  # what an older one counted is not this one's
            raise StartRecoverable(f"a group of that name is in use: {parent.path}")
        try:
            self._make(parent, task, weights)
        except (NotSupported, StartError, OSError) as exc:
            _undo(parent)
            self._say(f"no group can be made around a container: {exc}")
            return None
        except StartRecoverable:
            _undo(parent)
            raise
        try:
            if not self._is_systemd:
                limits.apply(limits.settings(weights, self._version, self._total_mhz), _by_controller(parent.paths()))
        except DriverError:
            _undo(parent)
            raise
        self.reason = ""
        return parent

    def of(self, task: TaskConfig) -> Parent:
        """The group that a task's container has, if there is one."""
        return self._named(self._part(self._names(task)))

    def restore(self, kept: Mapping[str, object]) -> Parent:
        """A group from what was kept of it; it need not be there any more.

        :raises ConfigError: it is not one of ours.
        """
        path, unit = kept.get("path"), kept.get("slice")
        if isinstance(unit, str):
            from cameleer.drivers.docker.stats.slices import Slice

            return Slice(self._mode, unit)
        levels = path.split("/") if isinstance(path, str) else []
        is_plain = len(levels) > 2 and not levels[0] and not {"", ".", ".."} & set(levels[1:])
        if not (is_plain and levels[-2].startswith(MARK) and all(map(_LEVEL.fullmatch, levels[-2:]))):
            raise ConfigError(f"the group {path!r} is not around a container of ours")
        return Parent(self._mode, "/".join(levels), "/".join(levels))

    def all(self) -> list[Parent]:
        """All groups of this node and host id, in use or not; also those that were half made or half removed."""
        node = self._named("x").path.rpartition("/")[0]
        names: set[str] = set()
        for point in _points(self._mode):
            with suppress(OSError):
                names.update(os.path.basename(folder) for folder in kernel.children(f"{point}{node}"))
        if self._is_systemd:
            from cameleer.drivers.docker.stats.slices import Slice

            return [Slice(self._mode, name) for name in sorted(names) if name.endswith(".slice")]
        return [self._named(name) for name in sorted(names)]

    def leftovers(self, claimed: Collection[str]) -> list[Parent]:
        """Those of no task that anybody knows.

        :param claimed: ids of tasks.
        """
        unclaimed = [each for each in self.all() if not self.is_claimed(each, claimed)]
        return [each for each in unclaimed if not each.may_be_of(self._starts)]

    def is_claimed(self, parent: Parent, claimed: Collection[str]) -> bool:
        """Whether it is around the container of one of these tasks.

        :param claimed: ids of tasks.
        """
        whole = {self._part(("", each)) for each in claimed}
        ids = {each.partition(".")[2] for each in whole}
        return parent.label in whole or parent.label.partition(".")[2] in ids

    # -- making --------------------------------------------------------------------------------------------------

    @property
    def _version(self) -> Literal[1, 2]:
        return self._mode.version or 1

    def _why_never(self, version: int, runs_systemd: bool) -> str:
        mode = self._mode
        if mode.version != version:
            return f"the engine's groups are of version {version}, and those here of {mode.version or 'none'}"
        if not self._is_systemd:
            return mode.reason
        if not runs_systemd:
            return "the engine's groups are made by systemd, which does not run this machine"
        return "" if os.geteuid() == 0 else "only root may make slices"

    def _say(self, reason: str) -> None:
        self.reason = reason
        if not self._said:
            log.warning("containers are measured by their own groups alone, which do not outlive them: %s", reason)
            self._said = True

    def _weights(self, task: TaskConfig) -> Resources:
        weights = Resources(
            cpu_mhz=task.resources.cpu_mhz or self._default_cpu_mhz or None, io_weight=task.resources.io_weight
        )
        limits.check(weights)
        return weights

    def _names(self, task: TaskConfig) -> tuple[str, str]:
        # of a name that was cut nobody can tell whose it is: then it is the id's alone
        return ("", task.id) if self._encode(_CUT) in self._part((task.name, task.id)) else (task.name, task.id)

    def _part(self, names: tuple[str, str]) -> str:
        """Its own part of the path: ``<task>.<task id>``."""
        return self._encode(group_name(*names))

    def _encode(self, name: str) -> str:
        if not self._is_systemd:
            return name
        from cameleer.drivers.docker.stats.slices import part

        return part(name)

    def _named(self, label: str) -> Parent:
        if self._is_systemd:
            from cameleer.drivers.docker.stats.slices import Slice, part

            levels = [part(each.removesuffix(".slice")) for each in (*self._parent.split("/"), self._node) if each]
            return Slice(self._mode, f"{'-'.join([*levels, label])}.slice")
        mode = self._mode
        base = ""
        if self._version == 2:
            base = mode.bases.get("unified", "").removeprefix(mode.mounts.get("unified", ""))
        path = f"{base}/{mode.parent}/{self._groups.node}/{label}"
        return Parent(mode, path, path)

    def _make(self, parent: Parent, task: TaskConfig, weights: Resources) -> None:
        if self._is_systemd:
            from cameleer.drivers.docker.stats.slices import start

            start(parent.cgroup_parent, weights, self._total_mhz)
        elif self._version == 1:
            _make_everywhere(parent)
        else:
            folder = self._groups.make(*self._names(task)).paths.folders["unified"]
            v2.enable(folder, v2.enabled(os.path.dirname(folder)))


def _points(mode: CgroupMode) -> list[str]:
    """Where the hierarchies are mounted in which a container has groups, each once."""
    used = V1_CONTROLLERS if mode.version == 1 else ("unified",)
    return list(dict.fromkeys([*(mode.mounts[name] for name in used if name in mode.mounts), *mode.others]))


def _make_everywhere(parent: Parent) -> None:
    """Make a group of version 1 in every hierarchy."""
    for point in _points(parent.mode):
        try:
            _make_in(point, parent.path)
        except OSError:
            if point not in parent.mode.others:  # there the runtime may see to it
                raise


def _make_in(point: str, path: str) -> None:
    for _ in range(_TRIES):
        folder = point
        try:
            for level in path.split("/")[1:]:
                v1.make("", folder, level, plain=True)
                v1.inherit_cpuset(folder, f"{folder}/{level}")  # whoever made it may not have come so far yet
                folder = f"{folder}/{level}"
        except OSError as exc:
            if exc.errno not in kernel.GONE:
                raise
        else:
            return
    raise StartRecoverable(f"the levels above {point}{path} were removed again and again")


def _by_controller(paths: GroupPaths) -> Mapping[str, str]:
    if paths.version == 1:
        return paths.folders
    folder = paths.folders["unified"]
    return dict.fromkeys(kernel.read(f"{folder}/cgroup.controllers").split(), folder)


def _undo(parent: Parent) -> None:
    with suppress(DriverError):  # there is an error already, and it is the cause
        parent.remove()


def _of_whole_run(counters: Counters, version: int | None) -> Counters:
    """Without what the kernel counts for each group by itself, or has not added up yet."""
    cpu = msgspec.structs.replace(counters.cpu, periods=None, throttled_periods=None, throttled_ns=None)
    memory = counters.memory
    missing: dict[str, MissingReason] = {**counters.missing, **dict.fromkeys(_OF_ONE_GROUP, "unsupported")}
    if version == 1:
        memory = msgspec.structs.replace(memory, oom_kills=None)
        missing["memory.oom_kills"] = "unsupported"
    if memory.minor_faults == 0:  # no process runs without
        memory = msgspec.structs.replace(memory, minor_faults=None, major_faults=None)
        missing |= {"memory.minor_faults": "failed", "memory.major_faults": "failed"}
    return msgspec.structs.replace(counters, cpu=cpu, memory=memory, missing=missing)
