"""Containers as tasks of a host: how they end, what is left of them, what is told of them."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from containers import hosting, shell, traces, until, written
from engine import IMAGE, Engine, needs_engine, small_image
from registry import needs_registry, serving

from cameleer.config import Mount, Resources, Stdio
from cameleer.driver import TaskEvent
from cameleer.drivers.docker.driver import Docker
from cameleer.drivers.docker.settings import DockerConfig
from cameleer.drivers.docker.task import stop_signal
from cameleer.errors import (
    CommandNotFound,
    ConfigError,
    DriverError,
    NotSupported,
    RecoverableError,
    StartError,
    TaskNotFound,
    UnrecoverableError,
)
from cameleer.host import Host
from cameleer.schema import decode
from cameleer.status import ExitResult, FinalStatus
from cameleer.task import Task

pytestmark = [pytest.mark.root, needs_engine]

SOON_S = 60.0
FOREVER = "trap exit TERM; while :; do sleep 0.1; done"
MB = 1 << 20
AT_MOST = 20
"""Connections to the engine that are kept for short requests."""
TAIL = "tail -c 199999999 >/dev/null"
"""Needs 200 MB."""
GREEDY = f"echo 1000 >/proc/self/oom_score_adj; head -c 200000000 /dev/zero | {TAIL}"
"""The same, and is what the kernel takes: without the score a busy machine's takes the shell above it too."""


@pytest.fixture
async def host(engine: Engine) -> AsyncIterator[Host]:
    """A host without a state folder; nothing is left of its containers."""
    async with hosting(engine) as opened:
        yield opened
    assert traces(engine, opened.node.host_id) == []


def driver_of(host: Host) -> Docker:
    """The driver itself."""
    opened = host._drivers["docker"].result()
    assert isinstance(opened._driver, Docker)
    return opened._driver


async def container_of(task: Task) -> str:
    return (await task.inspect())["container_id"]


@pytest.fixture
def image(engine: Engine) -> Iterator[str]:
    """The name of an image that a test makes, with changes of its own."""
    name = f"own:{os.urandom(4).hex()}"
    yield name
    engine.cli("rmi", "--force", name, check=False)


def make_image(engine: Engine, folder: Path, name: str, *changes: str) -> None:
    small_image(folder / "image.tar")
    engine.cli("import", *(word for each in changes for word in ("--change", each)), str(folder / "image.tar"), name)
    (folder / "image.tar").unlink()


# -- ends ----------------------------------------------------------------------------------------------------------


async def test_a_container_of_a_moment_has_its_output_and_its_figures(host: Host, tmp_path: Path) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; echo out; echo err >&2; exit 3"
    streams = {"stdout": Stdio.file(tmp_path / "out"), "stderr": Stdio.file(tmp_path / "err")}
    results = await asyncio.gather(*(host.run(shell(script, **streams), "docker") for _ in range(4)))
    for result in results:
        assert (result.exit_code, result.status) == (3, FinalStatus.ERROR)
        assert result.usage.cpu_total_ns
        assert result.usage.memory_peak_bytes
    assert (tmp_path / "out").read_text() == "out\n" * 4
    assert (tmp_path / "err").read_text() == "err\n" * 4


async def test_what_ends_within_its_start_has_lasted_a_while(host: Host) -> None:
    results = await asyncio.gather(*(host.run(shell("true"), "docker") for _ in range(6)))
    assert all(result.usage.wall_ns and result.usage.cpu_percent_average for result in results)


async def test_a_plain_kill_is_no_lack_of_memory(host: Host) -> None:
    result = await host.run(shell("kill -9 $$; sh -c 'kill -9 $PPID'; exit 137"), "docker")
    assert (result.exit_code, result.signal, result.status) == (137, None, FinalStatus.KILLED)
    assert not result.oom_killed


async def test_lack_of_memory_is_what_the_engine_says(host: Host) -> None:
    config = shell(f"exec {TAIL} </dev/zero", resources=Resources(memory_bytes=16 * MB))
    result = await host.run(config, "docker")
    assert (result.exit_code, result.status, result.oom_killed) == (137, FinalStatus.KILLED, True)
    assert "memory" in (result.error or "")


