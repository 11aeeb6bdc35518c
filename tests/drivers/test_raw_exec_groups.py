"""The driver for plain processes, where a control group counts each task."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confined import needs_groups
from supervised import PATIENCE_S, handle_of, lives, raw_exec, running, shell, start, until

from cameleer.config import Resources, Stdio, TaskConfig
from cameleer.driver import Tick
from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.group import Cgroups
from cameleer.drivers.cgroup.mode import detect
from cameleer.drivers.raw_exec import RawExec, RawExecConfig, RawExecTask
from cameleer.drivers.supervisor.task import NotInGroup
from cameleer.errors import ConfigError
from cameleer.node import detect as node_of

pytestmark = needs_groups

UNSEEN = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits: what the child used is in no parent's account
if os.fork() == 0:
    while time.process_time() < 0.2: pass
    os._exit(0)
try:
    os.wait()
except ChildProcessError:
    pass
"""

NOT_LEAVING = """
import asyncio, json, sys
from pathlib import Path
from cameleer.config import TaskConfig
from cameleer.drivers.exec import Exec
from cameleer.drivers.exec.settings import ExecConfig
from cameleer.drivers.raw_exec import RawExec, RawExecConfig
from cameleer.errors import DriverError
from cameleer.node import detect

async def look(driver):
    async for found in driver.fingerprint():
        break
    try:
        task = await driver.start(TaskConfig(command="/bin/true"))
        measure = (await task.wait()).counters.memory.measure
        await task.destroy()
    except DriverError as error:
        measure = str(error)
    await driver.close()
    return [found.health, found.description, found.attributes.get("accounting"), measure]

async def main(folder, name):
    said = []
    for leave in (False, True):
        for settings in ({"accounting": "auto"}, {"accounting": "cgroup"}) if name == "raw_exec" else ({},):
            node = detect(state_dir=Path(folder), host_id="0123456789abcdef")
            make, config = (RawExec, RawExecConfig) if name == "raw_exec" else (Exec, ExecConfig)
            said.append(await look(make(config(leave_group=leave, **settings), node)))
    print(json.dumps(said))

asyncio.run(main(*sys.argv[1:]))
"""

IDLE = shell("exec sleep 60")


def age_ns(task: RawExecTask) -> int:
    """How old the memory figures of a reading are that is handed out now."""
    counters = task.read(Tick(time.monotonic_ns()))
    return 0 if counters.memory_at_ns is None else counters.at_ns - counters.memory_at_ns


def tick(*, per_process: bool = False) -> Tick:
    return Tick(time.monotonic_ns(), extended=True, fresh=True, per_process=per_process)


def python(script: str) -> TaskConfig:
    return TaskConfig(command=sys.executable, args=["-S", "-c", script])


def folders_of(task: RawExecTask) -> dict[str, str]:
    assert task.group.paths is not None
    return dict(task.group.paths.folders)


def groups_of(driver: RawExec) -> list[str]:
    node = driver.groups.cgroups.node
    return [f"{parent}/{node}" for parent in driver.mode.parents().values() if os.path.exists(f"{parent}/{node}")]


