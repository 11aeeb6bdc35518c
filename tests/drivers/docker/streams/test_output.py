"""Output and stdin of real containers: apart, complete, exact, and in step with who reads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from engine import Engine, needs_engine
from engine import running as running_engine

from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.docker.client.endpoint import Endpoint
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.streams import output as output_module
from cameleer.drivers.docker.streams.output import Streams
from cameleer.errors import DriverError, PluginShutdown

pytestmark = [pytest.mark.root, needs_engine]

PATIENCE_S = 60.0


class Lab:
    """Containers of one test."""

    def __init__(self, engine: Engine, address: str = "") -> None:
        self.client = Client(Endpoint(url=address or engine.address, source="test"))

    async def create(self, config: TaskConfig, **log: str) -> str:
        fed = config.stdin.kind != "discard"
        log_driver = log.pop("driver", "json-file")
        body = {
            "Image": "busybox:test",
            "Cmd": [config.command, *config.args],
            "Tty": config.terminal == "pty",
            "OpenStdin": fed,
            "StdinOnce": fed,
            "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": log_driver, "Config": log}},
        }
        made = (await self.client.request("POST", "/containers/create", body=body)).json()
        assert isinstance(made, dict)
        return str(made["Id"])

    async def inspect(self, container: str) -> dict[str, dict[str, object]]:
        found = (await self.client.request("GET", f"/containers/{container}/json")).json()
        assert isinstance(found, dict)
        return found

    async def pid(self, container: str) -> int:
        pid = (await self.inspect(container))["State"]["Pid"]
        assert isinstance(pid, int)
        return pid

    async def start(self, container: str) -> None:
        await self.client.request("POST", f"/containers/{container}/start", timeout_s=PATIENCE_S)

    async def ended(self, container: str) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self.inspect(container))["State"]["Running"]:
                await asyncio.sleep(0.05)

    async def remove(self, container: str) -> None:
        with suppress(DriverError):
            await self.client.request(
                "DELETE", f"/containers/{container}", query={"force": "1", "v": "1"}, timeout_s=PATIENCE_S
            )

    @asynccontextmanager
    async def running(
        self, config: TaskConfig, *, record: Path | None = None, watched: bool = True, **log: str
    ) -> AsyncIterator[tuple[Streams, str, asyncio.Task[None]]]:
        """A container that runs, and its streams, followed."""
        container = await self.create(config, **log)
        try:
            streams = await Streams.connect(self.client, config, container, record=record)
            try:
                await self.start(container)
                following = streams.follow(await self.pid(container) if watched else None)
                yield streams, container, following
            finally:
                await streams.close()
        finally:
            await self.remove(container)

    async def run(self, config: TaskConfig, **log: str) -> None:
        """A container from its start to the end of its output."""
        async with self.running(config, **log) as (_, _, following):
            await soon(following)


@pytest.fixture
async def lab(engine: Engine) -> AsyncIterator[Lab]:
    made = Lab(engine)
    before = descriptors()
    yield made
    await made.client.close()
    await until(lambda: descriptors() <= before)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def soon(following: asyncio.Future[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.shield(following)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.01)


def shell(script: str, **fields: object) -> TaskConfig:
    return TaskConfig(**{"command": "sh", "args": ["-c", script], **fields})  # type: ignore[arg-type]


def to_files(folder: Path) -> dict[str, object]:
    return {"stdout": Stdio.file(folder / "out"), "stderr": Stdio.file(folder / "err")}


def numbered(first: int, last: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, last + 1))


WHEN_TOLD = "%s; until [ -e /told ]; do usleep 20000; done; echo done; echo end"
COUNT = "i=0; while [ $i -lt %d ]; do i=$((i+1)); echo line $i; done"


# -- attached ----------------------------------------------------------------------------------------------------


async def test_stdout_and_stderr_arrive_apart_and_exact(lab: Lab, tmp_path: Path) -> None:
    script = r"printf 'a\n\377\200\0b\r'; printf 'prompt: '; printf 'err' >&2"
    await lab.run(shell(script, **to_files(tmp_path)))
    assert (tmp_path / "out").read_bytes() == b"a\n\xff\x80\x00b\rprompt: "
    assert (tmp_path / "err").read_bytes() == b"err"


async def test_a_file_is_made_private_and_appended_to(lab: Lab, tmp_path: Path) -> None:
    await lab.run(shell("echo one", **to_files(tmp_path)))
    await lab.run(shell("echo two", **to_files(tmp_path)))
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\n"
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600


async def test_one_target_for_both_keeps_their_order(lab: Lab, tmp_path: Path) -> None:
    both = Stdio.file(tmp_path / "both")
    await lab.run(
        shell("for i in 1 2 3; do echo o$i; usleep 20000; echo e$i >&2; usleep 20000; done", stdout=both, stderr=both)
    )
    assert (tmp_path / "both").read_bytes() == b"o1\ne1\no2\ne2\no3\ne3\n"


async def test_many_lines_and_many_bytes_arrive_complete(lab: Lab, tmp_path: Path) -> None:
    await lab.run(shell(COUNT % 20000 + "; head -c 20000000 /dev/zero >&2", **to_files(tmp_path)))
    assert (tmp_path / "out").read_bytes() == numbered(1, 20000)
    assert (tmp_path / "err").read_bytes() == bytes(20_000_000)


async def test_fifty_containers_need_no_thread_and_lose_nothing(lab: Lab, tmp_path: Path) -> None:
    threads = threading.active_count()

    async def one(number: int) -> None:
        folder = tmp_path / str(number)
        folder.mkdir()
        async with slots:
            await lab.run(shell(COUNT % 400 + "; echo end >&2", **to_files(folder)))
        assert (folder / "out").read_bytes() == numbered(1, 400)
        assert (folder / "err").read_bytes() == b"end\n"

    slots = asyncio.Semaphore(25)
    await asyncio.gather(*(one(number) for number in range(50)))
    assert threading.active_count() == threads


async def test_a_prompt_without_a_newline_arrives_while_the_container_waits(lab: Lab, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    config = shell(
        "printf 'name? '; read name; echo hello $name", stdin=Stdio.fifo(tmp_path / "in"), **to_files(tmp_path)
    )
    async with lab.running(config) as (_, _, following):
        await until(lambda: (tmp_path / "out").read_bytes() == b"name? ")
        (tmp_path / "in").write_bytes(b"camel\n")
        await soon(following)
    assert (tmp_path / "out").read_bytes() == b"name? hello camel\n"


async def test_the_caller_may_close_his_descriptor_after_the_start(lab: Lab) -> None:
    reading, writing = os.pipe()
    config = shell("sleep 0.2; echo late", stdout=Stdio.fd(writing))
    async with lab.running(config) as (_, _, following):
        os.close(writing)
        assert os.get_blocking(reading)
        await soon(following)
    assert (await in_thread(reading))() == b"late\n"


async def test_a_socket_is_a_target_too(lab: Lab) -> None:
    import socket

    ours, theirs = socket.socketpair()
    with ours, theirs:
        await lab.run(shell("echo through a socket", stdout=Stdio.fd(theirs.fileno())))
        assert ours.recv(100) == b"through a socket\n"


@pytest.mark.parametrize("when", ["it runs", "it ended"])
async def test_a_fifo_may_get_its_reader_later(lab: Lab, tmp_path: Path, when: str) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    script = "echo early; sleep 0.5" if when == "it runs" else "echo early"
    async with lab.running(shell(script, stdout=Stdio.fifo(path))) as (streams, container, following):
        await until(lambda: streams.taken > 0)
        if when == "it ended":
            await lab.ended(container)
            await asyncio.sleep(0.5)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        await soon(following)
        assert os.read(fd, 100) == b"early\n"
        assert os.read(fd, 100) == b""
        os.close(fd)


async def test_what_nobody_reads_from_a_fifo_is_lost_with_a_warning(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_module, "_UNREAD_S", 0.2)
    os.mkfifo(tmp_path / "fifo")
    both = Stdio.fifo(tmp_path / "fifo")
    await lab.run(shell("echo early", stdout=both, stderr=both))
    assert [each.getMessage().partition(": ")[2] for each in caplog.records] == ["6 bytes are lost"]


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "not watched"])
async def test_a_pipe_that_nobody_reads_holds_up_its_container_and_nobody_else(lab: Lab, watched: bool) -> None:
    reading, writing = os.pipe()
    size = 4_000_000
    config = shell(f"head -c {size} /dev/zero; echo end", stdout=Stdio.fd(writing))
    beats = 0

    async def beat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0.01)
            beats += 1

    beating = asyncio.create_task(beat())
    async with lab.running(config, watched=watched) as (_, container, following):
        os.close(writing)
        await asyncio.sleep(1)
        assert beats > 20, "the loop stood still"
        assert (await lab.inspect(container))["State"]["Running"], "the container was not held up"
        assert os.get_blocking(reading), "the caller's pipe was changed"
        got = await in_thread(reading)
        await soon(following)
    beating.cancel()
    assert got() == bytes(size) + b"end\n"


async def in_thread(reading: int) -> Callable[[], bytes]:
    """Read a pipe to its end elsewhere."""
    found: list[bytes] = []

    def read() -> None:
        with open(reading, "rb") as pipe:
            found.append(pipe.read())

    thread = threading.Thread(target=read)
    thread.start()

    def result() -> bytes:
        thread.join(PATIENCE_S)
        return found[0]

    return result


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "not watched"])
async def test_the_end_survives_a_reader_who_stands_still_longer_than_the_engine_waits(lab: Lab, watched: bool) -> None:
    async def one(size: int) -> None:
        reading, writing = os.pipe()
        config = shell(f"head -c {size} /dev/zero; echo end", stdout=Stdio.fd(writing))
        async with lab.running(config, watched=watched) as (_, _, following):
            os.close(writing)
            await asyncio.sleep(8)
            assert not following.done()
            got = await in_thread(reading)
            await soon(following)
        assert got() == bytes(size) + b"end\n"

    # about what engine, runtime and we hold: some of them end while their reader sleeps, with bytes still in the pipe
    await asyncio.gather(*(one(size) for size in range(1_400_000, 2_600_000, 50_000)))


async def test_a_reader_who_goes_away_does_not_stop_the_container(lab: Lab, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    config = shell(
        "head -c 3000000 /dev/zero; echo done >&2", stdout=Stdio.fd(writing), stderr=Stdio.file(tmp_path / "err")
    )
    async with lab.running(config) as (streams, _, following):
        os.close(writing)
        os.close(reading)
        await soon(following)
        assert streams.broken == {1}
        assert streams.taken == 3_000_005
    assert (tmp_path / "err").read_bytes() == b"done\n"


async def test_a_full_disk_is_told_once_and_the_rest_goes_on(
    lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = shell(
        "for i in 1 2 3; do echo full; usleep 50000; done; echo done >&2",
        stdout=Stdio.file("/dev/full"),
        stderr=Stdio.file(tmp_path / "err"),
    )
    await lab.run(config)
    assert (tmp_path / "err").read_bytes() == b"done\n"
    assert len([each for each in caplog.records if "No space left" in each.getMessage()]) == 1


async def test_a_terminal_is_raw_both_ways(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"\x10\x11\x1e\xff\x00\x04")  # ctrl-p, ctrl-q: by them the engine would detach
    config = shell(
        "stty raw -echo; printf 'ready\\n'; dd bs=1 count=6 2>/dev/null | od -An -tx1; echo err >&2",
        terminal="pty",
        stdin=Stdio.fifo(tmp_path / "fifo"),
        stdout=Stdio.file(tmp_path / "out"),
    )
    os.mkfifo(tmp_path / "fifo")
    async with lab.running(config) as (_, _, following):
        await until(lambda: (tmp_path / "out").read_bytes() == b"ready\n")
        (tmp_path / "fifo").write_bytes((tmp_path / "in").read_bytes())
        await soon(following)
    assert (tmp_path / "out").read_bytes() == b"ready\n 10 11 1e ff 00 04\nerr\n"


@pytest.mark.parametrize("given", [b"hi\n", b"hi"])
async def test_a_terminal_sees_the_end_of_its_input_and_its_output_goes_on(
    lab: Lab, tmp_path: Path, given: bytes
) -> None:
    (tmp_path / "in").write_bytes(given)
    config = shell(
        "stty -echo; cat; sleep 0.3; echo end",
        terminal="pty",
        stdin=Stdio.file(tmp_path / "in"),
        stdout=Stdio.file(tmp_path / "out"),
    )
    await lab.run(config)
    assert (tmp_path / "out").read_bytes().endswith(given.replace(b"\n", b"\r\n") + b"end\r\n")


async def test_nothing_is_opened_for_a_task_that_discards_all(lab: Lab) -> None:
    async with lab.running(shell("echo nothing")) as (streams, _, following):
        await soon(following)
        assert streams.taken == 0


@pytest.mark.parametrize(
    ("stdout", "message"),
    [
        (Stdio.file("/nonexistent/folder/file"), "cannot open /nonexistent/folder/file as stdout: No such file"),
        (Stdio.fifo("/etc/passwd"), "cannot open /etc/passwd as stdout: it is no FIFO"),
        (Stdio.fd(1000000), "TaskConfig.stdout is descriptor 1000000: Bad file descriptor"),
    ],
)
async def test_a_target_that_cannot_be_opened_is_named(lab: Lab, stdout: Stdio, message: str) -> None:
    with pytest.raises(DriverError, match=message):
        await Streams.connect(lab.client, shell("true", stdout=stdout), "never asked for")


async def test_a_cancelled_follower_leaves_nothing_open(lab: Lab, tmp_path: Path) -> None:
    before = descriptors()
    async with lab.running(shell("while :; do echo x; done", **to_files(tmp_path))) as (streams, _, following):
        await until(lambda: streams.taken > 0)
        following.cancel()
        await asyncio.wait([following])
        await until(lambda: descriptors() <= before + 1)  # the client may keep a connection


async def test_following_ends_when_the_driver_is_closed(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lab, others = Lab(engine), Lab(engine)
    container = await lab.create(shell("sleep 60"))
    try:
        streams = await Streams.connect(others.client, shell("", **to_files(tmp_path)), container)
        await lab.start(container)
        following = streams.follow(None)
        await others.client.close()
        with pytest.raises(PluginShutdown):
            await soon(following)
    finally:
        await lab.remove(container)
        await lab.client.close()
    assert not caplog.records


# -- stdin -------------------------------------------------------------------------------------------------------


async def test_a_file_is_fed_whole_and_then_ended(lab: Lab, tmp_path: Path) -> None:
    data = bytes(range(256)) * 20000
    (tmp_path / "in").write_bytes(data)
    await lab.run(shell("cat", stdin=Stdio.file(tmp_path / "in"), **to_files(tmp_path)))
    assert (tmp_path / "out").read_bytes() == data


async def test_a_descriptor_is_fed_from_where_it_stands(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"skipped|read")
    with (tmp_path / "in").open("rb", buffering=0) as file:
        file.seek(8)
        await lab.run(shell("cat", stdin=Stdio.fd(file.fileno()), **to_files(tmp_path)))
    assert (tmp_path / "out").read_bytes() == b"read"


async def test_a_pipe_is_fed_as_it_fills_and_ends_when_its_writer_closes(lab: Lab, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    async with lab.running(shell("cat", stdin=Stdio.fd(reading), **to_files(tmp_path))) as (_, _, following):
        os.write(writing, b"one ")
        await until(lambda: (tmp_path / "out").read_bytes() == b"one ")
        assert os.get_blocking(reading)
        os.write(writing, b"two")
        os.close(writing)
        await soon(following)
    os.close(reading)
    assert (tmp_path / "out").read_bytes() == b"one two"


async def test_a_container_that_reads_nothing_ends_all_the_same(lab: Lab, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    async with lab.running(shell("echo bye", stdin=Stdio.fd(reading), **to_files(tmp_path))) as (_, _, following):
        await soon(following)
    os.close(reading)
    os.close(writing)
    (tmp_path / "in").write_bytes(bytes(5_000_000))
    await lab.run(shell("echo bye", stdin=Stdio.file(tmp_path / "in"), **to_files(tmp_path)))
    assert (tmp_path / "out").read_bytes() == b"bye\nbye\n"


# -- after the host was away -------------------------------------------------------------------------------------

_FOLLOWER = """
import asyncio, sys
from pathlib import Path
from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.docker.client.endpoint import Endpoint
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.streams.output import Streams