async def test_a_child_that_lacked_memory_does_not_spoil_the_success(host: Host) -> None:
    result = await host.run(shell(f"({GREEDY}); exit 0", resources=Resources(memory_bytes=16 * MB)), "docker")
    assert (result.exit_code, result.status, result.oom_killed) == (0, FinalStatus.SUCCESS, True)


async def test_a_container_removed_behind_our_back_ends_as_its_last_event_said(engine: Engine, host: Host) -> None:
    task = await host.start(shell(FOREVER), "docker")
    await task.sample(0.05)
    engine.cli("rm", "--force", await container_of(task))
    async with asyncio.timeout(SOON_S):
        result = await task.wait()
    assert (result.exit_code, result.status) == (137, FinalStatus.KILLED)
    assert not result.oom_killed
    assert result.usage.cpu_total_ns
    await task.destroy()
    await task.destroy()


async def test_a_container_started_again_behind_our_back_has_ended_as_a_task(
    engine: Engine, host: Host, tmp_path: Path
) -> None:
    script = "echo run; trap 'exit 9' TERM; while :; do sleep 0.05; done"
    task = await host.start(shell(script, stdout=Stdio.file(tmp_path / "out")), "docker")
    await written(tmp_path / "out")
    engine.cli("restart", await container_of(task))
    async with asyncio.timeout(SOON_S):
        result = await task.wait()
    assert (result.exit_code, result.status) == (9, FinalStatus.ERROR)


async def test_a_container_removed_by_two_at_once_is_gone_for_both(engine: Engine, host: Host) -> None:
    tasks = [await host.start(shell(FOREVER), "docker") for _ in range(3)]
    ids = [await container_of(task) for task in tasks]
    removing = asyncio.get_running_loop().run_in_executor(None, lambda: engine.cli("rm", "-f", *ids, check=False))
    await asyncio.gather(*(task.destroy(force=True) for task in tasks))
    await removing


# -- acting on it --------------------------------------------------------------------------------------------------


async def test_a_stop_sends_the_images_signal(engine: Engine, host: Host, image: str, tmp_path: Path) -> None:
    container = engine.out("create", "--network=none", "--stop-signal=SIGUSR1", IMAGE, "true")
    engine.cli("commit", container, image)
    engine.cli("rm", container)
    script = "trap 'echo usr1; exit 4' USR1; trap 'exit 5' TERM; echo up; while :; do sleep 0.05; done"
    task = await host.start(shell(script, image=image, stdout=Stdio.file(tmp_path / "out")), "docker")
    await written(tmp_path / "out")
    await task.stop(20)
    result = await task.wait()
    assert (result.exit_code, result.status) == (4, FinalStatus.KILLED)
    assert (tmp_path / "out").read_text() == "up\nusr1\n"


async def test_who_ignores_the_signal_is_killed_after_the_grace_period(host: Host, tmp_path: Path) -> None:
    script = "trap '' TERM INT USR2; echo up; while :; do sleep 0.05; done"
    task = await host.start(shell(script, stdout=Stdio.file(tmp_path / "out")), "docker")
    await written(tmp_path / "out")
    began = asyncio.get_running_loop().time()
    await task.stop(0.5, signal.SIGUSR2)
    assert asyncio.get_running_loop().time() - began >= 0.5
    result = await task.wait()
    assert (result.exit_code, result.status) == (137, FinalStatus.KILLED)
    assert not result.oom_killed


async def test_a_signal_reaches_the_first_process(host: Host, tmp_path: Path) -> None:
    script = "trap 'echo hup' HUP; trap 'exit 6' USR1; echo up; while :; do sleep 0.05; done"
    task = await host.start(shell(script, stdout=Stdio.file(tmp_path / "out")), "docker")
    await written(tmp_path / "out")
    await task.signal(signal.SIGHUP)
    await until(lambda: (tmp_path / "out").read_text() == "up\nhup\n", "no signal came")
    await task.signal(signal.SIGUSR1)
    assert (await task.wait()).exit_code == 6
    with pytest.raises(UnrecoverableError, match="ended"):
        await task.signal(signal.SIGHUP)


