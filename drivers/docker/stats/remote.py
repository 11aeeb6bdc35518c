"""Readings of containers from the engine's statistics: a request for each, or a stream for each container.

An engine reads once a second, and answers a request at its next second. So one request at a time gives a container a
second, and ``limit`` at a time give ``limit`` containers a second; a stream gives each container a reading a second and
holds a connection for it. Both cost the engine the same for each reading; a stream makes it read every second, whatever
the interval.

The requests of one interval are sent together: an engine that is asked at all times of the second works several times
as much.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from cameleer.beat import ticks
from cameleer.drivers.docker.stats import clock, statistics
from cameleer.drivers.docker.stats.machine import Machine, machine
from cameleer.errors import RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.log import fields, log

if TYPE_CHECKING:
    from cameleer.driver import Tick
    from cameleer.drivers.docker.client.http import Client
    from cameleer.usage import Counters

Mode = Literal["auto", "one-shot", "stream"]

_ASKED_TIMES: Final = 3
_PROMPT_NS: Final = 20_000_000
"""An answer that took longer says too little of the engine's clock."""
ENGINE_PERIOD_S: Final = 1.0
"""An engine reads a container so often at most."""
ONE_SHOT_SINCE: Final = (1, 41)
"""The version of the API that has it; before, a request takes two readings and two seconds."""
EASED: Final = 0.75
"""Streams end when what they give way to fills so much of the limit, not the whole of it: no to and fro."""
LATE: Final = 1.1
"""A period so many times the interval is late. The engine's own second lasts up to 1.06 with 16 containers."""
PACE_READINGS: Final = 10
"""The period is the average of so many."""
LONGEST_LINE: Final = 1 << 20
"""Bytes of one reading; a thousand times what an engine writes."""


class _State(msgspec.Struct, rename="pascal"):
    running: bool = False
    paused: bool = False
    restarting: bool = False


class _Inspected(msgspec.Struct, rename="pascal"):
    state: _State


@dataclass(frozen=True, kw_only=True)
class SamplerFigures:
    """How the readings are come by.

    :ivar containers: measured now.
    :ivar streamed: those of them with a stream.
    :ivar requests: one-shot requests sent so far.
    :ivar in_flight: those that wait for their answer.
    :ivar unchanged: answers that held nothing new.
    :ivar late: containers whose readings come less often than asked for.
    :ivar longest_period_s: the longest time between two readings of these, by the readings' own times; 0: none is late.
    """

    containers: int
    streamed: int
    requests: int
    in_flight: int
    unchanged: int
    late: int
    longest_period_s: float


def streamed_up_to(intervals: Mapping[float, int], limit: int, now_s: float = 0.0) -> float:
    """Up to which interval containers are streamed, so that the limit is enough for the others; 0: none.

    :param intervals: how many containers there are of each interval, seconds.
    :param limit: requests at a time, each of which takes one of the engine's seconds.
    :param now_s: what it is now: it does not change back before there is some room.
    """
    needed = _enough(intervals, limit)
    return needed if needed >= now_s else min(now_s, max(needed, _enough(intervals, limit * EASED)))


def _enough(intervals: Mapping[float, int], room: float) -> float:
    busy = sum(count * ENGINE_PERIOD_S / max(interval_s, ENGINE_PERIOD_S) for interval_s, count in intervals.items())
    longest = 0.0
    for interval_s in sorted(intervals):
        if busy <= room + 1e-9:
            break
        busy -= intervals[interval_s] * ENGINE_PERIOD_S / max(interval_s, ENGINE_PERIOD_S)
        longest = interval_s
    return longest


class _Pace:
    """How often readings come, by their own times. The first does not count: it comes when it can."""

    __slots__ = ("_from_ns", "_readings")

    def __init__(self) -> None:
        self._from_ns = 0
        self._readings = -2

    def interrupt(self) -> None:
        """Begin anew with the next reading."""
        self._readings = -1

    def add(self, at_ns: int) -> float | None:
        """Note a reading; the average time between the last ones, seconds, when there are enough of them."""
        self._readings += 1
        if self._readings == PACE_READINGS:
            period_s = (at_ns - self._from_ns) / 1e9 / PACE_READINGS
            self._from_ns, self._readings = at_ns, 0
            return period_s
        if not self._readings:
            self._from_ns = at_ns
        return None


