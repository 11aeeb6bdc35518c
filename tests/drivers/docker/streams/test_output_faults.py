"""Output of an engine that cuts its answers anywhere, or sends what makes no sense."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_engine import Connection, Request, chunked, frame, response, serving

from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.docker.client.endpoint import Endpoint
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.streams.output import Streams
from cameleer.drivers.docker.streams.position import Position

UPGRADED = b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
LINES = [b"line %d\n" % number for number in range(5)]
LOG = [frame(1, b"2023-11-14T22:13:2%d.000000000Z " % number + line) for number, line in enumerate(LINES)]


def state(*, running: bool, log: bytes) -> bytes:
    word = b"true" if running else b"false"
    return response(b'{"Id":"c","State":{"Running":%s},"HostConfig":{"LogConfig":{"Type":"%s"}}}' % (word, log))


class Script:
    """Answers by what is asked; each log is given once, the last for ever."""

    def __init__(
        self,
        attached: bytes = b"",
        logs: list[bytes] | None = None,
        *,
        runs: int = 0,
        log: bytes = b"json-file",
        refusals: Sequence[bytes] = (),
    ) -> None:
        self.attached = attached
        self.log = log
        self.refusals = list(refusals)
        self.logs = logs or []
        self.runs = runs
        self.asked: list[str] = []

    async def __call__(self, connection: Connection, request: Request) -> None:
        self.asked.append(request.target)
        if "/attach" in request.target and self.refusals:
            await connection.send(self.refusals.pop(0))
        elif "/attach" in request.target:
            await connection.send(UPGRADED, self.attached)
            connection.writer.close()
        elif "/logs" in request.target:
            await connection.send(self.logs[0])
            if len(self.logs) > 1:
                self.logs.pop(0)
            connection.writer.close()
        else:
            self.runs -= 1
            await connection.send(state(running=self.runs >= 0, log=self.log))


async def follow(folder: Path, script: Script, *, resumed: bool) -> bytes:
    config = TaskConfig(command="x", stdout=Stdio.file(folder / "out"))
    async with serving(folder) as engine:
        engine.always(script)
        client = Client(Endpoint(url=engine.address, source="test"))
        make = Streams.resume if resumed else Streams.connect
        streams = await make(client, config, "c", record=folder / "record")
        try:
            async with asyncio.timeout(30):
                await asyncio.shield(streams.follow())
        finally:
            await streams.close()
            await client.close()
    return (folder / "out").read_bytes()


@pytest.mark.parametrize("place", range(0, sum(map(len, LOG)), 23))
async def test_a_log_that_is_cut_is_read_again_without_repeat(tmp_path: Path, place: int) -> None:
    whole = chunked(LOG)
    script = Script(logs=[whole[: len(whole) - place - 1], whole])
    assert await follow(tmp_path, script, resumed=True) == b"".join(LINES)


async def test_a_follow_that_ended_too_early_is_completed(tmp_path: Path) -> None:
    script = Script(logs=[chunked(LOG[:2]), chunked(LOG)], runs=1)
    assert await follow(tmp_path, script, resumed=True) == b"".join(LINES)
    asked = [target for target in script.asked if "/logs" in target]
    assert ["follow=1" in target for target in asked] == [True, False]


async def test_an_attached_connection_that_makes_no_sense_is_given_up_for_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    script = Script(frame(1, LINES[0]) + b"nonsense", [chunked(LOG)], runs=1)
    assert await follow(tmp_path, script, resumed=False) == b"".join(LINES)
    assert "the rest comes from the log" in caplog.text
    assert "lacks" not in caplog.text


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("status", [409, 503])
async def test_an_attach_that_is_refused_for_a_while_is_tried_again(tmp_path: Path, status: int, times: int) -> None:
    refusal = response(b'{"message":"not now"}', status=status)
    script = Script(
        frame(1, LINES[4]),
        [chunked(LOG[:2]), chunked(LOG[:4])],
        runs=times + 2,
        log=b"local",
        refusals=[refusal] * times,
    )
    assert await follow(tmp_path, script, resumed=True) == b"".join(LINES)
    assert len([target for target in script.asked if "/logs" in target]) == 2


async def test_an_open_line_that_the_log_lacks_does_not_cut_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    position = Position.open(tmp_path / "record")
    position.delivered(1, b"line 0\nopen when the engine was killed")
    position.close()
    script = Script(logs=[chunked([LOG[0], frame(1, b"2100-01-01T00:00:00.0Z a line as long as what was open\n")])])
    assert await follow(tmp_path, script, resumed=True) == b"a line as long as what was open\n"
    assert "the engine's log lacks some of what was delivered" in caplog.text


async def test_a_frame_that_is_cut_is_delivered_as_far_as_it_came(tmp_path: Path) -> None:
    assert await follow(tmp_path, Script(frame(1, b"cut here")[:11]), resumed=False) == b"cut"
