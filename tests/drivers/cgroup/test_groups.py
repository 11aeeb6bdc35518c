"""Groups: names, making, entering, freezing, joining, finding again."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from inside import BUSY, PATIENCE_S, SLEEPER, cpu_ns, ended, file_of, into_nested, line, nested_folder, ready, start

from cameleer.config import Resources
from cameleer.drivers.cgroup import kernel, v1
from cameleer.drivers.cgroup.group import Cgroups
from cameleer.drivers.cgroup.mode import V1_CONTROLLERS, CgroupMode, Mode, detect
from cameleer.drivers.cgroup.names import folder_name, group_name
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.errors import ConfigError, NotSupported, StartRecoverable, UnrecoverableError

IDS = st.text(max_size=300) | st.sampled_from(["", ".", "..", "/", "a/b", "cpu", "memory", "tasks", "~", "~~", "a.b"])
FAMILY = """
import os, sys
print(open("/proc/self/cgroup").read().count("alloc.task"), flush=True)
if not os.fork():
    print(open("/proc/self/cgroup").read().count("alloc.task"), flush=True)
    sys.stdin.readline()
    os._exit(0)
os.wait()
"""
AS_NOBODY = """
import json, os, sys
from pathlib import Path
from cameleer.config import Resources
from cameleer.drivers.cgroup import limits  # now: nobody may not reach it then
from cameleer.drivers.cgroup.group import Cgroups, obstacle
from cameleer.drivers.cgroup.mode import detect
from cameleer.errors import NotSupported
Path(sys.argv[1], "cgroup.procs").write_text("0")
os.setgroups([]); os.setgid(65534); os.setuid(65534)
mode = detect()
said = {"reason": mode.reason, "remedy": mode.remedy, "must_move": mode.must_move, "base": mode.bases["unified"]}
if mode.usable:
    try:
        Cgroups(mode, node="node").make("alloc", "task")
    except NotSupported as error:
        said["unmoved"] = str(error)
    said["obstacles"] = [obstacle(mode, may_move=False), obstacle(mode, may_move=True)]
    groups = Cgroups(mode, node="node", move_ourselves=True)
    group = groups.make("alloc", "task", Resources(memory_bytes=32 << 20, pids=5))
    said["limit"] = Path(group.paths.folders["unified"], "memory.max").read_text()
    said["obstacles"].append(obstacle(mode, may_move=False))
    said["again"] = [detect().bases["unified"], detect().must_move]
    pid = os.fork()
    if not pid:
        for path in group.entry.files:
            Path(path).write_text("0")
        os.execvp("sleep", ["sleep", "1000"])
    while pid not in group.pids() and not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        pass
    group.remove()
    said["signal"] = os.waitpid(pid, 0)[1]
