"""How tasks end: exit codes, signals, whole trees, what is left running, and the kernel's totals."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from supervised import lives, marked, raw_exec, running, shell, start, text_of, until

from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.raw_exec import RawExec
from cameleer.errors import UnrecoverableError

STUBBORN = "trap '' INT TERM HUP; echo ready; while :; do sleep 0.02; done"
DAEMON = "(setsid sh -c 'sleep 60; :' $0 & ) ; "


async def test_exit_codes_and_signals_are_told(driver: RawExec) -> None:
    for script, code, signum in (
        ("exit 0", 0, None),
        ("exit 255", 255, None),
        ("kill -9 $$", 137, 9),
        ("kill -SEGV $$", 139, 11),
    ):
        async with running(driver, shell(script)) as task:
            end = await task.wait()
            assert (end.exit_code, end.signal, end.left_running) == (code, signum, ())
            assert end.ended_at_ns is not None
            assert abs(end.ended_at_ns - time.time_ns()) < 60e9


async def test_any_number_wait_also_after_the_end(driver: RawExec) -> None:
    async with running(driver, shell("sleep 0.1; exit 4")) as task:
        ends = await asyncio.gather(*(task.wait() for _ in range(50)))
        assert all(end == ends[0] for end in ends)
        assert await task.wait() == ends[0]


async def test_a_signal_goes_to_the_whole_group(driver: RawExec, tmp_path: Path) -> None:
    script = (
        "(trap 'echo child; exit' USR1; echo a; while :; do sleep 0.02; done) & trap : USR1; echo b; wait; wait; exit 6"
    )
    out = tmp_path / "out"
    async with running(driver, shell(script, stdout=Stdio.file(out))) as task:
        await until(lambda: out.exists() and out.read_text().count("\n") == 2, "it did not get ready")
        await task.signal(signal.SIGUSR1)
        assert (await task.wait()).exit_code == 6
        assert "child" in out.read_text()
        with pytest.raises(UnrecoverableError, match="has ended"):
            await task.signal(signal.SIGUSR1)


async def test_a_signal_that_does_not_exist_is_an_error(driver: RawExec) -> None:
    async with running(driver, shell("sleep 60")) as task:
        with pytest.raises(UnrecoverableError, match="Invalid argument"):
            await task.signal(99)


async def test_stop_gives_grace_then_kills_everything(driver: RawExec, tmp_path: Path, mark: str) -> None:
    out = tmp_path / "out"
    async with running(driver, shell(DAEMON + STUBBORN, mark, stdout=Stdio.file(out))) as task:
        await text_of(out)
        began = time.monotonic()
        await task.stop(0.3, signal.SIGTERM)
        assert time.monotonic() - began >= 0.25
        assert (await task.wait()).exit_code == 137
        assert not marked(mark)


async def test_what_ignores_the_signal_longer_than_the_command_is_killed_too(
    driver: RawExec, tmp_path: Path, mark: str
) -> None:
    out = tmp_path / "out"
    script = f"sh -c '{STUBBORN.replace(chr(39), chr(34))}' $0 & wait"
    async with running(driver, shell(script, mark, stdout=Stdio.file(out))) as task:
        await text_of(out)
        await task.stop(0.3, signal.SIGTERM)
        assert (await task.wait()).signal == signal.SIGTERM
        assert not marked(mark)


async def test_orphans_and_zombies_belong_to_the_task(driver: RawExec, tmp_path: Path, mark: str) -> None:
    out = tmp_path / "out"
    script = "(setsid sh -c '(sleep 60; :) & sleep 60; :' $0 &); (exit 1) & sleep 0.1; echo ready; sleep 60"
    async with running(driver, shell(script, mark, stdout=Stdio.file(out))) as task:
        await text_of(out)
        parents = {each.parent for each in marked(mark)}
        assert task.supervisor_pid in parents, "an orphan went to another process than its supervisor"
        await task.stop(0, signal.SIGKILL)
        await task.wait()
    assert not marked(mark)


FORKING = """
import os, sys, time
deadline = time.monotonic() + 30
print("ready", flush=True)
while time.monotonic() < deadline:  # each lives for a moment, and its child goes on
    if os.fork():
        os._exit(0)
    if sys.argv[2] == "sessions":
        os.setsid()
    elif sys.argv[2] == "groups":
        os.setpgid(0, 0)
    elif sys.argv[2] == "many" and os.fork() == 0:
        time.sleep(30)
