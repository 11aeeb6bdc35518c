"""Hosts that are killed, and what the next one, or nobody, finds of their containers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from containers import hosting, shell, traces, until, written
from engine import IMAGE, Engine, needs_engine, running

from cameleer.config import Stdio
from cameleer.driver import Leftover
from cameleer.drivers.docker import Docker
from cameleer.host import Host
from cameleer.node import NodeInfo
from cameleer.status import FinalStatus
from cameleer.task import TaskHandle, TaskState

pytestmark = [pytest.mark.root, needs_engine]

SOON_S = 60.0
FOREVER = "trap exit TERM; while :; do sleep 0.1; done"

HOST = """
import asyncio, json, os, sys
from cameleer import Host, Stdio, TaskConfig
from cameleer.drivers.docker.driver import Docker
from cameleer.drivers.docker.start import Start

def killed(*args, **kwargs):
    os.kill(os.getpid(), 9)

async def main(address, state_dir, dies_in, tasks):
    if dies_in:
        setattr({"adopt": Docker}.get(dies_in, Start), dies_in, killed)
    config = {"drivers": {"docker": {"endpoint": address}}, "plugins": {"hooks": []}}
    async with Host(config, plugins=[Docker], state_dir=state_dir) as host:
        print(host.node.host_id, flush=True)
        for task in tasks:
            output = task.pop("output")
            stdout = Stdio.file(output) if output else Stdio.discard()
            started = await host.start(TaskConfig(**task, stdout=stdout), "docker")
            print((await started.inspect())["container_id"], flush=True)
        await asyncio.Event().wait()

