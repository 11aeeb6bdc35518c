import asyncio
import gc
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from engine import IMAGE, Engine, needs_engine, running
from fake_engine import (
    Connection,
    FakeEngine,
    Request,
    Script,
    answer,
    chunked,
    decoded,
    dribbled,
    frame,
    pieces,
    raw,
    reset,
    response,
    serving,
    silence,
    then_close,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from cameleer.drivers.docker.client.answer import LONGEST_HEAD, Objects
from cameleer.drivers.docker.client.endpoint import Endpoint, Tls
from cameleer.drivers.docker.client.failures import Conflict, EngineGone, Malformed
from cameleer.drivers.docker.client.http import Client, Hijacked
from cameleer.drivers.docker.client.wire import Wire, connect
from cameleer.errors import DriverError, PluginShutdown, RecoverableError, TaskNotFound, UnrecoverableError

SECRET = "hunter2hunter2"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No descriptor, no task, no warning about either is left after a test."""
    gc.collect()
    before = open_files()
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        yield
        for _ in range(3):
            await asyncio.sleep(0)
        gc.collect()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert open_files() <= before


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cameleer-fake-"))  # short: the path of a socket has 107 bytes at most
    yield path
    shutil.rmtree(path)


@pytest.fixture
async def fake(folder: Path) -> AsyncIterator[FakeEngine]:
    async with serving(folder) as engine:
        yield engine


@pytest.fixture
async def client(fake: FakeEngine) -> AsyncIterator[Client]:
    async with connected(fake.address) as client:
        yield client


@asynccontextmanager
async def connected(url: str, *, tls: Tls | None = None, connections: int = 16) -> AsyncIterator[Client]:
    client = Client(Endpoint(url=url, tls=tls), connections=connections)
    try:
        yield client
    finally:
        await client.close()
        assert client.open_connections == 0


async def follow(client: Client, found: list[Any] | None = None) -> None:
    """Read the objects of a stream to its end."""
    async with client.stream("GET", "/events", what="follow") as stream:
        async for each in stream.json():
            if found is not None:
                found.append(each)


# -- requests ------------------------------------------------------------------------------------------------------


async def test_a_request_is_what_the_engine_expects(fake: FakeEngine, client: Client) -> None:
    fake.then(answer({"Id": "1"}, "201 Created"))
    found = await client.request("POST", "/containers/create", query={"name": "a b"}, body={"Image": "x"})
    assert found.status == 201
    assert found.json() == {"Id": "1"}
    assert found.headers["content-type"] == "application/json"
    (asked,) = fake.requests
    assert asked.line == "POST /v1.41/containers/create?name=a+b HTTP/1.1"
    assert decoded(asked) == {"Image": "x"}
    assert asked.headers["host"] == "docker"


async def test_a_name_cannot_become_another_request(fake: FakeEngine, client: Client) -> None:
    fake.then(answer({}))
    await client.request("GET", "/containers/a b?x=1#y\r\nEvil: 1\r\n\r\n/json")
    (asked,) = fake.requests
    assert asked.target == "/v1.41/containers/a%20b%3Fx=1%23y%0D%0AEvil:%201%0D%0A%0D%0A/json"
    assert "evil" not in asked.headers


async def test_an_engine_on_the_network_behind_a_prefix(fake: FakeEngine) -> None:
    fake.always(answer([1]))
    fake.prefix = "/proxy"
    url = await fake.start_tcp()
    async with connected(f"{url}/proxy") as client:
        assert (await client.request("GET", "/info")).json() == [1]
        assert client.api_version == "1.41"
    (asked,) = fake.requests
    assert asked.target == "/proxy/v1.41/info"
    assert asked.headers["host"] == url.removeprefix("tcp://")


async def test_a_header_with_a_line_end_is_refused_without_being_shown(fake: FakeEngine, client: Client) -> None:
    with pytest.raises(UnrecoverableError, match="X-Registry-Auth") as caught:
        await client.request("POST", "/images/create", headers={"X-Registry-Auth": f"{SECRET}\r\nEvil: 1"})
    assert SECRET not in str(caught.value)
    assert fake.requests == []


async def test_one_connection_serves_requests_one_after_the_other(fake: FakeEngine, client: Client) -> None:
    fake.always(answer({}))
    for _ in range(20):
        await client.request("GET", "/info")
    assert fake.connections == 1
    assert fake.versions_asked == 1
    assert client.open_connections == 1
    assert client.api_version == "1.41"


async def test_an_answer_without_a_body_keeps_the_connection(fake: FakeEngine, client: Client) -> None:
    fake.then(
        raw(b"HTTP/1.1 204 No Content\r\n\r\n"),
        raw(b"HTTP/1.1 304 Not Modified\r\n\r\n"),
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
        answer({}),
    )
    assert (await client.request("POST", "/containers/a/stop")).status == 204
    assert (await client.request("POST", "/containers/a/start")).status == 304
    assert (await client.request("HEAD", "/_ping")).body == b""
    await client.request("GET", "/info")
    assert fake.connections == 1


@pytest.mark.parametrize("status", ["404 Not Found", "409 Conflict", "400 Bad Request", "500 Oops", "503 Busy"])
async def test_a_refusal_has_the_engines_words(fake: FakeEngine, client: Client, status: str) -> None:
    kinds = {
        "404": TaskNotFound,
        "409": Conflict,
        "400": UnrecoverableError,
        "500": RecoverableError,
        "503": EngineGone,
    }
    fake.then(answer({"message": "its own words"}, status), answer({}))
    with pytest.raises(DriverError, match=r"^stop web: its own words$") as caught:
        await client.request("POST", "/containers/web/stop", what="stop web")
    assert type(caught.value) is kinds[status[:3]]
    await client.request("GET", "/info")
    assert fake.connections == 1


async def test_what_is_missing_is_what_the_caller_says(fake: FakeEngine, client: Client) -> None:
    with pytest.raises(UnrecoverableError) as caught:
        await client.request("GET", "/images/a/json", missing=UnrecoverableError)
    assert type(caught.value) is UnrecoverableError


async def test_what_was_to_be_done_is_named_without_the_callers_words(fake: FakeEngine, client: Client) -> None:
    fake.then(answer({"message": "no"}, "400 Bad Request"))
    with pytest.raises(UnrecoverableError, match="GET /containers/a: no"):
        await client.request("GET", "/containers/a")


async def test_an_answer_that_goes_on_until_it_is_closed(fake: FakeEngine, client: Client) -> None:
    fake.then(
        then_close(b"HTTP/1.1 200 OK\r\n\r\n", b"[1,", b"2]"),
        then_close(b"HTTP/1.0 200 OK\r\n\r\n[3]"),
        then_close(response(b"[4]", "200 OK", "Connection: close")),
        answer([5]),
    )
    assert [(await client.request("GET", "/x")).json() for _ in range(4)] == [[1, 2], [3], [4], [5]]
    assert fake.connections == 4


async def test_a_mere_continue_is_passed_over(fake: FakeEngine, client: Client) -> None:
    fake.then(raw(b"HTTP/1.1 100 Continue\r\n\r\n" + response(b"[1]")))
    assert (await client.request("GET", "/x")).json() == [1]


async def test_an_early_refusal_of_a_large_body_is_read(fake: FakeEngine, client: Client) -> None:
    fake.reads_bodies = False
    fake.then(then_close(response(b'{"message":"too large"}', "413 Too Large")))
    with pytest.raises(UnrecoverableError, match="too large"):
        await client.request("POST", "/x", body="x" * 5_000_000)


# -- chunks and cuts -----------------------------------------------------------------------------------------------

BODY = b'[{"a": "\xc3\xa9"}, ' + b"1, " * 40 + b"2]"
ANSWERS = {
    "length": response(BODY),
    "chunks": chunked([BODY[:1], BODY[1:7], BODY[7:]]),
    "extended chunks": chunked([BODY[:9], BODY[9:]], extension=b' ;a="b";c', trailers=b"X-Trailer: yes\r\nY: 1\r\n"),
    "bare line ends": b"HTTP/1.1 200\nContent-Length: %d\n\n%s" % (len(BODY), BODY),
    "refusal": response(b'{"message":"no"}', "409 Conflict"),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_that_comes_byte_by_byte(fake: FakeEngine, client: Client, name: str) -> None:
    fake.then(dribbled(ANSWERS[name]), answer([0]))
    if name == "refusal":
        with pytest.raises(Conflict, match="no"):
            await client.request("GET", "/x")
    else:
        assert (await client.request("GET", "/x")).body == BODY
    assert (await client.request("GET", "/x")).json() == [0]
    assert fake.connections == 1


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_cut_anywhere_in_two(fake: FakeEngine, client: Client, name: str) -> None:
    data = ANSWERS[name]
    for at in range(1, len(data)):
        fake.then(pieces([data[:at], data[at:]]))
        with suppress(Conflict):
            assert (await client.request("GET", "/x")).body == BODY
    assert fake.connections == 1


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_cut_short_at_any_byte_is_the_engine_gone(fake: FakeEngine, client: Client, name: str) -> None:
    data = ANSWERS[name]
    for at in range(len(data)):
        fake.then(then_close(data[:at]))
        with pytest.raises(EngineGone, match="cut short"):
            await client.request("POST", "/x")
        assert client.open_connections <= 1


@pytest.mark.parametrize("name", ["length", "chunks"])
async def test_an_answer_reset_at_any_byte_is_the_engine_gone(fake: FakeEngine, client: Client, name: str) -> None:
    data = ANSWERS[name]

    def cut(at: int) -> Script:
        async def script(connection: Connection, request: Request) -> None:
            await connection.send(data[:at])
            connection.reset()

        return script

    for at in range(len(data)):
        fake.then(cut(at))
        with pytest.raises(EngineGone):
            await client.request("POST", "/x")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "not HTTP/1.1"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "no header"),
        (b"HTTP/1.1 200 OK\r\n folded: 1\r\n\r\n", "folded"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "length 'x'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "length '-1'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "two lengths"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "encoded as 'gzip'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "no size: b'zz'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 20 + b"\r\n", "no size"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "no end"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * 10000, "no length"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * LONGEST_HEAD, "longer than 65536"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * LONGEST_HEAD + b"\r\n\r\n", "longer than 65536"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20000, "longer than 65536"),
    ],
)
async def test_what_is_no_answer_is_said_with_its_first_bytes(
    fake: FakeEngine, client: Client, data: bytes, reason: str
) -> None:
    fake.then(raw(data))
    with pytest.raises(Malformed) as caught:
        await client.request("GET", "/x", what="ask")
    assert isinstance(caught.value, RecoverableError)
    assert str(caught.value).startswith("ask: ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300
    assert client.open_connections == 0


async def test_an_answer_that_is_no_json_is_recoverable(fake: FakeEngine, client: Client) -> None:
    fake.then(raw(response(b"<html>")), raw(response(b"[" * 100_000)))
    for _ in range(2):
        found = await client.request("GET", "/x", what="ask")
        with pytest.raises(Malformed, match="ask: the engine's answer is no JSON"):
            found.json()


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_a_recoverable_error(data: bytes) -> None:
    async def ask() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.sendall(b"HTTP/1.1 " + data)
        theirs.close()
        from cameleer.drivers.docker.client.answer import Body, read_head

        wire = Wire(ours, "unix:///s", "ask")
        try:
            await Body(wire, await read_head(wire)).whole(1 << 20)
        except RecoverableError:
            pass
        finally:
            wire.close()

    asyncio.run(ask())


# -- connections ---------------------------------------------------------------------------------------------------


class Gate:
    """Holds answers back until it is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.waiting = 0
        self.most = 0

    async def __call__(self, connection: Connection, request: Request) -> None:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        await self.opened.wait()
        self.waiting -= 1
        await answer(request.target)(connection, request)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.001)