print(json.dumps(said))
"""


@given(IDS, IDS)
@example("", "")
@example("", ".")
@example(".", "")
@example("cgroup", "procs")
@example("x" * 400, "y" * 400)
def test_a_name_is_one_folder_that_no_file_of_the_kernel_has(alloc: str, task: str) -> None:
    name = group_name(alloc, task)
    assert name.isascii()
    assert name.isprintable()
    assert "/" not in name
    assert not name.startswith(".")
    assert 0 < len(name) <= 255
    assert name.split(".", 1)[0] not in ("cgroup", "cpu", "memory", "pids", "io", "cpuset", "blkio", "freezer")


@given(st.tuples(IDS, IDS), st.tuples(IDS, IDS))
@example(("a", "b.c"), ("a.b", "c"))
@example(("a/b", ""), ("a~2fb", ""))
@example(("x" * 300, "a"), ("x" * 300, "b"))
@example(("", "a"), ("~", "a"))
def test_two_tasks_never_have_one_name(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (one == other) == (group_name(*one) == group_name(*other))


@given(IDS, IDS)
def test_two_nodes_never_have_one_folder(one: str, other: str) -> None:
    assert (one == other) == (folder_name(one) == folder_name(other))
    assert folder_name(one) not in ("", ".", "..", "tasks")
    assert "/" not in folder_name(one)


def test_usual_names_stay_readable() -> None:
    uuid = "6c5a7a4c-5d0c-4b6e-8b0d-0f5a3c9f1a2b"
    assert group_name(uuid, "web.1") == f"{uuid}.web.1"
    assert folder_name("node-1.example.org") == "node-1.example.org"


def test_ids_that_look_like_paths_stay_below_the_node(cgroups: Cgroups) -> None:
    for alloc, task in (
        ("../..", "x"),
        ("/etc", "passwd"),
        ("..", ""),
        ("a/b", "c/d"),
        ("cpu", "max"),
        ("cgroup", "procs"),
    ):
        group = cgroups.make(alloc, task)
        assert {os.path.dirname(folder) for folder in group.paths.folders.values()} == {
            f"{parent}/node" for name, parent in cgroups.mode.parents().items() if name in group.paths.folders
        }
        assert all(os.path.isdir(folder) for folder in group.paths.folders.values())


def test_a_process_is_in_every_folder_before_its_first_instruction_and_so_are_its_children(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = start(group, FAMILY)
    hierarchies = str(len(set(group.paths.folders.values())))
    assert [line(process), line(process)] == [hierarchies, hierarchies]
    assert len(group.pids()) == 2
    assert process.pid in group.pids()
    process.communicate(b"\n")
    assert group.pids() == set()


def test_another_process_can_be_moved_in(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    with subprocess.Popen(["sleep", "1000"]) as process:
        group.enter(process.pid)
        assert group.pids() == {process.pid}
        group.remove()
    with pytest.raises(UnrecoverableError, match=f"cannot move process {process.pid} into"):
        group.enter(process.pid)


def test_processes_in_groups_that_the_task_made_count(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    name = nested_folder(group, "inner")
    process = ready(group, SLEEPER)
    into_nested(group, name, process.pid)
    assert group.pids() == {process.pid}
    group.remove()
    ended(process)


def test_a_frozen_group_stands_still_until_it_is_thawed(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = ready(group, BUSY)
    assert group.freeze(PATIENCE_S)
    frozen = cpu_ns(group)
    for _ in range(200_000):
        pass
    assert cpu_ns(group) == frozen
    group.thaw()
    while cpu_ns(group) == frozen:
        pass
    group.remove()
    ended(process)


def test_a_name_that_is_taken_is_an_error_and_its_owner_keeps_running(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    with pytest.raises(StartRecoverable, match=r"a group of that name is there: .*alloc\.task"):
        cgroups.make("alloc", "task", Resources(pids=1))
    assert process.poll() is None
    assert file_of(group, "pids", "pids.max").read_text() == "max\n"
    group.remove()
    ended(process)


def test_a_group_half_made_is_removed(cgroups: Cgroups) -> None:
    with pytest.raises(ConfigError, match="cpu_quota_cores"):
        cgroups.make("alloc", "task", Resources(memory_bytes=64 << 20, cpu_quota_cores=1e12))
    assert cgroups.all() == []
    assert not any(os.path.exists(f"{parent}/node") for parent in cgroups.mode.parents().values())


def test_a_leftover_in_one_controllers_folder_is_not_taken_over(cgroups: Cgroups) -> None:
    if cgroups.mode.version != 1:
        pytest.skip("version 2 has one folder")
    group = cgroups.make("alloc", "task")
    Path(group.paths.folders["freezer"]).rmdir()
    with pytest.raises(StartRecoverable, match="is there: .*/alloc.task"):
        cgroups.make("alloc", "task")
    assert not os.path.exists(group.paths.folders["freezer"])
    assert os.path.isdir(group.paths.folders["memory"])
    group.remove()


def test_groups_are_found_again_by_name_by_node_and_from_what_was_kept(cgroups: Cgroups) -> None:
    group, other = cgroups.make("alloc", "task"), cgroups.make("alloc", "other")
    again = Cgroups(detect(cgroups.mode.parent), node="node")
    found = again.find("alloc", "task")
    assert found is not None
    assert found.paths == group.paths
    assert found.name == group.name == f"{cgroups.mode.parent}/node/alloc.task"
    assert again.restore(group.paths).paths == group.paths
    assert sorted(each.name for each in again.all()) == sorted([group.name, other.name])
    assert again.find("alloc", "nobody") is None
    assert Cgroups(cgroups.mode, node="elsewhere").all() == []


def test_a_folder_that_is_not_ours_is_not_restored(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    key, folder = next(iter(group.paths.folders.items()))
    parent = cgroups.mode.parents()[key]
    for foreign in ("/", "/tmp", os.path.dirname(parent), parent, f"{parent}/node", f"{folder}/inner", f"{folder}/.."):
        with pytest.raises(ConfigError, match="is not ours"):
            cgroups.restore(GroupPaths(version=group.paths.version, folders={**group.paths.folders, key: foreign}))


def test_a_group_handed_over_is_measured_limited_and_left_there(cgroups: Cgroups) -> None:
    key = "unified" if cgroups.mode.version == 2 else "pids"
    base = cgroups.make("orchestrator", "base")
    handed = f"{base.paths.folders[key]}/alloc.task.scope"
    if cgroups.mode.version == 2:
        file_of(base, "", "cgroup.subtree_control").write_text("+pids +memory")
    os.mkdir(handed)
    group = cgroups.join(handed, "alloc", "task", Resources(pids=9))
    assert Path(handed, "pids.max").read_text() == "9\n"
    assert group.paths.folders[key] == handed
    process = ready(group, SLEEPER)
    assert group.pids() == {process.pid}
    assert str(process.pid) in Path(handed, "cgroup.procs").read_text()
    if cgroups.mode.version == 1:
        assert cgroups.find("alloc", "task") is not None
        group.remove()  # ours alone: the tree ends with it
        assert cgroups.find("alloc", "task") is None
    else:
        group.remove()
        assert process.poll() is None
        process.kill()
    ended(process)
    assert os.path.isdir(handed)


@pytest.mark.parametrize("case", ["another name", "occupied"])
def test_a_group_handed_over_that_others_share_is_not_limited(cgroups: Cgroups, case: str) -> None:
    key = "unified" if cgroups.mode.version == 2 else "pids"
    theirs = cgroups.make("alloc", "share" if case == "another name" else "task")
    handed = theirs.paths.folders[key]
    process = ready(theirs, SLEEPER) if case == "occupied" else None
    node = Cgroups(cgroups.mode, node="other")
    with pytest.raises(NotSupported, match="is not this task's alone"):
        node.join(handed, "alloc", "task", Resources(pids=9))
    assert Path(handed, "pids.max").read_text() == "max\n"
    node.join(handed, "alloc", "task").remove()
    assert os.path.isdir(handed)
    assert process is None or process.poll() is None
    theirs.remove()
    if process is not None:
        ended(process)


def test_a_shared_cpuset_handed_over_leaves_the_other_controllers_to_us(cgroups: Cgroups) -> None:
    if cgroups.mode.version != 1 or "cpuset" not in cgroups.mode.controllers:
        pytest.skip("no cpuset of version 1")
    theirs = cgroups.make("orchestrator", "share", Resources(cpuset_cpus="0"))
    handed = theirs.paths.folders["cpuset"]
    group = cgroups.join(handed, "alloc", "task", Resources(pids=9))
    process = start(group, "import os; print(os.sched_getaffinity(0), flush=True); input()")
    assert line(process) == "{0}"
    assert group.joined == {"cpuset"}
    assert file_of(group, "pids", "pids.max").read_text() == "9\n"
    group.remove()
    ended(process)
    assert os.path.isdir(handed)


def test_a_path_handed_over_must_be_a_group(cgroups: Cgroups, tmp_path: Path) -> None:
    group = cgroups.make("alloc", "task")
    folder = next(iter(group.paths.folders.values()))
    root = next(iter(cgroups.mode.mounts.values()))
    for path in ("/", "", str(tmp_path), f"{folder}/..", f"{folder}/nothing", root, folder[1:]):
        with pytest.raises(ConfigError, match="TaskConfig.cgroup_path is"):
            cgroups.join(path, "alloc", "task")


def test_a_link_to_a_group_handed_over_is_followed(cgroups: Cgroups, tmp_path: Path) -> None:
    folder = cgroups.make("orchestrator", "share").paths.folders["unified" if cgroups.mode.version == 2 else "pids"]
    link = tmp_path / "link"
    link.symlink_to(os.path.dirname(folder))
    group = cgroups.join(f"{link}/{os.path.basename(folder)}", "alloc", "task")
    assert folder in group.paths.folders.values()


def test_empty_groups_inside_one_that_was_handed_over_do_not_keep_its_owner_from_removing_it(cgroups: Cgroups) -> None:
    key = "unified" if cgroups.mode.version == 2 else "pids"
    handed = Path(cgroups.make("orchestrator", "base").paths.folders[key], "alloc.task")
    handed.mkdir()
    group = cgroups.join(str(handed), "alloc", "task")
    (handed / "inner/deep").mkdir(parents=True)
    group.remove()
    handed.rmdir()


def test_hosts_side_by_side_do_not_take_each_others_folders_away(cgroups: Cgroups) -> None:
    failed = []

    def work(number: int) -> None:
        try:
            for count in range(20):
                Cgroups(cgroups.mode, node="node").make(f"{number}", f"{count}").remove()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert cgroups.all() == []


def test_a_configured_parent_may_have_levels(cgroups: Cgroups) -> None:
    parent = f"{cgroups.mode.parent}/inner.slice"
    mode = detect(parent)
    group = Cgroups(mode, node="node").make("alloc", "task", Resources(pids=3))
    assert group.name == f"{parent}/node/alloc.task"
    assert file_of(group, "pids", "pids.max").read_text() == "3\n"
    group.remove()
    for folder in mode.parents().values():
        if os.path.isdir(folder):
            os.rmdir(folder)


def test_where_no_groups_can_be_made_the_reason_and_the_remedy_are_said() -> None:
    mode = CgroupMode(mode=Mode.NONE, reason="no control groups are mounted", remedy="mount -t cgroup2 …")
    with pytest.raises(NotSupported, match=r"no control groups are mounted \(try: mount -t cgroup2 …\)"):
        Cgroups(mode, node="node").make("alloc", "task")
    assert Cgroups(mode, node="node").all() == []


def test_the_freezer_is_entered_first_and_what_counts_last(cgroups: Cgroups) -> None:
    entry = cgroups.make("alloc", "task").entry
    if entry.version == 2:
        assert entry.folder is not None
        assert entry.files == (f"{entry.folder}/cgroup.procs",)
    else:
        assert "freezer" in entry.files[0]
        assert "cpuacct" in entry.files[-1]
        assert len(entry.files) == len(V1_CONTROLLERS) - 1  # the cpuset only where it is asked for


def test_a_missing_library_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cgroupspy.nodes", None)
    v1._library.cache_clear()
    try:
        with pytest.raises(NotSupported, match=r"install cameleer\[exec\]"):
            v1.make("memory", str(tmp_path), "task")
    finally:
        v1._library.cache_clear()


def test_nothing_of_the_library_for_version_1_is_imported_before_it_is_needed() -> None:
    code = "import sys, cameleer.drivers.cgroup.group, cameleer.drivers.cgroup.v1; print('cgroupspy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]).strip() == b"False"


def test_version_2_does_without_the_library_for_version_1(cgroups: Cgroups) -> None:
    if cgroups.mode.version != 2:
        pytest.skip("version 1")
    group = cgroups.make("alloc", "task", Resources(memory_bytes=64 << 20))
    group.remove()
    assert "cgroupspy.nodes" not in sys.modules or sys.modules["cgroupspy.nodes"] is None


@pytest.mark.root
@pytest.mark.parametrize("case", ["alone", "not alone", "not delegated"])
def test_a_user_with_a_delegated_subtree_makes_groups_in_it(cgroups: Cgroups, case: str) -> None:
    if cgroups.mode.version != 2 or os.geteuid() != 0:
        pytest.skip("needs root and version 2")
    import json

    scope = Path(cgroups.make("user", "scope").paths.folders["unified"])
    if case != "not delegated":
        for path in (scope, scope / "cgroup.procs", scope / "cgroup.subtree_control"):
            os.chown(path, 65534, 65534)
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            if case == "not alone":
                (scope / "cgroup.procs").write_text(str(other.pid))
            done = subprocess.run(
                [sys.executable, "-c", AS_NOBODY, scope], stdout=subprocess.PIPE, check=True, timeout=PATIENCE_S
            )
        finally:
            other.kill()
    said = json.loads(done.stdout)
    assert said["base"] == str(scope)
    if case == "alone":
        assert said["reason"] == ""
        assert said["must_move"]
        assert "leave_group" in said["unmoved"]
        in_the_way, *nothing = said["obstacles"]
        assert f"this process is in {scope} itself" in in_the_way[0]
        assert "leave_group" in in_the_way[1]
        assert nothing == [["", ""], ["", ""]]
        assert said["limit"] == f"{32 << 20}\n"
        assert said["again"] == [str(scope), False]
        assert said["signal"] == 9
        assert sorted(each.name for each in scope.iterdir() if each.is_dir()) == ["cameleer.host"]
    elif case == "not alone":
        assert f"other processes are in {scope} ({other.pid})" in said["reason"]
        assert said["remedy"]
    else:
        assert f"no permission to make groups in {scope}" in said["reason"]
        assert said["remedy"]


def test_groups_that_only_count_are_made_without_cgroupspy_and_found_wherever_their_host_was(cgroups: Cgroups) -> None:
    mode = cgroups.mode
    groups = Cgroups(mode, node="counting", plain=True)
    first = groups.make("a", "first")
    assert not {"cpu", "cpuset"} & first.paths.folders.keys()
    inner = {name: f"{mode.parents()[name]}/another host" for name in first.paths.folders}
    for folder in inner.values():
        kernel.make(folder)
    elsewhere = Cgroups(msgspec.structs.replace(mode, bases={**mode.bases, **inner}), node="counting", plain=True)
    second = elsewhere.make("a", "second")
    try:
        assert {each.name for each in groups.all()} == {first.name, second.name}
        key = "unified" if mode.version == 2 else "freezer"
        assert groups.at(second.paths.folders[key]) == second
        assert groups.restore(second.paths) == second
        with pytest.raises(ConfigError, match="not ours"):
            cgroups.restore(second.paths)
        wrong = {name: folder.replace("/counting/", "/counting/x/") for name, folder in second.paths.folders.items()}
        with pytest.raises(ConfigError, match="not ours"):
            groups.restore(GroupPaths(version=second.paths.version, folders=wrong))
    finally:
        for group in groups.all():
            group.remove()
        for folder in inner.values():
            for each in [*reversed(kernel.nested(folder)), folder]:
                kernel.remove(each)
    assert groups.all() == []


def test_levels_that_we_made_are_protected_by_what_the_tasks_inside_are_together(cgroups: Cgroups) -> None:
    """Version 2 protects no group beyond those above it; with more, all inside would be on some machines."""
    if cgroups.mode.version != 2:
        pytest.skip("version 1")

    def low(folder: str) -> int:
        return int(kernel.read(f"{folder}/memory.low"))

    parent = cgroups.mode.parents()["unified"]
    first = cgroups.make("a", "first", Resources(memory_bytes=16 << 20, memory_max_bytes=64 << 20))
    assert low(parent) == low(f"{parent}/node") == 16 << 20
    cgroups.make("a", "plain", Resources(memory_bytes=16 << 20))
    second = cgroups.make("a", "second", Resources(memory_bytes=8 << 20, memory_max_bytes=64 << 20))
    other = Cgroups(cgroups.mode, node="other").make(
        "a", "third", Resources(memory_bytes=7 << 20, memory_max_bytes=64 << 20)
    )
    assert (low(parent), low(f"{parent}/node"), low(f"{parent}/other")) == (31 << 20, 24 << 20, 7 << 20)
    first.remove()
    other.remove()
    assert (low(parent), low(f"{parent}/node")) == (8 << 20, 8 << 20)
    second.remove()
    assert (low(parent), low(f"{parent}/node")) == (0, 0)


def test_levels_of_others_are_not_protected_by_us(cgroups: Cgroups) -> None:
    if cgroups.mode.version != 2:
        pytest.skip("version 1")
    theirs = Path(cgroups.mode.parents()["unified"])
    theirs.mkdir()
    group = cgroups.make("a", "t", Resources(memory_bytes=16 << 20, memory_max_bytes=64 << 20))
    assert (theirs / "memory.low").read_text() == "0\n"
    assert (theirs / "node/memory.low").read_text() == f"{16 << 20}\n"
    (theirs / "memory.low").write_text("max")
    group.remove()
    assert (theirs / "memory.low").read_text() == "max\n"


def test_levels_are_protected_rightly_while_hosts_make_and_remove_groups_side_by_side(cgroups: Cgroups) -> None:
    if cgroups.mode.version != 2:
        pytest.skip("version 1")
    resources = Resources(memory_bytes=8 << 20, memory_max_bytes=64 << 20)
    cgroups.make("a", "lasting", resources)
    failed = []

    def work(number: int) -> None:
        try:
            for count in range(10):
                Cgroups(cgroups.mode, node=f"node-{number % 2}").make(f"{number}", f"{count}", resources).remove()
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert kernel.read(f"{cgroups.mode.parents()['unified']}/memory.low") == f"{8 << 20}\n"
