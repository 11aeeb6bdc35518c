"""The sampler on an engine of a script and a virtual clock."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from itertools import chain, cycle, pairwise, repeat
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_clock import on_a_virtual_clock

from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.stats.remote import EASED, Mode, Sampler, streamed_up_to
from cameleer.errors import RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.usage import Counters

EPOCH = "2024-03-05T10:"
NEVER = "0001-01-01T00:00:00Z"
MS = 1_000_000


def now() -> float:
    return asyncio.get_running_loop().time()


class Answer:
    def __init__(self, body: bytes) -> None:
        self.body = body

    def json(self) -> object:
        return json.loads(self.body)


class FakeEngine:
    """An engine that reads all containers once in each of its seconds, and says so.

    :ivar second_s: how long its second is.
    :ivar cut: bytes of each piece of a stream; 0: whole lines.
    :ivar late: how many seconds the next answer takes to arrive.
    :ivar asked: when each request for statistics was sent, and for whom.
    """

    api_version = "1.41"

    def __init__(self, *, second_s: float = 1.0, cut: int = 0) -> None:
        self.second_s = second_s
        self.cut = cut
        self.states: dict[str, str] = {}
        self.failing: Exception | None = None
        self.frozen = False
        self.stuck_s: float | None = None
        self.garbled = False
        self.ahead_s = 0.0
        self.info_fails: Exception | None = None
        self.tells_time = True
        self.late: Callable[[], float] = lambda: 0.0
        self.asked: list[tuple[float, str]] = []
        self.infos = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self.open_streams = 0
        self.streams_opened = 0
        self._next_s = 0.0

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        body: object = None,
        timeout_s: float = 10.0,
        what: str = "",
    ) -> Answer:
        self._check(path)
        if path == "/info":
            self.infos += 1
            if self.info_fails is not None:
                raise self.info_fails
            info = {"MemTotal": 1000000, "KernelVersion": "6.1.0", "CgroupVersion": "2"}
            if self.tells_time:
                info["SystemTime"] = self.time(now() + self.ahead_s)
            await asyncio.sleep(self.late())
            return Answer(json.dumps(info).encode())
        container = path.split("/")[2]
        if path.endswith("/json"):
            state = self.states.get(container, "running")
            return Answer(
                json.dumps({"State": {"Running": state == "running", "Restarting": state == "restarting"}}).encode()
            )
        assert query == {"stream": "false", "one-shot": "true"}
        self.asked.append((now(), container))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            async with asyncio.timeout(timeout_s):
                await self._next_second()
        except TimeoutError as exc:
            raise RecoverableError(f"{what}: no answer within {timeout_s:g} s") from exc
        finally:
            self.in_flight -= 1
        self._check(path)
        line = self.line(container)
        await asyncio.sleep(self.late())
        return Answer(line)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] = {},
        body: object = None,
        timeout_s: float = 10.0,
        what: str = "",
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        assert query == {"stream": "true"}
        self._check(path)
        self.open_streams += 1
        self.streams_opened += 1
        try:
            async with aclosing(self._pieces(path)) as pieces:
                yield pieces
        finally:
            self.open_streams -= 1

    async def _pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        container = path.split("/")[2]
        while True:
            await self._next_second()
            self._check(path)
            if self.states.get(container) == "closed":
                return
            line = self.line(container) + b"\n"
            await asyncio.sleep(self.late())
            for start in range(0, len(line), self.cut or len(line)):
                yield line[start : start + (self.cut or len(line))]

    async def _next_second(self) -> None:
        if self.frozen:
            await asyncio.Event().wait()
        due = self._next_s
        if now() < due - 1e-9:
            await asyncio.sleep(due - now())
            self._next_s = max(self._next_s, due + self.second_s)
        else:  # it was idle
            self._next_s = now() + self.second_s

    def _check(self, path: str) -> None:
        if self.failing is not None:
            raise self.failing
        if path != "/info" and self.states.get(path.split("/")[2]) == "gone":
            raise TaskNotFound("No such container")

    @staticmethod
    def time(second: float) -> str:
        moment = round(second * 1000)
        return f"{EPOCH}{moment // 60_000:02}:{moment // 1000 % 60:02}.{moment % 1000:03}Z"

    def line(self, container: str) -> bytes:
        if self.garbled:
            return b'{"read": 5'
        if self.states.get(container, "running") != "running":
            return json.dumps({"read": NEVER, "memory_stats": {}}).encode()
        second = (now() if self.stuck_s is None else self.stuck_s) + self.ahead_s
        moment = round(second * 1000)
        read = self.time(second)
        cpu = {"total_usage": moment * MS, "usage_in_usermode": moment * MS, "usage_in_kernelmode": 0}
        memory = {"usage": 500, "limit": 1_000_000, "stats": {"anon": 100, "file": 200, "inactive_file": 50}}
        return json.dumps({"read": read, "cpu_stats": {"cpu_usage": cpu}, "memory_stats": memory}).encode()


def sampler_on(engine: FakeEngine, *, limit: int = 16, mode: Mode = "auto", timeout_s: float = 10.0) -> Sampler:
    return Sampler(cast(Client, engine), limit=limit, mode=mode, timeout_s=timeout_s, now_ns=lambda: int(now() * 1e9))


async def some(sampler: Sampler, container: str, count: int, interval_s: float = 1.0) -> list[tuple[float, Counters]]:
    """So many readings of a container, each with the moment when it came."""
    found: list[tuple[float, Counters]] = []
    async with aclosing(sampler.stats(container, interval_s)) as stream:
        async for counters in stream:
            found.append((now(), counters))
            if len(found) == count:
                break
    return found


def gaps_s(found: list[tuple[float, Counters]]) -> list[float]:
    """Times between the readings, by their own times."""
    return [(later.at_ns - earlier.at_ns) / 1e9 for (_, earlier), (_, later) in pairwise(found)]


async def others() -> int:
    """How many asyncio tasks there are besides this one, when those that were cancelled are gone."""
    await asyncio.sleep(0)
    return len(asyncio.all_tasks()) - 1


BOTH: list[Mode] = ["one-shot", "stream"]
both = pytest.mark.parametrize("mode", BOTH)

# -- one-shot ------------------------------------------------------------------------------------------------------


@on_a_virtual_clock
async def test_the_first_reading_comes_at_once() -> None:
    engine = FakeEngine()
    begun = now()
    found = await some(sampler_on(engine), "a", 1, interval_s=60)
    assert now() == begun
    assert found[0][1].memory.limit_bytes is None  # the machine's memory
    assert found[0][1].io.read_bytes is None


@on_a_virtual_clock
async def test_as_many_containers_as_requests_keep_the_interval() -> None:
    """The engine's second is a little longer than ours: none is lost for that."""
    engine = FakeEngine(second_s=1.01)
    sampler = sampler_on(engine, mode="one-shot")
    found = await asyncio.gather(*(some(sampler, f"c{number}", 100) for number in range(16)))
    for each in found:
        assert max(gaps_s(each)) <= 1.02
    assert sampler.figures().late == 0
    assert engine.most_in_flight <= 16


