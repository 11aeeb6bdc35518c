"""Crashes of every part, and finding tasks again."""

# ruff: noqa: ASYNC230 # the processes and files of these tests block for a moment only
from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from supervised import (
    foreign_host,
    handle_of,
    lives,
    marked,
    raw_exec,
    running,
    shell,
    start,
    text_of,
    until,
)

from cameleer.config import Stdio
from cameleer.drivers.raw_exec import RawExec
from cameleer.drivers.supervisor import proc, record
from cameleer.drivers.supervisor.protocol import frame
from cameleer.errors import RecoverableError, StartRecoverable, TaskNotFound, UnrecoverableError

SLEEPS = "(setsid sh -c 'sleep 60; :' $0 &) ; sleep 60; :"


def rewrite(folder: str, slot: tuple[int, int], **changes: int | str) -> None:
    """Change a record, as no supervisor would."""
    kept = record.read(os.fsencode(folder), slot)
    assert kept is not None
    kept.pop("complete")
    values = {key: value if len(value) > 1 else value[0] for key, value in kept.items()}
    fd = os.open(f"{folder}/record", os.O_WRONLY)
    try:
        os.pwrite(fd, bytes(slot[1]), slot[0])
        record.write(fd, slot, **{**values, **changes})
    finally:
        os.close(fd)


# kill -9 of the host


async def test_tasks_end_with_a_host_that_is_killed(tmp_path: Path, mark: str) -> None:
    with foreign_host(tmp_path, SLEEPS, mark) as host:
        await until(lambda: len(marked(mark)) >= 3, "the tree did not come up")
        host.kill()
        await until(lambda: not marked(mark), "the tree outlived its host")
        await until(lambda: not lives(host.supervisor_pid), "the supervisor outlived its host")
        await until(lambda: not lives(host.launcher_pid), "the launcher outlived its host")
        assert os.listdir(tmp_path / "tasks") == []


async def test_a_copy_of_the_hosts_descriptors_in_a_child_does_not_keep_its_tasks(tmp_path: Path, mark: str) -> None:
    import supervised

    forking = supervised.HOST.replace(
        "    await task.wait()\n", "    import os\n    os.fork() or __import__('time').sleep(15)\n", 1
    )
    original, supervised.HOST = supervised.HOST, forking
    try:
        with foreign_host(tmp_path, SLEEPS, mark) as host:
            host.kill()
            await until(lambda: not lives(host.supervisor_pid), "the supervisor outlived its host")
            await until(lambda: not lives(host.launcher_pid), "the launcher outlived its host")
    finally:
        supervised.HOST = original


async def test_what_is_to_be_left_outlives_a_killed_host(tmp_path: Path, mark: str) -> None:
    script = "(setsid sh -c 'while :; do sleep 0.05; done' $0 &); sleep 0.1"
    with foreign_host(tmp_path, script, mark, leave_rest=True) as host:
        assert host.output.readline() == "ended\n"
        host.kill()
        await until(lambda: not lives(host.launcher_pid), "the launcher outlived its host")
        (left,) = [each for each in marked(mark) if each.parent == host.supervisor_pid]
        os.kill(left.pid, 9)
        await until(lambda: not lives(host.supervisor_pid), "the supervisor outlived the rest")
        assert os.listdir(tmp_path / "tasks") == []


async def test_a_task_that_can_be_found_again_outlives_its_host_and_is_found(tmp_path: Path, mark: str) -> None:
    with foreign_host(tmp_path, "trap 'exit 7' USR1; while :; do sleep 0.02; done", mark, recoverable=True) as host:
        host.kill()
        await until(lambda: not lives(host.launcher_pid), "the launcher outlived its host")
        assert lives(host.pid)
        assert lives(host.supervisor_pid)
        handle = handle_of(shell("", id="the task"), host.driver_state)
        async with raw_exec(tmp_path, recoverable=True) as driver:
            task = await driver.recover(handle)
            assert (task.pid, task.supervisor_pid) == (host.pid, host.supervisor_pid)  # type: ignore[attr-defined]
            assert task.driver_state == host.driver_state
            await task.signal(signal.SIGUSR1)
            end = await task.wait()
            assert end.exit_code == 7
            assert end.counters is not None
            await task.destroy()
        assert os.listdir(tmp_path / "tasks") == []


