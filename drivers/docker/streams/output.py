"""What a container writes, to where its task's stdout and stderr go, and its stdin.

**While the host lives** its output comes from a connection that is attached before the container starts: exact bytes,
apart, at once, to the last one. A target that takes nothing holds up the engine, and so the container, and nobody else.
There is neither a thread per container nor a blocking call.

**After** :meth:`Streams.resume`, where the host was away, the rest comes from the engine's log, which has kept what
nobody took. How many bytes were delivered is noted in the task's record after each write
(:mod:`cameleer.drivers.docker.streams.position`), so it goes on without gap or repeat: also in a file where the host
was killed between the write and the note, as the length of the file before the write is noted too. In a pipe, what
that one write delivered (64 KiB at most) comes twice.

The log is not used while the host lives, though it would need no count of bytes: engine 20.10 loses lines when it
rotates a log that is followed (8 to 49 % of 20,000 lines, measured), which every log of ``local`` is at 20 MB, and
``json-file`` does not keep bytes that are not UTF-8. For the same reason a log that can rotate is read only up to the
moment of the recovery; then the container is attached to again, and a line written in that very moment may come twice
or not at all. One that cannot is followed to its end, exactly.

**When the connection ends** while the container runs, the rest is had in the same way, and a warning says so. What an
engine that died had read and neither sent nor logged is lost. stdin is not fed any further.

**At the container's end** what is left is read at once, whoever stands still
(:mod:`cameleer.drivers.docker.streams.intake`).
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cameleer.drivers.docker.client.failures import Conflict
from cameleer.drivers.docker.client.frames import Frames, merged
from cameleer.drivers.docker.streams.descriptors import Descriptor, open_source, open_target
from cameleer.drivers.docker.streams.intake import CHUNK, Intake
from cameleer.drivers.docker.streams.position import Position
from cameleer.errors import PluginShutdown, RecoverableError, StartRecoverable, TaskNotFound, UnrecoverableError
from cameleer.log import fields, log

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any

    from cameleer.config import Stdio, TaskConfig
    from cameleer.drivers.docker.client.http import Client, Hijacked
    from cameleer.drivers.docker.streams.logs import Unnoted

NO_DETACHING: Final = "ctrl-^,ctrl-_,ctrl-^,ctrl-_,ctrl-@,ctrl-^"
"""What nobody types; without it the engine takes ctrl-p, ctrl-q from a terminal's input, and ends the connection.

