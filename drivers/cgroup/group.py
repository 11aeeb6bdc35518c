"""Groups of tasks: making, entering, freezing, killing, removing; the same for both versions.

::

    groups = Cgroups(detect(), node="node-1")
    group = groups.make("alloc-1", "web", Resources(memory_bytes=64 << 20))
    group.entry.files  # what a process writes 0 to, between fork and exec
    group.remove()

Everything here is plain system calls and may wait (removal does): not for an event loop.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from cameleer.drivers.cgroup import kernel, removal, v1, v2
from cameleer.drivers.cgroup.mode import DEFAULT_PARENT, OWN_LEAF, V1_CONTROLLERS, CgroupMode, detect
from cameleer.drivers.cgroup.names import folder_name, group_name
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.errors import ConfigError, NotSupported, StartError, StartRecoverable, UnrecoverableError

if TYPE_CHECKING:
    from cameleer.config import Resources

REMOVE_S: Final = 10.0
_TRIES: Final = 50
"""A folder that we need may be removed as empty by another host between two of our steps, again and again."""
_OPTIONAL: Final = "cpuset"
"""Version 1: a group of this controller is made only where processors are asked for."""
COUNTING: Final = frozenset({"freezer", "pids", "blkio", "memory", "cpuacct", "io"})
"""Controllers of groups that only count, of either version. Not ``cpu``: in a group of it all processes of a task
together get the share of one. The freezer, so that they can be killed at once."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """How a process gets into a group, as plain data for whoever starts it.

    :ivar version: of the interface.
    :ivar files: a process with one thread writes ``0`` to each, in this order, between fork and exec: it ends up inside
        with everything it starts. Version 1: ``tasks``, which spares the lock that ``cgroup.procs`` takes.
    :ivar procs: the same for moving another process: its number is written to each.
    :ivar folder: version 2: for ``CLONE_INTO_CGROUP``.
    """

    version: int
    files: tuple[str, ...]
    procs: tuple[str, ...]
    folder: str | None = None


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """One task's group.

    :ivar name: for messages: folder below the mount.
    :ivar paths: all its folders, for reading.
    :ivar joined: controllers whose folder somebody else made: never frozen, killed or removed by us.
    :ivar shared: of these, the ones that are not this task's alone: never limited either.
    :ivar plain: it only counts: made and removed without cgroupspy.
    """

    name: str
    paths: GroupPaths
    joined: frozenset[str] = frozenset()
    shared: frozenset[str] = frozenset()
    plain: bool = False

    @property
    def own(self) -> Mapping[str, str]:
        """The folders that are ours."""
        return {name: folder for name, folder in self.paths.folders.items() if name not in self.joined}

    @property
    def entry(self) -> Entry:
        """How a process gets in."""
        if self.paths.version == 2:
            folder = self.paths.folders["unified"]
            procs = (f"{folder}/cgroup.procs",)
            return Entry(version=2, files=procs, procs=procs, folder=folder)
        order = sorted(self.paths.folders.items(), key=lambda each: V1_CONTROLLERS.index(each[0]))
        folders = [folder for _, folder in v1.controllers_of(dict(order))]
        return Entry(
            version=1,
            files=tuple(f"{folder}/tasks" for folder in folders),
            procs=tuple(f"{folder}/cgroup.procs" for folder in folders),
        )

    def enter(self, pid: int) -> None:
        """Move a process in; what it has started already stays where it is.

        :raises UnrecoverableError: it is gone; no permission; the group is gone.
        """
        for path in self.entry.procs:
            try:
                kernel.write(path, str(pid))
            except OSError as exc:
                raise UnrecoverableError(f"cannot move process {pid} into {path}: {exc.strerror}") from exc

    def pids(self) -> set[int]:
        """All processes in it and in the groups that the task made inside; of the folders that are ours.

        A joined group's alone, where nothing is ours.
        """
        found: set[int] = set()
        for folder in set((self.own or self.paths.folders).values()):
            found |= kernel.all_members(folder)
        return found

    def exists(self) -> bool:
        """It has not been removed."""
        folders = self.own or self.paths.folders
        return os.path.isdir(folders.get("freezer") or next(iter(folders.values())))

    def limit(self, resources: Resources, total_mhz: float | None = None) -> None:
        """Set what is asked for, or raise; nothing is skipped.

        :param total_mhz: of the machine, see :func:`cameleer.drivers.cgroup.limits.settings`.
        :raises ConfigError: a value out of range, or refused by the kernel.
        :raises NotSupported: this kernel cannot hold it, or the group is shared with others.
        """
        from cameleer.drivers.cgroup import limits

        plan = limits.settings(resources, self.paths.version, total_mhz)
        if not plan:
            return
        folders = dict(self.paths.folders)
        if self.paths.version == 2:
            folders = self._folders_of_controllers(folders["unified"])
        for each in plan:
            key = each.controller if self.paths.version == 1 else "unified"
            if key in self.shared:
                raise NotSupported(
                    f"{each.asked_for} cannot be held: {self.paths.folders[key]} is not this task's alone"
                )
        limits.apply(plan, folders, v1.put if self.paths.version == 1 else None)
        if self.paths.version == 2 and resources.cpuset_cpus is not None:
            v2.confirm_cpus(folders["cpuset"], resources.cpuset_cpus)
        if "unified" in self.own and any(each.file == "memory.low" for each in plan):
            v2.protect(os.path.dirname(self.own["unified"]))

    def _folders_of_controllers(self, folder: str) -> dict[str, str]:
        try:
            return dict.fromkeys(kernel.read(f"{folder}/cgroup.controllers").split(), folder)
        except OSError as exc:
            raise UnrecoverableError(f"cannot limit the group {self.name}: {exc.strerror}") from exc

    def freeze(self, timeout_s: float = removal.FREEZE_S) -> bool:
        """Stop all processes where they are; whether all have stopped in time. Nothing where the group is gone.

        :raises NotSupported: somebody else made it.
        """
        self._must_be_ours("frozen")
        try:
            if self.paths.version == 2:
                return v2.freeze(self.own["unified"], timeout_s)
            return "freezer" in self.own and v1.freeze(self.own["freezer"], timeout_s)
        except OSError as exc:
            if exc.errno in kernel.GONE:
                return True
            raise

    def thaw(self) -> None:
        """Let them run again.

        :raises NotSupported: somebody else made it.
        """
        self._must_be_ours("thawed")
        if self.paths.version == 2:
            v2.thaw(self.own["unified"])
        elif "freezer" in self.own:
            v1.thaw(self.own["freezer"])

    def kill(self) -> None:
        """SIGKILL everything in it, complete although processes keep forking; does not wait.

        :raises NotSupported: somebody else made it.
        :raises UnrecoverableError: this process itself is in it.
        """
        self._must_be_ours("killed")
        removal.kill(self)

    def signal(self, signum: int) -> None:
        """Send a signal to every process in it.

        :raises NotSupported: somebody else made it.
        """
        self._must_be_ours("signalled")
        removal.signal_all(self, signum)

    def remove(self, timeout_s: float = REMOVE_S) -> None:
        """Kill what is in it and remove it, with the groups that the task made; again without error.

        What somebody else made stays as it is, with its processes; empty groups inside it, which would keep its owner
        from removing it, go where it is this task's alone.

        :raises RecoverableError: processes did not die in time.
        :raises UnrecoverableError: this process itself is in it; no permission.
        """
        if self.own:
            removal.remove(self, timeout_s)
            _prune(self.own.values())
            if "unified" in self.own and not self.plain:
                v2.protect(os.path.dirname(self.own["unified"]), less=True)
        for name in self.joined - self.shared:
            for folder in reversed(kernel.nested(self.paths.folders[name])):
                kernel.remove(folder)

    def _must_be_ours(self, done: str) -> None:
        if not self.own:
            raise NotSupported(f"the group {self.name} is not ours: it is not {done}")


class Cgroups:
    """All groups of one node.

    :ivar mode: what :func:`detect` found.
    :ivar plain: they only count.
    """

    def __init__(
        self,
        mode: CgroupMode | None = None,
        *,
        node: str,
        total_mhz: float | None = None,
        move_ourselves: bool = False,
        plain: bool = False,
    ) -> None:
        """Store; makes nothing.

        :param mode: None: detected now.
        :param node: folder of this node's groups below the parent; ids are escaped.
        :param total_mhz: of the machine.
        :param move_ourselves: version 2, delegated: this process may be moved into a leaf. Only for programs that are
            ours as a whole, not for a library in somebody's process.
        :param plain: groups of the controllers that count (``COUNTING``), without limits.
        """
        self.mode = mode or detect()
        self.node = folder_name(node)
        self.plain = plain
        self._total_mhz = total_mhz
        self._move_ourselves = move_ourselves
        self._controllers = self.mode.controllers & COUNTING if plain else self.mode.controllers

    def make(self, alloc: str, task: str, resources: Resources | None = None) -> Group:
        """Make a task's group and set its limits; after an error nothing is left of it.

        :raises NotSupported: no groups can be made here, or a limit cannot be held: names reason and remedy.
        :raises ConfigError: a limit out of range.
        :raises StartRecoverable: a group of that name is there.
        :raises StartError: the kernel refuses to make it.
        """
        _check(resources)
        cpuset = resources is not None and resources.cpuset_cpus is not None
        return self._made(self._group(alloc, task, cpuset=cpuset), resources)

    def join(self, path: str, alloc: str, task: str, resources: Resources | None = None) -> Group:
        """Take the group that an orchestrator made for a task; version 1: and make ours for the other controllers.

        It is limited only where it bears the task's name, ``<alloc>.<task>`` (or with ``.scope``), and nothing is in
        it; never frozen, killed, removed.

        :raises ConfigError: the path is no group; a limit out of range.
        :raises NotSupported: a limit for a group that others share.
        """
        _check(resources)
        controllers = self._controllers_at(path)
        path = os.path.realpath(path)
        alone = os.path.basename(path) in (f"{alloc}.{task}", f"{alloc}.{task}.scope") and not (
            kernel.children(path) or kernel.members(path)
        )
        shared = frozenset() if alone else controllers
        if "unified" in controllers:
            joined = Group(
                name=path,
                paths=GroupPaths(version=2, folders={"unified": path}),
                joined=controllers,
                shared=shared,
            )
            if resources is not None:
                joined.limit(resources, self._total_mhz)
            return joined
        cpuset = resources is not None and resources.cpuset_cpus is not None
        ours = self._group(alloc, task, cpuset=cpuset and "cpuset" not in controllers)
        folders = {**ours.paths.folders, **dict.fromkeys(controllers, path)}
        group = Group(name=ours.name, paths=GroupPaths(version=1, folders=folders), joined=controllers, shared=shared)
        return self._made(group, resources)

    def find(self, alloc: str, task: str) -> Group | None:
        """The group that a task of this name has now; None: none."""
        name = group_name(alloc, task)
        folders = {each: f"{parent}/{self.node}/{name}" for each, parent in self.mode.parents().items()}
        return self._found({each: folder for each, folder in folders.items() if os.path.isdir(folder)})

    def at(self, folder: str) -> Group | None:
        """The group of this node that a folder is of: version 2's, or the freezer's; None: none."""
        key = "unified" if self._is_unified else "freezer"
        return next((each for each in self.all() if each.paths.folders[key] == folder), None)

    def restore(
        self, paths: GroupPaths, joined: Iterable[str] = (), shared: Iterable[str] | None = None, parent: str = ""
    ) -> Group:
        """A group from what was kept of it: :attr:`Group.paths`, :attr:`Group.joined`, :attr:`Group.shared`.

        :param shared: None: nobody knows, so all that it joined.
        :param parent: our parent when it was made, which need not be today's; empty: it is.
        :raises ConfigError: a folder is not below that parent, and so not ours.
        """
        strangers = frozenset(joined)
        for controller, folder in paths.folders.items():
            if controller not in strangers and not self._may_be_ours(controller, folder, parent):
                where = (
                    f"{self.mode.mounts.get(controller)}/…/{parent}" if parent else self.mode.parents().get(controller)
                )
                raise ConfigError(f"the group {folder!r} is not ours: it is not below {where}")
        if paths.version == 1 and "freezer" not in paths.folders:
            raise ConfigError(f"a group of version 1 without a freezer: {paths!r}")
        key = "unified" if paths.version == 2 else "freezer"
        return Group(
            name=self._shown(paths.folders[key], key),
            paths=paths,
            joined=strangers,
            shared=strangers if shared is None else strangers & frozenset(shared),
            plain=self.plain,
        )

    def all(self) -> list[Group]:
        """Every group of this node, whichever host made it: for finding what was left over."""
        found: dict[str, dict[str, str]] = {}
        for controller in self.mode.bases:
            for node in self._nodes(controller):
                for folder in kernel.children(node):
                    found.setdefault(os.path.basename(folder), {}).setdefault(controller, folder)
        return [group for folders in found.values() if (group := self._found(folders)) is not None]

    def _nodes(self, controller: str) -> list[str]:
        """Folders of this node's groups. Those that only count may be in any group that a host of this node was in."""
        tail = f"/{self.mode.parent}/{self.node}"
        if not self.plain:
            return [f"{self.mode.bases[controller]}{tail}"]
        return [each for each in kernel.nested(self.mode.mounts[controller]) if each.endswith(tail)]

    def _found(self, folders: Mapping[str, str]) -> Group | None:
        version, key = self.mode.version, "unified" if self._is_unified else "freezer"
        if version is None or key not in folders:
            return None
        paths = GroupPaths(version=version, folders=folders)
        return Group(name=self._shown(folders[key], key), paths=paths, plain=self.plain)

    def _group(self, alloc: str, task: str, *, cpuset: bool) -> Group:
        if not self.mode.usable or self.mode.version is None:
            hint = f" (try: {self.mode.remedy})" if self.mode.remedy else ""
            raise NotSupported(f"no groups can be made: {self.mode.reason}{hint}")
        name = group_name(alloc, task)
        folders = {
            controller: f"{parent}/{self.node}/{name}"
            for controller, parent in self.mode.parents().items()
            if (cpuset or controller != _OPTIONAL) and (controller in COUNTING or not self.plain or self._is_unified)
        }
        key = "unified" if self._is_unified else "freezer"
        paths = GroupPaths(version=self.mode.version, folders=folders)
        return Group(name=self._shown(folders[key], key), paths=paths, plain=self.plain)

    def _may_be_ours(self, controller: str, folder: str, parent: str) -> bool:
        """The folder is ``<parent>/<node>/<task>``; a parent of one's own time, and of one that only counts, anywhere.

        :param parent: empty: today's.
        """
        base, _, tail = folder.rpartition(f"/{parent or self.mode.parent}/")
        if os.path.normpath(folder) != folder or tail.count("/") != 1:
            return False
        if self.plain or parent:
            mount = self.mode.mounts.get(controller)
            return mount is not None and f"{base}/".startswith(f"{mount}/")
        return base == self.mode.bases.get(controller)

    @property
    def _is_unified(self) -> bool:
        return self.mode.version == 2

    def _shown(self, folder: str, key: str) -> str:
        return folder.removeprefix(f"{self.mode.mounts.get(key, '')}/")

    def _made(self, group: Group, resources: Resources | None) -> Group:
        made: list[str] = []
        try:
            if group.paths.version == 2:
                self._make_unified(group, made)
            else:
                self._make_folders(group, made)
            if resources is not None:
                group.limit(resources, self._total_mhz)
        except Exception as exc:
            undoing = _undo(group, made)
            if undoing is not None:
                raise ExceptionGroup(
                    "a group could not be made, nor what was made of it removed", [exc, undoing]
                ) from exc
            if isinstance(exc, OSError):
                raise StartError(f"cannot make the group {group.name}: {exc.filename}: {exc.strerror}") from exc
            raise
        return group

    def _make_folders(self, group: Group, made: list[str]) -> None:
        order = sorted(group.own.items(), key=lambda each: V1_CONTROLLERS.index(each[0]))
        for controller, folder in v1.controllers_of(dict(order)):  # the freezer first: who makes it has the name
            parent, name = os.path.split(folder)
            for _ in range(_TRIES):
                try:
                    if not v1.make(controller, parent, name, plain=self.plain):
                        raise _taken(folder)
                    break
                except OSError as exc:
                    if exc.errno not in kernel.GONE:
                        raise
                    self._make_parent(controller, parent)
            else:
                raise StartRecoverable(f"the folder {parent} was removed again and again")
            made.append(folder)

    def _make_parent(self, controller: str, folder: str) -> None:
        """Make a level above the task's, and those above it."""
        if folder == self.mode.bases[controller]:
            return
        above, name = os.path.split(folder)
        self._make_parent(controller, above)
        try:
            v1.make(controller, above, name, plain=self.plain)
        except OSError as exc:
            if exc.errno not in kernel.GONE:  # removed meanwhile: the caller tries again
                raise

    def _make_unified(self, group: Group, made: list[str]) -> None:
        folder = group.own["unified"]
        node = os.path.dirname(folder)
        base = self.mode.bases["unified"]
        levels = [base]
        for name in [*self.mode.parent.split("/"), self.node]:
            levels.append(f"{levels[-1]}/{name}")
        if self.mode.must_move:
            self._leave(base)
        for _ in range(_TRIES):
            try:
                if not self._handed_down(node):
                    for each in levels:
                        v2.make_level(each)
                        v2.enable(each, self._controllers)
                    self._controllers = v2.enabled(node)  # without those that the kernel refuses
                if not kernel.make(folder):
                    raise _taken(folder)
                break
            except OSError as exc:
                if exc.errno not in kernel.GONE:
                    raise
        else:
            raise StartRecoverable(f"the folder {node} was removed again and again")
        made.append(folder)

    def _handed_down(self, node: str) -> bool:
        try:
            return self._controllers <= v2.enabled(node)
        except OSError as exc:
            if exc.errno not in kernel.GONE:
                raise
            return False

    def _leave(self, base: str) -> None:
        reason, remedy = obstacle(self.mode, may_move=self._move_ourselves)
        if reason:
            raise NotSupported(f"no groups can be made: {reason} (try: {remedy})")
        inside = kernel.members(base)
        if inside and not v2.enabled(base):
            v2.leave(base, OWN_LEAF, inside)

    def _controllers_at(self, path: str) -> frozenset[str]:
        """Controllers of a path that was handed over.

        :raises ConfigError: it is not a group, or the root of the tree.
        """
        if os.path.isabs(path) and os.path.normpath(path) == path and os.path.isfile(f"{path}/cgroup.procs"):
            real = os.path.realpath(path)  # /sys/fs/cgroup/cpu may be a link to what is mounted together
            found = {name for name, point in self.mode.mounts.items() if real.startswith(f"{point}/")}
            longest = max((len(self.mode.mounts[name]) for name in found), default=0)
            inner = frozenset(name for name in found if len(self.mode.mounts[name]) == longest)
            if inner and self.mode.version is not None and ("unified" in inner) == (self.mode.version == 2):
                return inner
        raise ConfigError(f"TaskConfig.cgroup_path is {path!r}: it must be the folder of a group, below its mount")