async def test_no_more_requests_at_a_time_than_connections(fake: FakeEngine) -> None:
    gate = Gate()
    fake.always(gate)
    async with connected(fake.address, connections=3) as client:
        asking = [asyncio.create_task(client.request("GET", f"/{n}")) for n in range(10)]
        await until(lambda: gate.waiting == 3)
        assert client.open_connections == 3
        gate.opened.set()
        found = await asyncio.gather(*asking)
        assert [each.json() for each in found] == [f"/v1.41/{n}" for n in range(10)]
        assert gate.most == 3
        assert fake.connections == 3
        assert [each.target for each in fake.requests] == [f"/v1.41/{n}" for n in range(10)]  # first come, first served


async def test_a_request_that_waits_for_a_connection_can_be_cancelled(fake: FakeEngine) -> None:
    gate = Gate()
    fake.always(gate)
    async with connected(fake.address, connections=1) as client:
        first, second, third = (asyncio.create_task(client.request("GET", f"/{n}")) for n in range(3))
        await until(lambda: gate.waiting == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        gate.opened.set()
        await asyncio.gather(first, third)
        assert [each.target for each in fake.requests] == ["/v1.41/0", "/v1.41/2"]


async def test_a_request_that_waits_too_long_for_a_connection_says_so(fake: FakeEngine) -> None:
    gate = Gate()
    fake.always(gate)
    async with connected(fake.address, connections=1) as client:
        first = asyncio.create_task(client.request("GET", "/0"))
        await until(lambda: gate.waiting == 1)
        with pytest.raises(EngineGone, match=r"none of 1 connections to .* was free within 0\.05 s"):
            await client.request("GET", "/1", timeout_s=0.05)
        gate.opened.set()
        await first


async def test_a_cancelled_request_closes_its_connection(fake: FakeEngine, client: Client) -> None:
    gate = Gate()
    fake.then(gate)
    asking = asyncio.create_task(client.request("GET", "/0"))
    await until(lambda: gate.waiting == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert client.open_connections == 0
    gate.opened.set()
    await until(lambda: fake.open == 0)
    fake.then(answer([1]))
    assert (await client.request("GET", "/1")).json() == [1]


async def test_cancelling_at_any_moment_leaves_nothing(fake: FakeEngine) -> None:
    fake.always(dribbled(ANSWERS["chunks"][:120]))
    for turns in range(0, 120, 3):
        async with connected(fake.address, connections=2) as client:
            asking = asyncio.create_task(client.request("GET", "/0"))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            with suppress(asyncio.CancelledError):
                await asking
            assert client.open_connections <= 1  # the one that asked for the version
    await until(lambda: fake.open == 0)


async def test_a_silent_engine_is_gone_at_the_deadline(fake: FakeEngine, client: Client) -> None:
    fake.always(silence)
    with pytest.raises(EngineGone, match=r"^ask: the engine at unix://.* has not answered within 0\.05 s$"):
        await client.request("GET", "/x", timeout_s=0.05, what="ask")
    with pytest.raises(EngineGone, match="has not answered within"):
        async with client.stream("GET", "/x", timeout_s=0.05):
            pass
    with pytest.raises(EngineGone, match="has not answered within"):
        await client.hijack("/x", timeout_s=0.05)
    assert client.open_connections == 0


async def test_the_callers_own_deadline_stays_the_callers(fake: FakeEngine, client: Client) -> None:
    fake.always(silence)
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.05):
            await client.request("GET", "/x")
    assert not isinstance(caught.value, DriverError)


async def test_a_connection_that_went_stale_is_noticed_at_once(fake: FakeEngine, client: Client) -> None:
    fake.then(then_close(response(b"[1]")), answer([2]))
    assert (await client.request("POST", "/x")).json() == [1]
    await until(lambda: client.open_connections == 0)
    assert (await client.request("POST", "/x")).json() == [2]
    assert fake.connections == 2


async def test_a_get_on_a_connection_lost_meanwhile_is_asked_again(fake: FakeEngine, client: Client) -> None:
    fake.then(answer([1]), reset, answer([2]), answer([3]))
    assert (await client.request("GET", "/x")).json() == [1]
    assert (await client.request("GET", "/x")).json() == [2]
    assert fake.connections == 2
    fake.then(reset, reset)
    await client.request("GET", "/x")
    with pytest.raises(EngineGone):  # once
        await client.request("GET", "/x")


async def test_a_post_is_never_done_twice(fake: FakeEngine, client: Client) -> None:
    fake.then(answer([1]), reset)
    await client.request("GET", "/x")
    with pytest.raises(EngineGone):
        await client.request("POST", "/x")
    assert [each.method for each in fake.requests] == ["GET", "POST"]


async def test_a_get_whose_answer_had_begun_is_not_asked_again(fake: FakeEngine, client: Client) -> None:
    fake.then(answer([1]), then_close(b"HTTP/1.1 200"))
    await client.request("GET", "/x")
    with pytest.raises(EngineGone, match="cut short"):
        await client.request("GET", "/x")
    assert len(fake.requests) == 2


async def test_bytes_that_nobody_asked_for_do_not_become_an_answer(fake: FakeEngine, client: Client) -> None:
    fake.then(raw(response(b"[1]") + response(b'["of another request"]')), answer([2]))
    assert (await client.request("GET", "/x")).json() == [1]
    assert (await client.request("GET", "/x")).json() == [2]


async def test_connections_that_nobody_needs_are_closed(
    fake: FakeEngine, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    fake.always(gate)
    asking = [asyncio.create_task(client.request("GET", "/x")) for _ in range(5)]
    await until(lambda: gate.waiting == 5)
    gate.opened.set()
    await asyncio.gather(*asking)
    assert client.open_connections == 5
    monkeypatch.setattr("cameleer.drivers.docker.client.http._IDLE_S", 0.0)
    await client.request("GET", "/x")
    assert client.open_connections == 1


async def test_closing_ends_what_is_under_way(fake: FakeEngine) -> None:
    fake.always(silence)
    async with connected(fake.address) as client:
        asking = asyncio.create_task(client.request("GET", "/x"))
        await until(lambda: len(fake.requests) == 1)
        await client.close()
        with pytest.raises(PluginShutdown):
            await asking
        with pytest.raises(PluginShutdown):
            await client.request("GET", "/x")


async def test_an_engine_that_is_not_there(folder: Path) -> None:
    async with connected(f"unix://{folder}/sock") as client:
        with pytest.raises(
            EngineGone, match=rf"^ask: cannot reach the engine at unix://{folder}/sock: there is no such"
        ):
            await client.request("GET", "/x", what="ask")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(f"{folder}/sock")
        with pytest.raises(EngineGone, match="nothing listens there"):
            await client.request("GET", "/x")
        (folder / "sock").unlink()
        (folder / "sock").write_text("")
        with pytest.raises(EngineGone):
            await client.request("GET", "/x")


async def test_a_name_that_is_nobodys_is_the_engine_gone() -> None:
    async with connected("tcp://no-such-host.invalid:1") as client:
        with pytest.raises(EngineGone, match=r"cannot reach the engine at tcp://no-such-host\.invalid:1"):
            await client.request("GET", "/x")


async def test_an_engine_too_busy_to_accept_is_waited_for(folder: Path) -> None:
    full = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{folder}/sock")
        server.listen(0)
        with suppress(BlockingIOError):
            while True:
                one = socket.socket(socket.AF_UNIX)
                full.append(one)
                one.setblocking(False)
                one.connect(f"{folder}/sock")
        async with connected(f"unix://{folder}/sock") as client:
            with pytest.raises(EngineGone, match="has not answered within"):
                await client.request("GET", "/x", timeout_s=0.2)
    for one in full:
        one.close()


# -- the version of the API ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "version"),
    [
        ({"ApiVersion": "1.41", "MinAPIVersion": "1.12"}, "1.41"),
        ({"ApiVersion": "1.24"}, "1.24"),
        ({"ApiVersion": "1.60", "MinAPIVersion": "1.24"}, "1.45"),
        ({"ApiVersion": "1.60", "MinAPIVersion": "1.50"}, "1.50"),
    ],
)
async def test_the_newest_version_that_both_know_is_spoken(folder: Path, says: object, version: str) -> None:
    async with serving(folder, version=says) as fake, connected(fake.address) as client:
        fake.always(answer({}))
        await client.request("GET", "/info")
        assert client.api_version == version
        assert fake.requests[0].target == f"/v{version}/info"


@pytest.mark.parametrize("says", [{}, [], {"ApiVersion": 5}, {"ApiVersion": "new"}, {"ApiVersion": "1.2.3"}])
async def test_an_engine_that_does_not_say_its_version_is_none(folder: Path, says: object) -> None:
    async with serving(folder, version=says) as fake, connected(fake.address) as client:
        with pytest.raises(Malformed, match="does not say which version"):
            await client.request("GET", "/info")


async def test_an_engine_too_old_is_refused(folder: Path) -> None:
    async with serving(folder, version={"ApiVersion": "1.19"}) as fake, connected(fake.address) as client:
        with pytest.raises(UnrecoverableError, match=r"the engine's API is 1\.19"):
            await client.request("GET", "/info")


async def test_many_first_requests_ask_for_the_version_once(fake: FakeEngine, client: Client) -> None:
    fake.always(answer({}))
    await asyncio.gather(*(client.request("GET", "/info") for _ in range(30)))
    assert fake.versions_asked == 1


async def test_an_engine_that_comes_back_is_asked_for_its_version_again(fake: FakeEngine, client: Client) -> None:
    fake.always(answer({}))
    await client.request("GET", "/info")
    await fake.stop()
    fake.version = {"ApiVersion": "1.43"}
    await until(lambda: client.open_connections == 0)
    with pytest.raises(EngineGone):
        await client.request("GET", "/info")
    assert client.api_version == "1.41"
    await fake.start()
    await client.request("GET", "/info")
    assert client.api_version == "1.43"
    assert fake.requests[-1].target == "/v1.43/info"


async def test_an_engine_that_became_older_behind_our_back_is_asked_again(fake: FakeEngine, client: Client) -> None:
    fake.then(answer({"message": "client version 1.41 is too new. Maximum supported API version is 1.40"}, "400 Bad"))
    fake.always(answer([1]))
    with pytest.raises(RecoverableError, match="is too new"):
        await client.request("GET", "/info")
    fake.version = {"ApiVersion": "1.40"}
    assert (await client.request("GET", "/info")).json() == [1]
    assert client.api_version == "1.40"


async def test_a_stream_that_is_lost_makes_the_version_unknown(fake: FakeEngine, client: Client) -> None:
    fake.then(then_close(chunked([b"{}"], end=False)), answer({}))
    with pytest.raises(EngineGone):
        await follow(client)
    await client.request("GET", "/info")
    assert fake.versions_asked == 2


async def test_who_waits_for_the_version_can_be_cancelled_without_harm(folder: Path) -> None:
    gate = Gate()
    async with serving(folder, version=None) as fake, connected(fake.address) as client:
        fake.then(gate, answer({"ApiVersion": "1.41"}), answer([1]))
        first = asyncio.create_task(client.request("GET", "/info"))
        await until(lambda: gate.waiting == 1)
        second = asyncio.create_task(client.request("GET", "/info"))
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).json() == [1]
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.opened.set()