@on_a_virtual_clock
async def test_time_between_readings_is_the_engines_own() -> None:
    found = await some(sampler_on(FakeEngine(second_s=1.25)), "a", 20)
    for (_, earlier), (_, later) in pairwise(found[1:]):
        passed = later.at_ns - earlier.at_ns
        assert passed == pytest.approx(1.25e9, abs=MS)
        assert (later.cpu.total_ns or 0) - (earlier.cpu.total_ns or 0) == pytest.approx(passed, abs=2 * MS)


late_ms = st.integers(0, 4000) | st.sampled_from([0, 2, 100, 1300])


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(["one-shot", "stream"]), st.booleans(), st.lists(late_ms, min_size=1, max_size=30))
def test_rates_are_the_engines_own_however_late_each_answer_is_handled(
    mode: Mode, tells_time: bool, delays: list[int]
) -> None:
    """What it says of itself included. Of an engine that does not say the time, it is known when it was asked."""

    @on_a_virtual_clock
    async def measured() -> None:
        engine = FakeEngine()
        engine.tells_time = tells_time or mode == "stream"
        engine.late = cycle(delay / 1000 for delay in delays).__next__
        found = await asyncio.gather(*(some(sampler_on(engine, mode=mode), name, 20) for name in "ab"))
        for each in found:
            assert all(counters.at_ns <= moment * 1e9 for moment, counters in each)
            for (_, earlier), (_, later) in pairwise(each):
                used_ns = (later.cpu.total_ns or 0) - (earlier.cpu.total_ns or 0)  # it keeps one core busy
                assert used_ns == pytest.approx(later.at_ns - earlier.at_ns, rel=0.01)

    measured()


