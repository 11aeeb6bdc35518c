"""What a task finds when it starts, and what is told when it cannot."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from supervised import PATH, descriptors, lives, marked, running, shell, start, text_of, until

from cameleer.config import Resources, Stdio, TaskConfig
from cameleer.drivers.raw_exec import RawExec
from cameleer.errors import CommandNotExecutable, CommandNotFound, ConfigError, StartError, StartRecoverable

ROOT = os.geteuid() == 0


async def output_of(driver: RawExec, config: TaskConfig, out: Path) -> str:
    import dataclasses

    out.unlink(missing_ok=True)
    async with running(driver, dataclasses.replace(config, stdout=Stdio.file(out), stderr=Stdio.file(out))) as task:
        end = await task.wait()
        assert end.exit_code == 0, out.read_text()
        return out.read_text()


async def test_the_environment_is_complete_and_may_be_long(driver: RawExec, tmp_path: Path) -> None:
    env = {"PATH": PATH, **{f"LONG_{each}": "x" * 100_000 for each in range(10)}}
    text = await output_of(
        driver, shell("env | grep -c ^LONG_; env | grep -v ^LONG_ | sort", env=env), tmp_path / "out"
    )
    assert text.splitlines()[0] == "10"
    assert {line.partition("=")[0] for line in text.splitlines()[1:]} <= {"PATH", "PWD", "SHLVL", "_", "OLDPWD"}


async def test_no_descriptor_is_inherited(driver: RawExec, tmp_path: Path) -> None:
    stray = os.open("/", os.O_RDONLY)
    os.set_inheritable(stray, True)
    try:
        await running_once(driver, shell("true"))  # the launcher starts while it is open
        text = await output_of(driver, shell("exec ls /proc/self/fd"), tmp_path / "out")
    finally:
        os.close(stray)
    assert text.split() == ["0", "1", "2", "3"]  # the last is the listing itself


async def running_once(driver: RawExec, config: TaskConfig) -> None:
    async with running(driver, config) as task:
        await task.wait()


async def test_signals_have_their_defaults_although_the_host_ignores_and_blocks(tmp_path: Path) -> None:
    script = f"""
import asyncio, signal, sys
sys.path[:0] = {sys.path!r}
import supervised
from cameleer.config import Stdio
from pathlib import Path
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM, signal.SIGCHLD])
async def main():
    async with supervised.raw_exec(Path({str(tmp_path)!r})) as driver:
        config = supervised.shell("grep -E '^Sig(Blk|Ign)' /proc/self/status", stdout=Stdio.inherit())
        async with supervised.running(driver, config) as task:
            await task.wait()