# -- streams -------------------------------------------------------------------------------------------------------

OBJECTS: list[Any] = [
    {"a": 1},
    {"b": '}{"\\'},
    {"c": [{"d": "é\n"}, {}]},
    {"e": {"f": {"g": "\\\\"}}},
    [1, {"h": "]"}],
    {},
]


@pytest.mark.parametrize("between", [b"\n", b"\r\n", b"", b" \n\t "])
async def test_objects_come_whole_however_they_are_cut(fake: FakeEngine, client: Client, between: bytes) -> None:
    data = between.join(msgspec.json.encode(each) for each in OBJECTS) + between
    for size in (1, 2, 3, 7, len(data)):
        fake.then(raw(chunked(data[at : at + size] for at in range(0, len(data), size))))
        async with client.stream("GET", "/events") as stream:
            assert [each async for each in stream.json()] == OBJECTS


async def test_objects_come_as_soon_as_they_are_whole(fake: FakeEngine, client: Client) -> None:
    more = asyncio.Event()

    async def script(connection: Connection, request: Request) -> None:
        await connection.send(chunked([b'{"a":1}{"b"'], end=False))
        await more.wait()
        await connection.send(b"3\r\n:2}\r\n0\r\n\r\n")

    fake.then(script)
    async with client.stream("GET", "/events") as stream:
        objects = stream.json()
        assert await anext(objects) == {"a": 1}
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):  # a wait that is cancelled loses nothing
                await anext(objects)
        more.set()
        assert await anext(objects) == {"b": 2}
        with pytest.raises(StopAsyncIteration):
            await anext(objects)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=5),
    st.lists(st.integers(0, 400), max_size=8),
    st.sampled_from([b"", b"\n", b"\r\n"]),
)
def test_objects_are_found_at_any_cuts(objects: list[object], cuts: list[int], between: bytes) -> None:
    data = b"".join(msgspec.json.encode(each) + between for each in objects)
    splitter = Objects(None)  # type: ignore[arg-type]
    found: list[Any] = []
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        found += splitter.feed(data[at : max(cut, at)])
        at = max(cut, at)
    assert found == objects
    assert not splitter.is_inside