@both
@on_a_virtual_clock
async def test_a_first_answer_that_is_handled_late_shortens_no_window(mode: Mode) -> None:
    engine = FakeEngine()
    engine.late = chain([0.0, 1.3], repeat(0.0)).__next__  # the first is of its own time
    found = await some(sampler_on(engine, mode=mode), "a", 4)
    assert min(gaps_s(found)) >= 0.999


@both
@on_a_virtual_clock
async def test_the_engines_time_is_asked_for_again_now_and_then(mode: Mode) -> None:
    engine = FakeEngine()
    await some(sampler_on(engine, mode=mode), "a", 1000)
    assert engine.infos == 4


@on_a_virtual_clock
async def test_a_time_that_cannot_be_asked_for_again_ends_no_stream() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine)
    async with aclosing(sampler.stats("a", 1.0)) as stream:
        await anext(stream)
        engine.info_fails = RecoverableError("too busy")
        found = [(now(), await anext(stream)) for _ in range(400)]
    assert gaps_s(found) == pytest.approx([1.0] * 399, abs=0.002)
    assert engine.infos == 2


@on_a_virtual_clock
async def test_no_more_requests_than_the_limit_are_sent_at_a_time() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, limit=4, mode="one-shot")
    await asyncio.gather(*(some(sampler, f"c{number}", 5) for number in range(9)))
    assert engine.most_in_flight == 4
    assert engine.in_flight == 0


@on_a_virtual_clock
async def test_beyond_the_limit_the_true_period_is_seen_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, limit=4, mode="one-shot")
    seen = []

    async def one(number: int) -> list[tuple[float, Counters]]:
        found = await some(sampler, f"c{number}", 30)
        seen.append(sampler.figures())
        return found

    with caplog.at_level(logging.WARNING, "cameleer"):
        found = await asyncio.gather(*(one(number) for number in range(12)))
    for each in found:
        assert sum(gaps_s(each)[5:]) / 24 == pytest.approx(3, rel=0.02)
    assert seen[0].late == 11  # all but the one that has just left
    assert seen[0].longest_period_s == pytest.approx(3, rel=0.1)
    (record,) = caplog.records
    found_late = re.fullmatch(
        r"readings of container c\d+ come every (.*) s instead of every 1 s: the engine answers at its next second, "
        "4 requests at a time for 12 containers; raise stats_requests, or set stats_mode to auto or stream",
        record.getMessage(),
    )
    assert found_late
    assert float(found_late[1]) == pytest.approx(3, rel=0.1)