The engine keeps a ctrl-^ back until the next key, as it does with ctrl-p otherwise.
"""
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_ASK_S: Final = 10.0
_UNREAD_S: Final = 10.0
_FAILURES: Final = 5
_NEAR_NS: Final = 2_000_000_000
_FAR_NS: Final = 300_000_000_000
_LAG_NS: Final = 200_000_000
"""How much later the engine may log a line than it hands it over; one that died needs longer to be back."""
_NOBODY_READS: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EIO)


class Output:
    """Where a task's stdout and stderr go.

    :ivar taken: bytes taken so far, those discarded too.
    :ivar broken: streams (1, 2) that nobody takes any more; they are discarded.
    """

    def __init__(self, config: TaskConfig, position: Position | None = None, *, recovered: bool = False) -> None:
        """Open the targets; a caller may close his own descriptors then.

        :param position: counts what was delivered.
        :param recovered: descriptors and inherited streams were another process's: they are discarded.
        :raises StartError: a target cannot be opened.
        :raises ConfigError: a descriptor is none.
        """
        self.taken = 0
        self.broken: set[int] = set()
        self._task_id = config.id
        self._position = position if position is not None else Position()
        stdout, stderr = config.stdout, config.stderr
        if recovered:
            stdout, stderr = _kept(stdout), _kept(stderr)
        shared = stdout == stderr and stdout.kind != "inherit"
        self._targets: list[Descriptor | None] = [open_target("stdout", stdout)]
        try:
            self._targets.append(self._targets[0] if shared else open_target("stderr", stderr))
        except BaseException:
            self.close()
            raise

    @property
    def wanted(self) -> bool:
        """Whether any of it goes anywhere."""
        return any(target is not None for target in self._targets)

    async def write(self, stream: int, data: bytes, *, logged: bool = False) -> None:
        """Deliver; returns when all was taken.

        :param stream: 1 for stdout, 2 for stderr.
        :param logged: it comes from the log.
        """
        rest = self.put(stream, memoryview(data), logged=logged)
        while rest:
            target = self._targets[stream - 1]
            if target is not None:
                await target.writable()
            rest = self.put(stream, rest, logged=logged)

    def put(self, stream: int, data: memoryview, *, logged: bool = False) -> memoryview:
        """Deliver what is taken at once; the rest."""
        while data:
            target = self._targets[stream - 1]
            if target is None:
                self._delivered(stream, data, logged)
                break
            try:
                if target.regular:
                    self._position.about_to_write(stream, os.fstat(target.fd).st_size, len(data))
                count = target.write(data)
            except BlockingIOError:
                return data
            except OSError as exc:
                self._give_up(stream, exc)
                continue
            self._delivered(stream, data[:count], logged)
            data = data[count:]
        return memoryview(b"")

    def _delivered(self, stream: int, data: memoryview, logged: bool) -> None:
        self.taken += len(data)
        self._position.delivered(stream, bytes(data), logged=logged)

    def was_there(self, stream: int, data: bytes) -> None:
        """Take note of bytes that a former host delivered."""
        self._delivered(stream, memoryview(data), logged=False)

    def _give_up(self, stream: int, error: OSError) -> None:
        name = "stdout" if stream == 1 else "stderr"
        if error.errno in _NOBODY_READS:
            log.info("nobody reads %s of task %s any more", name, self._task_id, extra=self._fields())
        else:
            log.error(
                "cannot write %s of task %s, the rest of it is lost: %s",
                name,
                self._task_id,
                error.strerror,
                extra=self._fields(),
            )
        target = self._targets[stream - 1]
        for at, each in enumerate(self._targets):
            if each is target:
                self._targets[at] = None
                self.broken.add(at + 1)
        if target is not None:
            target.close()

    def _fields(self) -> dict[str, str]:
        return fields(task_id=self._task_id, driver="docker")

    def unnoted(self, *, json: bool) -> Unnoted | None:
        """What a killed host may have written to a file without noting it; None: nothing.

        :param json: the log driver is ``json-file``.
        """
        from cameleer.drivers.docker.streams.logs import Unnoted

        position = self._position
        target = self._targets[position.stream - 1] if position.length else None
        if target is None or not target.regular:
            return None
        with suppress(OSError):
            fd = os.open(f"/proc/self/fd/{target.fd}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                tail = os.pread(fd, position.length, position.size)
            finally:
                os.close(fd)
            return Unnoted(position.stream, tail, json=json) if tail else None
        return None

    async def read(self) -> None:
        """Wait until FIFOs have a reader, who has the rest then, or none came in time; no more is written."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _UNREAD_S
        while any(target is not None and target.unread() for target in self._targets):
            if loop.time() > deadline_s:
                return
            await asyncio.sleep(_FIRST_PAUSE_S)

    def close(self) -> None:
        """Close all; twice without error."""
        for name, target in zip(("stdout", "stderr"), self._targets, strict=False):
            if target is None:
                continue
            if size := target.unread():
                log.warning(
                    "nobody has read %s of task %s: %d bytes are lost", name, self._task_id, size, extra=self._fields()
                )
            target.close()
        self._targets[:] = [None] * len(self._targets)


def _kept(stream: Stdio) -> Stdio:
    from cameleer.config import Stdio

    return stream if stream.path is not None else Stdio.discard()


