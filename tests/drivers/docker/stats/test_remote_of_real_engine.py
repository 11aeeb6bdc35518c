"""The sampler against a real engine, and against a socket that answers from a script."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from engine import Engine, needs_engine, running

from cameleer.config import Resources
from cameleer.driver import Tick
from cameleer.drivers.docker.client.endpoint import Endpoint
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.stats import local
from cameleer.drivers.docker.stats.local import LocalCounters
from cameleer.drivers.docker.stats.remote import Mode, Sampler
from cameleer.errors import RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.node import NodeInfo
from cameleer.rates import derive
from cameleer.usage import Counters

DATA = Path(__file__).parents[3] / "data/docker/v1-20.10"
PATIENCE_S = 60.0
FRESH = Tick(0, extended=True, fresh=True)
BOTH: list[Mode] = ["one-shot", "stream"]
both = pytest.mark.parametrize("mode", BOTH)

Run = Callable[..., str]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def run(engine: Engine) -> Iterator[Run]:
    """Starts containers, and removes them."""
    made: list[str] = []

    def run(script: str, *options: str) -> str:
        words = ("run", "--detach", "--network=none", *options, "busybox:test", "/bin/sh", "-c", script)
        made.append(engine.out(*words))
        return made[-1]

    yield run
    if made:
        engine.cli("rm", "--force", *made, check=False)


@asynccontextmanager
async def sampling(
    address: str, *, limit: int = 16, mode: Mode = "auto", timeout_s: float = 10.0
) -> AsyncIterator[Sampler]:
    """A sampler; nothing of it is left open."""
    before = descriptors()
    client = Client(Endpoint(url=address), connections=limit)
    try:
        yield Sampler(client, limit=limit, mode=mode, timeout_s=timeout_s)
    finally:
        await client.close()
    async with asyncio.timeout(PATIENCE_S):
        while descriptors() > before:
            await asyncio.sleep(0.01)
    assert client.open_connections == 0


async def take(sampler: Sampler, container: str, count: int, interval_s: float = 1.0) -> list[Counters]:
    found: list[Counters] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(sampler.stats(container, interval_s)) as stream:
        async for counters in stream:
            found.append(counters)
            if len(found) == count:
                break
    return found


# -- a real engine -------------------------------------------------------------------------------------------------


class Closely:
    """A container's group, read every few milliseconds in a thread of its own."""

    def __init__(self, counters: LocalCounters) -> None:
        self._counters = counters
        self._stop = threading.Event()
        self.found: list[Counters] = []
        self._thread = threading.Thread(target=self._read)

    def _read(self) -> None:
        while not self._stop.wait(0.005):
            self.found.append(self._counters.read(FRESH))

    def __enter__(self) -> Closely:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def at(self, at_ns: int) -> Counters:
        """What it was at a moment."""
        return self.found[min(bisect_left([each.at_ns for each in self.found], at_ns), len(self.found) - 1)]


@pytest.mark.root
@needs_engine
@both
async def test_both_paths_give_the_same_numbers_under_load(engine: Engine, run: Run, mode: Mode) -> None:
    container = run(
        "dd if=/dev/zero of=/f bs=1M count=20 oflag=direct; dd if=/f of=/dev/null bs=1M; (sleep 1000 &)\n"
        "x=$(head -c 8000000 /dev/zero | tr '\\0' x); while :; do :; done",
        "--memory=256m",
        "--cpus=0.5",
        "--pids-limit=30",
        "--device-write-bps=/dev/vda:500mb" if Path("/dev/vda").exists() else "--cpu-shares=1024",
    )
    pid = int(engine.out("inspect", "--format={{.State.Pid}}", container))
    paths = local.find(container, pid)
    assert paths is not None
    async with asyncio.timeout(PATIENCE_S):
        directly = LocalCounters(paths, pid=pid)
        try:
            while (directly.read(FRESH).memory.rss_bytes or 0) < 8_000_000:
                await asyncio.sleep(0.05)
            async with sampling(engine.address, mode=mode) as sampler:
                with Closely(directly) as closely:
                    remote = await take(sampler, container, 8)
        finally:
            directly.close()
    last, same = remote[-1], closely.at(remote[-1].at_ns)
    for name in ("total_ns", "user_ns", "periods", "throttled_periods", "throttled_ns"):
        assert getattr(last.cpu, name) == pytest.approx(getattr(same.cpu, name), rel=0.03), name
    for group in ("memory", "io", "processes"):
        ours, theirs = getattr(same, group), getattr(last, group)
        for name in theirs.__struct_fields__:
            value = getattr(theirs, name)
            if isinstance(value, int):
                assert value == pytest.approx(getattr(ours, name), rel=0.03, abs=8192), f"{group}.{name}"
            elif f"{group}.{name}" not in last.missing and group not in last.missing:
                assert getattr(ours, name) == value, f"{group}.{name}"
    first = remote[1]  # one reading before may have come at any moment of the engine's second
    percent = derive(first, last, Resources(), NodeInfo()).cpu.percent
    directly_percent = derive(closely.at(first.at_ns), same, Resources(), NodeInfo()).cpu.percent
    assert percent == pytest.approx(directly_percent, rel=0.03)