@on_a_virtual_clock
async def test_an_interval_shorter_than_the_engines_second_is_late(caplog: pytest.LogCaptureFixture) -> None:
    sampler = sampler_on(FakeEngine())
    async with aclosing(sampler.stats("a", 0.2)) as stream:
        found = [await anext(stream) for _ in range(20)]
        assert sampler.figures().longest_period_s == pytest.approx(1, rel=0.02)
    assert len({each.at_ns for each in found}) == 20
    assert [record.getMessage() for record in caplog.records] == [
        "readings of container a come every 1.00 s instead of every 0.2 s: an engine reads its containers once a second"
    ]


@both
@on_a_virtual_clock
async def test_an_engine_that_is_slow_is_late_whatever_the_limit(mode: Mode, caplog: pytest.LogCaptureFixture) -> None:
    sampler = sampler_on(FakeEngine(second_s=1.5), mode=mode)
    await asyncio.gather(*(some(sampler, name, 20) for name in "ab"))
    (record,) = caplog.records
    assert record.getMessage().endswith(
        "come every 1.50 s instead of every 1 s: the engine takes so long to read 2 containers"
    )


@on_a_virtual_clock
async def test_lateness_that_ended_is_told_when_it_begins_again(caplog: pytest.LogCaptureFixture) -> None:
    sampler = sampler_on(FakeEngine(), limit=1, mode="one-shot")
    for _ in range(2):
        await asyncio.gather(*(some(sampler, name, 40) for name in "abc"))
        assert sampler.figures().late == 0
    assert len(caplog.records) == 2


@on_a_virtual_clock
async def test_requests_of_one_interval_are_sent_in_a_burst() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine)

    async def joined_late(number: int) -> None:
        await asyncio.sleep(number * 0.7)
        await some(sampler, f"c{number}", 6, interval_s=10)

    await asyncio.gather(*(joined_late(number) for number in range(10)))
    moments = [moment for moment, _ in engine.asked if moment % 10 < 1e-6]
    assert len(set(moments)) <= 6
    assert len(engine.asked) - len(moments) == 9  # the first readings, but of who came at a beat


@on_a_virtual_clock
async def test_an_answer_with_nothing_new_is_not_yielded_again() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine)
    async with aclosing(sampler.stats("a", 1.0)) as stream:
        first = await anext(stream)
        engine.stuck_s = now()
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(10.5)
        stuck_at = len(engine.asked)
        engine.stuck_s = None
        second = await waiting
    assert stuck_at > 5
    assert sampler.figures().unchanged > 5
    assert second.at_ns > first.at_ns


@on_a_virtual_clock
async def test_a_slow_consumer_loses_intervals_and_blocks_nobody() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, limit=2)

    async def slow() -> list[int]:
        found = []
        async with aclosing(sampler.stats("slow", 1.0)) as stream:
            async for counters in stream:
                found.append(counters.at_ns)
                if len(found) == 4:
                    return found
                await asyncio.sleep(7)
        raise AssertionError

    quick = asyncio.ensure_future(some(sampler, "quick", 25))
    moments = await slow()
    assert min(later - earlier for earlier, later in pairwise(moments)) > 6.9e9
    assert max(gaps_s(await quick)) <= 1.02
    assert sampler.figures().late == 0


@on_a_virtual_clock
async def test_the_machine_is_asked_for_once() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine)
    await asyncio.gather(*(some(sampler, f"c{number}", 3) for number in range(10)))
    assert engine.infos == 1


# -- streams -------------------------------------------------------------------------------------------------------


@on_a_virtual_clock
async def test_a_stream_gives_the_newest_at_the_hosts_beat() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, mode="stream")
    found = await some(sampler, "a", 8, interval_s=5)
    assert all(abs(moment % 5) < 1e-6 or 5 - moment % 5 < 1e-6 for moment, _ in found[1:])
    assert gaps_s(found)[1:] == pytest.approx([5] * 6, abs=1.01)
    for moment, counters in found:
        assert moment - counters.at_ns / 1e9 <= 1.01
    assert engine.streams_opened == 1
    assert not engine.asked