async def main(address, container, record, out, err):
    client = Client(Endpoint(url=address, source="test"))
    config = TaskConfig(command="x", stdout=Stdio.file(out), stderr=Stdio.file(err))
    if Path(record).exists():
        streams = await Streams.resume(client, config, container, record=Path(record))
    else:
        streams = await Streams.connect(client, config, container, record=Path(record))
        await client.request("POST", f"/containers/{container}/start", timeout_s=60)
    following = streams.follow(None)
    print("followed", flush=True)
    await following

asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def host(engine: Engine, container: str, folder: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A process that follows a container, from its start or from where the last one was killed."""
    words: Sequence[str] = (engine.address, container, *(str(folder / each) for each in ("record", "out", "err")))
    process = subprocess.Popen([sys.executable, "-c", _FOLLOWER, *words], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        reading = asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)
        async with asyncio.timeout(PATIENCE_S):
            assert await reading == b"followed\n"
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


async def test_output_goes_on_without_gap_or_repeat_after_hosts_were_killed(
    lab: Lab, engine: Engine, tmp_path: Path
) -> None:
    lines, kills = 60000, 6
    script = (
        f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); echo line $i; [ $((i % 7)) = 0 ] && echo line $((i / 7)) >&2;"
        " [ $((i % 2000)) = 0 ] && usleep 100000; done; printf 'no end of line'"
    )
    container = await lab.create(shell(script))
    try:
        size = 0
        for number in range(kills):
            async with host(engine, container, tmp_path):
                wanted = size + 40_000 + 7919 * number
                await until(lambda wanted=wanted: file_size(tmp_path / "out") >= wanted)  # type: ignore[misc]
            size = file_size(tmp_path / "out")
        async with host(engine, container, tmp_path) as process:
            await until(lambda: process.poll() is not None)
    finally:
        await lab.remove(container)
    assert (tmp_path / "out").read_bytes() == numbered(1, lines) + b"no end of line"
    assert (tmp_path / "err").read_bytes() == numbered(1, lines // 7)


def file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


async def test_what_a_container_wrote_while_there_was_no_host_is_delivered_after_its_end(
    lab: Lab, engine: Engine, tmp_path: Path
) -> None:
    container = await lab.create(shell(COUNT % 3000 + "; printf prompt; sleep 1.5; echo ' answered'"))
    try:
        async with host(engine, container, tmp_path):
            await until(lambda: (tmp_path / "out").read_bytes().endswith(b"prompt"))
        await lab.ended(container)
        async with host(engine, container, tmp_path) as process:
            await until(lambda: process.poll() is not None)
    finally:
        await lab.remove(container)
    assert (tmp_path / "out").read_bytes() == numbered(1, 3000) + b"prompt answered\n"


@pytest.mark.parametrize("case", ["json-file", "json-file one", "local", "local one"])
async def test_a_line_that_was_open_when_the_host_went_comes_once(
    lab: Lab, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    driver, _, before = case.partition(" ")
    config = shell(WHEN_TOLD % (f"{before and 'echo one; '}printf Working..."), **to_files(tmp_path))
    container = await lab.create(config, driver=driver)
    try:
        streams = await Streams.connect(lab.client, config, container, record=tmp_path / "record")
        await lab.start(container)
        streams.follow(None)
        await until(lambda: (tmp_path / "out").read_bytes().endswith(b"Working..."))
        await streams.close()
        await asyncio.sleep(2.5)  # more than the clocks may be apart
        streams = await Streams.resume(lab.client, config, container, record=tmp_path / "record")
        following = streams.follow(None)
        engine.cli("exec", container, "touch", "/told")
        await soon(following)
    finally:
        await lab.remove(container)
    assert (tmp_path / "out").read_bytes() == (b"one\n" if before else b"") + b"Working...done\nend\n"
    assert not caplog.records


@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_bytes_that_are_no_text_are_not_repeated(
    lab: Lab, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, driver: str
) -> None:
    config = shell(WHEN_TOLD % r"printf '\377\376\375\nt\303\244xt\nW\366rking'", **to_files(tmp_path))
    container = await lab.create(config, driver=driver)
    try:
        streams = await Streams.connect(lab.client, config, container, record=tmp_path / "record")
        await lab.start(container)
        streams.follow(None)
        await until(lambda: (tmp_path / "out").read_bytes().endswith(b"rking"))
        await streams.close()
        streams = await Streams.resume(lab.client, config, container, record=tmp_path / "record")
        following = streams.follow(None)
        engine.cli("exec", container, "touch", "/told")
        await soon(following)
    finally:
        await lab.remove(container)
    assert (tmp_path / "out").read_bytes() == b"\xff\xfe\xfd\nt\xc3\xa4xt\nW\xf6rkingdone\nend\n"
    assert not caplog.records


async def test_a_write_that_could_not_be_noted_any_more_is_not_repeated(lab: Lab, tmp_path: Path) -> None:
    from cameleer.drivers.docker.streams.position import Position

    container = await lab.create(shell(COUNT % 100))
    config = shell("", **to_files(tmp_path))
    text = numbered(1, 100)
    try:
        await lab.start(container)
        for noted, written in ((0, 10), (10, 200), (200, 500), (500, 500)):
            (tmp_path / "out").write_bytes(text[:written])
            position = Position.open(tmp_path / "record")
            position.begin_again(0)
            position.delivered(1, text[:noted])
            position.about_to_write(1, noted, 300)
            position.close()
            streams = await Streams.resume(lab.client, config, container, record=tmp_path / "record")
            await soon(streams.follow(None))
            assert (tmp_path / "out").read_bytes() == text
    finally:
        await lab.remove(container)


async def test_what_others_wrote_to_the_file_in_that_moment_does_not_cut_ours(lab: Lab, tmp_path: Path) -> None:
    from cameleer.drivers.docker.streams.position import Position

    container = await lab.create(shell("echo ours is longer"))
    config = shell("", **to_files(tmp_path))
    try:
        await lab.start(container)
        (tmp_path / "out").write_bytes(b"ours is theirs\n")
        position = Position.open(tmp_path / "record")
        position.about_to_write(1, 0, 300)
        position.close()
        streams = await Streams.resume(lab.client, config, container, record=tmp_path / "record")
        await soon(streams.follow(None))
        assert (tmp_path / "out").read_bytes() == b"ours is theirs\nours is longer\n"
    finally:
        await lab.remove(container)


@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_a_long_line_comes_back_from_the_log_as_it_was(lab: Lab, tmp_path: Path, driver: str) -> None:
    script = "head -c 40000 /dev/zero | tr '\\0' x; echo; head -c 32768 /dev/zero | tr '\\0' y; echo; printf end"
    container = await lab.create(shell(script), driver=driver)
    try:
        await lab.start(container)
        await lab.ended(container)
        streams = await Streams.resume(
            lab.client, shell("", **to_files(tmp_path)), container, record=tmp_path / "record"
        )
        await soon(streams.follow(None))
    finally:
        await lab.remove(container)
    assert (tmp_path / "out").read_bytes() == b"x" * 40000 + b"\n" + b"y" * 32768 + b"\nend"


async def test_a_log_that_rotates_loses_nothing_while_the_host_lives(lab: Lab, tmp_path: Path) -> None:
    await lab.run(shell(COUNT % 20000, **to_files(tmp_path)), driver="local", **{"max-size": "50k", "max-file": "3"})
    assert (tmp_path / "out").read_bytes() == numbered(1, 20000)


async def test_a_container_whose_log_rotates_is_attached_to_again(lab: Lab, engine: Engine, tmp_path: Path) -> None:
    script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do echo line $i; sleep 0.3; done"
    container = await lab.create(shell(script), driver="local")
    try:
        async with host(engine, container, tmp_path):
            await until(lambda: (tmp_path / "out").read_bytes().endswith(b"line 2\n"))
        await asyncio.sleep(0.7)
        async with host(engine, container, tmp_path) as process:
            await until(lambda: process.poll() is not None)
    finally:
        await lab.remove(container)
    assert (tmp_path / "out").read_bytes() == numbered(1, 12)


async def test_a_container_that_is_paused_when_the_host_comes_back_is_followed_on(
    lab: Lab, engine: Engine, tmp_path: Path
) -> None:
    config = shell(WHEN_TOLD % "echo one; echo two", **to_files(tmp_path))
    container = await lab.create(config, driver="local")
    try:
        await lab.start(container)
        await until(lambda: engine.out("logs", container) == "one\ntwo")
        engine.cli("pause", container)
        streams = await Streams.resume(lab.client, config, container, record=tmp_path / "record")
        following = streams.follow(None)
        await until(lambda: (tmp_path / "out").read_bytes().startswith(b"one\ntwo\n"))
        engine.cli("unpause", container)
        engine.cli("exec", container, "touch", "/told")
        await soon(following)
    finally:
        await lab.remove(container)
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\ndone\nend\n"


class Relay:
    """Between the engine and us; an attached connection can be held up, and cut."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self.address = f"unix://{path}"
        self.flows = asyncio.Event()
        self.flows.set()
        self._paths = path, engine.address.removeprefix("unix://")
        self._attached: list[asyncio.StreamWriter] = []
        self._open = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async with await asyncio.start_unix_server(self._accept, self._paths[0]):
            yield
            await until(lambda: not self._open)

    def cut(self) -> None:
        for each in self._attached:
            each.transport.abort()
        self.flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        engine_reader, engine_writer = await asyncio.open_unix_connection(self._paths[1])
        engine_writer.write(head)
        attached = b"/attach" in head
        if attached:
            self._attached += [writer, engine_writer]
        self._open += 1
        await asyncio.gather(
            self._pump(reader, engine_writer, held=False), self._pump(engine_reader, writer, held=attached)
        )
        self._open -= 1

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, held: bool) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if held:
                    await self.flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_a_connection_that_is_cut_costs_no_output(
    engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture, driver: str
) -> None:
    relay = Relay(tmp_path / "relay", engine)
    async with relay.serving():
        lab = Lab(engine, relay.address)
        script = WHEN_TOLD % "i=0; while [ $i -lt 30 ]; do i=$((i+1)); echo line $i; usleep 50000; done"
        async with lab.running(shell(script, **to_files(tmp_path)), driver=driver) as (_, container, following):
            await until(lambda: b"line 5\n" in (tmp_path / "out").read_bytes())
            relay.flows.clear()
            await until(lambda: engine.out("logs", container).endswith("line 30"))
            relay.cut()
            await until(lambda: (tmp_path / "out").read_bytes().endswith(b"line 30\n"))
            engine.cli("exec", container, "touch", "/told")
            await soon(following)
        await lab.client.close()
    assert (tmp_path / "out").read_bytes() == numbered(1, 30) + b"done\nend\n"
    assert "the rest comes from the log" in caplog.text
    assert "lacks" not in caplog.text


