"""Settings of ``exec`` and of its tasks."""

from __future__ import annotations

from typing import Literal

import msgspec


class ExecConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the driver.

    :ivar parent: group below the mount in which the tasks' groups are made: ``cameleer`` or ``my.slice/cameleer``.
    :ivar leave_group: this process may be moved into a leaf of its delegated part of the tree (version 2), without
        which no group can be made there; not for a library in somebody's process.
    :ivar chroot_paths: what a task with a root of its own sees of the host, where the task names nothing itself: path
        on the host to path in the root; empty: bin, etc, lib, lib32, lib64, run/resolvconf, sbin and usr.
    :ivar pid_mode: where a task says nothing: ``private``: a namespace of processes of its own; ``host``; empty:
        private as root.
    :ivar ipc_mode: the same of semaphores, shared memory and message queues.
    :ivar idle_after: once a task's CPU counter has stood still for so long, the rest is read every ``refresh`` only:
        ``3s``, or seconds; below 3 s ``memory.stat`` may lag behind.
    :ivar refresh: how old the figures of a task that does nothing may get: ``30s``, or seconds.
    """

    parent: str = "cameleer"
    leave_group: bool = False
    chroot_paths: dict[str, str] = {}
    pid_mode: Literal["", "private", "host"] = ""
    ipc_mode: Literal["", "private", "host"] = ""
    idle_after: str = "3s"
    refresh: str = "30s"


class ExecTaskConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``driver_config`` of a task.

    :ivar chroot: give it a root of its own.
    :ivar chroot_paths: what it sees of the host there, read-only; replaces the driver's.
    :ivar pid_mode: ``private`` or ``host``; empty: the driver's.
    :ivar ipc_mode: likewise.
    :ivar no_new_privileges: set-id programs give it no more rights.
    :ivar cap_drop: capabilities that it can never have: ``["all"]``, or names like ``net_raw``.
    :ivar cap_add: those of the dropped ones that it keeps. Without both, a task with a root of its own keeps a short
        list, and another keeps all that its user has.
    """

    chroot: bool = False
    chroot_paths: dict[str, str] = {}
    pid_mode: Literal["", "private", "host"] = ""
    ipc_mode: Literal["", "private", "host"] = ""
    no_new_privileges: bool = True
    cap_drop: list[str] = []
    cap_add: list[str] = []
