"""A container's own group, found by its id and read: by a real engine, and on machines that are not this one."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine import Engine, needs_engine
from hypothesis import given
from hypothesis import strategies as st

from cameleer.driver import Tick
from cameleer.drivers.cgroup import kernel, membership
from cameleer.drivers.cgroup.mode import detect
from cameleer.drivers.docker.stats import local
from cameleer.drivers.docker.stats.local import LocalCounters
from cameleer.errors import RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.usage import NO_NETWORK, Counters

MIB = 1 << 20
PATIENCE_S = 60.0
ID, OTHER = "ab12" * 16, "cd34" * 16
FRESH = Tick(0, extended=True, fresh=True)

Run = Callable[..., tuple[str, int]]


@pytest.fixture
def run(engine: Engine) -> Iterator[Run]:
    """Starts containers: id and pid of each."""
    made: list[str] = []

    def run(*words: str, options: tuple[str, ...] = ("--network=none",)) -> tuple[str, int]:
        container = engine.out("run", "--detach", *options, "busybox:test", *words)
        made.append(container)
        return container, int(engine.out("inspect", "--format={{.State.Pid}}", container))

    yield run
    if made:
        engine.cli("rm", "--force", *made, check=False)


@pytest.fixture
def opened() -> Iterator[Callable[[tuple[str, int]], LocalCounters]]:
    """Opens the counters of a container."""
    readers: list[LocalCounters] = []

    def open_one(container: tuple[str, int]) -> LocalCounters:
        paths = local.find(*container)
        assert paths is not None, local.look(*container).reason
        readers.append(LocalCounters(paths, pid=container[1]))
        return readers[-1]

    yield open_one
    for each in readers:
        each.close()


def soon(counters: LocalCounters, is_it: Callable[[Counters], bool], tick: Tick = FRESH) -> Counters:
    """Read until it is so."""
    until = time.monotonic() + PATIENCE_S
    while not is_it(found := counters.read(tick)):
        assert time.monotonic() < until, found
        select.select([], [], [], 0.05)
    return found


@pytest.mark.root
@needs_engine
class TestWithAnEngine:
    def test_the_groups_of_a_container_are_found_in_all_hierarchies(self, run: Run) -> None:
        container, pid = run("sleep", "1000")
        paths = local.find(container, pid)
        assert paths is not None
        mode = detect()
        assert paths.version == mode.version
        assert set(paths.folders) == ({"unified"} if paths.version == 2 else set(mode.bases))
        for folder in paths.folders.values():
            assert container in os.path.basename(folder)
            assert pid in kernel.members(folder)

    def test_a_process_of_another_container_proves_nothing(self, run: Run) -> None:
        (first, first_pid), (second, second_pid) = run("sleep", "1000"), run("sleep", "1000")
        assert local.find(first, second_pid) is None
        assert local.find(second, os.getpid()) is None
        assert "is not the container's" in local.look(second, first_pid).reason

    def test_cpu_time_memory_and_limits_are_read(
        self, run: Run, opened: Callable[[tuple[str, int]], LocalCounters]
    ) -> None:
        options = ("--network=none", "--memory=64m", "--pids-limit=50")
        counters = opened(run("sh", "-c", "while :; do :; done", options=options))
        first = counters.read(FRESH)
        later = soon(counters, lambda found: (found.cpu.total_ns or 0) > (first.cpu.total_ns or 0) + 50_000_000)
        assert later.memory.limit_bytes == 64 * MIB
        assert later.memory.peak_bytes
        assert later.processes.limit == 50
        assert later.processes.processes == 1
        assert later.per_process is None

    def test_a_group_that_was_removed_is_not_found_any_more(
        self, engine: Engine, run: Run, opened: Callable[[tuple[str, int]], LocalCounters]
    ) -> None:
        container = run("sleep", "1000")
        counters = opened(container)
        assert counters.read(FRESH).cpu.total_ns
        engine.cli("rm", "--force", container[0])
        with pytest.raises(TaskNotFound):
            counters.read(FRESH)
        assert local.find(*container) is None
        counters.close()
        counters.close()
        with pytest.raises(UnrecoverableError):
            counters.read(FRESH)

    def test_a_network_of_its_own_is_counted_and_the_host_s_is_not(
        self, run: Run, opened: Callable[[tuple[str, int]], LocalCounters]
    ) -> None:
        own = opened(run("sleep", "1000", options=("--network=none",))).read(FRESH)
        assert own.network.rx_bytes == 0
        assert "network" not in own.missing
        shared = opened(run("sleep", "1000", options=("--network=host",))).read(FRESH)
        assert shared.network == NO_NETWORK
        assert shared.missing["network"] == "unsupported"

    def test_a_network_is_not_counted_by_a_pid_that_is_another_process_by_now(self, run: Run) -> None:
        (first, first_pid), (_, second_pid) = run("sleep", "1000"), run("sleep", "1000")
        paths = local.find(first, first_pid)
        assert paths is not None
        counters = LocalCounters(paths, pid=second_pid)
        try:
            assert counters.read(FRESH).network == NO_NETWORK
        finally:
            counters.close()

    def test_a_row_for_each_process_on_request(
        self, run: Run, opened: Callable[[tuple[str, int]], LocalCounters]
    ) -> None:
        counters = opened(run("sh", "-c", "sleep 1000 & sleep 1000 & wait"))
        per_process = Tick(0, extended=True, fresh=True, per_process=True)
        names = ["sh", "sleep", "sleep"]
        found = soon(counters, lambda found: sorted(row.name for row in found.per_process or ()) == names, per_process)
        assert found.per_process is not None
        parent = found.per_process[0].pid
        assert [row.ppid for row in found.per_process[1:]] == [parent, parent]
        assert counters.read(FRESH).per_process is None

    def test_a_container_over_its_memory_shows_the_kill(
        self, run: Run, opened: Callable[[tuple[str, int]], LocalCounters]
    ) -> None:
        options = ("--network=none", "--memory=16m", "--memory-swap=16m")
        too_much = "read -t 1; dd if=/dev/zero of=/dev/null bs=64M count=1; sleep 1000"
        counters = opened(run("sh", "-c", too_much, options=options))
        found = soon(counters, lambda found: (found.memory.oom_kills or 0) > 0)
        assert found.memory.limit_bytes == 16 * MIB
        assert found.memory.peak_bytes is not None
        assert found.memory.peak_bytes > 12 * MIB


class Machine:
    """A proc and mounts of a machine that is not this one."""

    def __init__(self, folder: Path) -> None:
        self.proc = folder / "proc"
        (self.proc / "self").mkdir(parents=True)
        self.mounts = folder / "cgroup"
        self._lines: list[str] = []

    def v1(self, *controllers: str, root: str = "/") -> None:
        name = ",".join(controllers)
        self._mount(self.mounts / name, "cgroup", f"rw,{name}", root)

    def v2(self, name: str = "", *, root: str = "/") -> None:
        folder = self.mounts / name
        self._mount(folder, "cgroup2", "rw", root)
        (folder / "cgroup.controllers").write_text("cpu io memory pids\n")

    def _mount(self, folder: Path, kind: str, options: str, root: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines.append(f"30 22 0:30 {root} {folder} rw - {kind} {kind} {options}")
        (self.proc / "self/mountinfo").write_text("\n".join(self._lines) + "\n")

    def process(self, pid: int, *lines: str) -> None:
        (self.proc / str(pid)).mkdir()
        (self.proc / str(pid) / "cgroup").write_text("".join(f"{line}\n" for line in lines))

    def group(self, path: str) -> Path:
        folder = self.mounts / path
        folder.mkdir(parents=True)
        return folder

    def look(self, pid: int = 7, container: str = ID) -> local.Found:
        proc = str(self.proc)
        return local.look(container, pid, detect(proc=proc), proc=proc)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    "path", [f"docker/{ID}", f"system.slice/docker-{ID}.scope", f"a.slice/b/{ID}", f"machine.slice/libpod-{ID}.scope"]
)
def test_version_2_with_either_driver(machine: Machine, path: str) -> None:
    machine.v2()
    folder = machine.group(path)
    machine.process(7, f"0::/{path}")
    found = machine.look()
    assert found.paths is not None, found.reason
    assert (found.paths.version, found.paths.folders) == (2, {"unified": str(folder)})


@pytest.mark.parametrize("path", [f"docker/{ID}", f"system.slice/docker-{ID}.scope"])
@pytest.mark.parametrize("is_hybrid", [False, True])
def test_version_1_and_hybrid_with_either_driver(machine: Machine, path: str, is_hybrid: bool) -> None:
    machine.v1("cpu", "cpuacct")
    machine.v1("memory")
    machine.v1("freezer")
    folders = {name: str(machine.group(f"{name}/{path}")) for name in ("cpu,cpuacct", "memory", "freezer")}
    lines = [f"4:cpu,cpuacct:/{path}", f"3:memory:/{path}", f"2:freezer:/{path}", "1:name=systemd:/"]
    if is_hybrid:
        machine.v2("unified")
        machine.group(f"unified/{path}")
        lines.append(f"0::/{path}")
    machine.process(7, *lines)
    found = machine.look()
    assert found.paths is not None, found.reason
    assert found.paths.version == 1
    assert found.paths.folders == {
        "cpu": folders["cpu,cpuacct"],
        "cpuacct": folders["cpu,cpuacct"],
        "memory": folders["memory"],
        "freezer": folders["freezer"],
    }


def test_processes_that_went_into_a_group_inside_count_to_the_container(machine: Machine) -> None:
    machine.v2()
    machine.group(f"docker/{ID}/init")
    machine.process(7, f"0::/docker/{ID}/init")
    found = machine.look()
    assert found.paths is not None
    assert found.paths.folders["unified"].endswith(f"/docker/{ID}")


def test_a_container_inside_a_container(machine: Machine) -> None:
    machine.v2()
    machine.group(f"docker/{OTHER}/docker/{ID}")
    machine.process(7, f"0::/docker/{OTHER}/docker/{ID}")
    inner, outer = machine.look(), machine.look(container=OTHER)
    assert inner.paths is not None
    assert inner.paths.folders["unified"].endswith(f"/docker/{OTHER}/docker/{ID}")
    assert outer.paths is not None
    assert outer.paths.folders["unified"].endswith(f"/docker/{OTHER}")


def test_a_part_of_the_tree_that_is_mounted(machine: Machine) -> None:
    machine.v1("memory", root=f"/docker/{OTHER}")
    folder = machine.group(f"memory/docker/{ID}")
    machine.process(7, f"3:memory:/docker/{OTHER}/docker/{ID}")
    found = machine.look()
    assert found.paths is not None, found.reason
    assert found.paths.folders == {"memory": str(folder)}
    machine.process(8, f"3:memory:/docker/{ID}")
    assert "not in what is mounted here" in machine.look(8).reason


@pytest.mark.parametrize(
    "line",
    [
        f"0::/../docker/{ID}",
        f"0::/docker/{OTHER}",
        f"0::/docker/{ID}0",
        f"0::/docker/x{ID}",
        f"0::/docker/{ID} (deleted)",
        f"0::/elsewhere/{ID}",
        f"1:name=systemd:/docker/{ID}",
        "garbled",
        "0::/",
    ],
)
def test_what_proves_nothing_or_cannot_be_read_is_not_found_and_says_why(machine: Machine, line: str) -> None:
    machine.v2()
    machine.group(f"docker/{ID}")
    machine.group(f"docker/{OTHER}")
    machine.process(7, line)
    found = machine.look()
    assert found.paths is None
    assert found.reason
    assert "\n" not in found.reason


def test_ids_and_pids_that_name_no_running_container(machine: Machine) -> None:
    machine.v2()
    machine.group("docker/ab12")
    machine.process(7, "0::/docker/ab12")
    assert "not the whole id" in machine.look(container="ab12").reason
    assert "not the whole id" in machine.look(container="").reason
    assert machine.look(0).reason == "the container does not run"
    assert "no process 9 is here" in machine.look(9).reason


NAMES = st.text(st.sampled_from("abc-_.=~ é"), min_size=1, max_size=8)
PATHS = st.lists(NAMES, max_size=4).map(lambda levels: "/" + "/".join(levels))


@given(st.dictionaries(st.sampled_from(["cpu", "cpuacct", "memory", "name=systemd", "unified"]), PATHS))
def test_whatever_the_paths_are_they_are_read_as_they_were_written(paths: dict[str, str]) -> None:
    text = "".join(
        f"{number}:{'' if name == 'unified' else name}:{path}\n" for number, (name, path) in enumerate(paths.items())
    )
    if text:
        assert membership.parse(text.encode()) == paths


@given(st.binary(max_size=200) | st.text(st.sampled_from("0:/a\n,"), max_size=30).map(str.encode))
def test_a_garbled_text_is_refused_or_read(data: bytes) -> None:
    try:
        found = membership.parse(data)
    except RecoverableError:
        return
    assert all(path.startswith("/") for path in found.values())


@given(PATHS.map(lambda path: f"4:memory:{path}:x\n".encode()), st.integers(1, 8))
def test_a_text_that_is_cut_short_is_refused(data: bytes, cut: int) -> None:
    with pytest.raises(RecoverableError):
        membership.parse(data[:-cut])