async def test_a_pending_handle_finds_its_task_by_id(tmp_path: Path, mark: str) -> None:
    with foreign_host(tmp_path, SLEEPS, mark, recoverable=True) as host:
        host.kill()
        async with raw_exec(tmp_path, recoverable=True) as driver:
            task = await driver.recover(handle_of(shell("", id="the task")))
            assert task.driver_state == host.driver_state
            await task.stop(0, 9)
            await task.destroy()
    assert not marked(mark)


async def test_one_that_ended_meanwhile_is_found_with_its_result_until_it_is_destroyed(
    tmp_path: Path, mark: str
) -> None:
    go = tmp_path / "go"
    script = f"while [ ! -e {go} ]; do sleep 0.02; done; exit 23"
    with foreign_host(tmp_path, script, mark, recoverable=True) as host:
        host.kill()
        go.touch()
        await until(lambda: not lives(host.supervisor_pid), "the task did not end")
        handle = handle_of(shell("", id="the task"), host.driver_state)
        for _ in range(2):
            async with raw_exec(tmp_path, recoverable=True) as driver:
                task = await driver.recover(handle)
                async with asyncio.timeout(1):
                    end = await task.wait()
                assert end.exit_code == 23
                assert end.counters is not None
                with pytest.raises(UnrecoverableError):
                    await task.signal(15)
        async with raw_exec(tmp_path, recoverable=True) as driver:
            await (await driver.recover(handle)).destroy()
            with pytest.raises(TaskNotFound):
                await driver.recover(handle)


async def test_one_that_ended_and_left_processes_is_found_with_them(tmp_path: Path, mark: str) -> None:
    with foreign_host(tmp_path, "(setsid sh -c 'sleep 60; :' $0 &); exit 5", mark, recoverable=True) as host:
        assert host.output.readline() == "ended\n"
        host.kill()
        async with raw_exec(tmp_path, recoverable=True) as driver:
            task = await driver.recover(handle_of(shell("", id="the task"), host.driver_state))
            end = await task.wait()
            assert end.exit_code == 5
            assert {each.name for each in end.left_running} == {"sh", "sleep"}
            assert marked(mark)
            await task.destroy()
            assert not marked(mark)
            assert os.listdir(tmp_path / "tasks") == []


async def test_a_host_that_closes_leaves_its_tasks_and_finds_them_again(tmp_path: Path, mark: str) -> None:
    config = shell(SLEEPS, mark, id="x" * 500)
    state = b""
    for turn in range(3):
        async with raw_exec(tmp_path, recoverable=True) as driver:
            if turn == 0:
                state = (await start(driver, config)).driver_state
            else:
                task = await driver.recover(handle_of(config, state))
                if turn == 2:
                    await task.destroy(force=True)
    assert not marked(mark)


async def test_two_hosts_may_ask_at_once(tmp_path: Path) -> None:
    config = shell("sleep 0.3; exit 3")
    async with raw_exec(tmp_path, recoverable=True) as first, raw_exec(tmp_path, recoverable=True) as second:
        task = await start(first, config)
        other = await second.recover(handle_of(config, task.driver_state))
        ends = await asyncio.gather(task.wait(), other.wait())
        assert [end.exit_code for end in ends] == [3, 3]
        await task.destroy()
        await other.destroy()


# strangers