class _Member:
    """One container measured at one interval, and how far that has come."""

    __slots__ = ("container", "ended", "interval_s", "late_s", "pace", "read", "times")

    def __init__(self, container: str, interval_s: float, times: clock.Times) -> None:
        self.container = container
        self.interval_s = interval_s
        self.read = ""
        self.times = times
        self.ended = False
        self.pace = _Pace()
        self.late_s = 0.0


class _Rhythm:
    """The beat of one stream. Who was late goes on at once: else each interval in which the engine's second is a little
    longer than ours would cost a whole one.
    """

    __slots__ = ("_beat", "_due_s", "_interval_s", "_loop")

    def __init__(self, beat: AsyncGenerator[Tick, None], interval_s: float) -> None:
        self._beat = beat
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._due_s = self._loop.time() + interval_s

    async def wait(self) -> None:
        """Until the next interval begins."""
        now = self._loop.time()
        if now >= self._due_s:
            self._due_s = max(self._due_s + self._interval_s, now)
            return
        await anext(self._beat)
        self._due_s = self._loop.time() + self._interval_s


class _Newest:
    """The newest line of a stream.

    :ivar changed: set by a line, and by the end.
    """

    __slots__ = ("_line", "_now_ns", "_received_ns", "changed")

    def __init__(self, now_ns: Callable[[], int]) -> None:
        self._now_ns = now_ns
        self._line: bytes | None = None
        self._received_ns = 0
        self.changed = asyncio.Event()

    def put(self, line: bytes) -> None:
        self._line, self._received_ns = line, self._now_ns()
        self.changed.set()

    def take(self) -> tuple[bytes, int] | None:
        """What was not taken yet, and when it arrived."""
        line, self._line = self._line, None
        self.changed.clear()
        return None if line is None else (line, self._received_ns)