async def test_a_task_that_runs_too_long_is_killed(host: Host) -> None:
    result = await host.run(
        shell("trap '' TERM; while :; do sleep 0.1; done", timeout_s=1, kill_timeout_s=0.2), "docker"
    )
    assert (result.status, result.exit_code) == (FinalStatus.TIMEOUT, 137)


async def test_destroying_removes_container_and_anonymous_volumes_and_keeps_named_ones(
    engine: Engine, host: Host
) -> None:
    before = set(engine.out("volume", "ls", "--quiet").split())
    named = f"named-{os.urandom(4).hex()}"
    volumes = {"volumes": ["/anonymous", f"{named}:/named"]}
    task = await host.start(shell("echo x > /anonymous/f; echo y > /named/f", driver_config=volumes), "docker")
    await task.wait()
    assert len(set(engine.out("volume", "ls", "--quiet").split()) - before) == 2
    try:
        await task.destroy()
        await task.destroy()
        assert set(engine.out("volume", "ls", "--quiet").split()) - before == {named}
        assert traces(engine, host.node.host_id) == []
    finally:
        engine.cli("volume", "rm", "--force", named)


async def test_a_container_that_is_to_be_kept_stays(engine: Engine) -> None:
    async with hosting(engine) as host:
        ended = await host.start(shell("exit 3", driver_config={"keep": True}), "docker")
        runs = await host.start(shell(FOREVER, driver_config={"keep": True}), "docker")
        await ended.wait()
        kept = [await container_of(each) for each in (ended, runs)]
        await ended.destroy()
        await runs.destroy(force=True)
    try:
        assert set(kept) <= set(engine.containers())
    finally:
        engine.cli("rm", "--force", *kept)


async def test_a_command_runs_in_a_task_with_and_without_a_terminal(host: Host) -> None:
    task = await host.start(shell(FOREVER, env={"OF_TASK": "yes"}), "docker")
    for tty, expected in ((False, b"yes no\n"), (True, b"yes tty\r\n")):
        command = ["/bin/sh", "-c", "test -t 0 && is=tty; echo $OF_TASK ${is:-no}; exit 7"]
        async with await task.exec(command, tty=tty, size=(24, 80) if tty else None) as session:
            found = b"".join([data async for _, data in session.output()])
            assert (await session.wait()).exit_code == 7
        assert found == expected
    await task.stop(0)
    with pytest.raises(UnrecoverableError):
        await task.exec(["true"])


# -- what somebody else runs ---------------------------------------------------------------------------------------


async def test_what_somebody_else_runs_is_measured_and_never_touched(engine: Engine, host: Host) -> None:
    name = f"foreign-{os.urandom(4).hex()}"
    container = engine.out("run", "--detach", "--network=none", f"--name={name}", IMAGE, "sh", "-c", FOREVER)
    try:
        task = await host.attach(f"docker:{name}", "docker")
        again = await host.attach(f"docker:{container[:12]}", "docker")
        assert (await task.sample(0.05)).cpu.total_ns
        assert (await again.sample(0.05)).memory.rss_bytes
        for refused in (task.stop, task.destroy, lambda: task.signal(15)):
            with pytest.raises(NotSupported):
                await refused()
        engine.cli("stop", "--time=0", container)
        async with asyncio.timeout(SOON_S):
            ends = await asyncio.gather(task.wait(), again.wait())
        assert [each.exit_code for each in ends] == [137, 137]
        assert container in engine.containers()
    finally:
        engine.cli("rm", "--force", container)


async def test_a_host_that_closes_leaves_what_it_measured(engine: Engine) -> None:
    container = engine.out("run", "--detach", "--network=none", IMAGE, "sh", "-c", FOREVER)
    try:
        async with hosting(engine) as host:
            task = await host.attach(f"docker:{container}", "docker")
            await task.sample(0.05)
        assert engine.out("inspect", "--format={{.State.Running}}", container) == "true"
    finally:
        engine.cli("rm", "--force", container)


