"""Which version of control groups this machine has, and whether we may make groups. Looks only; changes nothing.

::

    found = detect()
    if not found.usable:
        print(found.reason, found.remedy)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.names import folder_name

DEFAULT_PARENT: Final = "cameleer"
OWN_LEAF: Final = "cameleer.host"
"""Where our own process goes when it must leave the root of a delegated subtree (version 2)."""
V1_CONTROLLERS: Final = ("freezer", "pids", "blkio", "cpuset", "cpu", "memory", "cpuacct")
"""In the order in which a process enters them: first what can end it, last what counts."""
V2_CONTROLLERS: Final = ("cpu", "memory", "pids", "io", "cpuset")
SCOPE: Final = "systemd-run --user --scope -p Delegate=yes cameleer run …"
"""The command that gives an unprivileged user a subtree of version 2."""


class Mode(StrEnum):
    """What is mounted: ``hybrid`` is controllers of version 1 beside a mount of version 2."""

    V1 = "v1"
    V2 = "v2"
    HYBRID = "hybrid"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class CgroupMode:
    """What was found.

    :ivar mode: what is mounted.
    :ivar version: of the groups that we make; None: none can be made.
    :ivar mounts: folder by controller, as mounted; version 2's is ``unified``.
    :ivar bases: the same for the folders that our parent group is made in: for an unprivileged user its own subtree.
    :ivar parent: name of our parent group in each base.
    :ivar controllers: what groups of that version can be had with.
    :ivar delegated: the base is not the root of the tree, so no process may be in it (version 2).
    :ivar must_move: our own process is in the base and has to leave it before controllers can be enabled.
    :ivar reason: why no group can be made; empty when one can.
    :ivar remedy: the command that would help.
    """

    mode: Mode
    version: Literal[1, 2] | None = None
    mounts: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, str] = field(default_factory=dict)
    parent: str = DEFAULT_PARENT
    controllers: frozenset[str] = frozenset()
    delegated: bool = False
    must_move: bool = False
    reason: str = ""
    remedy: str = ""

    @property
    def usable(self) -> bool:
        """Groups can be made."""
        return self.version is not None and not self.reason

    def parents(self) -> dict[str, str]:
        """Our parent group's folder, by controller; it need not exist yet."""
        return {controller: f"{base}/{self.parent}" for controller, base in self.bases.items()}


@dataclass(frozen=True)
class _Mount:
    root: str
    point: str
    kind: str
    writable: bool
    controllers: tuple[str, ...]