async def test_a_supervisor_is_known_by_its_start_not_its_pid(tmp_path: Path, mark: str) -> None:
    config = shell("sleep 60; :", mark)
    async with raw_exec(tmp_path, recoverable=True, accounting="procfs") as driver:
        task = await start(driver, config)
        stranger = subprocess.Popen(["sleep", "60"])
        try:
            rewrite(task.folder, record.SUPERVISOR, supervisor=stranger.pid, supervisor_start=1)
            rewrite(task.folder, record.COMMAND, pid=stranger.pid, start=1, session=stranger.pid)
            async with raw_exec(tmp_path, recoverable=True, accounting="procfs") as later:
                with pytest.raises(TaskNotFound, match="another run"):
                    await later.recover(handle_of(config, task.driver_state))
                found = await later.recover(handle_of(config))
                end = await found.wait()
                assert (end.exit_code, end.error) == (
                    None,
                    "the task's supervisor was killed: nobody knows how the task ended",
                )
                await found.destroy()
            assert stranger.poll() is None, "a stranger was killed"
        finally:
            stranger.kill()
            stranger.wait()
            await task.destroy(force=True)


async def test_a_task_of_before_the_boot_is_lost(tmp_path: Path) -> None:
    config = shell("sleep 60")
    async with raw_exec(tmp_path, recoverable=True, accounting="procfs") as driver, running(driver, config) as task:
        rewrite(task.folder, record.SUPERVISOR, boot="another boot")
        async with raw_exec(tmp_path, recoverable=True, accounting="procfs") as later:
            with pytest.raises(TaskNotFound, match="last boot"):
                await later.recover(handle_of(config, task.driver_state))
            assert lives(task.pid)


async def test_a_task_that_never_was_is_lost(tmp_path: Path) -> None:
    async with raw_exec(tmp_path, recoverable=True) as driver:
        with pytest.raises(TaskNotFound):
            await driver.recover(handle_of(shell("")))


async def test_a_supervisor_that_does_not_answer_may_answer_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cameleer.drivers.supervisor import supervisors

    monkeypatch.setattr(supervisors, "_PATIENCE_S", 0.1)
    config = shell("sleep 60")
    async with raw_exec(tmp_path, recoverable=True) as driver, running(driver, config) as task:
        os.rename(f"{task.folder}/control", f"{task.folder}/hidden")
        async with raw_exec(tmp_path, recoverable=True) as later:
            with pytest.raises(RecoverableError, match="does not answer"):
                await later.recover(handle_of(config, task.driver_state))
            os.rename(f"{task.folder}/hidden", f"{task.folder}/control")
            found = await later.recover(handle_of(config, task.driver_state))
            assert found.driver_state == task.driver_state


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: connects as another user")
async def test_another_user_is_not_listened_to(tmp_path: Path) -> None:
    async with raw_exec(tmp_path, recoverable=True) as driver, running(driver, shell("sleep 60")) as task:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_mode & 0o001 == 0 and folder.is_relative_to("/tmp"):
                folder.chmod(folder.stat().st_mode | 0o011)
        os.chmod(tmp_path / "tasks", 0o755)
        os.chmod(task.folder, 0o755)
        os.chmod(f"{task.folder}/control", 0o777)
        script = f"""
import os, socket
at = os.open({task.folder!r}, os.O_PATH)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(f"/proc/self/fd/{{at}}/control")
sock.settimeout(10)
sock.sendall({frame(op="signal", request=1, signal=9)!r})
print(sock.recv(100))
"""
        import sys

        done = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        text, _ = await done.communicate()
        assert text == b"b''\n" or b"ConnectionResetError" in text or b"BrokenPipeError" in text, text
        assert lives(task.pid)


async def test_garbage_on_the_control_socket_harms_nobody(tmp_path: Path) -> None:
    async with raw_exec(tmp_path, recoverable=True) as driver, running(driver, shell("sleep 60")) as task:
        for data in (
            b"\xff" * 100,
            b"\0\0\0\x04abc\0",
            frame(op="signal", request="x"),
            frame(op="exec", request=1),
            frame(op="?", request=2),
        ):
            at = os.open(task.folder, os.O_PATH)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(f"/proc/self/fd/{at}/control")
                sock.sendall(data)
            os.close(at)
        await task.signal(0)
        assert lives(task.pid)


