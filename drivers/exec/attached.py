"""A group that somebody else made, measured and otherwise left alone."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Literal, cast

from cameleer.config import TaskConfig
from cameleer.driver import AttachedTask, Tick
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.drivers.cgroup.rows import with_rows
from cameleer.errors import TaskNotFound
from cameleer.status import Exit

if TYPE_CHECKING:
    from collections.abc import Callable

    from cameleer.drivers.cgroup.mode import CgroupMode
    from cameleer.usage import Counters

PREFIX: Final = "cgroup:"

_LOOK_S: Final = 0.5
"""How often a group is looked for: nothing tells of its removal."""


class AttachedGroup(AttachedTask):
    """A group until it is removed."""

    def __init__(self, config: TaskConfig, paths: GroupPaths, **reading: float) -> None:
        from cameleer.drivers.cgroup.reader import CgroupCounters

        super().__init__(config)
        self._paths = paths
        make = cast("Callable[..., CgroupCounters]", CgroupCounters)  # which makes the form for the version
        self._counters = make(paths, **reading)

    def what(self) -> str:
        """A group, by its path."""
        return f"the group {self.config.name}"

    async def wait(self) -> Exit:
        """Wait for the group's removal; how its processes ended is their parents' to know."""
        while all(os.path.isdir(folder) for folder in self._paths.folders.values()):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(_LOOK_S)
        return Exit(error="somebody else's group was removed: nobody here knows how its processes ended")

    def read(self, tick: Tick) -> Counters:
        """Count what the group holds, and list its processes on request."""
        return with_rows(self._counters.read(tick), tick, next(iter(self._paths.folders.values())))

    async def destroy(self, force: bool = False) -> None:
        """Let go of it; it is not touched."""
        self._counters.close()


def attached(ref: str, mode: CgroupMode, **reading: float) -> AttachedGroup:
    """Begin to measure a group.

    :param ref: ``cgroup:`` and its path as in ``/proc/PID/cgroup``.
    :param reading: ``idle_after_s`` and ``refresh_s``, as the reader has them.
    :raises TaskNotFound: there is no such group, or that is no path of one.
    """
    path = ref.removeprefix(PREFIX)
    if not ref.startswith(PREFIX) or not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise TaskNotFound(f"{ref!r} names no group: write cgroup:/path, as in /proc/PID/cgroup")
    version: Literal[1, 2] = 1 if "memory" in mode.mounts or "cpuacct" in mode.mounts else 2
    folders = {
        name: f"{mount}{path.rstrip('/')}"
        for name, mount in mode.mounts.items()
        if (name == "unified") == (version == 2) and os.path.isdir(f"{mount}{path}")
    }
    if not folders:
        raise TaskNotFound(f"there is no group {path}")
    return AttachedGroup(
        TaskConfig(name=path.strip("/").replace("/", ".") or "root"),
        GroupPaths(version=version, folders=folders),
        **reading,
    )