@on_a_virtual_clock
async def test_a_stream_never_gives_an_old_value_again() -> None:
    found = await some(sampler_on(FakeEngine(second_s=1.3), mode="stream"), "a", 30, interval_s=0.5)
    assert gaps_s(found) == pytest.approx([1.3] * 29, abs=0.01)


@pytest.mark.parametrize("cut", [1, 7, 1000])
@on_a_virtual_clock
async def test_a_stream_is_understood_however_it_is_cut(cut: int) -> None:
    found = await some(sampler_on(FakeEngine(cut=cut), mode="stream"), "a", 5)
    assert gaps_s(found)[1:] == pytest.approx([1] * 3, abs=0.01)


@on_a_virtual_clock
async def test_a_slow_consumer_of_a_stream_gets_the_newest() -> None:
    sampler = sampler_on(FakeEngine(), mode="stream")
    async with aclosing(sampler.stats("a", 1.0)) as stream:
        await anext(stream)
        await asyncio.sleep(60.5)
        late = await anext(stream)
        assert now() - late.at_ns / 1e9 <= 1.01


@on_a_virtual_clock
async def test_a_silent_stream_is_an_error() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, mode="stream", timeout_s=10)
    async with aclosing(sampler.stats("a", 1.0)) as stream:
        await anext(stream)
        engine.frozen = True
        begun = now()
        with pytest.raises(RecoverableError, match="said nothing of container a for 10 s"):
            async for _ in stream:
                pass
    assert 10 < now() - begun < 13
    assert engine.open_streams == 0


@on_a_virtual_clock
async def test_a_stream_that_says_nothing_at_first_is_an_error() -> None:
    engine = FakeEngine()
    engine.frozen = True
    with pytest.raises(RecoverableError, match="said nothing"):
        await some(sampler_on(engine, mode="stream"), "a", 1)
    assert (engine.open_streams, await others()) == (0, 0)


@on_a_virtual_clock
async def test_a_stream_without_an_end_of_line_is_an_error() -> None:
    class Endless(FakeEngine):
        async def _pieces(self, path: str) -> AsyncGenerator[bytes, None]:
            while True:
                yield b"[" * 100_000
                await asyncio.sleep(0)

    with pytest.raises(RecoverableError, match="no end"):
        await some(sampler_on(Endless(), mode="stream"), "a", 1)


@on_a_virtual_clock
async def test_an_engine_without_one_shot_is_streamed() -> None:
    engine = FakeEngine()
    engine.api_version = "1.40"
    await some(sampler_on(engine, mode="one-shot"), "a", 3)
    assert (engine.asked, engine.streams_opened) == ([], 1)


# -- which of both -------------------------------------------------------------------------------------------------


@on_a_virtual_clock
async def test_beyond_the_limit_auto_streams_and_keeps_the_interval() -> None:
    engine = FakeEngine(second_s=1.01)
    sampler = sampler_on(engine, limit=4)
    found = await asyncio.gather(*(some(sampler, f"c{number}", 30) for number in range(12)))
    for each in found:
        assert sum(gaps_s(each)) / 29 == pytest.approx(1.01, rel=0.02)
    assert engine.streams_opened == 12


@on_a_virtual_clock
async def test_auto_goes_back_to_requests_when_there_is_room() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, limit=4)
    staying = [asyncio.ensure_future(some(sampler, f"s{number}", 60)) for number in range(3)]
    leaving = [asyncio.ensure_future(some(sampler, f"l{number}", 20)) for number in range(2)]
    await asyncio.sleep(10)
    assert (sampler.figures().streamed, engine.open_streams) == (5, 5)
    await asyncio.gather(*leaving)
    await asyncio.sleep(3)
    assert (sampler.figures().streamed, engine.open_streams) == (0, 0)
    for each in await asyncio.gather(*staying):
        assert min(gaps_s(each)) > 0.5
        assert max(gaps_s(each)) < 2.1