async def test_a_stream_cut_short_at_any_byte_is_the_engine_gone(fake: FakeEngine, client: Client) -> None:
    data = chunked([b'{"a":"x"}\n{"b"', b":[1,2]}\n"])
    for at in range(len(data)):
        fake.then(then_close(data[:at]))
        with pytest.raises(EngineGone, match="cut short"):
            await follow(client)


async def test_a_stream_that_ends_within_an_object_is_cut_short(fake: FakeEngine, client: Client) -> None:
    for data in (chunked([b'{"a":1}{"b"']), b"HTTP/1.1 200 OK\r\n\r\n" + b'{"a":1}{"b"'):
        fake.then(then_close(data))
        found: list[Any] = []
        with pytest.raises(EngineGone, match="follow: .* cut short"):
            await follow(client, found)
        assert found == [{"a": 1}]


@pytest.mark.parametrize(
    "data", [b"garbage", b'{"a":1} x', b'{"a":}', b"{]", b'{"a" 1}', b"}", b"1", b"[" * 100_000 + b"]" * 100_000]
)
async def test_a_stream_that_is_no_json_is_malformed(fake: FakeEngine, client: Client, data: bytes) -> None:
    fake.then(raw(chunked([data])))
    with pytest.raises(Malformed, match="follow: this is no JSON"):
        await follow(client)
    assert client.open_connections <= 1


