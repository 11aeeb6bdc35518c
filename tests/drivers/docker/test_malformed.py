"""A driver whose engine answers nonsense, or in the middle stops: errors that say so, and no hang."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from containers import shell, until
from fake_engine import (
    Connection,
    FakeEngine,
    Request,
    Script,
    answer,
    chunked,
    dribbled,
    response,
    serving,
    silence,
    then_close,
)

from cameleer.driver import RunningTask
from cameleer.drivers.docker import Docker
from cameleer.drivers.docker.settings import DockerConfig
from cameleer.drivers.docker.state import State
from cameleer.errors import DriverError, RecoverableError, TaskNotFound
from cameleer.node import NodeInfo
from cameleer.status import Exit
from cameleer.task import TaskHandle

CONTAINER = "c" * 64
INFO = {"CgroupDriver": "none", "CgroupVersion": "1", "ServerVersion": "1", "Driver": "vfs", "Runtimes": {"runc": {}}}
INSPECTED = {
    "Id": CONTAINER,
    "Name": "/web",
    "State": {"Status": "running", "Running": True, "Pid": 0, "StartedAt": "2026-01-01T00:00:00Z"},
    "Config": {"Image": "x", "Labels": {}},
    "HostConfig": {"LogConfig": {"Type": "json-file", "Config": {}}},
    "NetworkSettings": {"Networks": {}, "Ports": {}},
}
ENDED = {**INSPECTED, "State": {"Status": "exited", "ExitCode": 3, "FinishedAt": "2026-01-01T00:00:01Z"}}
IMAGE_ID = "sha256:" + "1" * 64
NONSENSE = [b"", b"[]", b"null", b"7", b'"x"', b"{", b"\xff\xfe", b"[" * 5000, b'{"State": 5}', b'{"Id": {}}']
SOON_S = 20.0


class Scripted:
    """Answers by path; what is not told is as an engine does."""

    def __init__(self) -> None:
        self.scripts: dict[tuple[str, str], Script] = {}
        self.events: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.tell("GET", "/info", answer(INFO))
        self.tell("GET", "/images/docker.io/library/busybox:test/json", answer({"Id": IMAGE_ID}))
        self.tell("POST", "/containers/create", answer({"Id": CONTAINER, "Warnings": []}, "201 Created"))
        self.tell("POST", f"/containers/{CONTAINER}/start", answer(None, "204 No Content"))
        self.tell("GET", f"/containers/{CONTAINER}/json", answer(INSPECTED))
        self.tell("GET", "/containers/web/json", answer(INSPECTED))
        self.tell("GET", "/containers/json", answer([]))
        self.tell("DELETE", f"/containers/{CONTAINER}", answer(None, "204 No Content"))
        self.tell("GET", "/events", self._events)

    def tell(self, method: str, path: str, script: Script) -> None:
        self.scripts[method, path] = script

    async def __call__(self, connection: Connection, request: Request) -> None:
        path = request.target.partition("?")[0]
        path = path.removeprefix("/v1.41")
        script = self.scripts.get((request.method, path), answer({"message": "page not found"}, "404 Not Found"))
        await script(connection, request)

    async def _events(self, connection: Connection, request: Request) -> None:
        await connection.send(chunked([], end=False))
        while (line := await self.events.get()) is not None:
            await connection.send(b"%x\r\n%s\r\n" % (len(line), line))
        connection.writer.close()

    def happened(self, action: str, **attributes: Any) -> None:
        event = {"Action": action, "Actor": {"ID": CONTAINER, "Attributes": attributes}, "timeNano": 5}
        self.events.put_nowait(msgspec.json.encode(event) + b"\n")


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeEngine]:
    async with serving(tmp_path) as engine:
        yield engine


@pytest.fixture
def script(fake: FakeEngine) -> Scripted:
    scripted = Scripted()
    fake.always(scripted)
    return scripted


@pytest.fixture
async def driver(fake: FakeEngine, script: Scripted, tmp_path: Path) -> AsyncIterator[Docker]:
    """Its tasks are recoverable, so there is no reaper."""
    node = NodeInfo(host_id="here", node_id="", state_dir=tmp_path, recoverable=True)
    made = Docker(DockerConfig(endpoint=fake.address, call_timeout="1s", stats="remote"), node)
    await made.open()
    try:
        yield made
    finally:
        async with asyncio.timeout(SOON_S):
            await made.close()


def handle() -> TaskHandle:
    return TaskHandle(driver="docker", config=shell("x"), driver_state=State(container=CONTAINER).kept())


async def health(driver: Docker) -> tuple[str, str]:
    async with contextlib.aclosing(driver.fingerprint()) as source:
        found = await anext(source)
        return found.health, found.description


@pytest.mark.parametrize("body", NONSENSE)
async def test_nonsense_about_itself_makes_an_engine_unhealthy(driver: Docker, script: Scripted, body: bytes) -> None:
    script.tell("GET", "/info", then_close(response(body)))
    state, reason = await health(driver)
    if body in (b'{"State": 5}', b'{"Id": {}}'):  # an object without what we ask for says nothing
        assert state == "healthy"
        return
    assert (state, bool(reason)) == ("unhealthy", True)
    with pytest.raises(RecoverableError):
        await driver.start(shell("x"))


@pytest.mark.parametrize("info", [{"Runtimes": 5}, {"Runtimes": []}, {"CgroupVersion": []}, {"CgroupDriver": {}}])
async def test_an_odd_word_about_itself_is_left_out(driver: Docker, script: Scripted, info: dict[str, object]) -> None:
    script.tell("GET", "/info", answer({**INFO, **info}))
    assert (await health(driver))[0] == "healthy"


async def test_silence_is_given_up_at_the_deadline(driver: Docker, script: Scripted) -> None:
    script.tell("GET", "/info", silence)
    state, reason = await health(driver)
    assert (state, "has not answered within 1 s" in reason) == ("unhealthy", True)


async def test_silence_in_place_of_events_or_of_a_container_is_given_up_too(driver: Docker, script: Scripted) -> None:
    script.tell("GET", "/containers/web/json", silence)
    with pytest.raises(RecoverableError, match="has not answered within 1 s"):
        await driver.attach("docker:web")
    script.tell("GET", "/events", silence)
    script.events.put_nowait(None)
    await until(lambda: not driver.engine.events.connected.is_set(), "the events did not end")
    with pytest.raises(RecoverableError, match="no events"):
        await driver.attach("docker:web")


INSPECTIONS: list[bytes] = [
    *NONSENSE,
    msgspec.json.encode({**INSPECTED, "State": {"Pid": "x", "Running": True}}),
    msgspec.json.encode({**INSPECTED, "State": {"Running": "yes"}}),
    msgspec.json.encode({**INSPECTED, "Name": None}),
    msgspec.json.encode({**INSPECTED, "NetworkSettings": []}),
    msgspec.json.encode({**INSPECTED, "NetworkSettings": {"Ports": {"80/tcp": 5}}}),
    msgspec.json.encode({**INSPECTED, "Config": "x"}),
]


@pytest.mark.parametrize("body", INSPECTIONS)
async def test_nonsense_about_a_container_is_an_error_that_may_pass(
    driver: Docker, script: Scripted, body: bytes
) -> None:
    script.tell("GET", "/containers/web/json", answer_bytes(body))
    script.tell("GET", f"/containers/{CONTAINER}/json", answer_bytes(body))
    with pytest.raises(RecoverableError, match="inspect the container"):
        await driver.attach("docker:web")
    with pytest.raises(RecoverableError, match="inspect the container"):
        await driver.recover(handle())
    with pytest.raises(RecoverableError, match="inspect the container"):
        await driver.start(shell("x"))
    assert not driver._tasks


def answer_bytes(body: bytes, status: str = "200 OK") -> Script:
    async def script(connection: Connection, request: Request) -> None:
        await connection.send(response(body, status))

    return script


@pytest.mark.parametrize("cut", range(0, 700, 61))
async def test_an_answer_cut_short_anywhere_is_an_error_that_may_pass(
    driver: Docker, script: Scripted, cut: int
) -> None:
    whole = response(msgspec.json.encode(INSPECTED))
    script.tell("GET", "/containers/web/json", then_close(whole[: min(cut, len(whole) - 1)]))
    with pytest.raises(RecoverableError):
        await driver.attach("docker:web")


async def test_a_refusal_is_an_answer_and_nothing_is_waited_for(
    driver: Docker, script: Scripted, fake: FakeEngine
) -> None:
    script.tell("POST", "/containers/create", answer({"message": "no space left"}, "500 Internal Server Error"))
    with pytest.raises(RecoverableError, match="no space left"):
        await driver.start(shell("x"))
    assert not driver._clearing
    assert not any("/containers/json" in each.target for each in fake.requests)


async def test_a_second_start_waits_until_the_first_one_is_undone(
    driver: Docker, script: Scripted, fake: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cameleer.drivers.docker.start._UNDER_WAY_S", 0.5)
    task = shell("x", id="same")
    script.tell("POST", "/containers/create", then_close(b"HTTP/1.1 201"))
    with pytest.raises(RecoverableError):
        await driver.start(task)
    script.tell("POST", "/containers/create", answer({"Id": CONTAINER, "Warnings": []}, "201 Created"))
    assert driver._undoing
    started = await driver.start(task)
    assert not driver._clearing
    assert list((driver.node.state_dir or Path()).glob("docker/*"))  # the first one's undoing has not taken it away
    await started.destroy(force=True)


async def test_an_answer_byte_by_byte_is_understood(driver: Docker, script: Scripted) -> None:
    script.tell("GET", "/containers/web/json", dribbled(response(msgspec.json.encode(INSPECTED))))
    task = await driver.attach("docker:web")
    assert (await task.inspect())["container_name"] == "web"


@pytest.mark.parametrize("body", [b"[]", b"null", b"{", b"", b'{"Id": 5}', b"{}"])
async def test_a_container_whose_id_is_not_told_is_removed_when_it_is_there(
    driver: Docker, script: Scripted, fake: FakeEngine, body: bytes
) -> None:
    script.tell("POST", "/containers/create", answer_bytes(body, "201 Created"))
    script.tell("GET", "/containers/json", answer([{"Id": CONTAINER, "Labels": {}, "Names": ["/x"]}]))
    with pytest.raises(RecoverableError, match="create the container"):
        await driver.start(shell("x"))
    assert any(each.method == "DELETE" for each in fake.requests)
    assert not list((driver.node.state_dir or Path()).glob("docker/*"))


async def end_of(task: RunningTask) -> Exit:
    async with asyncio.timeout(SOON_S):
        return await task.wait()


async def attached(driver: Docker) -> RunningTask:
    return await driver.attach("docker:web")


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense\n",
        b"[]\n",
        b"{}\n",
        b'{"Actor": 5}\n',
        b'{"Actor": {"ID": [1], "Attributes": 5}, "Action": {}, "timeNano": "x"}\n',
        b'{"Actor": {"ID": "%s", "Attributes": {"exitCode": [1]}}, "Action": "health_status: x"}\n'
        % CONTAINER.encode(),
        b"\xff\xff\xff",
        b'{"Actor": {"ID": "',
    ],
)
async def test_nonsense_among_the_events_costs_no_end(driver: Docker, script: Scripted, line: bytes) -> None:
    task = await attached(driver)
    script.events.put_nowait(line)
    script.events.put_nowait(None)
    await asyncio.sleep(0)
    script.tell("GET", f"/containers/{CONTAINER}/json", answer(ENDED))
    script.happened("die", exitCode="3")
    assert (await end_of(task)).exit_code == 3


@pytest.mark.parametrize("code", ["x", "", "-1", "²", {}, None])
async def test_an_end_without_a_code_is_asked_for(driver: Docker, script: Scripted, code: object) -> None:
    task = await attached(driver)
    script.tell("GET", f"/containers/{CONTAINER}/json", answer(ENDED))
    script.happened("die", exitCode=code)
    assert (await end_of(task)).exit_code == 3


@pytest.mark.parametrize("is_told", [True, False])
async def test_lack_of_memory_is_known_also_where_the_engine_hears_of_it_after_the_end(
    driver: Docker, script: Scripted, is_told: bool
) -> None:
    task = await attached(driver)

    async def inspect(connection: Connection, request: Request) -> None:
        killed = {**ENDED, "State": {**ENDED["State"], "ExitCode": 137, "OOMKilled": False}}
        await answer({**killed, "HostConfig": {**killed["HostConfig"], "Memory": 16 << 20}})(connection, request)
        if is_told:
            script.happened("oom")

    script.tell("GET", f"/containers/{CONTAINER}/json", inspect)
    script.happened("die", exitCode="137")
    end = await end_of(task)
    assert (end.exit_code, end.oom_killed) == (137, is_told)


async def test_an_end_that_nobody_can_tell_is_an_error_and_never_success(driver: Docker, script: Scripted) -> None:
    task = await attached(driver)
    script.tell("GET", f"/containers/{CONTAINER}/json", answer({"message": "No such container: c"}, "404 Not Found"))
    script.happened("die")
    end = await end_of(task)
    assert (end.exit_code, "nobody saw" in (end.error or "")) == (None, True)


async def test_an_end_that_comes_between_two_answers_is_not_missed(driver: Docker, script: Scripted) -> None:
    answers = [INSPECTED, ENDED]

    async def inspect(connection: Connection, request: Request) -> None:
        if len(answers) == 2:  # the event is on its way before anybody listens
            script.happened("die", exitCode="3")
            await asyncio.sleep(0.05)
        await answer(answers.pop(0) if len(answers) > 1 else answers[0])(connection, request)

    script.tell("GET", "/containers/web/json", inspect)
    script.tell("GET", f"/containers/{CONTAINER}/json", inspect)
    task = await attached(driver)
    assert (await end_of(task)).exit_code == 3


async def test_a_container_that_is_gone_is_told_so(driver: Docker, script: Scripted) -> None:
    script.tell("GET", "/containers/web/json", answer({"message": "No such container: web"}, "404 Not Found"))
    with pytest.raises(TaskNotFound, match="No such container"):
        await driver.attach("docker:web")


async def test_an_engine_that_is_something_else_is_an_error(driver: Docker, fake: FakeEngine) -> None:
    fake.version = None
    fake.always(then_close(b"SSH-2.0-OpenSSH_9.2\r\n"))
    assert (await health(driver))[0] == "unhealthy"
    with pytest.raises(DriverError):
        await driver.attach("docker:web")
