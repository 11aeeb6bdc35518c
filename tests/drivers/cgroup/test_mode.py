"""What is mounted and what may be done there, from trees that say anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cameleer.drivers.cgroup.mode import OWN_LEAF, SCOPE, CgroupMode, Mode, detect

CONTROLLERS = ("cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids")


class Machine:
    """A proc and mounts of a machine that is not this one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        self.lines = ["22 1 0:20 / / rw,relatime - ext4 /dev/root rw", "23 1 0:5 / /proc rw - proc proc rw", "garbled"]
        self.own: list[str] = []
        self.mounts = folder / "sys fs"

    def mount(self, name: str, kind: str, options: str, *, flags: str = "rw,nosuid", root: str = "/") -> Path:
        point = self.mounts / name if name else self.mounts
        point.mkdir(parents=True, exist_ok=True)
        shown = str(point).replace(" ", "\\040")
        self.lines.append(f"30 22 0:30 {root} {shown} {flags} shared:9 - {kind} {kind} {options}")
        return point

    def v1(self, *controllers: str, **options: str) -> Path:
        self.own.append(f"4:{','.join(controllers)}:/user.slice")
        return self.mount(",".join(controllers), "cgroup", f"rw,{','.join(controllers)}", **options)

    def v2(self, name: str = "", *, controllers: str = "cpuset cpu io memory pids", **options: str) -> Path:
        point = self.mount(name, "cgroup2", "rw,nsdelegate,memory_recursiveprot", **options)
        group(point, controllers)
        return point

    def detect(self, parent: str = "cameleer", *, systemd: bool = True, inside: bool = False) -> CgroupMode:
        (self.proc / "self/mountinfo").write_text("\n".join(self.lines) + "\n")
        (self.proc / "self/cgroup").write_text("\n".join(self.own) + "\n")
        marker = str(self.folder if systemd else self.folder / "none")
        return detect(parent, inside=inside, proc=str(self.proc), systemd=marker)

    def process(self, pid: int, parent: int) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 1 1 0")