FRAMES = [(1, b"out\n"), (2, b"err\n"), (1, bytes(range(256))), (1, b"x" * 70_000), (2, b"end")]


def joined(found: list[tuple[int, bytes]]) -> tuple[bytes, bytes]:
    return b"".join(data for stream, data in found if stream == 1), b"".join(
        data for stream, data in found if stream == 2
    )


@pytest.mark.parametrize("size", [1, 3, 8, 11, 4096, 100_000])
async def test_frames_are_taken_apart_however_they_are_cut(fake: FakeEngine, client: Client, size: int) -> None:
    few = FRAMES if size > 100 else [*FRAMES[:3], FRAMES[4]]
    data = b"".join(frame(*each) for each in few)
    fake.then(raw(chunked(data[at : at + size] for at in range(0, len(data), size))))
    async with client.stream("GET", "/logs") as stream:
        found = [each async for each in stream.frames()]
    assert joined(found) == joined(few)


async def test_a_frame_that_is_too_large_to_keep_is_handed_out_in_parts(fake: FakeEngine, client: Client) -> None:
    size = 8_000_000

    async def script(connection: Connection, request: Request) -> None:
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n", bytes([1, 0, 0, 0]) + size.to_bytes(4, "big"))
        for _ in range(0, size, 80_000):
            await connection.send(b"x" * 80_000)
        connection.writer.close()

    fake.then(script)
    async with client.stream("GET", "/logs") as stream:
        sizes = [len(data) async for _, data in stream.frames()]
    assert sum(sizes) == size
    assert max(sizes) <= 65536


async def test_frames_cut_short_at_any_byte(fake: FakeEngine, client: Client) -> None:
    data = frame(1, b"out\n") + frame(2, b"error")
    whole = {0, 12, len(data)}

    async def read(found: list[tuple[int, bytes]]) -> None:
        async with client.stream("GET", "/logs") as stream:
            async for each in stream.frames():
                found.append(each)

    for at in range(len(data) + 1):
        fake.then(then_close(b"HTTP/1.1 200 OK\r\n\r\n" + data[:at]))
        found: list[tuple[int, bytes]] = []
        with nullcontext() if at in whole else pytest.raises(EngineGone, match="cut short"):
            await read(found)
        assert joined(found) == (data[8 : min(at, 12)], data[20:at])