@on_a_virtual_clock
async def test_long_intervals_are_asked_for_while_short_ones_are_streamed() -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, limit=4)
    short = [asyncio.ensure_future(some(sampler, f"s{number}", 60)) for number in range(5)]
    long = [asyncio.ensure_future(some(sampler, f"l{number}", 5, interval_s=10)) for number in range(20)]
    await asyncio.sleep(20)
    assert (sampler.figures().streamed, sampler.figures().containers) == (5, 25)
    await asyncio.gather(*short, *long)
    assert {container[0] for moment, container in engine.asked if 1010 < moment < 1040} == {"l"}


def test_streams_begin_above_the_limit_and_end_well_below() -> None:
    assert streamed_up_to({1.0: 16}, 16) == 0
    assert streamed_up_to({1.0: 17}, 16) == 1.0
    assert streamed_up_to({1.0: 16}, 16, now_s=1.0) == 1.0
    assert streamed_up_to({1.0: 12}, 16, now_s=1.0) == 0
    assert streamed_up_to({0.1: 17}, 16) == 0.1
    assert streamed_up_to({10.0: 160}, 16) == 0
    assert streamed_up_to({10.0: 161}, 16) == 10.0
    assert streamed_up_to({1.0: 17, 10.0: 100}, 16) == 1.0
    assert streamed_up_to({1.0: 10, 10.0: 100}, 16) == 1.0
    assert streamed_up_to({}, 16, now_s=10.0) == 0


@given(
    st.dictionaries(st.sampled_from([0.1, 1.0, 2.0, 5.0, 10.0, 60.0]), st.integers(1, 300)),
    st.integers(1, 64),
    st.sampled_from([0.0, 1.0, 10.0, 60.0]),
)
def test_what_is_not_streamed_fits_into_the_limit(intervals: dict[float, int], limit: int, before_s: float) -> None:
    found = streamed_up_to(intervals, limit, before_s)
    rest = sum(count / max(interval_s, 1.0) for interval_s, count in intervals.items() if interval_s > found)
    assert rest <= limit + 1e-6
    assert streamed_up_to(intervals, limit, found) == found  # no to and fro
    if sum(count / max(interval_s, 1.0) for interval_s, count in intervals.items()) <= limit * EASED - 1e-6:
        assert found == 0


# -- ends and faults -----------------------------------------------------------------------------------------------


@both
@on_a_virtual_clock
async def test_a_container_that_is_gone_cannot_be_measured(mode: Mode) -> None:
    engine = FakeEngine()
    engine.states["a"] = "gone"
    with pytest.raises(TaskNotFound):
        await some(sampler_on(engine, mode=mode), "a", 1)
    assert (engine.in_flight, engine.open_streams, await others()) == (0, 0, 0)


@both
@on_a_virtual_clock
async def test_a_container_that_does_not_run_cannot_be_measured(mode: Mode) -> None:
    engine = FakeEngine()
    engine.states["a"] = "exited"
    with pytest.raises(UnrecoverableError, match="container a does not run"):
        await some(sampler_on(engine, mode=mode), "a", 1)


@both
@pytest.mark.parametrize("state", ["exited", "gone"])
@on_a_virtual_clock
async def test_a_container_that_ends_during_a_stream_ends_it(mode: Mode, state: str) -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, mode=mode)
    async with aclosing(sampler.stats("a", 1.0)) as stream:
        await anext(stream)
        engine.states["a"] = state
        async with asyncio.timeout(5):
            assert [each async for each in stream] == []
    assert sampler.figures().containers == 0
    assert (engine.in_flight, engine.open_streams, await others()) == (0, 0, 0)


@both
@on_a_virtual_clock
async def test_a_container_that_restarts_goes_on(mode: Mode) -> None:
    engine = FakeEngine()
    async with aclosing(sampler_on(engine, mode=mode).stats("a", 1.0)) as stream:
        first = await anext(stream)
        engine.states["a"] = "restarting"
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(5.5)
        del engine.states["a"]
        assert (await waiting).at_ns - first.at_ns > 4e9