asyncio.run(main())
"""
    done = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stdout=subprocess.PIPE)
    text, _ = await done.communicate()
    assert [line.split()[1] for line in text.decode().splitlines()] == ["0" * 16, "0" * 16]


async def test_limits_umask_and_nice_are_those_of_the_moment_of_the_start(driver: RawExec, tmp_path: Path) -> None:
    await running_once(driver, shell("true"))
    umask = os.umask(0o031)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    core = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, core[1]))
    try:
        text = await output_of(
            driver, shell("umask; ulimit -S -n; ulimit -H -n; ulimit -c; cat /proc/self/stat"), tmp_path / "out"
        )
    finally:
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_CORE, core)
    words = text.splitlines()
    assert words[:4] == ["0031", str(soft - 1), str(hard), "0"]
    assert int(words[4].rpartition(")")[2].split()[16]) == os.getpriority(os.PRIO_PROCESS, 0)


async def test_a_limit_on_the_size_of_files_is_the_tasks_and_does_not_hit_its_record(
    driver: RawExec, tmp_path: Path
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, before[1]))
    try:
        async with running(
            driver, shell('ulimit -f; dd if=/dev/zero of="$1" bs=1k count=4', "sh", f"{tmp_path}/big")
        ) as task:
            end = await task.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert end.exit_code != 0
    assert end.counters is not None


@pytest.mark.root
async def test_a_task_is_not_protected_as_its_host_is(tmp_path: Path) -> None:
    from supervised import raw_exec

    path = Path("/proc/self/oom_score_adj")
    before = path.read_text()
    try:
        path.write_text("-500")
    except PermissionError:
        pytest.skip("needs root with CAP_SYS_RESOURCE: lowers oom_score_adj")
    try:
        async with raw_exec(tmp_path) as driver:
            text = await output_of(driver, shell("cat /proc/self/oom_score_adj"), tmp_path / "out")
            asked = await output_of(
                driver,
                shell("cat /proc/self/oom_score_adj", resources=Resources(oom_score_adj=-200)),
                tmp_path / "out",
            )
    finally:
        path.write_text(before)
    assert (text.strip(), asked.strip()) == ("0", "-200")


async def test_oom_score_adj_can_be_raised(driver: RawExec, tmp_path: Path) -> None:
    config = shell("cat /proc/self/oom_score_adj", resources=Resources(oom_score_adj=777))
    assert (await output_of(driver, config, tmp_path / "out")).strip() == "777"


@pytest.mark.root
@pytest.mark.skipif(not ROOT, reason="needs root: becomes another user")
async def test_a_user_is_become_whole(driver: RawExec, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    config = shell("id -u; id -g; id -G; echo $HOME $USER $LOGNAME", user="nobody", cwd="/")
    text = await output_of(driver, config, tmp_path / "out")
    import pwd

    nobody = pwd.getpwnam("nobody")
    uid, gid, groups, names = text.splitlines()
    assert (int(uid), int(gid)) == (nobody.pw_uid, nobody.pw_gid)
    assert set(map(int, groups.split())) == set(os.getgrouplist("nobody", nobody.pw_gid))
    assert names == f"{nobody.pw_dir} nobody nobody"


async def test_an_unknown_user_is_named(driver: RawExec) -> None:
    with pytest.raises(StartError, match="no user no-such-user"):
        await start(driver, shell("true", user="no-such-user"))


@pytest.mark.skipif(ROOT, reason="root can become anybody")
async def test_nobody_becomes_another_user_without_root(driver: RawExec) -> None:
    with pytest.raises(StartError, match="cannot become user root"):
        await start(driver, shell("true", user="root"))


# what cannot be started


async def test_a_command_that_does_not_exist_is_not_found(driver: RawExec, tmp_path: Path) -> None:
    with pytest.raises(CommandNotFound, match="no-such-command: command not found"):
        await start(driver, TaskConfig(command="no-such-command", env={"PATH": PATH}))
    with pytest.raises(CommandNotFound, match="/no/such/command"):
        await start(driver, TaskConfig(command="/no/such/command"))
    assert os.listdir(tmp_path / "tasks") == []


async def test_the_path_of_the_environment_is_searched_not_the_hosts(driver: RawExec, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "only-here").write_text("#!/bin/sh\nexit 12\n")
    (here / "only-here").chmod(0o755)
    with pytest.raises(CommandNotFound):
        await start(driver, TaskConfig(command="only-here", env={"PATH": PATH}))
    async with running(driver, TaskConfig(command="only-here", env={"PATH": f"/none:{here}"})) as task:
        assert (await task.wait()).exit_code == 12
    async with running(driver, TaskConfig(command="./only-here", cwd=str(here))) as task:
        assert (await task.wait()).exit_code == 12


async def test_a_script_without_an_interpreter_line_is_run_by_a_shell(driver: RawExec, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("exit $1\n")
    script.chmod(0o755)
    async with running(driver, TaskConfig(command=str(script), args=["9"])) as task:
        assert (await task.wait()).exit_code == 9


@pytest.mark.parametrize("kind", ["not executable", "folder", "no interpreter", "no program"])
async def test_what_cannot_be_executed_is_told_from_what_is_not_there(
    driver: RawExec, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "it"
    if kind == "folder":
        path.mkdir()
    else:
        content = {"no interpreter": b"#!/no/such/interpreter\n", "no program": b"\0\1\2\3" * 100}
        path.write_bytes(content.get(kind, b"#!/bin/sh\n"))
        path.chmod(0o644 if kind == "not executable" else 0o755)
    with pytest.raises(CommandNotExecutable, match=str(path)):
        await start(driver, TaskConfig(command=str(path)))


async def test_where_a_folder_of_the_path_may_not_be_searched_nobody_knows_what_is_there(driver: RawExec) -> None:
    """As ``env`` and ``time`` have it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        closed, opened = Path(name, "closed"), Path(name, "opened")
        for folder in (closed, opened):
            folder.mkdir()
            (folder / "runs").write_text("#!/bin/sh\nexit 7\n")
            (folder / "runs").chmod(0o755)
        (opened / "barred").write_text("#!/bin/sh\n")
        (opened / "folder").mkdir()
        closed.chmod(0)
        fields = {"env": {"PATH": f"{closed}:{opened}"}, "user": "65534" if os.geteuid() == 0 else None, "cwd": "/"}
        async with running(driver, TaskConfig(command="runs", **fields)) as task:
            assert (await task.wait()).exit_code == 7, "the next folder has it too"
        for command in ("nothing", "folder"):
            with pytest.raises(CommandNotExecutable, match=f"{command}: command not found, and {closed} in PATH"):
                await start(driver, TaskConfig(command=command, **fields))
        with pytest.raises(CommandNotExecutable, match=f"cannot execute {opened}/barred: Permission denied"):
            await start(driver, TaskConfig(command="barred", **fields))
        closed.chmod(0o700)  # to be removed