@pytest.mark.root
@needs_engine
@both
async def test_readings_come_at_once_and_then_once_a_second(engine: Engine, run: Run, mode: Mode) -> None:
    container = run("while :; do :; done", "--cpus=0.1")
    begun = time.monotonic()
    async with sampling(engine.address, mode=mode) as sampler:
        assert len(await take(sampler, container, 1)) == 1
        at_once_s = time.monotonic() - begun
        found = await take(sampler, container, 5)
    assert at_once_s < 1.5  # another request may have put the engine to sleep for a second
    for earlier, later in pairwise(found):
        assert 0.9e9 < later.at_ns - earlier.at_ns < 2.5e9
        assert (later.cpu.total_ns or 0) > (earlier.cpu.total_ns or 0)
        assert abs(later.taken_at_ns - time.time_ns()) < PATIENCE_S * 1e9


@pytest.mark.root
@needs_engine
async def test_requests_hold_no_more_connections_than_the_limit_and_no_threads(engine: Engine, run: Run) -> None:
    containers = [run("sleep 1000") for _ in range(6)]
    threads = threading.active_count()
    most = 0
    async with sampling(engine.address, limit=3, mode="one-shot") as sampler:
        work = [asyncio.ensure_future(take(sampler, each, 2)) for each in containers]
        while not all(each.done() for each in work):
            most = max(most, sampler._client.open_connections)
            assert threading.active_count() == threads
            await asyncio.sleep(0.02)
        await asyncio.gather(*work)
    assert most == 3


@pytest.mark.root
@needs_engine
@both
async def test_a_container_that_is_stopped_ends_its_readings(engine: Engine, run: Run, mode: Mode) -> None:
    container = run("sleep 1000")
    async with sampling(engine.address, mode=mode) as sampler:
        async with asyncio.timeout(PATIENCE_S), aclosing(sampler.stats(container, 0.5)) as stream:
            await anext(stream)
            await asyncio.to_thread(engine.cli, "kill", container)
            assert len([each async for each in stream]) < 10
        with pytest.raises(UnrecoverableError, match="does not run"):
            await take(sampler, container, 1)


@pytest.mark.root
@needs_engine
@both
async def test_a_container_that_is_removed_ends_its_readings(engine: Engine, run: Run, mode: Mode) -> None:
    container = run("sleep 1000")
    async with sampling(engine.address, mode=mode) as sampler:
        async with asyncio.timeout(PATIENCE_S), aclosing(sampler.stats(container, 0.5)) as stream:
            await anext(stream)
            await asyncio.to_thread(engine.cli, "rm", "--force", container)
            assert len([each async for each in stream]) < 10
        with pytest.raises(TaskNotFound):
            await take(sampler, container, 1)


@pytest.mark.root
@needs_engine
@both
async def test_a_container_that_was_never_started_cannot_be_measured(engine: Engine, mode: Mode) -> None:
    container = engine.out("create", "--network=none", "busybox:test", "true")
    try:
        async with sampling(engine.address, mode=mode) as sampler:
            with pytest.raises(UnrecoverableError, match="does not run"):
                await take(sampler, container, 1)
    finally:
        engine.cli("rm", container)


@pytest.mark.root
@needs_engine
@both
async def test_a_paused_container_goes_on_being_measured(engine: Engine, run: Run, mode: Mode) -> None:
    container = run("sleep 1000")
    engine.cli("pause", container)
    try:
        async with sampling(engine.address, mode=mode) as sampler:
            found = await take(sampler, container, 3)
    finally:
        engine.cli("unpause", container)
    assert found[0].cpu.total_ns == found[2].cpu.total_ns


@pytest.mark.root
@needs_engine
async def test_an_engine_that_is_killed_is_an_error_and_measured_again_when_it_is_back() -> None:
    with running("--live-restore") as engine:
        container = engine.out("run", "--detach", "--network=none", "busybox:test", "sleep", "1000")
        modes: list[Mode] = ["one-shot", "stream"]
        for mode in modes:
            async with sampling(engine.address, mode=mode, timeout_s=5) as sampler:
                async with asyncio.timeout(PATIENCE_S), aclosing(sampler.stats(container, 0.5)) as stream:
                    await anext(stream)
                    await asyncio.to_thread(engine.kill)
                    with pytest.raises(RecoverableError):
                        async for _ in stream:
                            pass
                with pytest.raises(RecoverableError):
                    await take(sampler, container, 1)
                await asyncio.to_thread(engine.start)
                assert len(await take(sampler, container, 2)) == 2