async def test_a_slow_reader_holds_the_engine_back(fake: FakeEngine, client: Client) -> None:
    sent = 0

    async def script(connection: Connection, request: Request) -> None:
        nonlocal sent
        await connection.send(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(400):
            await connection.send(b"x" * 100_000)
            sent += 100_000
        connection.writer.close()

    fake.then(script)
    async with client.stream("GET", "/logs") as stream:
        total = len(await anext(stream))
        for _ in range(200):
            await asyncio.sleep(0)
        assert sent < 3_000_000
        async for data in stream:
            total += len(data)
    assert total == 40_000_000


async def test_leaving_a_stream_early_closes_its_connection(fake: FakeEngine, client: Client) -> None:
    async def script(connection: Connection, request: Request) -> None:
        await connection.send(chunked([b'{"a":1}'], end=False))
        await connection.reader.read()
        connection.writer.close()

    fake.always(script)
    async with client.stream("GET", "/events") as stream:
        async for each in stream.json():
            assert each == {"a": 1}
            break
        assert client.open_connections == 2  # that of the version rests
    assert client.open_connections == 1
    await until(lambda: fake.open == 1)
    with pytest.raises(RuntimeError):
        async with client.stream("GET", "/events"):
            raise RuntimeError("of the caller")
    assert client.open_connections == 1


async def test_streams_do_not_take_the_places_of_requests(fake: FakeEngine) -> None:
    fake.then(raw(chunked([b"{}"], end=False)), raw(chunked([b"{}"], end=False)), answer([1]))
    async with (
        connected(fake.address, connections=1) as client,
        client.stream("GET", "/a") as first,
        client.stream("GET", "/b") as second,
    ):
        assert await first.read() == await second.read() == b"{}"
        assert (await client.request("GET", "/c")).json() == [1]


async def test_a_refused_stream_has_the_engines_words(fake: FakeEngine, client: Client) -> None:
    with pytest.raises(TaskNotFound, match="follow: No such container"):
        async with client.stream("GET", "/containers/a/stats", what="follow"):
            raise AssertionError("it was opened")
    with pytest.raises(TaskNotFound, match="attach: No such container"):
        await client.hijack("/containers/a/attach", what="attach")
    assert client.open_connections == 1


# -- hijacked connections ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
    ],
)
async def test_what_comes_with_the_header_is_not_lost(fake: FakeEngine, client: Client, head: bytes) -> None:
    async def script(connection: Connection, request: Request) -> None:
        await connection.send(head + b"first ")
        said = await connection.reader.read()
        await connection.send(b"heard " + said)
        connection.writer.close()

    fake.then(script)
    async with await client.hijack("/containers/a/attach", query={"stream": "1"}, body={"Tty": True}) as hijacked:
        assert await hijacked.read() == b"first "
        await hijacked.write(b"hello")
        await hijacked.close_write()
        assert b"".join([part async for part in hijacked]) == b"heard hello"
        assert await hijacked.read() == b""
    (asked,) = fake.requests
    assert (asked.headers["connection"], asked.headers["upgrade"]) == ("Upgrade", "tcp")
    assert decoded(asked) == {"Tty": True}


def upgraded(then: Callable[[Connection], Any]) -> Script:
    async def script(connection: Connection, request: Request) -> None:
        await connection.send(b"HTTP/1.1 101 UPGRADED\r\n\r\n")
        await then(connection)

    return script


async def test_a_hijacked_connection_cut_short_within_a_frame(fake: FakeEngine, client: Client) -> None:
    async def script(connection: Connection) -> None:
        await connection.send(frame(1, b"whole") + frame(2, b"not whole")[:10])
        connection.writer.close()

    fake.then(upgraded(script))
    async with await client.hijack("/a") as hijacked:
        frames = hijacked.frames()
        assert [await anext(frames), await anext(frames)] == [(1, b"whole"), (2, b"no")]
        with pytest.raises(EngineGone, match="cut short"):
            await anext(frames)


async def test_who_writes_faster_than_it_is_read_has_to_wait(fake: FakeEngine, client: Client) -> None:
    go_on = asyncio.Event()
    heard = 0

    async def script(connection: Connection) -> None:
        nonlocal heard
        await go_on.wait()
        while data := await connection.reader.read(65536):
            heard += len(data)
        connection.writer.close()

    fake.then(upgraded(script))
    written = 0

    async def write(hijacked: Hijacked) -> None:
        nonlocal written
        for _ in range(100):
            await hijacked.write(b"x" * 100_000)
            written += 100_000
        await hijacked.close_write()

    async with await client.hijack("/a") as hijacked:
        writing = asyncio.create_task(write(hijacked))
        for _ in range(200):
            await asyncio.sleep(0)
        assert written < 3_000_000
        go_on.set()
        await writing
        assert await hijacked.read() == b""
    assert heard == 10_000_000


async def test_output_is_whole_though_nobody_reads_the_input(fake: FakeEngine, client: Client) -> None:
    async def script(connection: Connection) -> None:
        await connection.send(b"x" * 50_000)
        connection.writer.close()

    fake.then(upgraded(script))
    async with await client.hijack("/a") as hijacked:
        await until(lambda: fake.open == 1)  # that of the version
        with pytest.raises(EngineGone):
            await hijacked.write(b"y" * 10_000_000)
        found = b""
        with suppress(EngineGone):  # a Unix socket says so when what was sent was not read
            async for data in hijacked:
                found += data
        assert found == b"x" * 50_000


async def test_a_hijacked_connection_is_written_and_read_at_once(fake: FakeEngine, client: Client) -> None:
    async def echo(connection: Connection) -> None:
        while data := await connection.reader.read(65536):
            await connection.send(data)
        connection.writer.close()

    fake.then(upgraded(echo))

    async def write(hijacked: Hijacked) -> None:
        for _ in range(50):
            await hijacked.write(b"x" * 100_000)
        await hijacked.close_write()

    async with await client.hijack("/a") as hijacked:
        writing = asyncio.create_task(write(hijacked))
        total = 0
        async for data in hijacked:
            total += len(data)
        await writing
    assert total == 5_000_000


async def test_closing_a_hijacked_connection_wakes_who_waits(fake: FakeEngine, client: Client) -> None:
    async def script(connection: Connection) -> None:
        await connection.reader.read()

    fake.then(upgraded(script))
    hijacked = await client.hijack("/a")
    reading = asyncio.create_task(hijacked.read())
    await asyncio.sleep(0)
    hijacked.close()
    hijacked.close()
    with pytest.raises(EngineGone):
        await reading
    with pytest.raises(EngineGone):
        await hijacked.write(b"x")
    await until(lambda: fake.open == 1)