async def test_what_is_missing_is_named(driver: RawExec, tmp_path: Path) -> None:
    with pytest.raises(StartError, match="working directory /no/such/folder: No such file"):
        await start(driver, shell("true", cwd="/no/such/folder"))
    with pytest.raises(StartError, match="/no/such/out as stdout: No such file"):
        await start(driver, shell("true", stdout=Stdio.file("/no/such/out")))
    with pytest.raises(StartError, match="as stdin: it is no FIFO"):
        await start(driver, shell("true", stdin=Stdio.fifo("/etc/passwd")))
    with pytest.raises(StartError, match="too long"):
        await start(driver, shell("true", "x" * 200_000))
    with pytest.raises(ConfigError, match=r"stdout is descriptor 9876"):
        await start(driver, shell("true", stdout=Stdio.fd(9876)))
    with pytest.raises(ConfigError, match=r"command is ''"):
        await start(driver, TaskConfig())
    with pytest.raises(StartError, match="stdin cannot be the task's terminal"):
        await start(driver, shell("true", terminal="pty"))
    assert os.listdir(tmp_path / "tasks") == []


async def test_an_id_is_taken_once(driver: RawExec) -> None:
    async with running(driver, shell("sleep 60", id="../../etc/the same")) as task:
        with pytest.raises(StartError, match="File exists"):
            await start(driver, shell("sleep 60", id="../../etc/the same"))
        assert lives(task.pid)


async def test_a_state_folder_that_cannot_be_used_may_be_usable_later(tmp_path: Path) -> None:
    from supervised import raw_exec

    (tmp_path / "tasks").write_text("no folder")
    async with raw_exec(tmp_path) as driver:
        with pytest.raises(StartRecoverable, match="cannot keep records"):
            await start(driver, shell("true"))


# streams


async def test_output_is_appended_to_files_that_only_the_owner_reads(driver: RawExec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for word in ("one", "two"):
        await running_once(driver, shell(f"echo {word}", stdout=Stdio.file(out)))
    assert out.read_text() == "one\ntwo\n"
    assert out.stat().st_mode & 0o777 == 0o600


async def test_a_fifo_is_waited_for_as_a_shell_does_and_no_link_is_followed(driver: RawExec, tmp_path: Path) -> None:
    fifo, link = tmp_path / "fifo", tmp_path / "link"
    os.mkfifo(fifo)
    link.symlink_to(fifo)
    with pytest.raises(StartError):
        await start(driver, shell("true", stdout=Stdio.fifo(link)))
    starting = asyncio.create_task(start(driver, shell("echo through", stdout=Stdio.fifo(fifo))))
    done, _ = await asyncio.wait([starting], timeout=0.2)
    assert not done
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        task = await starting
        await task.wait()
        assert os.read(reader, 100) == b"through\n"
        assert os.read(reader, 100) == b"", "somebody else holds the FIFO open"
        await task.destroy()
    finally:
        os.close(reader)


async def test_a_start_that_waits_for_a_fifo_can_be_given_up(tmp_path: Path, mark: str) -> None:
    from supervised import raw_exec

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with raw_exec(tmp_path) as driver:
        starting = asyncio.create_task(start(driver, shell("true", mark, stdout=Stdio.fifo(fifo))))
        await until(lambda: (tmp_path / "tasks").exists() and os.listdir(tmp_path / "tasks"), "no start was tried")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert os.listdir(tmp_path / "tasks") == []


# cancellation and numbers


async def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing(tmp_path: Path, mark: str) -> None:
    from supervised import raw_exec

    before = descriptors()
    survivors = 0
    async with raw_exec(tmp_path) as driver:
        await running_once(driver, shell("true"))
        for steps in range(40):
            starting = asyncio.create_task(start(driver, shell("sleep 60; :", mark, id=f"task {steps}")))
            for _ in range(steps):
                await asyncio.sleep(0)
            starting.cancel()
            try:
                task = await starting
            except asyncio.CancelledError:
                continue
            survivors += 1
            await task.destroy(force=True)
    assert not marked(mark)
    assert os.listdir(tmp_path / "tasks") == []
    assert descriptors() <= before


async def test_many_tasks_at_once_start_and_end(tmp_path: Path) -> None:
    from supervised import raw_exec

    before = descriptors()
    async with raw_exec(tmp_path) as driver:
        tasks = await asyncio.gather(*(start(driver, shell(f"exit {each % 200}")) for each in range(200)))
        ends = await asyncio.gather(*(task.wait() for task in tasks))
        assert [end.exit_code for end in ends] == [each % 200 for each in range(200)]
        await asyncio.gather(*(task.destroy() for task in tasks))
        await asyncio.gather(*(task.destroy() for task in tasks))
        launcher = driver.supervisors.launcher_pid
        assert launcher is not None
    assert not lives(launcher)
    assert os.listdir(tmp_path / "tasks") == []
    assert descriptors() <= before


async def test_without_a_state_folder_a_private_one_comes_and_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from supervised import raw_exec

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    async with raw_exec(None) as driver, running(driver, shell("sleep 60")) as task:
        (private,) = tmp_path.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700
        assert Path(task.folder).stat().st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == []


async def test_the_first_output_is_not_lost_by_a_task_that_ends_at_once(driver: RawExec, tmp_path: Path) -> None:
    assert await output_of(driver, shell("echo quick"), tmp_path / "out") == "quick\n"
    assert await text_of(tmp_path / "out") == "quick\n"