def obstacle(mode: CgroupMode, *, may_move: bool) -> tuple[str, str]:
    """Why this process can make no group now, and what would help; both empty: it can.

    :param may_move: it may be moved into a leaf, see :class:`Cgroups`.
    """
    base = mode.bases.get("unified", "")
    if mode.usable and mode.must_move and not may_move and kernel.members(base) and not v2.enabled(base):
        return (
            f"this process is in {base} itself, so no controllers can be enabled for groups inside it",
            f"leave_group = true in the driver's settings, which moves it into {base}/{OWN_LEAF}, "
            "or start it in a group inside",
        )
    return mode.reason, mode.remedy


def _check(resources: Resources | None) -> None:
    if resources is not None:
        from cameleer.drivers.cgroup import limits

        limits.check(resources)


def _taken(folder: str) -> StartRecoverable:
    return StartRecoverable(
        f"a group of that name is there: {folder}; its task has not gone yet, or was left by a host that died"
    )


def _undo(group: Group, made: Sequence[str]) -> Exception | None:
    """Remove what was made of a group; what is in the way of that."""
    ours = {name: folder for name, folder in group.own.items() if folder in made}
    if not ours:
        return None
    part = Group(name=group.name, paths=GroupPaths(version=group.paths.version, folders=ours), plain=group.plain)
    try:
        part.remove()
    except Exception as exc:
        return exc
    return None


def _prune(folders: Iterable[str]) -> None:
    """Remove a node's folder, and our own parent's, when they are empty: the next group makes them again."""
    for folder in folders:
        node = os.path.dirname(folder)
        parent = os.path.dirname(node)
        try:
            if kernel.remove(node) and os.path.basename(parent) == DEFAULT_PARENT:
                kernel.remove(parent)
        except OSError:
            continue