# -- a socket that answers from a script ---------------------------------------------------------------------------

VERSION = b'{"ApiVersion":"1.41","MinAPIVersion":"1.12"}'
INFO = (DATA / "info.json").read_bytes()
BUSY = (DATA / "busy.json").read_bytes()
STREAM = (DATA / "busy-stream.json").read_bytes()
RUNS = b'{"State":{"Running":true,"Paused":false,"Restarting":false}}'


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def chunked(*parts: bytes, ends: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + (b"0\r\n\r\n" if ends else b"")


class Scripted:
    """A socket that answers requests for statistics with the same bytes each time."""

    def __init__(self, folder: Path, answer: bytes, *, piece: int = 1 << 20, hangs_up: bool = False) -> None:
        self.address = f"unix://{folder}/sock"
        self._path = folder / "sock"
        self._answer = answer
        self._piece = piece
        self._hangs_up = hangs_up
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Scripted:
        self._server = await asyncio.start_unix_server(self._serve, self._path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while True:
                target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode()
                known = {"/version": VERSION, "/info": INFO, "/json": RUNS}
                body = next((body for end, body in known.items() if target.partition("?")[0].endswith(end)), None)
                answer = self._answer if body is None else whole(body)
                for start in range(0, len(answer), self._piece):
                    writer.write(answer[start : start + self._piece])
                    await writer.drain()
                    if self._piece < 100:
                        await asyncio.sleep(0)
                if body is None and self._hangs_up:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


@pytest.mark.parametrize("piece", [1, 3, 1000])
async def test_an_answer_is_understood_however_it_arrives(tmp_path: Path, piece: int) -> None:
    for answer in (whole(BUSY), chunked(BUSY), chunked(*(BUSY[at : at + 1] for at in range(len(BUSY))))):
        async with Scripted(tmp_path, answer, piece=piece) as socket, sampling(socket.address) as sampler:
            (found,) = await take(sampler, "c", 1)
            assert found.cpu.total_ns == 621_778_983
            assert found.memory.limit_bytes == 64 << 20


@pytest.mark.parametrize("piece", [1, 1000])
async def test_a_stream_is_understood_however_it_arrives(tmp_path: Path, piece: int) -> None:
    answer = chunked(*(STREAM[at : at + 700] for at in range(0, len(STREAM), 700)), ends=False)
    async with Scripted(tmp_path, answer, piece=piece) as socket, sampling(socket.address, mode="stream") as sampler:
        (found,) = await take(sampler, "c", 1)
        assert found.processes.threads == 2


@pytest.mark.parametrize("make", [whole, chunked])
async def test_an_answer_cut_short_anywhere_is_recoverable(tmp_path: Path, make: Callable[[bytes], bytes]) -> None:
    answer = make(BUSY)
    for cut in range(0, len(answer) - 1, 97):
        async with Scripted(tmp_path, answer[:cut], hangs_up=True) as socket, sampling(socket.address) as sampler:
            with pytest.raises(RecoverableError):
                await take(sampler, "c", 1)


async def test_a_stream_cut_short_anywhere_is_recoverable(tmp_path: Path) -> None:
    answer = chunked(STREAM)
    for cut in range(0, len(answer) - 1, 197):
        cut_short = Scripted(tmp_path, answer[:cut], hangs_up=True)
        async with cut_short as socket, sampling(socket.address, mode="stream") as sampler:
            with pytest.raises(RecoverableError):
                await take(sampler, "c", 10, interval_s=0.01)


@both
@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"5", b'{"read":5}', b'{"read":"soon"}', b"\xff\xfe", b'{"networks":[]}', b"{" * 5000]
)
async def test_an_answer_that_is_something_else_is_recoverable(tmp_path: Path, mode: Mode, body: bytes) -> None:
    answer = chunked(body + b"\n")
    async with Scripted(tmp_path, answer, hangs_up=True) as socket, sampling(socket.address, mode=mode) as sampler:
        with pytest.raises(RecoverableError):
            await take(sampler, "c", 1)


async def test_an_engine_that_hangs_is_given_up_at_the_deadline(tmp_path: Path) -> None:
    hanging = Scripted(tmp_path, b"HTTP/1.1 200 OK\r\n")
    async with hanging as socket, sampling(socket.address, timeout_s=0.2, mode="one-shot") as sampler:
        with pytest.raises(RecoverableError):
            await take(sampler, "c", 1)


async def test_the_same_answer_again_is_not_a_new_reading(tmp_path: Path) -> None:
    async with Scripted(tmp_path, whole(BUSY)) as socket, sampling(socket.address) as sampler:
        await _sees_nothing_new(sampler)


async def _sees_nothing_new(sampler: Sampler) -> None:
    async with aclosing(sampler.stats("c", 0.01)) as stream:
        await anext(stream)
        waiting = asyncio.ensure_future(anext(stream))
        while sampler.figures().unchanged < 5:
            await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