asyncio.run(main(*json.loads(sys.argv[1])))
"""


class Killed:
    """A host in a process of its own, which is killed with SIGKILL.

    :ivar host_id: its own.
    :ivar containers: of its tasks, in order.
    """

    def __init__(
        self, engine: Engine, folder: Path | None, *scripts: str, output: Path | None = None, dies_in: str = ""
    ) -> None:
        tasks: list[dict[str, Any]] = [
            {
                "id": f"task-{number}",
                "command": "/bin/sh",
                "args": ["-c", script],
                "image": IMAGE,
                "driver_config": {"network_mode": "none"},
                "output": None if output is None else str(output),
            }
            for number, script in enumerate(scripts)
        ]
        words = json.dumps([engine.address, None if folder is None else str(folder), dies_in, tasks])
        self._process = subprocess.Popen([sys.executable, "-c", HOST, words], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.host_id = self._process.stdout.readline().strip()
        self.containers = [self._process.stdout.readline().strip() for _ in scripts]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder; hosts with it have the same id."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


async def recovered(host: Host) -> dict[str, Any]:
    return {task.id: task for task in await host.recover()}


async def test_what_runs_and_what_ended_is_found_with_result_figures_and_output(
    engine: Engine, state: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    counting = "i=0; while [ $i -lt 250 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 6"
    working = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.5; exit 7"
    first = Killed(engine, state, counting, output=output)
    await written(output)
    first.kill()
    async with hosting(engine, state_dir=state, on_exit="detach") as host:
        task = (await recovered(host))["task-0"]
        assert task.info.state is TaskState.RUNNING
        assert (await task.sample(0.05)).cpu.total_ns
        lines = len(output.read_text().splitlines())
        await until(lambda: len(output.read_text().splitlines()) > lines + 20, "no more output came")
    async with hosting(engine, state_dir=state) as host:
        task = (await recovered(host))["task-0"]
        other = await host.start(shell(working, id="other"), "docker")
        async with asyncio.timeout(SOON_S):
            result = await task.wait()
        assert (result.exit_code, result.status) == (6, FinalStatus.ERROR)
        assert result.usage.cpu_total_ns
        assert result.usage.memory_peak_bytes
        assert output.read_text() == "".join(f"{number}\n" for number in range(1, 251))
        await other.stop(0)
        host_id = host.node.host_id
    assert traces(engine, host_id, state) == []


async def test_what_ended_meanwhile_is_found_with_its_result(engine: Engine, state: Path) -> None:
    work = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 0.3; exit 7"
    first = Killed(engine, state, work, "exec sleep 1000", "exec sleep 1000")
    first.kill()
    engine.cli("wait", first.containers[0])
    engine.cli("kill", first.containers[1])
    engine.cli("rm", "--force", first.containers[2])
    async with hosting(engine, state_dir=state) as host:
        tasks = await recovered(host)
        async with asyncio.timeout(SOON_S):
            ended = [await tasks[f"task-{number}"].wait() for number in range(3)]
        assert [each.exit_code for each in ended] == [7, 137, None]
        assert [each.status for each in ended] == [FinalStatus.ERROR, FinalStatus.KILLED, FinalStatus.ERROR]
        assert ended[0].usage.cpu_total_ns
        assert ended[0].usage.memory_peak_bytes
        assert ended[0].ended_at_ns < ended[1].ended_at_ns
        assert "lost" in ended[2].error
    assert traces(engine, first.host_id, state) == []


async def test_containers_of_a_host_without_a_state_folder_go_with_it(engine: Engine) -> None:
    first = Killed(engine, None, FOREVER, "exit 0", FOREVER)
    assert len(traces(engine, first.host_id)) > 3
    first.kill()
    await until(lambda: traces(engine, first.host_id) == [], "containers were left", SOON_S)


@pytest.mark.parametrize("moment", ["_create", "_start"])
async def test_a_host_killed_before_its_container_started_has_lost_it(engine: Engine, state: Path, moment: str) -> None:
    first = Killed(engine, state, FOREVER, dies_in=moment)
    first.kill()
    assert traces(engine, first.host_id, state)
    async with hosting(engine, state_dir=state) as host:
        result = await (await recovered(host))["task-0"].wait()
        assert (result.exit_code, result.status) == (None, FinalStatus.ERROR)
        assert traces(engine, first.host_id, state) == []
        assert await host.leftovers() == []


async def test_a_host_killed_before_it_knew_of_its_container_finds_it_by_its_label(engine: Engine, state: Path) -> None:
    first = Killed(engine, state, "trap exit TERM; while [ ! -e /go ]; do sleep 0.05; done; exit 5", dies_in="adopt")
    first.kill()
    async with hosting(engine, state_dir=state) as host:
        task = (await recovered(host))["task-0"]
        assert task.info.state is TaskState.RUNNING
        assert (await task.sample(0.05)).cpu.total_ns
        engine.cli("exec", (await task.inspect())["container_id"], "touch", "/go")
        result = await task.wait()
        assert result.exit_code == 5
        assert result.usage.cpu_total_ns
    assert traces(engine, first.host_id, state) == []


async def test_a_handle_finds_its_container_with_an_empty_configuration_or_says_which_engine_it_needs(
    engine: Engine, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Killed(engine, state, FOREVER)
    first.kill()
    bare = {"plugins": {"hooks": []}}
    with running(images=()) as other:
        monkeypatch.setenv("DOCKER_HOST", other.address)
        async with Host(bare, plugins=[Docker], state_dir=state, on_exit="detach") as host:
            task = (await recovered(host))["task-0"]
            assert task.info.state is TaskState.UNKNOWN
            with pytest.raises(Exception, match=engine.address):
                await task.inspect()
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv("DOCKER_CONFIG", str(state))  # without a context
    for on_exit in ("detach", "stop"):  # nobody says which engine: the handle does
        async with Host(bare, plugins=[Docker], state_dir=state, on_exit=on_exit) as host:
            task = (await recovered(host))["task-0"]
            assert task.info.state is TaskState.RUNNING
            assert (await task.inspect())["container_id"] == first.containers[0]
    assert traces(engine, first.host_id, state) == []


async def test_an_engine_that_is_away_at_recovery_is_asked_again(state: Path) -> None:
    with running("--live-restore") as engine:
        first = Killed(engine, state, FOREVER)
        first.kill()
        engine.kill()
        async with hosting(engine, state_dir=state, call_timeout="1s") as host:
            task = (await recovered(host))["task-0"]
            assert task.info.state is TaskState.UNKNOWN
            engine.start()
            await until(lambda: task.info.state is TaskState.RUNNING, "it was not found again", SOON_S)
        assert traces(engine, first.host_id, state) == []


async def test_two_hosts_on_one_engine_leave_each_others_containers_alone(engine: Engine, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    async with (
        hosting(engine, state_dir=folders[0]) as one,
        hosting(engine, state_dir=folders[1]) as two,
        hosting(engine) as three,
    ):
        hosts = [one, two, three]
        same = shell(FOREVER, id="the same", name="same")
        tasks = [await host.start(dataclasses.replace(same), "docker") for host in hosts]
        for host in hosts:
            assert await host.recover() == []
            assert await docker_leftovers(host) == []
        await tasks[0].destroy(force=True)
        for task in tasks[1:]:
            assert (await task.sample(0.05)).cpu.total_ns
        await tasks[1].stop(0)
        await tasks[1].destroy()
        assert tasks[2].info.state is TaskState.RUNNING
    for host, folder in zip(hosts, [*folders, None], strict=True):
        assert traces(engine, host.node.host_id, folder) == []


async def docker_leftovers(host: Host) -> list[Leftover]:
    return [found for name, found in await host.leftovers() if name == "docker"]


async def test_what_no_handle_claims_is_left_over_and_removed_on_request_alone(
    engine: Engine, state: Path, tmp_path: Path
) -> None:
    first = Killed(engine, state, FOREVER, FOREVER)
    first.kill()
    handles = [each for each in state.rglob("*") if each.is_file() and "task-1" in each.read_text(errors="replace")]
    assert handles
    for each in handles:
        each.unlink()
    async with hosting(engine, state_dir=tmp_path / "another") as another:
        assert await docker_leftovers(another) == []
    async with hosting(engine, state_dir=state, on_exit="detach") as probe:
        await (await probe.driver("docker")).health()
    assert set(first.containers) <= set(engine.containers())
    async with hosting(engine, state_dir=state) as host:
        await host.recover()
        found = await docker_leftovers(host)
        assert [each.task_id for each in found] == ["task-1", ""]  # the container, and the group around it
        assert first.containers[1] in engine.containers()
        for each in found:
            await host.remove_leftover("docker", each)
        assert first.containers[1] not in engine.containers()
        assert host.tasks["task-0"].info.state is TaskState.RUNNING
    assert traces(engine, first.host_id) == []


async def test_a_container_started_again_while_the_host_was_away_is_another_run(engine: Engine, state: Path) -> None:
    first = Killed(engine, state, FOREVER)
    first.kill()
    engine.cli("restart", "--time=0", first.containers[0])
    async with hosting(engine, state_dir=state) as host:
        task = (await recovered(host))["task-0"]
        async with asyncio.timeout(SOON_S):
            result = await task.wait()
        assert (result.exit_code, result.status) == (None, FinalStatus.ERROR)
        assert "started again by somebody else" in (result.error or "")


async def test_a_recovery_that_is_given_up_for_a_slow_reader_delivers_nothing_twice(
    engine: Engine, state: Path, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = "sleep 1; i=0; while [ $i -lt 40000 ]; do i=$((i+1)); echo $i; done"
    async with hosting(engine, state_dir=state, on_exit="detach") as host:
        task = await host.start(shell(script, stdout=Stdio.fifo(fifo)), "docker")
        container = (await task.inspect())["container_id"]
    engine.cli("wait", container)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    found = bytearray()
    async with hosting(engine, state_dir=state, deadlines={"start": 1.0}) as host:
        (again,) = await host.recover()
        assert again.info.state is TaskState.UNKNOWN  # nobody has read by now
        deadline = asyncio.get_running_loop().time() + SOON_S
        while not found.endswith(b"\n40000\n") and asyncio.get_running_loop().time() < deadline:
            with suppress(BlockingIOError):
                found += os.read(reading, 1 << 16)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(SOON_S):
            assert (await again.wait()).exit_code == 0
    os.close(reading)
    assert found.decode() == "".join(f"{number}\n" for number in range(1, 40001))


async def test_what_a_host_with_a_node_id_left_is_found_by_its_state_folder_alone(engine: Engine, state: Path) -> None:
    node = NodeInfo(node_id="node-1", node_name="one")
    config = {"drivers": {"docker": {"endpoint": engine.address}}, "plugins": {"hooks": []}}
    async with Host(config, plugins=[Docker], state_dir=state, node=node, on_exit="detach") as host:
        task = await host.start(shell(FOREVER), "docker")
        container = (await task.inspect())["container_id"]
    for each in (state / "handles").iterdir():
        each.unlink()
    async with hosting(engine, state_dir=state) as host:
        for leftover in await docker_leftovers(host):
            await host.remove_leftover("docker", leftover)
        assert container not in engine.containers()
        assert traces(engine, host.node.host_id) == []


def test_a_handle_keeps_no_secret_in_its_representation() -> None:
    handle = TaskHandle(driver="docker", config=shell("true"), driver_state=b"hush")
    assert "hush" not in repr(handle)