@pytest.mark.parametrize(
    "ref", ["docker:../info", "docker:a/b", "docker:..", "docker:", "x", "docker:a?b", "docker:no-such", "pid:1"]
)
async def test_what_names_no_container_cannot_be_measured(host: Host, ref: str) -> None:
    with pytest.raises(TaskNotFound):
        await host.attach(ref, "docker")


# -- starts that fail ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"command": "/no/such"}, CommandNotFound),
        ({"mounts": [Mount(source="/no/such/folder", target="/x")]}, UnrecoverableError),
        ({"cwd": "relative"}, ConfigError),
        ({"user": "nobody-of-that-name"}, StartError),
        ({"driver_config": {"network_mode": "no-such-network"}}, StartError),
        ({"driver_config": {"network_mode": "container:no-such"}}, StartError),
        ({"driver_config": {"runtime": "no-such"}}, ConfigError),
        ({"stdout": Stdio.file("/no/such/folder/out")}, StartError),
        ({"resources": Resources(cpuset_cpus="4000")}, UnrecoverableError),
    ],
)
@pytest.mark.parametrize("recoverable", [False, True])
async def test_a_start_that_fails_leaves_nothing(
    engine: Engine, tmp_path: Path, fields: dict[str, object], error: type[DriverError], recoverable: bool
) -> None:
    state = tmp_path if recoverable else None
    async with hosting(engine, state_dir=state) as host:
        with pytest.raises(error):
            await host.start(shell("true", **fields), "docker")
        assert traces(engine, host.node.host_id, state) == []
        assert not host.tasks
        reaper = driver_of(host)._reaper
        assert reaper is None or not reaper._names


async def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    async with hosting(engine, state_dir=tmp_path) as kept, hosting(engine) as reaped:
        for host in (kept, reaped):
            await host.run(shell("true"), "docker")
        for number in range(30):
            host = (kept, reaped)[number % 2]
            work = asyncio.ensure_future(host.start(shell(FOREVER), "docker"))
            await asyncio.sleep(0.01 * number)
            work.cancel()
            await asyncio.wait([work])
            if not work.cancelled():
                await work.result().destroy(force=True)
        for host, state in ((kept, tmp_path), (reaped, None)):
            await until(lambda: traces(engine, host.node.host_id, state) == [], "something is left", SOON_S)  # noqa: B023
            assert not host.tasks
        assert not driver_of(reaped)._reaper._names  # type: ignore[union-attr]


async def test_a_host_that_closes_within_a_start_leaves_nothing(engine: Engine) -> None:
    for delay_s in (0.0, 0.05, 0.2):
        async with hosting(engine) as host:
            await host.run(shell("true"), "docker")
            work = asyncio.ensure_future(host.start(shell(FOREVER, kill_timeout_s=0), "docker"))
            await asyncio.sleep(delay_s)
        await asyncio.wait([work])
        assert work.exception() is None or isinstance(work.exception(), RecoverableError)
        await until(lambda: traces(engine, host.node.host_id) == [], "something is left", SOON_S)


async def test_an_image_that_vanished_is_looked_for_again(engine: Engine, host: Host, image: str) -> None:
    engine.cli("tag", IMAGE, image)
    config = shell("exit 8", image=image)
    driver = driver_of(host) if "docker" in host._drivers else (await host.driver("docker"))._driver
    assert isinstance(driver, Docker)
    await driver.prepare(config)
    gone = "sha256:" + "0" * 64
    driver._images[config.id] = gone
    task = await driver.start(config)
    try:
        assert (await task.wait()).exit_code == 8
    finally:
        await task.destroy(force=True)