# kill -9 of the launcher


async def test_the_launcher_may_die_and_is_started_anew(driver: RawExec) -> None:
    first = await start(driver, shell("sleep 0.3; exit 3"))
    launcher = driver.supervisors.launcher_pid
    assert launcher is not None
    os.kill(launcher, signal.SIGKILL)
    async with running(driver, shell("exit 4")) as second:
        assert (await second.wait()).exit_code == 4
        assert driver.supervisors.launcher_pid != launcher
    assert (await first.wait()).exit_code == 3
    await first.destroy()


async def test_a_start_that_the_launcher_died_under_is_tried_again(driver: RawExec) -> None:
    async with running(driver, shell("true")) as task:
        await task.wait()
    launcher = driver.supervisors.launcher_pid
    assert launcher is not None
    os.kill(launcher, signal.SIGSTOP)
    starting = asyncio.create_task(start(driver, shell("exit 6")))
    await asyncio.sleep(0.1)  # its request lies in the socket of a process that will never read it
    os.kill(launcher, signal.SIGKILL)
    task = await starting
    assert (await task.wait()).exit_code == 6
    await task.destroy()


# kill -9 of a supervisor


@pytest.mark.parametrize("terminal", ["none", "inherit"])
async def test_a_killed_supervisor_makes_the_end_unknown_and_destroy_removes_the_rest(
    tmp_path: Path, mark: str, terminal: str
) -> None:
    out = tmp_path / "out"
    script = "(sh -c 'sleep 60; :' $0 &); echo ready; sh -c 'sleep 60; :' $0; :"
    async with raw_exec(tmp_path) as driver:
        config = shell(script, mark, terminal=terminal, stdout=Stdio.file(out))
        async with running(driver, config) as task:
            await text_of(out)
            os.kill(task.supervisor_pid, signal.SIGKILL)
            end = await task.wait()
            assert end.exit_code is None
            assert end.error == "the task's supervisor was killed: nobody knows how the task ended"
            with pytest.raises(UnrecoverableError):
                await task.signal(15)
            await task.stop(1, 15)
            assert marked(mark)
            await task.destroy()
            assert not [each for each in marked(mark) if terminal == "none"]
            assert not lives(task.pid)
            assert os.listdir(tmp_path / "tasks") == []


async def test_a_task_whose_supervisor_was_killed_while_no_host_lived_is_found_as_unknown(
    tmp_path: Path, mark: str
) -> None:
    with foreign_host(tmp_path, SLEEPS, mark, recoverable=True) as host:
        host.kill()
        os.kill(host.supervisor_pid, signal.SIGKILL)
        await until(lambda: not lives(host.supervisor_pid), "")
        async with raw_exec(tmp_path, recoverable=True) as driver:
            task = await driver.recover(handle_of(shell("", id="the task"), host.driver_state))
            assert (await task.wait()).exit_code is None
            await task.destroy()
            assert not lives(host.pid)