@both
@on_a_virtual_clock
async def test_an_engine_that_is_gone_may_come_back(mode: Mode) -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, mode=mode)
    async with aclosing(sampler.stats("a", 1.0)) as stream:
        await anext(stream)
        engine.failing = RecoverableError("connection refused")
        with pytest.raises(RecoverableError, match="connection refused"):
            async for _ in stream:
                pass
    engine.failing = None
    assert len(await some(sampler, "a", 2)) == 2
    assert engine.infos == 2  # it may be another
    assert (engine.in_flight, engine.open_streams, await others()) == (0, 0, 0)


@on_a_virtual_clock
async def test_a_stream_that_the_engine_closes_while_the_container_runs_is_opened_again_by_the_host() -> None:
    engine = FakeEngine()
    async with aclosing(sampler_on(engine, mode="stream").stats("a", 1.0)) as stream:
        await anext(stream)
        engine.states["a"] = "closed"
        engine.line = lambda container: b""  # type: ignore[method-assign]
        engine.states["a"] = "closed"

        async def inspected(*_: object, **__: object) -> Answer:
            return Answer(b'{"State": {"Running": true}}')

        engine.request = inspected  # type: ignore[method-assign]
        with pytest.raises(RecoverableError, match="has ended the statistics of container a"):
            async for _ in stream:
                pass


@on_a_virtual_clock
async def test_a_frozen_engine_is_given_up_at_the_deadline() -> None:
    engine = FakeEngine()
    engine.frozen = True
    begun = now()
    with pytest.raises(RecoverableError, match="no answer within 10 s"):
        await some(sampler_on(engine), "a", 1)
    assert now() - begun == pytest.approx(10)


@both
@on_a_virtual_clock
async def test_a_garbled_answer_is_recoverable(mode: Mode) -> None:
    engine = FakeEngine()
    engine.garbled = True
    with pytest.raises(RecoverableError, match="cannot make sense"):
        await some(sampler_on(engine, mode=mode), "a", 1)


@both
@on_a_virtual_clock
async def test_the_engines_clock_may_be_set(mode: Mode) -> None:
    engine = FakeEngine()
    async with aclosing(sampler_on(engine, mode=mode).stats("a", 1.0)) as stream:
        await anext(stream)
        before = await anext(stream)
        for ahead_s in (600.0, 0.0):
            engine.ahead_s = ahead_s
            after = await anext(stream)
            assert after.at_ns - before.at_ns == pytest.approx(1e9, abs=10 * MS)
            before = after


@both
@pytest.mark.parametrize("moment_s", [0.0, 0.5, 1.0, 3.7])
@on_a_virtual_clock
async def test_a_cancelled_consumer_leaves_nothing_behind(mode: Mode, moment_s: float) -> None:
    engine = FakeEngine()
    sampler = sampler_on(engine, limit=2, mode=mode)
    work = [asyncio.ensure_future(some(sampler, f"c{number}", 1000)) for number in range(6)]
    await asyncio.sleep(moment_s)
    for each in work:
        each.cancel()
    begun = now()
    await asyncio.gather(*work, return_exceptions=True)
    assert now() == begun
    assert (engine.in_flight, engine.open_streams, await others()) == (0, 0, 0)
    assert (sampler.figures().containers, sampler.figures().in_flight) == (0, 0)
    assert len(await some(sampler, "after", 2)) == 2  # no slot is lost


@both
@on_a_virtual_clock
async def test_who_leaves_early_closes_at_once(mode: Mode) -> None:
    engine = FakeEngine()
    stream = sampler_on(engine, mode=mode).stats("a", 1.0)
    await anext(stream)
    begun = now()
    await stream.aclose()
    assert now() == begun
    assert (engine.in_flight, engine.open_streams, await others()) == (0, 0, 0)