async def test_an_image_that_is_gone_for_good_is_an_error(engine: Engine, tmp_path: Path, image: str) -> None:
    make_image(engine, tmp_path, image, "LABEL only=once")
    async with hosting(engine, pull_policy="never") as host:
        driver = await host.driver("docker")
        config = shell("true", image=image)
        await driver.prepare(config)
        engine.cli("rmi", image)
        with pytest.raises(StartError, match=image):
            await driver.start(config)
        assert traces(engine, host.node.host_id) == []


async def test_a_name_that_somebody_else_has_is_an_error_and_his_container_stays(engine: Engine, host: Host) -> None:
    from cameleer.drivers.docker.creation.create import container_name

    config = shell("true")
    name = container_name(config, host.node)
    foreign = engine.out("run", "--detach", "--network=none", f"--name={name}", IMAGE, "sh", "-c", FOREVER)
    try:
        with pytest.raises(DriverError, match="already in use"):
            await host.start(config, "docker")
        assert engine.out("inspect", "--format={{.State.Running}}", foreign) == "true"
    finally:
        engine.cli("rm", "--force", foreign)
    assert (await host.run(config, "docker")).exit_code == 0


# -- what is told --------------------------------------------------------------------------------------------------


async def test_events_reach_every_caller(engine: Engine, host: Host, image: str, tmp_path: Path) -> None:
    make_image(engine, tmp_path, image, "HEALTHCHECK --interval=100ms --retries=1 CMD test -e /tmp/well")
    driver = await host.driver("docker")
    told: list[list[TaskEvent]] = [[], []]

    async def listen(found: list[TaskEvent]) -> None:
        async for event in driver.events():
            found.append(event)

    listeners = [asyncio.ensure_future(listen(found)) for found in told]
    await asyncio.sleep(0)
    script = f"sleep 0.5; touch /tmp/well; sleep 0.5; ({GREEDY}); exit 3"
    config = shell(script, image=image, resources=Resources(memory_bytes=32 * MB), name="told", alloc_id="a1")
    assert (await host.run(config, "docker")).exit_code == 3
    for listener in listeners:
        listener.cancel()
    await asyncio.wait(listeners)
    assert told[0] == told[1]
    messages = [event.message for event in told[0]]
    assert {(event.task_id, event.task_name, event.alloc_id) for event in told[0]} == {(config.id, "told", "a1")}
    assert any("healthy" in each for each in messages)
    assert any("out of memory" in each for each in messages)
    assert messages[-1] == "ended with exit code 3"
    assert told[0][-1].annotations == {"exit_code": "3"}
    assert not driver_of(host)._readers


@needs_registry
async def test_the_progress_of_a_pull_is_among_the_events(engine: Engine, host: Host, tmp_path: Path) -> None:
    driver = await host.driver("docker")
    found: list[TaskEvent] = []

    async def listen() -> None:
        async for event in driver.events():
            found.append(event)

    listener = asyncio.ensure_future(listen())
    with serving(tmp_path / "registry") as registry:
        image = registry.push(engine, IMAGE, "pulled:test")
        try:
            config = shell("exit 3", image=image, alloc_id="a2")
            assert (await host.run(config, "docker")).exit_code == 3
        finally:
            engine.cli("rmi", "--force", image, check=False)
    listener.cancel()
    await asyncio.wait([listener])
    assert {(event.task_id, event.alloc_id) for event in found} == {(config.id, "a2")}
    assert found[0].message.startswith("pulling ")
    assert any(event.message.startswith("pulled ") for event in found)
    assert found[-1].message == "ended with exit code 3"


async def test_the_fingerprint_says_what_the_engine_is(engine: Engine, host: Host) -> None:
    info = next(each for each in await host.drivers() if each.name == "docker")
    version, storage, cgroup = engine.out("info", "--format={{.ServerVersion}} {{.Driver}} {{.CgroupDriver}}").split()
    assert info.health == "healthy"
    values = {name.removeprefix("driver.docker."): value for name, (value, _) in info.attributes.items()}
    assert (values["version"], values["storage_driver"], values["cgroup_driver"]) == (version, storage, cgroup)
    assert values["cgroup_version"] in (1, 2)
    assert "runc" in str(values["runtimes"])
    assert values["api_version"] == engine.out("version", "--format={{.Server.APIVersion}}")


