"""Which version of control groups this machine has, and whether we may make groups. Looks only; changes nothing.

::

    found = detect()
    if not found.usable:
        print(found.reason, found.remedy)
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, Literal

import msgspec

from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.names import folder_name
from cameleer.errors import RecoverableError

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


class CgroupMode(msgspec.Struct, frozen=True, kw_only=True):
    """What was found.

    :ivar mode: what is mounted.
    :ivar version: of the groups that we make; None: none can be made.
    :ivar mounts: folder by controller, as mounted; version 2's is ``unified``.
    :ivar roots: the same for what of the tree is mounted there, where that is not all of it.
    :ivar others: where further hierarchies of version 1 are mounted, in which we make groups for no purpose of ours
        (``devices``, systemd's own): what runs containers makes the same path in all of them. Version 2 has none.
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
    mounts: Mapping[str, str] = {}
    roots: Mapping[str, str] = {}
    others: tuple[str, ...] = ()
    bases: Mapping[str, str] = {}
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

    def folder(self, controller: str, path: str) -> str | None:
        """Where a group is.

        :param controller: ``unified`` is version 2.
        :param path: as in ``/proc/PID/cgroup``.
        :returns: None: the hierarchy is not mounted, or not that part of it.
        """
        mount, root = self.mounts.get(controller), self.roots.get(controller, "").rstrip("/")
        if mount is None or ".." in path.split("/") or not (path == root or path.startswith(f"{root}/")):
            return None
        return f"{mount}{path[len(root) :]}".rstrip("/")


class _Mount(msgspec.Struct, frozen=True):
    root: str
    point: str
    kind: str
    writable: bool
    controllers: tuple[str, ...]


def detect(
    parent: str = DEFAULT_PARENT,
    *,
    inside: bool = False,
    proc: str = "/proc",
    systemd: str = "/run/systemd/system",
) -> CgroupMode:
    """Look at what is mounted and what this process may do there.

    :param parent: our parent group under the mount, as a path: ``cameleer`` or ``my.slice/cameleer``.
    :param inside: below the groups that this process is in itself, also as root: what limits it holds for them too.
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
    roots = {name: each.root for name, each in v1.items()} | ({} if v2 is None else {"unified": v2.root})
    roots = {name: root for name, root in roots.items() if root != "/"}
    if not points:
        return CgroupMode(
            mode=Mode.NONE,
            parent=parent,
            reason="no control groups are mounted",
            remedy="mount -t cgroup2 cgroup2 /sys/fs/cgroup",
        )
    if v2 is not None and (not v1 or ("freezer" not in v1 and "memory" in _controllers(v2.point))):
        return _version_2(v2, points, roots, parent, proc=proc, systemd=os.path.exists(systemd), inside=inside)
    found = _version_1(v1, points, roots, parent, mounts)
    return _inside_ours(found, proc) if inside and found.usable else found


def _version_1(
    mounts: Mapping[str, _Mount],
    points: Mapping[str, str],
    roots: Mapping[str, str],
    parent: str,
    all_mounts: Sequence[_Mount],
) -> CgroupMode:
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
        roots=roots,
        others=_others(all_mounts, mounts),
        bases=bases,
        parent=parent,
        controllers=frozenset(bases),
        reason=reason,
        remedy=remedy,
    )


def _inside_ours(found: CgroupMode, proc: str) -> CgroupMode:
    """The same of version 1, for groups inside those that this process is in."""
    from cameleer.drivers.cgroup.membership import parse

    try:
        ours = parse(kernel.read(f"{proc}/self/cgroup").encode())
    except (OSError, RecoverableError):
        ours = {}
    folders = {name: found.folder(name, ours[name]) for name in found.bases if name in ours}
    bases = {name: folder for name, folder in folders.items() if folder is not None}
    missing = found.bases.keys() - bases.keys()
    reason = f"our own group of {', '.join(sorted(missing))} is outside of what is mounted" if missing else ""
    return msgspec.structs.replace(found, bases={**found.bases, **bases}, reason=reason)


def _version_2(
    mount: _Mount,
    points: Mapping[str, str],
    roots: Mapping[str, str],
    parent: str,
    *,
    proc: str,
    systemd: bool,
    inside: bool,
) -> CgroupMode:
    own = _own_folder(mount, proc)
    base = mount.point if (os.geteuid() == 0 and not inside) or own is None else own
    if base != mount.point and os.path.basename(base) == OWN_LEAF:
        base = os.path.dirname(base)
    delegated = os.path.exists(f"{base}/cgroup.type")  # the root of the tree has no such file
    available = frozenset(V2_CONTROLLERS) & _controllers(base)
    remedy = SCOPE if systemd and os.geteuid() != 0 else "sudo cameleer run …"
    members: list[int] = []
    reason = ""
    if inside and own is None:
        reason = "our own group is outside of what is mounted"
    elif not mount.writable:
        reason = f"cgroup v2 is mounted read-only at {mount.point}"
        remedy = f"mount -o remount,rw {mount.point}"
    elif not all(os.access(f"{base}{name}", os.W_OK) for name in ("", "/cgroup.procs", "/cgroup.subtree_control")):
        reason = f"no permission to make groups in {base}: this process is in no delegated part of the tree"
    elif not available:
        reason = f"no controller is available in {base}"
    elif delegated:
        members = kernel.members(base)
        if others := [pid for pid in members if pid != os.getpid() and not _is_ours(pid, proc)]:
            shown = ", ".join(map(str, others[:5]))
            reason = f"other processes are in {base} ({shown}), so controllers cannot be enabled for groups inside it"
            if os.geteuid() == 0:
                remedy = _empty(base)
    return CgroupMode(
        mode=Mode.HYBRID if len(points) > 1 else Mode.V2,
        version=2,
        mounts=points,
        roots=roots,
        bases={"unified": base},
        parent=parent,
        controllers=available,
        delegated=delegated,
        must_move=bool(members),
        reason=reason,
        remedy=remedy if reason else "",
    )


def _others(mounts: Iterable[_Mount], used: Mapping[str, _Mount]) -> tuple[str, ...]:
    """Where the same part of the tree is mounted of the hierarchies that we do not use."""
    roots = {each.root for each in used.values()}
    points = {each.point for each in used.values()}
    return tuple(
        sorted(each.point for each in mounts if each.writable and each.root in roots and each.point not in points)
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
    # later ones win: those that can be written, and of these the ones of the whole tree
    return sorted(found.values(), key=lambda each: (each.writable, each.root == "/"))


def _unescape(path: str) -> str:
    """The kernel writes blanks and backslashes of a path as octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), path)
