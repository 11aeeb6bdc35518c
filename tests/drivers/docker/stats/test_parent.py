"""The group around a container: what it counted outlives the container, and nothing of it is left."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from engine import Engine, needs_engine
from hypothesis import given
from hypothesis import strategies as st

from cameleer.config import Resources, TaskConfig
from cameleer.driver import Tick
from cameleer.drivers.cgroup import kernel, limits
from cameleer.drivers.cgroup.group import Cgroups
from cameleer.drivers.cgroup.mode import CgroupMode, Mode, detect
from cameleer.drivers.docker.stats import local
from cameleer.drivers.docker.stats.local import LocalCounters
from cameleer.drivers.docker.stats.parent import MARK, Parent, Parents
from cameleer.drivers.docker.stats.slices import Slice, part
from cameleer.errors import ConfigError, NotSupported, RecoverableError, StartRecoverable
from cameleer.node import NodeInfo
from cameleer.usage import Counters

FRESH = Tick(0, extended=True, fresh=True)
PATIENCE_S = 60.0
TICK_NS = 10_000_000
SETTLED_S = 2.5
"""The kernel has added up everything by then."""
NODE = NodeInfo(node_name="node", host_id="0123456789abcdef", cores=2)
OLD_S = 1000.0
LOOP = """
import sys
from cameleer.config import TaskConfig
from cameleer.drivers.docker.stats.parent import Parents
from cameleer.node import NodeInfo
from cameleer.usage import Counters
parents = Parents(NodeInfo(node_name="node", host_id=sys.argv[1]), "cgroupfs", int(sys.argv[2]), parent=sys.argv[3])
print("ready", flush=True)
while True:
    for name in ("a", "b"):
        parents.make(TaskConfig(name=name, id=name, command="x")).remove()
"""


def task(name: str = "web", id: str = "", *, cpu_mhz: int | None = None, io_weight: int | None = None) -> TaskConfig:
    return TaskConfig(name=name, id=id, command="x", resources=Resources(cpu_mhz=cpu_mhz, io_weight=io_weight))


def hierarchies() -> list[str]:
    """Where any control groups are mounted."""
    words = (line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return [each[4] for each in words if each[each.index("-") + 1] in ("cgroup", "cgroup2")]


@pytest.fixture
def parents() -> Iterator[Parents]:
    """Groups below a parent of the test's own; nothing of them may be left."""
    name = f"cameleer-test-{os.getpid()}-{os.urandom(4).hex()}"
    mode = detect(name)
    if not mode.usable:
        pytest.skip(f"no control groups: {mode.reason}")
    made = Parents(NODE, "cgroupfs", mode.version or 1, parent=name)
    yield made
    left = [f"{point}/{name}" for point in hierarchies() if os.path.isdir(f"{point}/{name}")]
    below = [each for folder in left for each in kernel.nested(folder)]
    for folder in (*reversed(below), *left):
        kernel.remove(folder)
    assert below == []


def made(parents: Parents, config: TaskConfig | None = None) -> Parent:
    parent = parents.make(config or task())
    assert parent is not None, parents.reason
    return parent


def until_gone(pid: int) -> None:
    """Wait until a process has ended."""
    try:
        held = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([held], [], [], PATIENCE_S)[0]
    finally:
        os.close(held)