async def test_a_supervisor_killed_before_it_ran_the_command_leaves_nothing(tmp_path: Path, mark: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with raw_exec(tmp_path) as driver:
        starting = asyncio.create_task(start(driver, shell("sleep 60; :", mark, stdout=Stdio.fifo(fifo))))
        owner = await until(lambda: _owner(tmp_path), "no record came")
        os.kill(owner, signal.SIGKILL)
        with pytest.raises(StartRecoverable, match="supervisor was killed"):
            await starting
        await until(lambda: not _with_parent_or_session(owner), "the child waits for its FIFO for ever")
        assert os.listdir(tmp_path / "tasks") == []


def _with_parent_or_session(pid: int) -> list[proc.Process]:
    return [each for each in proc.processes() if pid in (each.parent, each.session)]


def _owner(folder: Path) -> int | None:
    with suppress(OSError, StopIteration):
        kept = record.read(os.fsencode(next((folder / "tasks").iterdir())), record.SUPERVISOR)
        if kept is not None:
            return int(kept["supervisor"][0])
    return None


# what is left over


async def test_leftovers_are_processes_and_records_that_nobody_claims(tmp_path: Path, mark: str) -> None:
    with foreign_host(tmp_path, "sh -c 'sleep 60; :' $0 & sleep 60; :", mark, recoverable=True) as host:
        await until(lambda: len(marked(mark)) == 3, "the tree did not come up")  # and the host itself
        host.kill()
        async with raw_exec(tmp_path, recoverable=True) as driver:
            assert await driver.leftovers(()) == [], "its supervisor lives: it is no leftover"
            os.kill(host.supervisor_pid, signal.SIGKILL)
            await until(lambda: not lives(host.supervisor_pid), "")
            assert await driver.leftovers({"the task"}) == []
            found = await driver.leftovers({"another"})
            assert {each.task_id for each in found if not each.description.startswith("group ")} == {"the task"}
            assert len([each for each in found if each.description.startswith("process ")]) == 4
            assert len([each for each in found if each.description.startswith("record ")]) == 1
            for each in found:
                await driver.remove_leftover(each)
                await driver.remove_leftover(each)
            assert not marked(mark)
            assert await driver.leftovers(()) == []
            assert os.listdir(tmp_path / "tasks") == []


async def test_a_leftover_is_not_taken_for_the_process_that_has_its_pid_now(tmp_path: Path) -> None:
    from cameleer.driver import Leftover

    stranger = subprocess.Popen(["sleep", "60"])
    try:
        async with raw_exec(tmp_path) as driver:
            start_ticks = proc.start_of(stranger.pid)
            assert start_ticks is not None
            folder = tmp_path / "tasks" / ("0" * 32)
            wrong = Leftover(task_id="", ref=f"{folder}:{stranger.pid}:{start_ticks + 1}", description="")
            await driver.remove_leftover(wrong)
            elsewhere = Leftover(task_id="", ref=f"/elsewhere/x:{stranger.pid}:{start_ticks}", description="")
            await driver.remove_leftover(elsewhere)
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


# a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a small disk")
async def test_a_disk_that_fills_up_cannot_lose_a_result(small_disk: Path) -> None:
    async with raw_exec(small_disk, recoverable=True) as driver:
        config = shell("read line; exit 31", stdin=Stdio.fd((pipe := os.pipe())[0]))
        task = await start(driver, config)
        os.close(pipe[0])
        with open(small_disk / "filler", "wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(b"x" * 4096)
        with pytest.raises(StartRecoverable, match="No space left"):
            await start(driver, shell("true"))
        os.close(pipe[1])
        assert (await task.wait()).exit_code == 31
        async with raw_exec(small_disk, recoverable=True) as later:
            found = await later.recover(handle_of(config, task.driver_state))
            assert (await found.wait()).exit_code == 31
        assert len(os.listdir(small_disk / "tasks")) == 1
        await task.destroy()


def test_a_half_written_slot_counts_as_not_written(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    fd = record.create(folder)
    assert os.fstat(fd).st_size == record.SIZE
    assert os.fstat(fd).st_blocks * 512 >= record.SIZE or os.statvfs(tmp_path).f_bsize > 4096
    record.write(fd, record.COMMAND, pid=1, start=2, session=3)
    kept = record.read(folder, record.COMMAND)
    assert kept is not None
    assert kept["session"] == [b"3"]
    os.pwrite(fd, bytes(10), record.COMMAND[0] + len(b"pid=1\0start=2\0session=3\0"))
    assert record.read(folder, record.COMMAND) is None
    assert record.read(folder, record.RESULT) is None
    with pytest.raises(ValueError, match="do not fit"):
        record.write(fd, record.COMMAND, pid="x" * 2000)
    os.close(fd)
    record.remove(folder)
    record.remove(folder)
    assert dataclasses.is_dataclass(handle_of(shell("")))