async def test_where_no_engine_is_the_driver_is_undetected_or_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def health(endpoint: str) -> tuple[str, str]:
        config = {"drivers": {"docker": {"endpoint": endpoint}}, "plugins": {"hooks": []}}
        async with Host(config, plugins=[Docker]) as host:
            info = next(each for each in await host.drivers() if each.name == "docker")
            return info.health, info.health_description

    state, reason = await health(f"unix://{tmp_path}/none")
    assert (state, f"{tmp_path}/none" in reason) == ("unhealthy", True)
    state, reason = await health("http:nonsense")
    assert (state, "nonsense" in reason) == ("unhealthy", True)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    if not os.path.exists("/var/run/docker.sock"):
        assert (await health(""))[0] == "undetected"


async def test_no_secret_is_in_logs_or_errors(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = f"hush-{os.urandom(6).hex()}"
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CAMELEER_TRACE", "1")
    registries = {"127.0.0.1:1": {"username": "me", "password": secret}}
    told: list[str] = []
    async with hosting(engine, state_dir=tmp_path, registries=registries, pull_timeout="5s") as host:
        auth = {"auth": {"username": "me", "password": secret}}
        failing = [
            shell("true", image="127.0.0.1:1/no:such", driver_config=auth),
            shell("true", image="127.0.0.1:1/no:such"),
            shell("true", env={"A": secret}, command="/no/such"),
            shell("true", env={"A": secret}, mounts=[Mount(source="/no/such", target="/x")]),
        ]
        for config in failing:
            with pytest.raises((DriverError, ExceptionGroup)) as caught:
                await host.start(config, "docker")
            told += [str(caught.value), repr(caught.value.__cause__)]
        assert (await host.run(shell('test "$A"', env={"A": secret}), "docker")).exit_code == 0
        told += [repr(host.settings.drivers), repr(driver_of(host).config)][1:]
    assert secret not in "\n".join([*told, caplog.text])


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("", signal.SIGTERM),
        ("SIGQUIT", signal.SIGQUIT),
        ("usr1", signal.SIGUSR1),
        ("9", 9),
        ("SIGRTMIN+3", signal.SIGRTMIN + 3),
        ("SIGRTMAX-1", signal.SIGRTMAX - 1),
        ("RTMIN", signal.SIGRTMIN),
        ("SIGNO", signal.SIGTERM),
    ],
)
def test_an_image_may_name_its_stop_signal_in_any_way(said: str, number: int) -> None:
    assert stop_signal({"Config": {"StopSignal": said}}) == number


def test_credentials_written_in_the_wrong_shape_are_not_shown() -> None:
    for registries in ({"docker.io": "me:hush"}, "hush"):
        with pytest.raises(ConfigError, match="registries") as caught:
            decode(DockerConfig, {"registries": registries}, "drivers.docker")
        assert "hush" not in str(caught.value)


# -- output that nobody takes ----------------------------------------------------------------------------------------


