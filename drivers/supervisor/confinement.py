"""How a task is to be confined, as plain data for its supervisor; a driver's side of ``confine``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import msgspec

from cameleer.drivers.supervisor.protocol import Value

if TYPE_CHECKING:
    from cameleer.drivers.cgroup.group import Group


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a task with a root of its own finds there.

    :ivar kind: ``ro`` and ``rw``: a path of the host; ``link``: the same, read-only, or if it is a symbolic link, a
        copy of the link; ``own``: read-write, and no link; ``tmp``: a folder in memory.
    :ivar mode: of a folder in memory, octal; its owner may follow: ``0700,uid=1,gid=1``.
    """

    kind: Literal["ro", "rw", "link", "own", "tmp"]
    target: str
    source: str = ""
    mode: str = "0755"


class Confinement(msgspec.Struct, frozen=True, kw_only=True):
    """What a supervisor does with a task's processes.

    :ivar enter: files of groups that the command writes ``0`` to before it is executed, in this order.
    :ivar version: of the groups.
    :ivar kill_group: group that is killed as a whole: the freezer's, or version 2's; None: none that is ours.
    :ivar own_groups: folders that go with the task where nobody else removes them.
    :ivar own_processes: a namespace of processes whose first one is the supervisor.
    :ivar own_ipc: a namespace for semaphores, shared memory and message queues.
    :ivar root: a root of its own, built of ``binds``.
    :ivar devices: paths on the host and below ``/dev`` of the new root.
    :ivar capabilities: mask of those that can be had at all; None: not limited.
    :ivar no_new_privileges: executing a program gives no more rights.
    :ivar env: variables of the command in addition, or instead.
    """

    enter: Sequence[str] = ()
    version: int = 1
    kill_group: str | None = None
    own_groups: Sequence[str] = ()
    own_processes: bool = False
    own_ipc: bool = False
    root: bool = False
    binds: Sequence[Bind] = ()
    devices: Sequence[tuple[str, str]] = ()
    capabilities: int | None = None
    no_new_privileges: bool = False
    env: Mapping[str, str] = {}

    def within(self, group: Group, device_list: str | None = None) -> Confinement:
        """The same in a group, which the command enters; it is killed and goes with the task as far as it is ours.

        :param device_list: group of the controller of devices beside it.
        """
        own: dict[str, str] = dict(group.own)
        enter = group.entry.files
        if device_list is not None:
            own["devices"] = device_list
            enter = (f"{device_list}/cgroup.procs", *enter)
        return msgspec.structs.replace(
            self,
            enter=enter,
            version=group.paths.version,
            kill_group=own.get("freezer") or own.get("unified"),
            own_groups=tuple(own[name] for name in sorted(own, key=lambda each: each == "freezer")),
        )

    def fields(self, folder: str) -> dict[str, Value]:
        """For the task's specification.

        :param folder: the task's record, in whose place its root is built, where nobody else sees it.
        """
        values: dict[str, Value] = {
            "enter": _encoded(self.enter),
            "group_version": self.version,
            "own_ipc": int(self.own_ipc),
            "no_new_privileges": int(self.no_new_privileges),
        }
        if self.kill_group is not None:
            values["kill_group"] = os.fsencode(self.kill_group)
        if self.own_groups:
            nodes = list(dict.fromkeys(map(os.path.dirname, self.own_groups)))
            values["own_group"] = _encoded(self.own_groups)
            values["group_parent"] = _encoded(nodes)
        if self.capabilities is not None:
            values["capabilities"] = self.capabilities
        if self.root:
            values["root"] = os.fsencode(folder)
            values["bind_kind"] = [_kind(each) for each in self.binds]
            values["bind_source"] = _encoded([each.source for each in self.binds])
            values["bind_target"] = _encoded([each.target for each in self.binds])
            values["device_source"] = _encoded([source for source, _ in self.devices])
            values["device_target"] = _encoded([target for _, target in self.devices])
        return values


def _kind(bind: Bind) -> bytes:
    if bind.kind == "tmp":
        return b"tmp:" + bind.mode.encode()
    return b"ro:link" if bind.kind == "link" else bind.kind.encode()


def _encoded(texts: Sequence[str]) -> list[bytes]:
    return [os.fsencode(each) for each in texts]