"""


@pytest.mark.parametrize("kind", ["chain", "groups", "sessions", "many"])
async def test_a_tree_that_keeps_forking_is_killed(driver: RawExec, tmp_path: Path, mark: str, kind: str) -> None:
    out = tmp_path / "out"
    config = TaskConfig(command=sys.executable, args=["-c", FORKING, mark, kind], stdout=Stdio.file(out))
    async with running(driver, config) as task:
        await text_of(out)
        if kind == "many":
            await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            await task.destroy(force=True)
    assert not marked(mark)


async def test_destroy_of_a_running_task_needs_force(driver: RawExec, mark: str) -> None:
    async with running(driver, shell("sleep 60; :", mark)) as task:
        with pytest.raises(UnrecoverableError, match="still runs"):
            await task.destroy()
        assert marked(mark)


# what is left running


async def test_what_outlives_the_command_is_named_and_killed_by_destroy(driver: RawExec, mark: str) -> None:
    async with running(driver, shell(DAEMON + "sleep 0.1", mark)) as task:
        end = await task.wait()
        names = {each.name for each in end.left_running}
        assert names == {"sh", "sleep"}
        assert {each.pid for each in end.left_running} >= {each.pid for each in marked(mark)}
        await task.destroy()
        assert not marked(mark)
        assert not os.path.exists(task.folder)


async def test_what_is_to_be_left_is_left_and_cleared_up_after(driver: RawExec, mark: str, tmp_path: Path) -> None:
    task = await start(driver, shell(DAEMON + "sleep 0.1", mark, leave_rest=True))
    end = await task.wait()
    assert {each.name for each in end.left_running} == {"sh", "sleep"}
    await task.destroy()
    await task.destroy()
    assert marked(mark)
    assert lives(task.supervisor_pid)
    for each in end.left_running:
        os.kill(each.pid, signal.SIGKILL)
    await until(lambda: not os.path.exists(task.folder), "the supervisor did not clear up")
    await until(lambda: not lives(task.supervisor_pid), "the supervisor did not end")


async def test_what_dies_of_the_same_signal_is_not_left_running(driver: RawExec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = "for i in 1 2 3 4 5; do sleep 60 & done; echo ready; wait"
    async with running(driver, shell(script, stdout=Stdio.file(out), leave_rest=True)) as task:
        await text_of(out)
        await task.signal(signal.SIGTERM)
        assert (await task.wait()).left_running == ()


async def test_many_left_processes_fit_into_the_record(driver: RawExec, mark: str) -> None:
    script = "for i in $(seq 300); do sleep 60 & done; exit 3"
    async with running(driver, shell(script, mark)) as task:
        end = await task.wait()
        assert end.exit_code == 3
        assert len(end.left_running) > 50
        kept = driver.supervisors.kept_end(task.folder)
        assert kept is not None
        assert kept.left_running == end.left_running


# totals


BURN = "import time\nwhile time.process_time() < {0}: pass\n"


async def test_cpu_time_is_the_kernels_with_orphans_and_the_ended(driver: RawExec) -> None:
    burn = BURN.format(0.3)
    script = f"""
import os, sys, time
for _ in range(2):
    if os.fork() == 0:
        exec({burn!r}); os._exit(0)
os.wait(); os.wait()
if os.fork() == 0:  # an orphan that ends before its grandparent
    if os.fork() == 0:
        exec({burn!r}); os._exit(0)
    os._exit(0)