class Sampler:
    """Measures the containers of one engine.

    :param limit: one-shot requests at a time.
    :param mode: ``auto``: streams where the limit makes the interval impossible, for the shortest intervals first.
    :param timeout_s: how long the engine may take to answer, and be silent in a stream.
    :param now_ns: our clock.
    """

    def __init__(
        self,
        client: Client,
        *,
        limit: int = 16,
        mode: Mode = "auto",
        timeout_s: float = 10.0,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._client = client
        self._limit = max(limit, 1)
        self._mode: Mode = mode
        self._timeout_s = timeout_s
        self._now_ns = now_ns
        self._slots = asyncio.Semaphore(self._limit)
        self._asking = asyncio.Lock()
        self._machine: Machine | None = None
        self._has_one_shot = True
        self._clock = clock.EngineClock()
        self._tells_time = True
        self._members: set[_Member] = set()
        self._intervals: Counter[float] = Counter()
        self._streamed_up_to = 0.0
        self._streamed = 0
        self._requests = 0
        self._in_flight = 0
        self._unchanged = 0
        self._told_late = False

    async def stats(self, container_id: str, interval_s: float) -> AsyncGenerator[Counters, None]:
        """Yield what the engine says of a container, at the host's beat; ends when the container does.

        Times are the engine's own, mapped to our clock; an answer with nothing new is not yielded again.

        :raises UnrecoverableError: it had ended before the first reading.
        :raises RecoverableError: the engine does not answer, or cannot be understood.
        """
        member = _Member(container_id, interval_s, clock.Times(self._clock))
        self._join(member)
        try:
            async with aclosing(ticks(interval_s)) as beat:
                await anext(beat)  # the first comes at once
                rhythm = _Rhythm(beat, interval_s)
                await self._know_the_machine()
                while not member.ended:
                    streams = self._streams(member)
                    source = self._by_stream(member, rhythm) if streams else self._by_request(member, rhythm)
                    async with aclosing(source) as found:
                        async for counters in found:
                            given_ns = self._now_ns()
                            yield counters
                            if self._now_ns() - given_ns > interval_s * 1e9:
                                member.pace.interrupt()  # it is not the engine that is slow
        except RecoverableError:
            self._machine = None  # it may come back as another
            raise
        finally:
            self._leave(member)

    def figures(self) -> SamplerFigures:
        """How it is going."""
        late = [member.late_s for member in self._members if member.late_s]
        return SamplerFigures(
            containers=len(self._members),
            streamed=self._streamed,
            requests=self._requests,
            in_flight=self._in_flight,
            unchanged=self._unchanged,
            late=len(late),
            longest_period_s=max(late, default=0.0),
        )

    # -- which way -----------------------------------------------------------------------------------------------

    def _join(self, member: _Member) -> None:
        self._members.add(member)
        self._intervals[member.interval_s] += 1
        self._streamed_up_to = streamed_up_to(self._intervals, self._limit, self._streamed_up_to)

    def _leave(self, member: _Member) -> None:
        self._members.discard(member)
        self._intervals[member.interval_s] -= 1
        self._intervals += Counter()  # drops the zeros
        self._streamed_up_to = streamed_up_to(self._intervals, self._limit, self._streamed_up_to)
        if not any(each.late_s for each in self._members):
            self._told_late = False

    def _streams(self, member: _Member) -> bool:
        if self._mode == "stream" or not self._has_one_shot:
            return True
        return self._mode == "auto" and member.interval_s <= self._streamed_up_to

    async def _know_the_machine(self) -> Machine:
        async with self._asking:  # one asks for all
            return self._machine or await self._ask_the_engine()

    async def _ask_the_engine(self) -> Machine:
        """Ask what it is, and what time it has: of slow answers one may be nearer to the truth than the others."""
        for _ in range(_ASKED_TIMES):
            asked_ns = self._now_ns()
            response = await self._client.request(
                "GET", "/info", timeout_s=self._timeout_s, what="ask the engine what it is"
            )
            received_ns = self._now_ns()
            info = response.json()
            time_ns = clock.system_ns(info)
            self._tells_time = time_ns is not None
            if time_ns is not None:
                self._clock.told(time_ns, asked_ns=asked_ns, received_ns=received_ns)
            if time_ns is None or received_ns - asked_ns <= _PROMPT_NS:
                break
        self._machine = machine(info)
        self._has_one_shot = _version(self._client.api_version) >= ONE_SHOT_SINCE
        return self._machine

    # -- a request for each reading ------------------------------------------------------------------------------

    async def _by_request(self, member: _Member, rhythm: _Rhythm) -> AsyncGenerator[Counters, None]:
        while not self._streams(member):
            reply, asked_ns, received_ns = await self._ask(member)
            counters = await self._counted(member, reply, received_ns, asked_ns)
            if counters is not None:
                yield counters
            if member.ended:
                return
            await rhythm.wait()

    async def _ask(self, member: _Member) -> tuple[statistics.Reply, int, int]:
        async with self._slots:
            self._requests += 1
            self._in_flight += 1
            asked_ns = self._now_ns()
            try:
                response = await self._client.request(
                    "GET",
                    f"/containers/{member.container}/stats",
                    query={"stream": "false", "one-shot": "true"},
                    timeout_s=self._timeout_s,
                    what=f"measure container {member.container[:12]}",
                )
            except TaskNotFound as exc:
                self._gone(member, exc)
                return _NOTHING, asked_ns, asked_ns
            finally:
                self._in_flight -= 1
        return statistics.decode(response.body), asked_ns, self._now_ns()

    # -- a stream for each container -----------------------------------------------------------------------------

    async def _by_stream(self, member: _Member, rhythm: _Rhythm) -> AsyncGenerator[Counters, None]:
        newest = _Newest(self._now_ns)
        work = asyncio.get_running_loop().create_task(self._follow(member.container, newest))
        self._streamed += 1
        try:
            while not member.ended and self._streams(member):
                has_ended = work.done()  # before looking what came last
                found = newest.take()
                if found is not None:
                    line, received_ns = found
                    counters = await self._counted(member, statistics.decode(line), received_ns)
                    if counters is not None:
                        yield counters
                    if not member.ended:
                        await rhythm.wait()
                elif has_ended:
                    await self._stream_ended(member, work.exception())
                else:
                    await self._arrival(newest, member)
        finally:
            self._streamed -= 1
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _follow(self, container: str, newest: _Newest) -> None:
        """Keep the newest line of a stream until it ends."""
        rest = b""
        try:
            async with self._client.stream(
                "GET",
                f"/containers/{container}/stats",
                query={"stream": "true"},
                timeout_s=self._timeout_s,
                what=f"measure container {container[:12]}",
            ) as stream:
                async for chunk in stream:
                    rest += chunk
                    if b"\n" in chunk:
                        *lines, rest = rest.split(b"\n")
                        for line in lines:
                            if line.strip():
                                newest.put(line)
                    if len(rest) > LONGEST_LINE:
                        raise RecoverableError(f"the engine's statistics of container {container[:12]} have no end")
        finally:
            newest.changed.set()

    async def _arrival(self, newest: _Newest, member: _Member) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await newest.changed.wait()
        except TimeoutError as exc:
            text = f"the engine has said nothing of container {member.container[:12]} for {self._timeout_s:g} s"
            raise RecoverableError(text) from exc

    async def _stream_ended(self, member: _Member, error: BaseException | None) -> None:
        if isinstance(error, TaskNotFound):
            self._gone(member, error)
        elif error is not None:
            raise error
        elif await self._lives(member):
            raise RecoverableError(f"the engine has ended the statistics of container {member.container[:12]}")
        else:
            self._gone(member, None)

    # -- both ----------------------------------------------------------------------------------------------------

    async def _counted(
        self, member: _Member, reply: statistics.Reply, received_ns: int, asked_ns: int | None = None
    ) -> Counters | None:
        """The counters of an answer; None: there is nothing new, or it has ended."""
        if member.ended:
            return None
        if reply.is_empty:
            if not await self._lives(member):
                self._gone(member, None)
            return None
        if reply.read == member.read:
            self._unchanged += 1
            return None
        at_ns = await self._at_ns(member, clock.unix_ns(reply.read), received_ns, asked_ns)
        if at_ns is None:
            self._unchanged += 1
            return None
        member.read = reply.read
        period_s = member.pace.add(at_ns)
        if period_s is not None:
            self._note_period(member, period_s)
        return statistics.counters(
            reply,
            at_ns=at_ns,
            taken_at_ns=clock.taken_at_ns(at_ns),
            machine=self._machine or await self._know_the_machine(),
        )

    async def _at_ns(self, member: _Member, read_ns: int, received_ns: int, asked_ns: int | None) -> int | None:
        """When a reading was true, by our clock; None: it is not newer than the one before."""

        def fits() -> bool:
            return self._clock.fits(read_ns, received_ns=received_ns, asked_ns=asked_ns)

        times_set, is_newer = self._clock.times_set, member.times.is_newer(read_ns)
        if not fits() or not is_newer or self._clock.is_due(received_ns):
            async with self._asking:
                if times_set == self._clock.times_set:  # else another has asked meanwhile
                    with suppress(RecoverableError):
                        await self._ask_the_engine()
                if not fits() or not (is_newer or self._tells_time):  # we do not know better than the reading itself
                    earliest_ns = (received_ns if asked_ns is None else asked_ns) - clock.TOLERANCE_NS
                    self._clock.told(read_ns, asked_ns=earliest_ns, received_ns=received_ns)
        return member.times.at_ns(read_ns, received_ns=received_ns)

    async def _lives(self, member: _Member) -> bool:
        """Whether it runs, or will again: the answer that counts nothing does not tell."""
        try:
            response = await self._client.request(
                "GET",
                f"/containers/{member.container}/json",
                timeout_s=self._timeout_s,
                what=f"inspect container {member.container[:12]}",
            )
        except TaskNotFound:
            return False
        try:
            state = msgspec.convert(response.json(), _Inspected).state
        except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
            raise RecoverableError(
                f"cannot make sense of the state of container {member.container[:12]}: {exc}"
            ) from exc
        return state.running or state.paused or state.restarting

    def _gone(self, member: _Member, error: TaskNotFound | None) -> None:
        """It has ended, which ends the readings, if there were any.

        :raises UnrecoverableError: there were none.
        """
        if not member.read:
            text = f"container {member.container[:12]} does not run: there is nothing to measure"
            raise error or UnrecoverableError(text)
        member.ended = True

    def _note_period(self, member: _Member, period_s: float) -> None:
        """Say once that readings are late, and why."""
        member.late_s = period_s if period_s > LATE * member.interval_s else 0.0
        if not member.late_s:
            self._told_late = self._told_late and any(each.late_s for each in self._members)
        elif not self._told_late:
            self._told_late = True
            log.warning(
                "readings of container %s come every %.2f s instead of every %g s: %s",
                member.container[:12],
                period_s,
                member.interval_s,
                self._why_late(member),
                extra=fields(driver="docker"),
            )

    def _why_late(self, member: _Member) -> str:
        count = len(self._members)
        if member.interval_s < ENGINE_PERIOD_S:
            return "an engine reads its containers once a second"
        if self._streams(member) or _enough(self._intervals, self._limit) == 0:
            return f"the engine takes so long to read {count} containers"
        return (
            f"the engine answers at its next second, {self._limit} requests at a time for {count} containers; "
            "raise stats_requests, or set stats_mode to auto or stream"
        )


_NOTHING: Final = statistics.Reply()


def _version(text: str) -> tuple[int, ...]:
    """``1.41`` as (1, 41); what cannot be understood is taken for new."""
    parts = text.split(".")
    if not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
        return ONE_SHOT_SINCE
    return tuple(int(part) for part in parts)
