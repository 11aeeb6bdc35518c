"""A container's own control group on this machine: found by its id, read like any group.

::

    found = local.look(container_id, pid)
    if found.paths is None:
        print(found.reason)  # the engine's statistics have to do
    counters = LocalCounters(found.paths, pid=pid)
    counters.read(tick)

That the engine is on this machine is proved by the container's id in ``/proc/PID/cgroup``, which nobody else has; paths
are taken from there, so that it does not matter who manages the groups, and where.
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, cast

from cameleer.drivers.cgroup import kernel, membership
from cameleer.drivers.cgroup.mode import V1_CONTROLLERS, CgroupMode, detect
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.drivers.cgroup.rows import with_rows
from cameleer.errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cameleer.driver import Tick
    from cameleer.drivers.cgroup.reader import CgroupCounters
    from cameleer.usage import Counters

_FULL_ID: Final = re.compile(r"[0-9a-f]{64}")
_COUNTED_IN: Final = ("cpuacct", "memory", membership.UNIFIED)
"""Without a folder of one of these there is nothing to read."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was found of a container.

    :ivar paths: its group; None: it is not to be read here.
    :ivar reason: why not, for the log and for the fingerprint.
    """

    paths: GroupPaths | None = None
    reason: str = ""


def find(container_id: str, pid: int, mode: CgroupMode | None = None, *, proc: str = "/proc") -> GroupPaths | None:
    """The group of a container of an engine on this machine; None: it is not here, or not to be read."""
    return look(container_id, pid, mode, proc=proc).paths


def look(container_id: str, pid: int, mode: CgroupMode | None = None, *, proc: str = "/proc") -> Found:
    """Look for the group of a container, and say why there is none.

    :param container_id: all 64 digits of it.
    :param pid: of its first process, as the engine says: on whatever machine.
    :param mode: None: detected, once.
    :param proc: where proc is mounted.
    """
    if not _FULL_ID.fullmatch(container_id):
        return Found(reason=f"{container_id!r} is not the whole id of a container")
    if pid <= 0:
        return Found(reason="the container does not run")
    source = f"{proc}/{pid}/cgroup"
    try:
        member_of = _groups_of(source)
    except PermissionError:
        return Found(reason=f"{source} may not be read")
    except OSError as exc:
        return Found(reason=f"no process {pid} is here ({exc.strerror}): the engine is elsewhere, or it has ended")
    except DriverError as exc:
        return Found(reason=str(exc))
    own = {name: path for name, path in member_of.items() if container_id in path}
    if not own:
        return Found(reason=f"process {pid} of this machine is not the container's: the engine is elsewhere")
    paths = {name: cut for name, path in own.items() if (cut := _up_to(path, container_id)) is not None}
    found = _in(mode or _detected(), paths)
    if not found.folders and mode is None:  # something was mounted since
        _detected.cache_clear()
        found = _in(_detected(), paths)
    counted_in = [folder for name, folder in found.folders.items() if name in _COUNTED_IN]
    if not counted_in:
        shown = own.get("memory") or own.get(membership.UNIFIED) or next(iter(own.values()))
        return Found(reason=f"the container's group {shown} is not in what is mounted here")
    if barred := [folder for folder in counted_in if not os.access(folder, os.R_OK | os.X_OK)]:
        return Found(reason=f"the container's group {barred[0]} may not be read")
    return Found(paths=found)


@functools.cache
def _detected() -> CgroupMode:
    return detect()


def _groups_of(source: str) -> dict[str, str]:
    """Paths of the groups of a process, by controller.

    :raises OSError: the file cannot be read.
    :raises RecoverableError: it is garbled.
    """
    return membership.parse(kernel.read(source).encode("utf-8", "surrogateescape"), source)


def _in(mode: CgroupMode, paths: Mapping[str, str]) -> GroupPaths:
    """The folders of these groups, as far as they are mounted."""
    version: Literal[1, 2] = 1 if {"cpuacct", "memory"} & mode.mounts.keys() else 2
    folders = {
        name: folder
        for name in (V1_CONTROLLERS if version == 1 else (membership.UNIFIED,))
        if name in paths and (folder := mode.folder(name, paths[name])) is not None and os.path.isdir(folder)
    }
    return GroupPaths(version=version, folders=folders)


def _up_to(path: str, container_id: str) -> str | None:
    """The path as far as the container's own group: its processes may have gone into groups inside.

    ``<id>`` where the runtime makes the groups, ``docker-<id>.scope`` where systemd does.
    """
    levels = path.split("/")
    for number, level in enumerate(levels):
        name = level.removesuffix(".scope")
        if name == container_id or name.endswith(f"-{container_id}"):
            return "/".join(levels[: number + 1])
    return None


class LocalCounters:
    """What a container's group counts, with the traffic of its network namespace, and its processes on request.

    As :class:`~cameleer.drivers.cgroup.reader.CgroupCounters`: one :meth:`read` at a time, which never waits.
    """

    __slots__ = ("_counters", "_folder")

    def __init__(self, paths: GroupPaths, *, pid: int, proc: str = "/proc") -> None:
        """Open the files.

        :param paths: as :func:`find` found them.
        :param pid: of the container's first process, for its network namespace.
        :param proc: where proc is mounted.
        :raises TaskNotFound: the group is gone.
        """
        from cameleer.drivers.cgroup.reader import CgroupCounters

        # makes the form for the version
        make = cast("Callable[..., CgroupCounters]", CgroupCounters)
        self._folder = next(iter(paths.folders.values()))
        counters = make(paths, network_pid=pid)
        if not _is_in(paths, pid, proc):  # another process has its number by now, and another network
            counters.close()
            counters = make(paths)
        self._counters = counters

    def read(self, tick: Tick) -> Counters:
        """Say what the container used so far. Never waits.

        :raises TaskNotFound: the group was removed: the container has ended.
        :raises RecoverableError: a text is garbled or cut short; descriptors are used up.
        :raises UnrecoverableError: it was closed.
        """
        return with_rows(self._counters.read(tick), tick, self._folder)

    def close(self) -> None:
        """Close the files; twice without error. Not under a running :meth:`read`."""
        self._counters.close()


def _is_in(paths: GroupPaths, pid: int, proc: str) -> bool:
    """Whether a process is in a group, or in one inside."""
    try:
        member_of = _groups_of(f"{proc}/{pid}/cgroup")
    except (OSError, DriverError):
        return False
    names = {os.path.basename(folder) for folder in paths.folders.values()}
    return any(names & set(path.split("/")) for path in member_of.values())