def group(folder: Path, controllers: str = "", *pids: int, root: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers + "\n")
    (folder / "cgroup.subtree_control").write_text("\n")
    (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    if not root:
        (folder / "cgroup.type").write_text("domain\n")
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    """We are nobody in particular."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


def test_version_1(machine: Machine) -> None:
    folders = {name: str(machine.v1(name)) for name in CONTROLLERS}
    machine.mount("systemd", "cgroup", "rw,xattr,name=systemd")
    found = machine.detect()
    assert (found.mode, found.version, found.reason, found.remedy) == (Mode.V1, 1, "", "")
    assert found.usable
    assert found.mounts == {name: path for name, path in folders.items() if name != "devices"}
    assert next(iter(found.bases)) == "freezer"
    assert found.parents()["memory"] == f"{folders['memory']}/cameleer"
    assert not found.delegated


def test_controllers_that_are_mounted_together_share_their_folder(machine: Machine) -> None:
    together = str(machine.v1("cpu", "cpuacct"))
    machine.v1("freezer")
    found = machine.detect()
    assert found.bases["cpu"] == found.bases["cpuacct"] == together
    assert found.controllers == {"cpu", "cpuacct", "freezer"}


@pytest.mark.usefixtures("root")
def test_version_2_as_root(machine: Machine) -> None:
    point = machine.v2()
    machine.own.append("0::/system.slice/ssh.service")
    found = machine.detect("my.slice/of it")
    assert (found.mode, found.version, found.usable) == (Mode.V2, 2, True)
    assert found.parents() == {"unified": f"{point}/my.slice/of~20it"}
    assert found.controllers == {"cpu", "cpuset", "io", "memory", "pids"}
    assert not found.delegated
    assert not found.must_move


def test_hybrid_uses_version_1_where_its_controllers_are(machine: Machine) -> None:
    for name in CONTROLLERS:
        machine.v1(name)
    unified = machine.v2("unified", controllers="hugetlb")
    found = machine.detect()
    assert (found.mode, found.version, found.usable) == (Mode.HYBRID, 1, True)
    assert found.mounts["unified"] == str(unified)


@pytest.mark.usefixtures("root")
def test_hybrid_uses_version_2_where_the_controllers_are_there(machine: Machine) -> None:
    machine.v1("cpuset")
    machine.v2("unified", controllers="cpu memory pids io")
    found = machine.detect()
    assert (found.mode, found.version, found.usable) == (Mode.HYBRID, 2, True)


def test_nothing_is_mounted(machine: Machine) -> None:
    found = machine.detect()
    assert (found.mode, found.version, found.usable) == (Mode.NONE, None, False)
    assert found.reason == "no control groups are mounted"
    assert found.remedy == "mount -t cgroup2 cgroup2 /sys/fs/cgroup"


def test_a_proc_that_is_not_there_is_as_if_nothing_were_mounted(tmp_path: Path) -> None:
    assert detect(proc=str(tmp_path)).mode is Mode.NONE


def test_version_1_without_a_freezer_is_not_usable(machine: Machine) -> None:
    machine.v1("memory")
    found = machine.detect()
    assert not found.usable
    assert "freezer" in found.reason
    assert "mount -t cgroup -o freezer" in found.remedy


@pytest.mark.parametrize("version", [1, 2])
def test_what_is_mounted_read_only_is_said_with_the_command_that_helps(machine: Machine, version: int) -> None:
    point = machine.v1("freezer", flags="ro,nosuid") if version == 1 else machine.v2(flags="ro,nosuid")
    found = machine.detect()
    assert found.version == version
    assert not found.usable
    assert found.reason == f"cgroup v{version} is mounted read-only at {point}"
    assert found.remedy == f"mount -o remount,rw {point}"


def test_a_mount_that_hides_another_counts(machine: Machine) -> None:
    machine.v1("freezer", flags="ro")
    machine.v1("freezer")
    assert machine.detect().usable
    machine.mount("freezer", "tmpfs", "rw")
    assert machine.detect().mode is Mode.NONE


@pytest.mark.usefixtures("user")
def test_a_user_has_its_own_delegated_subtree(machine: Machine) -> None:
    point = machine.v2()
    scope = group(point / "user.slice/run-1.scope", "memory pids", root=False)
    machine.own.append("0::/user.slice/run-1.scope")
    found = machine.detect()
    assert found.usable
    assert found.bases == {"unified": str(scope)}
    assert found.controllers == {"memory", "pids"}
    assert found.delegated
    assert not found.must_move


@pytest.mark.usefixtures("user")
def test_own_processes_have_to_leave_a_delegated_subtrees_root(machine: Machine) -> None:
    point = machine.v2()
    machine.process(4_000_001, os.getpid())
    machine.process(4_000_002, 4_000_001)
    group(point / "run.scope", "memory", os.getpid(), 4_000_002, 4_000_003, root=False)  # the last has ended
    machine.own.append("0::/run.scope")
    found = machine.detect()
    assert found.usable
    assert found.must_move


@pytest.mark.usefixtures("user")
def test_who_has_left_for_the_leaf_still_has_the_subtree(machine: Machine) -> None:
    point = machine.v2()
    scope = group(point / "run.scope", "memory", root=False)
    group(scope / OWN_LEAF, "memory", os.getpid(), root=False)
    machine.own.append(f"0::/run.scope/{OWN_LEAF}")
    found = machine.detect()
    assert found.bases == {"unified": str(scope)}
    assert found.usable
    assert not found.must_move


@pytest.mark.usefixtures("user")
def test_others_in_a_delegated_subtrees_root_are_in_the_way(machine: Machine) -> None:
    point = machine.v2()
    machine.process(4_000_001, 1)
    scope = group(point / "session.scope", "memory", os.getpid(), 4_000_001, root=False)
    machine.own.append("0::/session.scope")
    found = machine.detect()
    assert not found.usable
    assert found.reason.startswith(f"other processes are in {scope} (4000001)")
    assert found.remedy == SCOPE


@pytest.mark.usefixtures("root")
def test_root_in_a_container_is_told_how_to_empty_the_root_of_its_tree(machine: Machine) -> None:
    point = machine.v2()
    machine.process(4_000_001, 1)
    group(point, "memory", 4_000_001, root=False)
    found = machine.detect(systemd=False)
    assert not found.usable
    assert found.remedy.startswith(f"mkdir -p {point}/init && ")


@pytest.mark.usefixtures("user")
def test_a_user_without_a_subtree_is_told_how_to_get_one(machine: Machine) -> None:
    machine.v2()
    (machine.mounts / "cgroup.procs").unlink()
    machine.own.append("0::/")
    found = machine.detect()
    assert not found.usable
    assert found.reason.startswith(f"no permission to make groups in {machine.mounts}")
    assert found.remedy == "systemd-run --user --scope -p Delegate=yes cameleer run …"
    assert machine.detect(systemd=False).remedy == "sudo cameleer run …"


@pytest.mark.usefixtures("user")
def test_a_subtree_without_controllers_is_no_use(machine: Machine) -> None:
    point = machine.v2()
    scope = group(point / "run.scope", "", root=False)
    machine.own.append("0::/run.scope")
    found = machine.detect()
    assert found.reason == f"no controller is available in {scope}"
    assert found.remedy == SCOPE


@pytest.mark.usefixtures("user")
def test_a_mount_of_a_part_of_the_tree_is_followed(machine: Machine) -> None:
    point = machine.v2(root="/docker/1234")
    inner = group(point / "inner", "memory", root=False)
    machine.own.append("0::/docker/1234/inner")
    assert machine.detect().bases == {"unified": str(inner)}


@pytest.mark.parametrize("own", ["0::/docker/12345/inner", "0::/../other", "9:pids:/x"])
@pytest.mark.usefixtures("user")
def test_a_group_outside_of_the_mounted_part_is_not_ours(machine: Machine, own: str) -> None:
    point = machine.v2(root="/docker/1234")
    machine.own.append(own)
    assert machine.detect().bases == {"unified": str(point)}


def test_a_parent_never_leaves_the_mount(machine: Machine) -> None:
    point = machine.v1("freezer")
    for parent in ("../x", "a/../../x", "/etc", ""):
        folder = machine.detect(parent).parents()["freezer"]
        assert folder.startswith(f"{point}/")
        assert ".." not in folder.split("/")


def test_this_machine_is_looked_at_without_changing_it() -> None:
    before = Path("/proc/self/cgroup").read_text()
    found = detect()
    assert found.usable or (found.reason and found.remedy)
    assert Path("/proc/self/cgroup").read_text() == before
    assert not any(os.path.isdir(f"{folder}/cameleer.host") for folder in found.bases.values())


@pytest.mark.root
def test_a_user_may_not_make_groups_where_nothing_is_delegated() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    code = (
        "import os; from cameleer.drivers.cgroup.mode import detect; "
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); m = detect(); print(m.usable); print(m.remedy)"
    )
    said = subprocess.check_output([sys.executable, "-c", code], text=True).splitlines()
    assert said[0] == "False"
    assert "cameleer run" in said[1] or "mount" in said[1]


def test_further_hierarchies_of_version_1_are_known_as_far_as_the_same_part_of_them_is_mounted(
    machine: Machine,
) -> None:
    for name in ("freezer", "memory"):
        machine.v1(name)
    devices = machine.v1("devices")
    named = machine.mount("systemd", "cgroup", "rw,xattr,name=systemd")
    unified = machine.v2("unified", controllers="")
    machine.mount("inner", "cgroup", "rw,memory", root="/docker/1234")
    machine.v1("perf_event", flags="ro,nosuid")
    assert machine.detect().others == tuple(sorted(map(str, (devices, named, unified))))


def test_version_2_has_no_further_hierarchies(machine: Machine) -> None:
    machine.v2()
    machine.own.append("0::/")
    assert machine.detect().others == ()


def test_a_group_is_where_its_part_of_the_tree_is_mounted(machine: Machine) -> None:
    memory = machine.v1("memory", root="/docker/1234")
    freezer = machine.v1("freezer")
    found = machine.detect()
    assert found.folder("memory", "/docker/1234/a/b") == f"{memory}/a/b"
    assert found.folder("memory", "/docker/1234") == str(memory)
    assert found.folder("memory", "/docker/12345") is None
    assert found.folder("memory", "/a") is None
    assert found.folder("freezer", "/a") == f"{freezer}/a"
    assert found.folder("freezer", "/") == str(freezer)
    assert found.folder("freezer", "/../a") is None
    assert found.folder("cpu", "/a") is None


def test_groups_may_be_inside_our_own_of_version_1(machine: Machine) -> None:
    memory, freezer = machine.v1("memory", root="/docker/1234"), machine.v1("freezer")
    machine.own = ["4:memory:/docker/1234/a", "3:freezer:/", "1:name=systemd:/user.slice", "0::/user.slice"]
    found = machine.detect(inside=True)
    assert found.usable
    assert found.parents() == {"memory": f"{memory}/a/cameleer", "freezer": f"{freezer}/cameleer"}
    machine.own[0] = "4:memory:/docker/5678"
    assert "memory" in machine.detect(inside=True).reason
    assert machine.detect().usable


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_groups_may_be_inside_our_own_of_version_2_also_as_root(machine: Machine) -> None:
    point = machine.v2()
    machine.own.append("0::/system.slice/a.service")
    group(point / "system.slice/a.service", "cpu memory", root=False)
    assert machine.detect().bases == {"unified": str(point)}
    found = machine.detect(inside=True)
    assert (found.bases, found.delegated) == ({"unified": str(point / "system.slice/a.service")}, True)
    assert found.usable
    group(point / "system.slice/a.service", "cpu memory", 1, root=False)
    machine.process(1, 0)
    assert "other processes" in machine.detect(inside=True).reason
    machine.own[-1] = "0::/../elsewhere"
    assert "outside" in machine.detect(inside=True).reason