os.wait()
time.sleep(1.5)
"""
    async with running(driver, TaskConfig(command=sys.executable, args=["-S", "-c", script])) as task:
        end = await task.wait()
    assert end.counters is not None
    assert end.counters.cpu.total_ns is not None
    assert 0.88e9 < end.counters.cpu.total_ns < 1.2e9
    assert (end.counters.cpu.user_ns or 0) + (end.counters.cpu.system_ns or 0) == end.counters.cpu.total_ns


async def test_a_small_command_is_not_charged_with_its_launcher(driver: RawExec) -> None:
    cpu_ns, peaks = [], []
    for _ in range(5):
        async with running(driver, TaskConfig(command="/bin/true")) as task:
            counters = (await task.wait()).counters
            assert counters is not None
            assert counters.cpu.total_ns is not None
            cpu_ns.append(counters.cpu.total_ns)
            peaks.append(counters.memory.peak_bytes)
    assert min(cpu_ns) < 20e6
    assert all(peak is None or peak < 3e6 for peak in peaks), "that is what a child had before its exec"


async def test_a_spike_of_memory_that_no_sample_saw_is_in_the_totals(driver: RawExec) -> None:
    script = "import time; x = bytearray(200_000_000); x[::4096] = b'x' * len(x[::4096]); time.sleep(0.1); del x"
    async with running(driver, TaskConfig(command=sys.executable, args=["-S", "-c", script])) as task:
        counters = (await task.wait()).counters
    assert counters is not None
    assert counters.memory.measure in ("max_rss", "cgroup")
    assert counters.memory.peak_bytes == pytest.approx(200e6, rel=0.06)


async def test_storage_and_switches_are_counted(driver: RawExec, tmp_path: Path) -> None:
    script = 'dd if=/dev/zero of="$1" bs=1M count=8 conv=fsync 2>/dev/null; sleep 0.01; sleep 0.01'
    async with running(driver, shell(script, "sh", str(tmp_path / "file"))) as task:
        counters = (await task.wait()).counters
    assert counters is not None
    assert counters.io.write_bytes is not None
    assert counters.io.write_bytes >= 8 << 20 or "tmpfs" in _filesystem(tmp_path)
    assert (counters.processes.voluntary_switches or 0) >= 2
    assert (counters.memory.minor_faults or 0) > 0


def _filesystem(path: Path) -> str:
    best, kind = "", ""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, fs, *_ = line.split()
        if str(path).startswith(mount) and len(mount) >= len(best):
            best, kind = mount, fs
    return kind


async def test_the_supervisor_is_small_and_holds_nothing_of_the_task(driver: RawExec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with running(driver, shell("sleep 60", stdout=Stdio.file(out))) as task:
        held = [
            os.readlink(f"/proc/{task.supervisor_pid}/fd/{fd}") for fd in os.listdir(f"/proc/{task.supervisor_pid}/fd")
        ]
        assert str(out) not in held
        assert not [
            link for link in held if not link.startswith(("/dev/null", "socket:", "pipe:", "anon_inode:", task.folder))
        ]
        launcher = driver.supervisors.launcher_pid
        assert launcher is not None
        assert str(out) not in {os.readlink(f"/proc/{launcher}/fd/{fd}") for fd in os.listdir(f"/proc/{launcher}/fd")}


@pytest.mark.parametrize("recoverable", [True, False])
async def test_a_record_is_kept_where_a_later_host_can_ask_for_it(tmp_path: Path, recoverable: bool) -> None:
    async with raw_exec(tmp_path, recoverable=recoverable, accounting="procfs") as driver:
        task = await start(driver, shell("exit 2"))
        await task.wait()
        await until(lambda: not lives(task.supervisor_pid), "the supervisor did not end")
        assert os.path.exists(f"{task.folder}/record") == recoverable
        await task.destroy()
        assert os.listdir(tmp_path / "tasks") == []