class _Backlog:
    """What a target did not take at once; an asyncio task brings it there, only while there is any."""

    def __init__(self, output: Output, intake: Intake) -> None:
        self._output = output
        self._intake = intake
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._work: asyncio.Task[None] | None = None

    def put(self, stream: int, data: bytes) -> None:
        """Deliver, now or when its turn comes."""
        if not self._waiting:
            rest = self._output.put(stream, memoryview(data))
            if not rest:
                return
            data = bytes(rest)
        self._waiting.append((stream, data))
        self._intake.came(len(data))
        if self._work is None or self._work.done():
            self._work = asyncio.get_running_loop().create_task(self._bring())

    async def _bring(self) -> None:
        while self._waiting:
            stream, data = self._waiting[0]
            await self._output.write(stream, data)
            self._waiting.popleft()
            self._intake.taken(len(data))

    async def drained(self) -> None:
        """Wait until all was taken."""
        if self._work is not None:
            await asyncio.shield(self._work)

    async def close(self) -> None:
        """Throw away what is left."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])


async def follow_attached(source: Hijacked, output: Output, intake: Intake, *, tty: bool) -> int:
    """Deliver what comes from an attached connection, until it ends and all was taken.

    :param tty: the container has a terminal, so all is stdout, without frames.
    :return: when it ended, or broke, or made no sense any more: Unix time, nanoseconds.
    """
    frames = Frames()
    backlog = _Backlog(output, intake)
    try:
        with suppress(RecoverableError):
            while chunk := await source.read(CHUNK):
                for stream, data in [(1, chunk)] if tty else merged(frames.feed(chunk)):
                    backlog.put(stream, data)
                await intake.room()
        ended_ns = time.time_ns()
        await backlog.drained()
    finally:
        await backlog.close()
    return ended_ns


class Streams:
    """A task's standard streams, from before its container's start to its end.

    Made by :meth:`connect` or :meth:`resume`; closed by :meth:`close`, or when :meth:`follow`'s task ends.
    """

    def __init__(self, client: Client, config: TaskConfig, container: str, output: Output, position: Position) -> None:
        self._client = client
        self._config = config
        self._container = container
        self._output = output
        self._position = position
        self._source: Descriptor | None = None
        self._attached: Hijacked | None = None
        self._attached_ns = 0
        self._tty = config.terminal == "pty"
        self._intake = Intake(f"task {config.id}")
        self._started = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._resumed = False
        self._was_away = False
        self._ended_ns = 0
        self._json: bool | None = None

    @classmethod
    async def connect(
        cls, client: Client, config: TaskConfig, container: str, *, record: Path | None = None
    ) -> Streams:
        """Open the task's targets and attach to a container that has not started.

        Its output is delivered from now on: the engine answers no question about a container that has ended while
        nobody takes its output.

        :param record: where to note what was delivered; None: nobody resumes it.
        :raises StartError: a target cannot be opened.
        :raises ConfigError: a descriptor is none.
        :raises RecoverableError: the engine has gone.
        """
        position = _open_position(record)
        try:
            output = Output(config, position)
            streams = cls(client, config, container, output, position)
        except BaseException:
            position.close()
            raise
        try:
            streams._source = open_source(config.stdin)
            await streams._attach()
            streams._begin()
        except BaseException:
            await streams.close()
            raise
        return streams

    @classmethod
    async def resume(cls, client: Client, config: TaskConfig, container: str, *, record: Path) -> Streams:
        """Open what can be opened again, for a container that a former host started; stdin is not fed.

        :raises RecoverableError: a target or the record cannot be opened now.
        """
        position = _open_position(record)
        try:
            output = Output(config, position, recovered=True)
        except BaseException:
            position.close()
            raise
        streams = cls(client, config, container, output, position)
        streams._resumed = True
        return streams

    @property
    def taken(self) -> int:
        """Bytes taken so far; grows as long as somebody takes the output."""
        return self._output.taken

    @property
    def broken(self) -> frozenset[int]:
        """Streams, 1 or 2, whose reader has gone."""
        return frozenset(self._output.broken)

    def follow(self, pid: int | None = None) -> asyncio.Task[None]:
        """Feed the container, which has started, and let its output come to an end.

        :param pid: its first process, if that is one of this machine; 0: it has ended.
        :return: ends when the container has ended and its output was delivered; cancelling it closes everything.
        """
        self._started.set()
        work = self._begin()
        if not work.done():
            self._intake.watch(pid)
        return work

    def _begin(self) -> asyncio.Task[None]:
        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._follow())
            self._work.add_done_callback(self._ended)
        return self._work

    def _ended(self, work: asyncio.Task[None]) -> None:
        self._release()
        error = None if work.cancelled() else work.exception()
        if error is not None and not isinstance(error, PluginShutdown):
            log.error(
                "the output of task %s is followed no more: %s",
                self._config.id,
                error,
                exc_info=error,
                extra=fields(task_id=self._config.id, driver="docker"),
            )

    async def close(self) -> None:
        """Follow no more and close everything; twice without error."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.wait([self._work])
        self._release()

    def _release(self) -> None:
        self._detach()
        self._feed_no_more()
        self._intake.close()
        self._output.close()
        self._position.close()

    def _detach(self) -> None:
        if self._attached is not None:
            self._attached.close()
            self._attached = None

    def _feed_no_more(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None

    # -- following -----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        await self._deliver()
        await self._output.read()

    async def _deliver(self) -> None:
        if not self._resumed:
            if self._attached is None:
                return
            ended_ns = await self._follow_attached()
            await self._started.wait()  # without which the engine was away between the two
            if not await self._goes_on(ended_ns):
                return
        await self._go_on()

    async def _attach(self) -> None:
        query = {"stream": "1"}
        if self._source is not None:
            query["stdin"] = "1"
            query["detachKeys"] = NO_DETACHING
        if self._output.wanted:
            query["stdout"] = query["stderr"] = "1"
        if len(query) > 1:
            self._attached = await self._client.hijack(
                f"/containers/{self._container}/attach", query=query, timeout_s=_ASK_S, what=self._what("attach to")
            )
            self._attached_ns = time.time_ns()

    async def _follow_attached(self) -> int:
        """Deliver, and feed stdin beside it, until the engine ends the connection; when that was, Unix time in ns."""
        attached = self._attached
        assert attached is not None
        feeding: asyncio.Task[None] | None = None
        if self._source is not None:
            feeding = asyncio.get_running_loop().create_task(self._feed(self._source, attached))
        try:
            return await follow_attached(attached, self._output, self._intake, tty=self._tty)
        finally:
            if feeding is not None:
                feeding.cancel()
                await asyncio.wait([feeding])
            self._detach()

    async def _feed(self, source: Descriptor, sink: Hijacked) -> None:
        from cameleer.drivers.docker.streams.feed import feed

        await self._started.wait()
        await feed(source, sink, tty=self._tty)

    async def _go_on(self) -> None:
        """Deliver the rest, after the host or the engine was away, over as many connections as it takes.

        The engine (20.10) ends a follow that lags behind at the container's end, so the last reading is without one.
        """
        self._feed_no_more()
        if not self._output.wanted:
            return
        unnoted: Unnoted | None = None
        pause_s, failures = _FIRST_PAUSE_S, 0
        while (found := await self._inspect()) is not None:
            if self._json is None:
                self._json = _log_type(found) == "json-file"
                unnoted = self._output.unnoted(json=self._json)
            runs, taken = _runs(found), self._output.taken
            try:
                if runs and _rotates(found):
                    if not await self._attach_again(unnoted, first=not failures):
                        return
                else:
                    await self._read_log(unnoted, follow=runs)
                    if not runs:
                        return
                failures = 0
            except TaskNotFound:
                return
            except (RecoverableError, Conflict) as exc:
                failures += 1
                if failures == _FAILURES and not runs:
                    raise
                log.debug("task %s: %s", self._config.id, exc, extra=fields(task_id=self._config.id, driver="docker"))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S) if taken == self._output.taken else _FIRST_PAUSE_S
            await asyncio.sleep(pause_s)

    async def _attach_again(self, unnoted: Unnoted | None, *, first: bool) -> bool:
        """Deliver what the log has, then what comes; False: there will be no more.

        :param first: the log is read also where the engine refuses.
        :raises RecoverableError: the engine has gone, or is starting.
        :raises Conflict: the container is paused.
        """
        try:
            if not await self._attach_to_running():
                return True
        except (RecoverableError, Conflict):
            if first:
                await self._read_log(unnoted)
            raise
        try:
            await self._read_log(unnoted, until_ns=self._attached_ns)
            self._position.begin_again(self._attached_ns)
            ended_ns = await self._follow_attached()
        finally:
            self._detach()
        return await self._goes_on(ended_ns)

    async def _attach_to_running(self) -> bool:
        """Attach to a container that runs; to one that does not, the engine would attach for ever."""
        await self._attach()
        found = await self._inspect()
        if found is not None and _runs(found):
            return True
        self._detach()
        return False

    async def _read_log(self, unnoted: Unnoted | None, *, follow: bool = False, until_ns: int = 0) -> None:
        """Deliver what is new in the log.

        :raises RecoverableError: the engine has gone, or makes no sense.
        """
        from cameleer.drivers.docker.streams.logs import LogReader

        near = self._client.endpoint.is_unix
        reader = LogReader(
            self._position,
            json=bool(self._json),
            tty=self._tty,
            tolerance_ns=_NEAR_NS if near else _FAR_NS,
            ended_ns=self._ended_ns if near else 0,
            task_id=self._config.id,
        )
        if unnoted is not None:
            unnoted.begin()
        query = {"stdout": "1", "stderr": "1"}
        if not self._tty:
            query["timestamps"] = "1"
        if self._position.since_ns:
            query["since"] = _seconds(self._position.since_ns)
        if until_ns:
            query["until"] = _seconds(until_ns)
        if follow:
            query["follow"] = "1"
        path = f"/containers/{self._container}/logs"
        async with self._client.stream(
            "GET", path, query=query, timeout_s=_ASK_S, what=self._what("read the log of")
        ) as log_stream:
            async for chunk in log_stream:
                pieces = merged(reader.feed(chunk))
                if unnoted is not None:
                    pieces, had = unnoted.without(pieces)
                    if had:
                        self._output.was_there(self._position.stream, had)
                for stream, data in pieces:
                    self._ended_ns = 0
                    await self._output.write(stream, data, logged=True)
        if unnoted is not None:
            for stream, data in unnoted.rest():
                await self._output.write(stream, data, logged=True)

    async def _goes_on(self, ended_ns: int) -> bool:
        """Whether there may be more: the container runs, or the engine was away, so that its log may have more."""
        if not self._output.wanted:
            return False
        self._was_away = False
        found = await self._inspect()
        if found is None or not (self._was_away or _runs(found)):
            return False
        if self._position.last_ns:
            self._ended_ns = ended_ns + _LAG_NS
            log.warning(
                "the output of task %s was cut off: the rest comes from the log, without what an engine that died held",
                self._config.id,
                extra=fields(task_id=self._config.id, driver="docker"),
            )
        return True

    async def _inspect(self) -> Mapping[str, Any] | None:
        """What the engine says of the container, as soon as it says anything; None: it is gone."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                response = await self._client.request(
                    "GET", f"/containers/{self._container}/json", timeout_s=_ASK_S, what=self._what("inspect")
                )
                found = response.json()
            except PluginShutdown:
                raise
            except UnrecoverableError:
                return None
            except RecoverableError:
                self._was_away = True
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                continue
            if isinstance(found, dict) and isinstance(found.get("State"), dict):
                return found
            await asyncio.sleep(_LONGEST_PAUSE_S)

    def _what(self, doing: str) -> str:
        return f"{doing} the container {self._container[:12]}"


def _open_position(record: Path | None) -> Position:
    try:
        return Position.open(record)
    except OSError as exc:
        raise StartRecoverable(f"cannot open {record}: {exc.strerror}") from exc


def _runs(found: Mapping[str, Any]) -> bool:
    state = found["State"]
    return bool(state.get("Running") or state.get("Restarting"))


def _log_type(found: Mapping[str, Any]) -> str:
    return str(_log_config(found).get("Type"))


def _log_config(found: Mapping[str, Any]) -> Mapping[str, Any]:
    return (found.get("HostConfig") or {}).get("LogConfig") or {}


def _rotates(found: Mapping[str, Any]) -> bool:
    """Whether the engine may begin a new file for the container's log, and remove the oldest."""
    size = str((_log_config(found).get("Config") or {}).get("max-size", ""))
    return _log_type(found) == "local" or (_log_type(found) == "json-file" and size not in ("", "-1"))


def _seconds(at_ns: int) -> str:
    return f"{at_ns // 1_000_000_000}.{at_ns % 1_000_000_000:09d}"