def soon(parent: Parent, is_it: Callable[[Counters], bool]) -> None:
    """Wait until its totals are so: the kernel adds up some of them late."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := parent.totals()) is None or not is_it(found):
        assert time.monotonic() < deadline, found
        select.select([], [], [], 0.05)


@pytest.mark.root
@needs_engine
class TestWithAnEngine:
    def test_a_container_of_a_moment_that_was_removed_at_once_has_its_totals(
        self, engine: Engine, parents: Parents
    ) -> None:
        parent = made(parents)
        assert parent.totals() is None
        assert not parent.was_used()
        engine.cli(
            "run", "--rm", "--network=none", f"--cgroup-parent={parent.cgroup_parent}", "busybox:test", "sleep", "0.05"
        )
        found = parent.totals()
        assert found is not None
        assert found.cpu.total_ns
        assert found.memory.peak_bytes
        assert found.memory.minor_faults != 0
        soon(parent, lambda found: (found.memory.minor_faults or 0) > 100)
        assert found.memory.measure == "cgroup"
        assert found.memory.limit_bytes is None
        assert parent.was_used()
        parent.remove()
        assert not any(os.path.exists(f"{point}{parent.path}") for point in hierarchies())
        assert parent.totals() is None

    def test_the_totals_are_those_of_the_container(self, engine: Engine, parents: Parents) -> None:
        parent = made(parents)
        busy = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; dd if=/dev/zero of=/dev/null bs=8M count=1; read x"
        options = ("--interactive", "--network=none", f"--cgroup-parent={parent.cgroup_parent}")
        container = engine.out("run", "--detach", *options, "busybox:test", "sh", "-c", busy)
        pid = int(engine.out("inspect", "--format={{.State.Pid}}", container))
        paths = local.find(container, pid)
        assert paths is not None
        assert all(parent.path in folder for folder in paths.folders.values())
        counters = LocalCounters(paths, pid=pid)
        try:
            before, live = counters.read(FRESH), counters.read(FRESH)
            deadline = time.monotonic() + PATIENCE_S
            while live.cpu.total_ns != before.cpu.total_ns or (live.memory.peak_bytes or 0) < 8 << 20:
                assert time.monotonic() < deadline
                select.select([], [], [], SETTLED_S)
                before, live = live, counters.read(FRESH)
        finally:
            counters.close()
        around = parent.totals()
        engine.cli("rm", "--force", container)
        after = parent.totals()
        for found in (around, after):
            assert found is not None
            assert found.cpu.total_ns == pytest.approx(live.cpu.total_ns, rel=0.03)
            assert found.cpu.user_ns == pytest.approx(live.cpu.user_ns, rel=0.03, abs=TICK_NS)
            assert found.memory.peak_bytes == pytest.approx(live.memory.peak_bytes, rel=0.1)
            assert found.cpu.throttled_ns is None
            assert found.missing["cpu.throttled_ns"] == "unsupported"
        soon(parent, lambda found: found.memory.minor_faults == pytest.approx(live.memory.minor_faults, rel=0.1))
        parent.remove()

    def test_a_kill_for_memory_is_inherited_on_version_2_alone(self, engine: Engine, parents: Parents) -> None:
        parent = made(parents)
        options = ("--network=none", "--memory=16m", "--memory-swap=16m", f"--cgroup-parent={parent.cgroup_parent}")
        command = ("sh", "-c", "dd if=/dev/zero of=/dev/null bs=64M count=1")
        assert engine.cli("run", "--rm", *options, "busybox:test", *command, check=False).returncode
        found = parent.totals()
        assert found is not None
        assert found.memory.oom_kills == (None if detect().version == 1 else 1)
        assert ("memory.oom_kills" in found.missing) == (detect().version == 1)
        parent.remove()

    def test_what_is_in_use_is_neither_removed_nor_made_again(self, engine: Engine, parents: Parents) -> None:
        config = task(id="one")
        parent = made(parents, config)
        options = ("--network=none", f"--cgroup-parent={parent.cgroup_parent}")
        container = engine.out("run", "--detach", *options, "busybox:test", "sleep", "1000")
        pid = int(engine.out("inspect", "--format={{.State.Pid}}", container))
        with pytest.raises(RecoverableError, match=f"processes are in it.*{pid}"):
            parent.remove(timeout_s=0.05)
        with pytest.raises(StartRecoverable, match="in use"):
            parents.make(config)
        os.kill(pid, 0)
        assert local.find(container, pid) is not None
        engine.cli("rm", "--force", container)
        until_gone(pid)
        parent.remove()
        parent.remove()

    def test_a_container_has_the_share_that_it_asks_for_among_others(self, engine: Engine, parents: Parents) -> None:
        config = task(cpu_mhz=300)
        parent = made(parents, config)
        shares = limits.shares(300)
        options = ("--network=none", f"--cpu-shares={shares}", f"--cgroup-parent={parent.cgroup_parent}")
        engine.cli("run", "--rm", *options, "busybox:test", "true")
        paths = parent.paths()
        if paths.version == 1:
            assert kernel.read(f"{paths.folders['cpu']}/cpu.shares") == f"{shares}\n"
        else:
            assert kernel.read(f"{paths.folders['unified']}/cpu.weight") == f"{limits.weight(shares)}\n"
        parent.remove()


@pytest.mark.root
class TestWithoutAnEngine:
    def test_it_is_there_in_every_hierarchy_before_the_container(self, parents: Parents) -> None:
        parent = made(parents)
        assert parent.exists()
        assert parent.cgroup_parent == parent.path
        where = hierarchies() if detect().version == 1 else [detect().mounts["unified"]]
        assert sorted(parent.own_folders()) == sorted(f"{point}{parent.path}" for point in where)
        assert all(map(os.path.isdir, parent.own_folders()))
        assert parent.folders()[: len(where)] == parent.own_folders()
        for folder in parent.folders():
            os.rmdir(folder)
        assert not parent.exists()
        parent.remove()

    def test_groups_inside_that_a_container_left_go_with_it(self, parents: Parents) -> None:
        parent = made(parents)
        for folder in parent.own_folders():
            os.makedirs(f"{folder}/{'ab12' * 16}/inner")
        parent.remove()
        assert not parent.exists()

    def test_counting_begins_anew_with_the_next_container_of_that_name(self, parents: Parents) -> None:
        config = task(id="again")
        first = made(parents, config)
        folder = first.own_folders()[0]
        was = os.stat(folder).st_ino
        made(parents, config)
        assert os.stat(folder).st_ino != was
        first.remove()

    def test_after_a_weight_that_cannot_be_held_nothing_is_left(self, parents: Parents) -> None:
        with suppress(NotSupported):  # which kernels there are that hold it is not this test's
            made(parents, task(io_weight=100)).remove()
        with pytest.raises(ConfigError, match="cpu_mhz is 1"):
            parents.make(task(cpu_mhz=1))
        assert parents.all() == []

    def test_others_of_the_host_keep_theirs(self, parents: Parents) -> None:
        first, second = made(parents, task("a")), made(parents, task("b"))
        assert {each.path for each in parents.all()} == {first.path, second.path}
        first.remove()
        assert all(map(os.path.isdir, second.own_folders()))
        assert [each.path for each in parents.all()] == [second.path]
        second.remove()
        assert parents.all() == []

    def test_what_a_host_left_that_was_killed_half_way_is_found_and_removed(self, parents: Parents) -> None:
        mode = parents.of(task()).mode
        words = [sys.executable, "-c", LOOP, NODE.host_id, str(mode.version), mode.parent]
        for number in range(6):
            with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == b"ready\n"
                select.select([], [], [], 0.001 * (1 + 7 * number))
                process.send_signal(signal.SIGKILL)
            for parent in parents.all():
                parent.remove()
            assert parents.all() == []
            made(parents).remove()  # takes with it what was made of the levels above
            for point in hierarchies():
                assert not kernel.nested(f"{point}/{mode.parent}")

    def test_it_is_found_again_by_what_was_kept_of_it(self, parents: Parents) -> None:
        parent = made(parents)
        again = parents.restore(parent.kept())
        assert (again.path, again.cgroup_parent, again.own_folders()) == (
            parent.path,
            parent.path,
            parent.own_folders(),
        )
        again.remove()
        assert not parent.exists()

    def test_left_over_is_what_is_old_and_of_no_task(self, parents: Parents) -> None:
        old, claimed, new = (made(parents, task(name, id)) for name, id in (("a", "old"), ("a.b", "my/id"), ("c", "")))
        for each in (old, claimed):
            for folder in each.own_folders():
                os.utime(folder, (time.time() - OLD_S,) * 2)
        assert [each.path for each in parents.leftovers(["my/id"])] == [old.path]
        assert {each.path for each in parents.leftovers([])} == {old.path, claimed.path}
        for each in (old, claimed, new):
            each.remove()

    def test_exec_takes_none_of_them_for_its_own(self, parents: Parents) -> None:
        parent = made(parents)
        mode = parent.mode
        theirs = Cgroups(mode, node=f"{NODE.node_name}.{NODE.host_id}")
        assert theirs.all() == []
        assert os.path.basename(os.path.dirname(parent.path)).startswith(MARK)
        parent.remove()


@pytest.mark.parametrize(
    ("mode", "version", "reason"),
    [
        (CgroupMode(mode=Mode.NONE, reason="no control groups are mounted"), 1, "those here of none"),
        (CgroupMode(mode=Mode.V1, version=1, reason="no permission to make groups in /sys"), 1, "no permission"),
        (CgroupMode(mode=Mode.V1, version=1), 2, "of version 2, and those here of 1"),
    ],
)
def test_without_one_there_is_a_reason(mode: CgroupMode, version: int, reason: str) -> None:
    parents = Parents(NODE, "cgroupfs", version, mode=mode)
    assert parents.make(task()) is None
    assert reason in parents.reason
    assert parents.all() == []
    assert parents.leftovers(["x"]) == []


UNIFIED = CgroupMode(mode=Mode.V2, version=2, mounts={"unified": "/none"}, bases={"unified": "/none/my.slice/own"})


def test_in_a_part_of_the_tree_that_was_handed_to_us_the_engine_is_given_the_whole_path() -> None:
    parents = Parents(NODE, "cgroupfs", 2, mode=UNIFIED)
    parent = parents.of(task("web", "1"))
    assert parent.cgroup_parent == "/my.slice/own/cameleer/docker.node.0123456789abcdef/web.1"
    assert parents.restore(parent.kept()).path == parent.path
    assert parent.own_folders() == [f"/none{parent.path}"]


@pytest.mark.parametrize(
    "kept",
    [
        {},
        {"path": ""},
        {"path": "/"},
        {"path": 3},
        {"path": "/cameleer/docker.n/.."},
        {"path": "/cameleer/../docker.n/x"},
        {"path": "//docker.n/x"},
        {"path": "cameleer/docker.n/x"},
        {"path": "/cameleer/n/x"},
        {"path": "/docker/ab12"},
        {"path": "/cameleer/docker.n/a b"},
        {"path": "/cameleer/docker.n/x\n"},
        {"slice": "system.slice"},
        {"slice": "user-1000-x.slice"},
        {"slice": "cameleer-docker.n-../x.slice"},
        {"slice": "cameleer-docker.n-x.service"},
        {"slice": "cameleer-docker.n-x.slice\n"},
    ],
)
def test_what_is_not_ours_is_not_restored(kept: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        Parents(NODE, "cgroupfs", 2, mode=UNIFIED).restore(kept)


IDS = st.text(min_size=1, max_size=120).filter(str.isprintable) | st.text(
    st.sampled_from("a.-_~/é"), min_size=1, max_size=300
)


@pytest.mark.parametrize("driver", ["cgroupfs", "systemd"])
@given(tasks=st.lists(st.tuples(IDS, IDS), min_size=1, max_size=3, unique_by=lambda each: each[1]))
def test_each_task_has_its_own_and_is_known_by_its_id(driver: str, tasks: list[tuple[str, str]]) -> None:
    parents = Parents(NODE, "systemd" if driver == "systemd" else "cgroupfs", 2, mode=UNIFIED)
    found = [parents.of(TaskConfig(name=name, id=id, command="x")) for name, id in tasks]
    assert len({each.path for each in found}) == len(tasks)
    known = [parents.is_claimed(each, [id for _, id in tasks[1:]]) for each in found]
    assert known == [False, *[True] * (len(tasks) - 1)]
    for each in found:
        assert len(os.path.basename(each.path)) <= 255
        assert parents.restore(each.kept()).path == each.path


@given(st.text(max_size=150), st.text(max_size=150))
def test_parts_of_a_slice_s_name_differ_and_begin_no_new_part(one: str, other: str) -> None:
    assert part(one).replace(".", "").replace("_", "").isalnum() or not one.strip(".")
    assert "-" not in part(one)
    assert (part(one) == part(other)) == (one == other)


class Systemd:
    """Programs that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        for name in ("busctl", "systemctl"):
            program = folder / name
            program.write_text(
                f'#!/bin/sh\necho "{name} $*" >>{self._log}\ncat {folder}/fails >&2 2>/dev/null && exit 1\nexit 0\n'
            )
            program.chmod(0o755)
        self._fails = folder / "fails"

    def calls(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []

    def fail(self, why: str) -> None:
        self._fails.write_text(why)


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return Systemd(tmp_path)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
class TestWithSystemd:
    """Its two calls; that systemd does what it is told cannot be seen where it does not run."""

    def slices(self, tmp_path: Path) -> Parents:
        mode = detect()
        return Parents(NODE, "systemd", mode.version or 1, mode=mode, systemd=str(tmp_path))

    def test_a_slice_is_started_with_weights_and_stopped(self, systemd: Systemd, tmp_path: Path) -> None:
        parents = self.slices(tmp_path)
        parent = parents.make(task("web-1", "x/y", cpu_mhz=1024, io_weight=10))
        assert isinstance(parent, Slice)
        name = "cameleer-docker.node.0123456789abcdef-web_2d1.x_7e2fy.slice"
        assert parent.cgroup_parent == name
        assert parent.path == f"/cameleer.slice/cameleer-docker.node.0123456789abcdef.slice/{name}"
        (start,) = systemd.calls()
        assert start.startswith("busctl call org.freedesktop.systemd1 ")
        assert f"StartTransientUnit ssa(sv)a(sa(sv)) {name} fail 6 CPUAccounting b true " in start
        assert start.endswith(" CPUWeight t 100 IOWeight t 1 0")
        for folder in parent.own_folders():
            os.makedirs(folder)
        try:
            assert [each.path for each in parents.all()] == [parent.path]
            parent.remove()
            assert systemd.calls()[1:] == [f"systemctl stop {name}"]
            assert not parent.exists()
        finally:
            for folder in parent.own_folders():
                os.removedirs(os.path.dirname(folder))

    def test_without_systemd_or_its_consent_there_is_none(self, systemd: Systemd, tmp_path: Path) -> None:
        mode = detect()
        parents = Parents(NODE, "systemd", mode.version or 1, mode=mode, systemd=str(tmp_path / "none"))
        assert parents.make(task()) is None
        assert "does not run this machine" in parents.reason
        systemd.fail("Access denied")
        parents = self.slices(tmp_path)
        assert parents.make(task()) is None
        assert "Access denied" in parents.reason
