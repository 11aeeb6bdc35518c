"""Groups of version 1: one folder per controller.

cgroupspy makes, deletes and limits the groups of the controllers that it knows; freezer, pids and IO are ours. Only its
``Node`` and controllers are used: its tree walks every group of the machine. Groups that only count (``plain``) are
made and deleted without it: its import costs more than they do, and who limits nothing need not have it.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Final

from cameleer.drivers.cgroup import kernel
from cameleer.errors import NotSupported

_CGROUPSPY: Final = frozenset({"cpu", "cpuacct", "cpuset", "memory"})
_ATTRIBUTES: Final = {
    "cpu.shares": ("CpuController", "shares"),
    "cpu.cfs_period_us": ("CpuController", "cfs_period_us"),
    "cpu.cfs_quota_us": ("CpuController", "cfs_quota_us"),
    "cpuset.cpus": ("CpuSetController", "cpus"),
    "memory.limit_in_bytes": ("MemoryController", "limit_in_bytes"),
    "memory.soft_limit_in_bytes": ("MemoryController", "soft_limit_in_bytes"),
    "memory.memsw.limit_in_bytes": ("MemoryController", "memsw_limit_in_bytes"),
}
_FROZEN: Final = "FROZEN"
_THAWED: Final = "THAWED"
_FIRST_GAP_S: Final = 0.0005
_LONGEST_GAP_S: Final = 0.02


@functools.cache
def _library(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(f"cgroupspy.{name}")
    except ImportError as exc:
        raise NotSupported(f"groups of cgroup v1 need cgroupspy ({exc}): install cameleer[exec]") from exc


def make(controller: str, parent: str, name: str, *, plain: bool = False) -> bool:
    """Make one controller's group; whether it is new.

    :param plain: without cgroupspy.
    :raises NotSupported: cgroupspy is missing.
    :raises OSError: the parent is missing, no permission.
    """
    folder = f"{parent}/{name}"
    if controller in _CGROUPSPY and not plain:
        if os.path.isdir(folder):
            inherit_cpuset(parent, folder)
            return False
        _library("nodes").Node(os.fsencode(parent)).create_cgroup(name)  # would take an existing one for a new one
    elif not kernel.make(folder):
        return False
    inherit_cpuset(parent, folder)
    _count_hierarchically(folder)
    return True


def inherit_cpuset(parent: str, folder: str) -> None:
    """Give a new cpuset its parent's processors and memory nodes: no process can enter an empty one."""
    if not os.path.exists(f"{folder}/cpuset.cpus"):  # any controllers may be mounted together
        return
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not kernel.read(f"{folder}/{name}").strip():
            kernel.write(f"{folder}/{name}", kernel.read(f"{parent}/{name}"))


def remove(controller: str, folder: str, *, plain: bool = False) -> bool:
    """Remove one group; whether it is gone now.

    :param plain: without cgroupspy.
    """
    if controller not in _CGROUPSPY or plain:
        return kernel.remove(folder)
    parent, name = os.path.split(folder)
    try:
        _library("nodes").Node(os.fsencode(parent)).delete_cgroup(name)
    except OSError:
        return kernel.remove(folder)  # says busy, gone or forbidden
    return True


def put(folder: str, file: str, value: str) -> None:
    """Set one limit.

    :raises OSError: the kernel refused it.
    """
    found = _ATTRIBUTES.get(file)
    if found is None:
        kernel.write(f"{folder}/{file}", value)
    else:
        from cameleer.drivers.cgroup.limits import cpus

        setattr(_controller(found[0], folder), found[1], cpus(value) if file == "cpuset.cpus" else int(value))


def freeze(folder: str, timeout_s: float) -> bool:
    """Stop all processes of a freezer group and of those inside where they are; whether all have stopped in time."""
    deadline = time.monotonic() + timeout_s
    gap = _FIRST_GAP_S
    state = f"{folder}/freezer.state"
    while True:
        kernel.write(state, _FROZEN)  # once more helps: a process may have been between two states
        if kernel.read(state).strip() == _FROZEN:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(gap)  # version 1 has no event for it
        gap = min(2 * gap, _LONGEST_GAP_S)


def thaw(folder: str) -> None:
    """Let all processes of a freezer group run, also those in groups inside that were frozen by themselves."""
    for each in (folder, *kernel.nested(folder)):
        try:
            kernel.write(f"{each}/freezer.state", _THAWED)
        except OSError as exc:
            if exc.errno not in kernel.GONE:
                raise


def _controller(name: str, folder: str) -> object:
    made: object = getattr(_library("controllers"), name)(_library("nodes").Node(os.fsencode(folder)))
    return made


def _count_hierarchically(folder: str) -> None:
    """Old kernels count groups inside a group only where they are told to before the first is made."""
    path = f"{folder}/memory.use_hierarchy"
    if os.path.exists(path) and kernel.read(path).strip() == "0":
        kernel.write(path, "1")


def controllers_of(folders: Mapping[str, str]) -> list[tuple[str, str]]:
    """(controller, folder), each folder once: controllers that are mounted together share theirs."""
    once: dict[str, str] = {}
    for controller, folder in folders.items():
        once.setdefault(folder, controller)
    return [(controller, folder) for folder, controller in once.items()]