def detect(parent: str = DEFAULT_PARENT, *, proc: str = "/proc", systemd: str = "/run/systemd/system") -> CgroupMode:
    """Look at what is mounted and what this process may do there.

    :param parent: our parent group under the mount, as a path: ``cameleer`` or ``my.slice/cameleer``.
    :param proc: where proc is mounted.
    :param systemd: exists where systemd manages the machine.
    """
    parent = "/".join(folder_name(level) for level in parent.split("/") if level) or DEFAULT_PARENT
    mounts = _mounts(proc)
    v1 = {name: each for each in mounts if each.kind == "cgroup" for name in each.controllers if name in V1_CONTROLLERS}
    v2 = next((each for each in reversed(mounts) if each.kind == "cgroup2"), None)
    points = {name: each.point for name, each in v1.items()}
    if v2 is not None:
        points["unified"] = v2.point
    if not points:
        return CgroupMode(
            mode=Mode.NONE,
            parent=parent,
            reason="no control groups are mounted",
            remedy="mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )
    if v2 is not None and (not v1 or ("freezer" not in v1 and "memory" in _controllers(v2.point))):
        return _version_2(v2, points, parent, proc=proc, systemd=os.path.exists(systemd))
    return _version_1(v1, points, parent)


def _version_1(mounts: Mapping[str, _Mount], points: Mapping[str, str], parent: str) -> CgroupMode:
    bases = {name: mounts[name].point for name in V1_CONTROLLERS if name in mounts}
    reason = remedy = ""
    if "freezer" not in bases:
        reason = "the freezer controller of cgroup v1 is not mounted: a task's processes could not be ended together"
        remedy = "mkdir -p /sys/fs/cgroup/freezer && mount -t cgroup -o freezer cgroup /sys/fs/cgroup/freezer"
    elif read_only := sorted({each.point for each in mounts.values() if not each.writable}):
        reason = f"cgroup v1 is mounted read-only at {', '.join(read_only)}"
        remedy = " && ".join(f"mount -o remount,rw {point}" for point in read_only)
    elif barred := sorted({base for base in bases.values() if not _may_make(f"{base}/{parent}")}):
        reason = f"no permission to make groups in {', '.join(barred)} (cgroup v1 is not delegated to users)"
        remedy = "sudo cameleer run …"
    return CgroupMode(
        mode=Mode.HYBRID if "unified" in points else Mode.V1,
        version=1,
        mounts=points,
        bases=bases,
        parent=parent,
        controllers=frozenset(bases),
        reason=reason,
        remedy=remedy,
    )


def _version_2(mount: _Mount, points: Mapping[str, str], parent: str, *, proc: str, systemd: bool) -> CgroupMode:
    own = _own_folder(mount, proc)
    base = mount.point if os.geteuid() == 0 or own is None else own
    if base != mount.point and os.path.basename(base) == OWN_LEAF:
        base = os.path.dirname(base)
    delegated = os.path.exists(f"{base}/cgroup.type")  # the root of the tree has no such file
    available = frozenset(V2_CONTROLLERS) & _controllers(base)
    remedy = SCOPE if systemd and os.geteuid() != 0 else "sudo cameleer run …"
    inside: list[int] = []
    reason = ""
    if not mount.writable:
        reason = f"cgroup v2 is mounted read-only at {mount.point}"
        remedy = f"mount -o remount,rw {mount.point}"
    elif not all(os.access(f"{base}{name}", os.W_OK) for name in ("", "/cgroup.procs", "/cgroup.subtree_control")):
        reason = f"no permission to make groups in {base}: this process is in no delegated part of the tree"
    elif not available:
        reason = f"no controller is available in {base}"
    elif delegated:
        inside = kernel.members(base)
        if others := [pid for pid in inside if pid != os.getpid() and not _is_ours(pid, proc)]:
            shown = ", ".join(map(str, others[:5]))
            reason = f"other processes are in {base} ({shown}), so controllers cannot be enabled for groups inside it"
            if os.geteuid() == 0:
                remedy = _empty(base)
    return CgroupMode(
        mode=Mode.HYBRID if len(points) > 1 else Mode.V2,
        version=2,
        mounts=points,
        bases={"unified": base},
        parent=parent,
        controllers=available,
        delegated=delegated,
        must_move=bool(inside),
        reason=reason,
        remedy=remedy if reason else "",
    )


def _empty(base: str) -> str:
    """The command that moves all processes of a group into one inside."""
    inside = f"{base}/init"
    return f"mkdir -p {inside} && for p in $(cat {base}/cgroup.procs); do echo $p >{inside}/cgroup.procs; done"


def _may_make(folder: str) -> bool:
    while not os.path.isdir(folder) and folder != "/":
        folder = os.path.dirname(folder)
    return os.access(folder, os.W_OK | os.X_OK)


def _controllers(folder: str) -> set[str]:
    try:
        return set(kernel.read(f"{folder}/cgroup.controllers").split())
    except OSError:
        return set()


def _is_ours(pid: int, proc: str) -> bool:
    """A process is our child, grandchild and so on, or gone."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            text = kernel.read(f"{proc}/{pid}/stat")
        except OSError:
            return True
        pid = int(text[text.rindex(")") + 2 :].split(None, 2)[1])
    return False


def _own_folder(mount: _Mount, proc: str) -> str | None:
    """The folder of our own group of version 2; None: it lies outside of what is mounted."""
    try:
        lines = kernel.read(f"{proc}/self/cgroup").splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or path.startswith("/.."):
        return None
    root = mount.root.rstrip("/")
    if root and path != root and not path.startswith(f"{root}/"):
        return None
    return f"{mount.point}{path[len(root) :]}".rstrip("/")


def _mounts(proc: str) -> list[_Mount]:
    """The mounts of control groups; of several on one folder the last, which hides the others."""
    try:
        lines = kernel.read(f"{proc}/self/mountinfo").splitlines()
    except OSError:
        return []
    found: dict[str, _Mount] = {}
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(rest) < 3:
            continue
        point = _unescape(fields[4])
        found.pop(point, None)
        if rest[0] in ("cgroup", "cgroup2"):
            options = set(fields[5].split(","))
            writable = "ro" not in options and "ro" not in rest[2].split(",")
            found[point] = _Mount(_unescape(fields[3]), point, rest[0], writable, tuple(rest[2].split(",")))
    return sorted(found.values(), key=lambda each: each.writable)  # later ones win: those that can be written


def _unescape(path: str) -> str:
    """The kernel writes blanks and backslashes of a path as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