async def test_output_goes_on_when_the_engine_was_killed_and_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running_engine("--live-restore") as engine:
        lab = Lab(engine)
        script = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; usleep 100000; done"
        async with lab.running(shell(script, **to_files(tmp_path))) as (_, _, following):
            await until(lambda: (tmp_path / "out").read_bytes().endswith(b"line 5\n"))
            engine.kill()
            engine.start()
            await soon(following)
        await lab.client.close()
        assert "without what an engine that died held" in caplog.text
        found = (tmp_path / "out").read_bytes().splitlines()
        assert len(found) == len(set(found)), "something came twice"
        assert found[-1] == b"line 40"
        assert len(found) >= 36


async def test_a_container_that_ended_before_it_was_followed_can_be_asked_for(lab: Lab) -> None:
    reading, writing = os.pipe()
    config = shell("head -c 1700000 /dev/zero; echo end", stdout=Stdio.fd(writing))
    container = await lab.create(config)
    streams = await Streams.connect(lab.client, config, container)
    os.close(writing)
    try:
        await lab.start(container)
        await asyncio.sleep(4)
        got = await in_thread(reading)
        await soon(streams.follow(await lab.pid(container)))
        assert got() == bytes(1_700_000) + b"end\n"
    finally:
        await streams.close()
        await lab.remove(container)