async def test_a_cancelled_hijack_closes_its_connection(fake: FakeEngine, client: Client) -> None:
    fake.then(silence)
    asking = asyncio.create_task(client.hijack("/a"))
    await until(lambda: len(fake.requests) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert client.open_connections == 1
    await until(lambda: fake.open == 1)


# -- a real engine -------------------------------------------------------------------------------------------------


@asynccontextmanager
async def container(client: Client, **body: object) -> AsyncIterator[str]:
    host = {"NetworkMode": "none"}
    made = await client.request("POST", "/containers/create", body={"Image": IMAGE, "HostConfig": host, **body})
    container_id = made.json()["Id"]
    try:
        yield container_id
    finally:
        await client.request("DELETE", f"/containers/{container_id}", query={"force": "1", "v": "1"})


@pytest.mark.root
@needs_engine
async def test_a_real_engine_says_what_it_is(engine: Engine) -> None:
    async with connected(engine.address) as client:
        info = (await client.request("GET", "/info")).json()
        assert info["ServerVersion"]
        assert client.api_version == (await client.request("GET", "/version")).json()["ApiVersion"]
        assert (await client.request("GET", "/_ping")).body == b"OK"
        with pytest.raises(TaskNotFound, match="inspect: No such container: nosuch"):
            await client.request("GET", "/containers/nosuch/json", what="inspect")
        with pytest.raises(UnrecoverableError, match="page not found") as caught:
            await client.request("GET", "/nosuch")
        assert not isinstance(caught.value, TaskNotFound)
        assert client.open_connections == 1


@pytest.mark.root
@needs_engine
async def test_a_real_container_is_fed_and_read_to_its_last_byte(engine: Engine) -> None:
    async with connected(engine.address) as client:
        script = "cat | tee /dev/stderr | wc -c; head -c 300000 /dev/zero; exit 3"
        streams = {
            "AttachStdin": True,
            "AttachStdout": True,
            "AttachStderr": True,
            "OpenStdin": True,
            "StdinOnce": True,
        }
        async with (
            container(client, Cmd=["sh", "-c", script], **streams) as name,
            client.stream("GET", "/events", what="follow events") as events,
        ):
            query = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
            async with await client.hijack(f"/containers/{name}/attach", query=query) as attached:
                await client.request("POST", f"/containers/{name}/start")
                data = bytes(range(256)) * 400

                async def feed() -> None:
                    await attached.write(data)
                    await attached.close_write()

                feeding = asyncio.create_task(feed())
                found = [each async for each in attached.frames()]
                await feeding
            out, err = joined(found)
            assert err == data
            assert out == b"%d\n" % len(data) + bytes(300_000)
            async with asyncio.timeout(20):
                async for event in events.json():
                    if event.get("Action") == "die" and event["Actor"]["ID"] == name:
                        assert event["Actor"]["Attributes"]["exitCode"] == "3"
                        break


@pytest.mark.root
@needs_engine
async def test_a_name_that_is_taken_is_a_conflict(engine: Engine) -> None:
    async with connected(engine.address) as client, container(client, Cmd=["true"]) as name:
        await client.request("POST", f"/containers/{name}/rename", query={"name": "taken"})
        with pytest.raises(Conflict, match="already in use"):
            await client.request(
                "POST", "/containers/create", query={"name": "taken"}, body={"Image": IMAGE, "Cmd": ["true"]}
            )


@pytest.mark.root
@needs_engine
async def test_a_real_engine_that_is_killed_frozen_and_started_again() -> None:
    with running() as engine:
        async with connected(engine.address) as client:
            await client.request("GET", "/info")
            engine.freeze()
            with pytest.raises(EngineGone, match="has not answered within"):
                await client.request("GET", "/info", timeout_s=0.3)
            engine.thaw()
            await client.request("GET", "/info")
            async with client.stream("GET", "/events", what="follow") as stream:
                engine.kill()
                with pytest.raises(EngineGone):
                    await anext(stream)
            with pytest.raises(EngineGone, match=r"cannot reach the engine at unix://.*nothing listens there"):
                await client.request("GET", "/info")
            await until(lambda: client.open_connections == 0)
            engine.start()
            await client.request("POST", "/containers/prune")


# -- TLS -----------------------------------------------------------------------------------------------------------


def openssl(folder: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """A certificate authority, a server's certificate for 127.0.0.1, a client's, and another authority."""
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    folder = Path(tempfile.mkdtemp(prefix="cameleer-tls-"))
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    usage = ("-addext", "keyUsage=critical,keyCertSign,cRLSign")
    for name in ("ca", "other"):
        files = ("-keyout", f"{name}-key.pem", "-out", f"{name}.pem")
        openssl(folder, "req", "-x509", *new, *usage, *files, "-subj", f"/CN={name}")
    for name, extension in (
        ("server", "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"),
        ("client", "extendedKeyUsage=clientAuth\n"),
    ):
        ids = "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        (folder / f"{name}.ext").write_text(f"{extension}{ids}")
        openssl(folder, "req", *new, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", f"{name}.ext", "-days", "2")
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    openssl(folder, "pkey", "-in", "client-key.pem", "-aes256", "-passout", "pass:x", "-out", "locked-key.pem")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def encrypted(certificates: Path) -> Iterator[str]:
    """The address of a real engine that speaks TLS on a port of the loopback."""
    from engine import missing

    if missing:
        pytest.skip(f"no Docker engine can be started here: {missing}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"tcp://127.0.0.1:{port}"
    files = {"tlscacert": "ca.pem", "tlscert": "server.pem", "tlskey": "server-key.pem"}
    options = [f"--{name}={certificates}/{file}" for name, file in files.items()]
    with running(f"--host={url}", "--tlsverify", *options):
        yield url


def tls(folder: Path, *, ca: str = "ca.pem", cert: str = "client.pem", verify: bool = True) -> Tls:
    key = f"{folder}/client-key.pem" if cert else ""
    return Tls(ca=f"{folder}/{ca}" if ca else "", cert=f"{folder}/{cert}" if cert else "", key=key, verify=verify)


@pytest.mark.root
@needs_engine
async def test_a_real_engine_over_tls(encrypted: str, certificates: Path) -> None:
    async with connected(encrypted, tls=tls(certificates)) as client:
        for _ in range(5):
            assert (await client.request("GET", "/info")).json()["ServerVersion"]
        assert client.open_connections == 1
        await asyncio.gather(*(client.request("GET", "/info") for _ in range(20)))
        assert client.open_connections <= 16
    async with connected(encrypted, tls=tls(certificates, ca="", verify=False)) as client:
        await client.request("GET", "/info")


@pytest.mark.root
@needs_engine
async def test_stdin_ends_over_tls_and_the_output_goes_on(encrypted: str, certificates: Path) -> None:
    async with connected(encrypted, tls=tls(certificates)) as client:
        streams = {"AttachStdin": True, "AttachStdout": True, "OpenStdin": True, "StdinOnce": True}
        script = "cat; sleep 0.2; head -c 200000 /dev/zero"
        async with container(client, Cmd=["sh", "-c", script], **streams) as name:
            query = {"stream": "1", "stdin": "1", "stdout": "1"}
            async with await client.hijack(f"/containers/{name}/attach", query=query) as attached:
                await client.request("POST", f"/containers/{name}/start")
                data = os.urandom(300_000)

                async def feed() -> None:
                    await attached.write(data)
                    await attached.close_write()

                feeding = asyncio.create_task(feed())
                async with asyncio.timeout(30):
                    found = [each async for each in attached.frames()]
                await feeding
            assert joined(found)[0] == data + bytes(200_000)


@pytest.mark.root
@needs_engine
async def test_what_does_not_fit_in_tls_says_why(encrypted: str, certificates: Path) -> None:
    wrong = [
        (tls(certificates, ca="other.pem"), UnrecoverableError, r"is not to be trusted: .*(signed|issuer)"),
        (tls(certificates, cert=""), UnrecoverableError, "does not accept our certificate, or lack of one"),
        (None, UnrecoverableError, "HTTP request to an HTTPS server.*DOCKER_CERT_PATH"),
    ]
    for material, kind, text in wrong:
        async with connected(encrypted, tls=material) as client:
            with pytest.raises(kind, match=text):
                await client.request("GET", "/info")
            assert client.open_connections == 0
    async with connected(encrypted.replace("127.0.0.1", "localhost"), tls=tls(certificates)) as client:
        with pytest.raises(UnrecoverableError, match="not to be trusted: .*ostname"):
            await client.request("GET", "/info")


@asynccontextmanager
async def over_tls(certificates: Path, talk: Callable[[ssl.SSLSocket], None]) -> AsyncIterator[Wire]:
    """A connection to a peer with a thread of its own; when it is left, the peer has ended or has failed with it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server-key.pem")

    def serve() -> None:
        peer, _ = listening.accept()
        with suppress(OSError), context.wrap_socket(peer, server_side=True) as encrypted:
            talk(encrypted)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = Endpoint(url=f"tcp://127.0.0.1:{listening.getsockname()[1]}", tls=tls(certificates))
        wire = await connect(endpoint, endpoint.ssl_context(), "attach")
        try:
            yield wire
        finally:
            wire.close()
            thread.join(20)


async def read_exactly(wire: Wire, count: int) -> bytes:
    found = bytearray()
    while len(found) < count:
        data = await wire.read()
        assert data, f"it ended after {len(found)} bytes of {count}"
        found += data
    return bytes(found)


async def test_much_is_written_and_read_over_tls_at_once(certificates: Path) -> None:
    """A container that reads its input only when it has written all its output."""
    data = os.urandom(40_000_000)
    heard = bytearray()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def talk(peer: ssl.SSLSocket) -> None:
        peer.sendall(data)
        while found := peer.recv(65536):
            heard.extend(found)
        loop.call_soon_threadsafe(ended.set)

    async with over_tls(certificates, talk) as wire, asyncio.timeout(60):

        async def write() -> None:
            for at in range(0, len(data), 100_000):
                await wire.write(data[at : at + 100_000])
            await wire.close_write()

        async with asyncio.TaskGroup() as both:
            both.create_task(write())
            reading = both.create_task(read_exactly(wire, len(data)))
        assert reading.result() == data
        await ended.wait()
    assert heard == data


async def test_what_is_written_over_tls_after_a_write_was_cancelled_is_understood(certificates: Path) -> None:
    data = os.urandom(20_000_000)
    heard = bytearray()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()

    def talk(peer: ssl.SSLSocket) -> None:
        peer.sendall(data)  # nobody reads it before the writes were cancelled: they must wait
        while found := peer.recv(65536):
            heard.extend(found)
        loop.call_soon_threadsafe(ended.set)

    async with over_tls(certificates, talk) as wire, asyncio.timeout(60):
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await wire.write(data)
        assert await read_exactly(wire, len(data)) == data  # though what was cancelled cannot be sent yet
        await wire.write(b"more")
        await wire.close_write()
        await ended.wait()
    assert heard == data * 3 + b"more"


async def test_output_over_tls_is_whole_though_nobody_reads_the_input(certificates: Path) -> None:
    async with over_tls(certificates, lambda peer: peer.sendall(b"x" * 50_000)) as wire, asyncio.timeout(60):
        with pytest.raises(EngineGone):
            await wire.write(bytes(20_000_000))
        assert await read_exactly(wire, 50_000) == b"x" * 50_000
        with suppress(EngineGone):  # or an end, where that arrived before the reset
            assert await wire.read() == b""


async def test_a_server_that_does_not_speak_tls_is_said_to_be_one(certificates: Path) -> None:
    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with connected(f"tcp://127.0.0.1:{port}", tls=tls(certificates)) as client:
        with pytest.raises(UnrecoverableError, match=f"the engine at tcp://127.0.0.1:{port} does not speak TLS"):
            await client.request("GET", "/info")
    server.close()
    await server.wait_closed()


async def test_a_key_with_a_password_is_refused_and_nobody_is_asked(certificates: Path) -> None:
    from cameleer.errors import ConfigError

    material = Tls(cert=f"{certificates}/client.pem", key=f"{certificates}/locked-key.pem")
    async with connected("tcp://127.0.0.1:1", tls=material) as client:
        with pytest.raises(ConfigError, match=r"cannot use .*locked-key\.pem"):
            await client.request("GET", "/info")