async def test_the_task_is_in_its_group_and_its_supervisor_is_not(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver, running(driver, shell("sleep 60 & sleep 60")) as task:
        assert "cpu" not in folders_of(task), "a group of that controller would change its share of the processors"
        for folder in folders_of(task).values():
            assert driver.mode.version == 1 or not os.path.exists(f"{folder}/cpu.weight")
            inside = Path(folder, "cgroup.procs").read_text().split()
            assert str(task.pid) in inside
            assert str(task.supervisor_pid) not in inside
        counters = task.read(tick())
        assert counters.memory.measure == "cgroup"
        assert counters.memory.usage_bytes
        assert counters.memory.peak_bytes
        for controller, folder in folders_of(task).items():
            assert folder.startswith(f"{driver.mode.bases[controller]}/cameleer/")
    assert groups_of(driver) == []


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_limit_that_holds_for_us_holds_for_the_task_too(tmp_path: Path) -> None:
    ours = Cgroups(node=f"test-{os.getpid()}").make(os.urandom(6).hex(), "ours", Resources(memory_bytes=128 << 20))

    def enter() -> None:
        for path in ours.entry.files:
            Path(path).write_text("0")

    try:
        words = ["--driver", "raw_exec", "--json", "summary", sys.executable, "-S", "-c", "x = bytearray(400 << 20)"]
        subprocess.run(
            [sys.executable, "-m", "cameleer.cli", "run", *words], cwd=tmp_path, preexec_fn=enter, check=False
        )
        found = json.loads((tmp_path / "summary").read_text())
    finally:
        ours.remove()
    assert (found["memory_measure"], found["signal"], found["oom_killed"]) == ("cgroup", 9, True)


async def test_readings_do_not_fall_at_the_end(tmp_path: Path) -> None:
    script = "import time, os\nwhile time.process_time() < 0.3: os.getpid()\nos.system('sleep 0.2')"
    async with raw_exec(tmp_path) as driver, running(driver, python(script)) as task:
        readings = [task.read(tick())]
        while task.end is None:
            readings.append(task.read(tick()))
            await asyncio.sleep(0.02)
        readings += [task.read(tick()), task.read(tick())]
    for name in ("total_ns", "user_ns", "system_ns"):
        values = [getattr(each.cpu, name) or 0 for each in readings]
        assert values == sorted(values), name
    last = readings[-1]
    assert last == readings[-2], "after the end the totals stay"
    assert (last.cpu.total_ns or 0) >= 0.28e9
    assert (last.cpu.user_ns or 0) + (last.cpu.system_ns or 0) == pytest.approx(last.cpu.total_ns, abs=1000)
    assert {each.memory.measure for each in readings} == {"cgroup"}


async def test_what_nobody_waited_for_counts_too(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver, running(driver, python(UNSEEN)) as task:
        counters = (await task.wait()).counters
    assert counters is not None
    assert (counters.cpu.total_ns or 0) >= 0.2e9


async def test_the_totals_have_what_only_wait4_knows(tmp_path: Path) -> None:
    script = 'dd if=/dev/zero of="$1" bs=1M count=8 conv=fsync 2>/dev/null; sleep 0.01; sleep 0.01'
    async with raw_exec(tmp_path) as driver, running(driver, shell(script, "sh", str(tmp_path / "file"))) as task:
        end = await task.wait()
    assert end.counters is not None
    assert (end.counters.processes.voluntary_switches or 0) >= 2
    assert end.counters.io.write_bytes is not None
    assert end.counters.memory.peak_bytes
    assert end.oom_killed is False


async def test_what_only_proc_knows_is_in_the_readings(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver, running(driver, shell("sleep 60 & sleep 60 & wait")) as task:

        def names() -> list[str]:
            return sorted(row.name for row in task.read(tick(per_process=True)).per_process or ())

        await until(lambda: names() == ["sh", "sleep", "sleep"], "it did not fork")
        counters = task.read(tick(per_process=True))
        assert counters.processes.seen == 3
        assert counters.processes.voluntary_switches is not None
        assert counters.memory.pss_bytes
        assert counters.io.read_bytes is not None
        assert "io" not in counters.missing
        assert len(counters.per_process or ()) == 3
        again = task.read(Tick(time.monotonic_ns()))
        assert again.per_process is None
        assert again.processes == counters.processes, "what is not read this time is handed over again"


async def test_what_is_ours_before_the_exec_is_little_of_the_tasks(tmp_path: Path) -> None:
    least_ns = {}
    for accounting in ("cgroup", "procfs"):
        async with raw_exec(tmp_path, accounting=accounting) as driver:
            for _ in range(10):
                async with running(driver, TaskConfig(command="/bin/true")) as task:
                    counters = (await task.wait()).counters
                assert counters is not None
                assert counters.cpu.total_ns is not None
                least_ns[accounting] = min(least_ns.get(accounting, counters.cpu.total_ns), counters.cpu.total_ns)
                if accounting == "cgroup":
                    assert (counters.memory.peak_bytes or 0) <= 2 << 20, "with all of /bin/true itself"
    if "CAMELEER_TEST_UML" not in os.environ:  # which counts in ticks
        assert least_ns["cgroup"] - least_ns["procfs"] <= 5_000_000


async def test_the_same_counters_go_on_with_the_next_host(tmp_path: Path) -> None:
    config = shell("while :; do :; done")
    async with raw_exec(tmp_path, recoverable=True) as first:
        task = await start(first, config)
        await until(lambda: (task.read(tick()).cpu.total_ns or 0) >= 50e6, "it did not run")
        before, folders = task.read(tick()), folders_of(task)
    async with raw_exec(tmp_path, recoverable=True, accounting="procfs") as second:  # as the handle says
        found = await second.recover(handle_of(config, task.driver_state))
        after = found.read(tick())
        await found.destroy(force=True)
    assert (after.cpu.total_ns or 0) >= (before.cpu.total_ns or 0)
    assert after.memory.measure == "cgroup"
    assert not any(map(os.path.exists, folders.values()))


async def test_a_task_is_found_by_its_record_when_its_host_did_not_know_it_yet(tmp_path: Path) -> None:
    async with raw_exec(tmp_path, recoverable=True) as first:
        task = await start(first, shell("sleep 60", id="known", name="as it was"))
        folders = folders_of(task)
    async with raw_exec(tmp_path, recoverable=True) as second:
        found = await second.recover(handle_of(shell("", id="known")))
        assert found.driver_state == task.driver_state
        await found.destroy(force=True)
    assert not any(map(os.path.exists, folders.values()))


async def test_a_handle_of_before_there_were_groups_is_measured_from_proc(tmp_path: Path) -> None:
    config = shell("sleep 60")
    async with raw_exec(tmp_path, recoverable=True, accounting="procfs") as first:
        task = await start(first, config)
    assert len(task.driver_state.split()) == 2
    async with raw_exec(tmp_path, recoverable=True) as second:
        for state in (task.driver_state, b""):
            found = await second.recover(handle_of(config, state))
            assert found.read(tick()).memory.measure == "rss_sum"
        await found.destroy(force=True)


async def test_a_group_goes_when_the_rest_that_a_task_left_has_ended(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = shell("sleep 60 & echo $!", stdout=Stdio.file(out), leave_rest=True)
    async with raw_exec(tmp_path) as driver:
        async with running(driver, config) as task:
            end = await task.wait()
            assert [row.name for row in end.left_running] == ["sleep"]
        assert all(map(os.path.exists, folders_of(task).values()))
        os.kill(int(out.read_text()), 9)
        await until(lambda: not any(map(os.path.exists, folders_of(task).values())), "the group did not go")


async def test_nothing_is_left_when_a_supervisor_is_killed(tmp_path: Path) -> None:
    daemon = "setsid sh -c '(setsid sleep 60 & echo $! >$0) & sleep 60' $0 & sleep 60"
    pids = tmp_path / "pid"
    async with raw_exec(tmp_path) as driver:
        async with running(driver, shell(daemon, str(pids))) as task:
            await until(lambda: pids.exists() and pids.read_text().strip(), "no daemon")
            os.kill(task.supervisor_pid, 9)
            end = await task.wait()
            assert end.exit_code is None
            assert end.counters is not None
            assert end.counters.memory.measure == "cgroup"
        assert not lives(int(pids.read_text()))
    assert groups_of(driver) == []


async def test_what_a_killed_supervisor_left_is_found_and_removed(tmp_path: Path) -> None:
    async with raw_exec(tmp_path, recoverable=True) as first:
        lost, lasting = await start(first, shell("sleep 60")), await start(first, shell("sleep 60"))
        os.kill(lost.supervisor_pid, 9)
        await lost.wait()
    async with raw_exec(tmp_path, recoverable=True) as second:
        assert not await second.leftovers([lost.config.id, lasting.config.id])
        found = await second.leftovers([])
        assert [lost.config.id in each.description for each in found if each.description.startswith("group ")] == [True]
        for each in found:
            await second.remove_leftover(each)
        assert not await second.leftovers([])
        assert not any(map(os.path.exists, folders_of(lost).values()))
        again = await second.recover(handle_of(lasting.config, lasting.driver_state))
        assert lives(lasting.pid)
        await again.destroy(force=True)
        assert groups_of(second) == []


async def test_where_no_group_can_be_had_it_is_counted_from_proc_or_refused(tmp_path: Path) -> None:
    names = {"alloc_id": "the same", "name": "as another"}
    async with raw_exec(tmp_path) as driver, running(driver, shell("sleep 60", **names)):
        async with running(driver, shell("sleep 60", **names)) as second:
            assert second.group.paths is None
            assert second.read(tick()).memory.measure == "rss_sum"
        async with raw_exec(tmp_path, accounting="cgroup") as strict:
            with pytest.raises(NotInGroup, match="a group of that name is there"):
                await strict.start(shell("sleep 60", **names))
    assert groups_of(driver) == []


@pytest.mark.parametrize("accounting", ["auto", "cgroup"])
async def test_a_group_that_cannot_be_entered_is_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accounting: str
) -> None:
    async with raw_exec(tmp_path, accounting=accounting) as driver:
        cgroups = driver.groups.cgroups
        make = cgroups.make

        def gone(alloc: str, task: str) -> object:
            group = make(alloc, task)
            group.remove()
            return group

        monkeypatch.setattr(cgroups, "make", gone)
        if accounting == "cgroup":
            with pytest.raises(NotInGroup, match="cannot enter the group"):
                await driver.start(shell("sleep 60"))
        else:
            async with running(driver, shell("sleep 60")) as task:
                assert task.group.paths is None
                assert task.read(tick()).memory.measure == "rss_sum"


async def test_a_start_that_is_cancelled_leaves_nothing(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver:
        await (await driver.start(shell("true"))).destroy(force=True)
        for steps in range(12):
            starting = asyncio.ensure_future(driver.start(shell("sleep 60")))
            for _ in range(steps * 4):
                await asyncio.sleep(0.0005)
            starting.cancel()
            try:
                await (await starting).destroy(force=True)
            except asyncio.CancelledError:
                continue
    assert groups_of(driver) == []


async def test_a_task_goes_with_its_host_and_its_group_too(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver:
        ended, lasting = await start(driver, shell("exit 0")), await start(driver, shell("sleep 60"))
        await ended.wait()
        folders = [*folders_of(ended).values(), *folders_of(lasting).values()]
        assert all(map(os.path.exists, folders))
    await until(lambda: not any(map(os.path.exists, folders)), "the groups stay")


@pytest.mark.skipif(detect(inside=True).version != 2, reason="needs version 2")
@pytest.mark.parametrize("name", ["raw_exec", "exec"])
def test_in_a_group_that_it_may_not_leave_it_says_so_and_makes_none(tmp_path: Path, name: str) -> None:
    if name == "exec" and os.geteuid() == 0:
        pytest.skip("root makes its groups at the root of the tree")
    scope = Path(detect(inside=True).bases["unified"], f"scope-{os.getpid()}-{os.urandom(4).hex()}")
    scope.mkdir()
    try:
        done = subprocess.run(
            [sys.executable, "-c", NOT_LEAVING, str(tmp_path), name],
            preexec_fn=lambda: (scope / "cgroup.procs").write_text("0"),
            stdout=subprocess.PIPE,
            timeout=PATIENCE_S * 3,
            check=True,
        )
    finally:
        for each in [*reversed(kernel.nested(str(scope))), str(scope)]:
            kernel.remove(each)
    said = json.loads(done.stdout)
    staying, leaving = said[: len(said) // 2], said[len(said) // 2 :]
    if name == "raw_exec":
        auto = staying.pop(0)
        assert auto[0] == "healthy"
        assert auto[2] == ["procfs", ""]
        assert auto[3] != "cgroup"
    health, description, _, error = staying.pop()
    assert health == "unhealthy"
    assert f"this process is in {scope} itself" in description
    assert "leave_group" in description
    assert "leave_group" in error
    for health, _, _, measure in leaving:
        assert (health, measure) == ("healthy", "cgroup")


@pytest.mark.parametrize("name", ["idle_after", "refresh"])
def test_a_setting_that_is_no_duration_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'soon'"):
        RawExec(RawExecConfig(**{name: "soon"}), node_of())


async def test_how_old_the_figures_of_an_idle_task_may_get_can_be_set(tmp_path: Path) -> None:
    async with raw_exec(tmp_path, idle_after="0s", refresh="1h") as driver, running(driver, IDLE) as task:
        await until(lambda: age_ns(task) > 0, "they are read anew although nothing changed")
    async with raw_exec(tmp_path, idle_after="1h", refresh="1h") as driver, running(driver, IDLE) as task:
        assert {age_ns(task) for _ in range(50)} == {0}