async def test_an_end_waits_for_a_reader_as_long_as_is_set_and_says_what_is_lost(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    config = shell("head -c 1000000 /dev/zero", stdout=Stdio.fifo(fifo))
    try:
        async with hosting(engine, output_patience="1s") as host:
            result = await host.run(config, "docker")
            assert (result.exit_code, result.status) == (0, FinalStatus.SUCCESS)
            assert f"nobody takes the last output of task {config.id}" in caplog.text
    finally:
        os.close(reading)


async def test_a_task_that_is_stopped_waits_for_no_reader_longer_than_usual(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cameleer.drivers.docker.task._HURRY_S", 0.5)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        async with hosting(engine, output_patience="24h") as host:
            task = await host.start(shell("head -c 1000000 /dev/zero", stdout=Stdio.fifo(fifo)), "docker")
            engine.cli("wait", await container_of(task))
            waiting = asyncio.ensure_future(task.wait())
            await asyncio.wait([waiting], timeout=1.5)
            assert not waiting.done()
            async with asyncio.timeout(SOON_S):
                await task.stop()
                assert (await waiting).exit_code == 0
    finally:
        os.close(reading)


# -- nothing held --------------------------------------------------------------------------------------------------


def threads() -> set[str]:
    return {f"{each.name} {each.ident}" for each in threading.enumerate()}


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def test_neither_waiting_nor_measuring_holds_a_thread_or_a_connection_for_each_container(
    engine: Engine,
) -> None:
    async with hosting(engine) as host, hosting(engine, stats="remote", stats_mode="one-shot") as remote:
        tasks: list[Task] = []
        readings = []
        waits: list[asyncio.Future[ExitResult]] = []
        counted: list[tuple[int, int, int]] = []
        for count in (5, 50):
            new = await asyncio.gather(
                *(host.start(shell(FOREVER, kill_timeout_s=0), "docker") for _ in range(count - len(tasks)))
            )
            new += [await remote.attach(f"docker:{await container_of(task)}", "docker") for task in new]
            tasks += new[: len(new) // 2]
            waits += [asyncio.ensure_future(task.wait()) for task in new]
            readings += [task.readings(5.0) for task in new]
            await asyncio.gather(*(anext(each) for each in readings[-len(new) :]))
            clients = [driver_of(each).engine.client for each in (host, remote)]
            counted.append((len(threads()), *(client.open_connections for client in clients)))
        few, many = counted
        assert many[0] - few[0] <= 8 + 4  # the pools' own limits, whatever there is to do
        most = AT_MOST + 1  # what rests, and the events
        assert few[1] <= most
        assert many[1] <= most
        assert many[2] <= most
        assert not any(each.done() for each in waits)
        for each in waits:
            each.cancel()


async def test_output_holds_a_connection_and_no_thread(host: Host, tmp_path: Path) -> None:
    await host.run(shell("true"), "docker")
    had = len(threads())
    tasks = await asyncio.gather(
        *(host.start(shell(FOREVER, stdout=Stdio.file(tmp_path / f"{each}")), "docker") for each in range(12))
    )
    await host.start(shell(FOREVER, kill_timeout_s=0), "docker")  # whose output nobody wants
    client = driver_of(host).engine.client
    attached = [wire for wire in client._open if wire.what.startswith("attach")]
    assert len(attached) == len(tasks)
    assert len(threads()) - had <= 8 + 4
    await asyncio.gather(*(task.stop(0) for task in tasks))
    assert not client._open & set(attached)


async def test_waves_of_containers_leave_nothing(engine: Engine, tmp_path: Path) -> None:
    async with hosting(engine, state_dir=tmp_path) as host:

        async def wave(number: int) -> None:
            tasks = await asyncio.gather(
                *(
                    host.start(shell("exit 0", stdout=Stdio.file(tmp_path / f"out-{number}-{each}")), "docker")
                    for each in range(10)
                )
            )
            await asyncio.gather(*(task.wait() for task in tasks))
            await asyncio.gather(*(task.destroy() for task in tasks))

        await wave(0)
        await until(lambda: len(asyncio.all_tasks()) < 20, "asyncio tasks were left")
        before = (len(threads()), descriptors(), len(asyncio.all_tasks()))
        connections = driver_of(host).engine.client.open_connections
        for number in range(1, 6):
            await wave(number)
        await until(lambda: len(asyncio.all_tasks()) <= before[2], "asyncio tasks were left")
        await until(lambda: len(threads()) <= before[0] + 2, "threads were left")
        assert driver_of(host).engine.client.open_connections <= AT_MOST + 1
        spare = driver_of(host).engine.client.open_connections - connections
        assert descriptors() <= before[1] + max(spare, 0) + 8  # the SDK keeps up to 8 connections
        assert traces(engine, host.node.host_id, tmp_path) == []
        driver = driver_of(host)
        assert not driver._tasks
        assert not driver._images
        assert not driver.engine.events._listeners
    assert not (asyncio.all_tasks() - {asyncio.current_task()})
