"""A driver whose tasks do what their settings say, and nothing real: for tests of what embeds the host.

A task ends after ``run_for``, with the exit code or signal it was told; its counters grow at the speeds it was told;
starts, signals and readings can be made to fail, block and hang. No process is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import (
    SIGKILL,
    Driver,
    ExecSession,
    Fingerprint,
    Leftover,
    NetworkOverride,
    RunningTask,
    TaskEvent,
    Tick,
)
from cameleer.errors import (
    RecoverableError,
    StartError,
    StartRecoverable,
    TaskNotFound,
    UnrecoverableError,
)
from cameleer.schema import duration_s
from cameleer.status import Exit
from cameleer.task import TaskHandle
from cameleer.usage import Counters, CpuUsage, MemoryUsage, MissingReason, ProcessUsage

_HARMLESS_SIGNALS = frozenset({17, 18, 19, 20, 21, 22, 23, 28})
"""CHLD, CONT, the four that stop, URG and WINCH: they end no process by default."""

_MISSING: Mapping[str, MissingReason] = {"io": "unsupported", "network": "unsupported", "pressure": "unsupported"}


class MockConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the driver.

    :ivar health: what its fingerprint says.
    :ivar health_description: the reason, for people.
    """

    health: Literal["undetected", "unhealthy", "healthy"] = "healthy"
    health_description: str = "Healthy"


class MockOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a task does. Durations are seconds, or text such as ``"500ms"``.

    Start

    :ivar start_block_for: how long the start takes.
    :ivar start_error: the start fails with this message, after it has blocked.
    :ivar start_error_recoverable: trying again may help (``StartRecoverable`` instead of ``StartError``).

    End

    :ivar run_for: how long it runs.
    :ivar exit_code: its exit code then.
    :ivar exit_signal: the signal that ends it then, instead of an exit code.
    :ivar exit_error: what the driver says went wrong.
    :ivar oom_killed: the kernel ended it for lack of memory.
    :ivar kill_after: how long it takes to end after a first signal; SIGKILL ends it at once.
    :ivar unkillable: no signal ends it, not even SIGKILL; ``destroy`` does.
    :ivar signal_error: every signal but SIGKILL fails with this message.

    Readings

    :ivar cpu_user_percent: speed of its user CPU time, percent of one core.
    :ivar cpu_system_percent: speed of its system CPU time, percent of one core.
    :ivar memory_bytes: memory in use at the start.
    :ivar memory_bytes_per_s: growth of it.
    :ivar stats_error: readings fail with this message.
    :ivar stats_error_recoverable: trying again may help.
    :ivar stats_error_after: so many readings succeed first.
    :ivar stats_error_times: so many readings fail, then they succeed again; 0: all.
    :ivar stats_block_for: how long each reading takes.
    :ivar stats_reset_after: after so many readings the counters begin at zero again, once; 0: never.

    Rest

    :ivar exec_stdout: what a further command writes to its stdout.
    :ivar exec_stderr: what it writes to its stderr.
    :ivar exec_exit_code: its exit code.
    :ivar events: messages that the driver's events tell when the task starts.
    :ivar address: address under which the task says it is reached.
    :ivar port_map: ports by label under which the task says it is reached.
    :ivar lost: after a restart of the host the task is not found again.
    """

    start_block_for: str = "0s"
    start_error: str = ""
    start_error_recoverable: bool = False

    run_for: str = "0s"
    exit_code: int = 0
    exit_signal: int = 0
    exit_error: str = ""
    oom_killed: bool = False
    kill_after: str = "0s"
    unkillable: bool = False
    signal_error: str = ""

    cpu_user_percent: float = 0.0
    cpu_system_percent: float = 0.0
    memory_bytes: int = 0
    memory_bytes_per_s: float = 0.0
    stats_error: str = ""
    stats_error_recoverable: bool = True
    stats_error_after: int = 0
    stats_error_times: int = 0
    stats_block_for: str = "0s"
    stats_reset_after: int = 0

    exec_stdout: str = ""
    exec_stderr: str = ""
    exec_exit_code: int = 0
    events: list[str] = []
    address: str = ""
    port_map: dict[str, int] = {}
    lost: bool = False


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """What outlives the host: when a task started, by both clocks, and how it ended if it has.

    :ivar started_ns: ``time.monotonic_ns()``, which goes on until the machine restarts.
    """

    started_ns: int
    ended_ns: int | None = None
    exit_code: int | None = None
    signal: int | None = None


class MockTask(RunningTask):
    """A task that exists in the clock alone.

    :param record: kept in this file until ``destroy``; None: nowhere.
    """

    def __init__(self, config: TaskConfig, options: MockOptions, record: _Record, file: Path | None) -> None:
        super().__init__(config)
        self._options = options
        self._started_ns = record.started_ns
        self._file = file
        self._reads = 0
        self._reset_ns = record.started_ns
        self._signals: list[int] = []
        self._block_s = _ns(options.stats_block_for, "stats_block_for") / 1e9
        self._unblock = threading.Event()
        self._ended_ns: int | None = None
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._timer: asyncio.TimerHandle | None = None
        if options.address or options.port_map:
            self.network = NetworkOverride(address=options.address, port_map=options.port_map)
        if record.ended_ns is not None:
            self._end(record.exit_code, record.signal, at_ns=record.ended_ns)
        else:
            self._keep(record)
            run_for_ns = _ns(options.run_for, "run_for")
            self._end_after(
                max(0, self._started_ns + run_for_ns - time.monotonic_ns()),
                None if options.exit_signal else options.exit_code,
                options.exit_signal or None,
                at_ns=self._started_ns + run_for_ns,
            )

    def _keep(self, record: _Record) -> None:
        if self._file is not None:
            self._file.write_bytes(msgspec.json.encode(record))

    def _end_after(self, delay_ns: int, exit_code: int | None, signal: int | None, at_ns: int | None = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(
            delay_ns / 1e9, lambda: self._end(exit_code, signal, at_ns=at_ns)
        )

    def _end(self, exit_code: int | None, signal: int | None, *, at_ns: int | None = None) -> None:
        if self._ended.done():
            return
        if self._timer is not None:
            self._timer.cancel()
        self._ended_ns = time.monotonic_ns() if at_ns is None else at_ns
        code = 128 + signal if signal else exit_code
        self._keep(_Record(started_ns=self._started_ns, ended_ns=self._ended_ns, exit_code=code, signal=signal))
        ago_ns = time.monotonic_ns() - self._ended_ns
        self._ended.set_result(
            Exit(
                exit_code=code,
                signal=signal,
                oom_killed=self._options.oom_killed,
                error=self._options.exit_error or None,
                counters=None if self._options.stats_error else self._counters(self._started_ns),
                ended_at_ns=time.time_ns() - ago_ns,
            )
        )

    async def wait(self) -> Exit:
        """Wait until the time is up or a signal has ended it."""
        return await asyncio.shield(self._ended)

    async def signal(self, signum: int) -> None:
        """Note the signal; most end the task, after ``kill_after``.

        :raises UnrecoverableError: the task says ``signal_error``, or has ended.
        """
        if self._ended.done():
            raise UnrecoverableError(f"the task {self.config.id} has ended")
        if self._options.signal_error and signum != SIGKILL:
            raise UnrecoverableError(self._options.signal_error)
        first = _HARMLESS_SIGNALS.issuperset(self._signals)
        self._signals.append(signum)
        if self._options.unkillable or signum in _HARMLESS_SIGNALS:
            return
        if signum == SIGKILL:
            self._end(None, signum)
        elif first:
            self._end_after(_ns(self._options.kill_after, "kill_after"), None, signum)

    def read(self, tick: Tick) -> Counters:
        """Say what a task of these settings would have used by now; fails and blocks as it was told."""
        options = self._options
        self._reads += 1
        if self._block_s:
            self._unblock.wait(self._block_s)
        if options.stats_error and self._reads > options.stats_error_after:
            last = options.stats_error_after + options.stats_error_times
            if not options.stats_error_times or self._reads <= last:
                error = RecoverableError if options.stats_error_recoverable else UnrecoverableError
                raise error(options.stats_error)
        if options.stats_reset_after and self._reads == options.stats_reset_after + 1:
            self._reset_ns = time.monotonic_ns()
        return self._counters(self._reset_ns)

    def _counters(self, since_ns: int) -> Counters:
        options = self._options
        now = time.monotonic_ns()
        age_ns = (now if self._ended_ns is None else self._ended_ns) - since_ns
        user_ns = int(age_ns * options.cpu_user_percent / 100)
        system_ns = int(age_ns * options.cpu_system_percent / 100)
        alive_ns = (now if self._ended_ns is None else self._ended_ns) - self._started_ns
        memory = options.memory_bytes + int(alive_ns / 1e9 * options.memory_bytes_per_s)
        running = self._ended_ns is None
        return Counters(
            at_ns=now,
            taken_at_ns=time.time_ns(),
            missing=_MISSING,
            cpu=CpuUsage(total_ns=user_ns + system_ns, user_ns=user_ns, system_ns=system_ns),
            memory=MemoryUsage(
                rss_bytes=memory if running else 0,
                peak_bytes=max(memory, options.memory_bytes),
                measure="rss_sum",
            ),
            processes=ProcessUsage(processes=int(running), threads=int(running), seen=1),
        )

    async def exec(
        self,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecSession:
        """Pretend to run a command: it writes what the settings say, and ends."""
        if self._ended.done():
            raise UnrecoverableError(f"the task {self.config.id} has ended")
        return MockExec(self._options)

    async def inspect(self) -> Mapping[str, str]:
        """``signals``: the numbers of those it got, in order, separated by commas."""
        return {"signals": ",".join(map(str, self._signals)), "readings": str(self._reads)}

    async def destroy(self, force: bool = False) -> None:
        """Forget the task; a reading that blocks returns.

        :raises UnrecoverableError: it runs, and ``force`` was not given.
        """
        if not self._ended.done():
            if not force:
                raise UnrecoverableError(f"the task {self.config.id} still runs")
            self._end(None, SIGKILL)
        self._unblock.set()
        if self._file is not None:
            self._file.unlink(missing_ok=True)


class MockExec(ExecSession):
    """A command that has written all it had to, and ends."""

    def __init__(self, options: MockOptions) -> None:
        self._options = options

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield what the settings say."""
        for stream, text in ((1, self._options.exec_stdout), (2, self._options.exec_stderr)):
            if text:
                yield stream, text.encode()

    async def write(self, data: bytes) -> None:
        """Take it; nobody reads it."""

    async def close_stdin(self) -> None:
        """Nothing to do."""

    async def resize(self, rows: int, columns: int) -> None:
        """Nothing to do."""

    async def wait(self) -> Exit:
        """End with ``exec_exit_code``."""
        return Exit(exit_code=self._options.exec_exit_code)

    async def aclose(self) -> None:
        """Nothing to free."""


class Mock(Driver):
    """Starts tasks that exist in the clock alone. With ``Host(state_dir=…)`` a later host finds them again."""

    name = "mock"
    task_type: ClassVar[type[MockTask]] = MockTask
    config_schema = MockConfig
    task_schema = MockOptions
    config: MockConfig

    _listeners: set[asyncio.Queue[TaskEvent]]

    async def open(self) -> None:
        """Make ready to tell events."""
        self._listeners = set()

    async def close(self) -> None:
        """Leave no empty folder."""
        folder = self._folder
        if folder is not None:
            with contextlib.suppress(OSError):  # absent, or it still has tasks
                folder.rmdir()

    @property
    def _folder(self) -> Path | None:
        if not self.node.recoverable or self.node.state_dir is None:
            return None
        return self.node.state_dir / "mock"

    def _file(self, task_id: str) -> Path | None:
        folder = self._folder
        if folder is None:
            return None
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / (task_id.encode().hex() + ".json")  # an id may hold any character

    async def start(self, task: TaskConfig) -> MockTask:
        """Start, or fail, as the settings say."""
        options = task.settings(MockOptions)
        for name in ("run_for", "kill_after", "stats_block_for", "start_block_for"):
            _ns(getattr(options, name), name)  # a wrong one fails here, not later
        await asyncio.sleep(_ns(options.start_block_for, "start_block_for") / 1e9)
        if options.start_error:
            raise (StartRecoverable if options.start_error_recoverable else StartError)(options.start_error)
        started = self.task_type(task, options, _Record(started_ns=time.monotonic_ns()), self._file(task.id))
        for message in options.events:
            self._tell(task, message)
        return started

    def _tell(self, task: TaskConfig, message: str) -> None:
        event = TaskEvent(
            task_id=task.id, message=message, at_ns=time.time_ns(), alloc_id=task.alloc_id, task_name=task.name
        )
        for listener in self._listeners:
            listener.put_nowait(event)

    async def recover(self, handle: TaskHandle) -> MockTask:
        """Find a task again, by its id."""
        options = handle.config.settings(MockOptions)
        file = self._file(handle.config.id)
        try:
            record = msgspec.json.decode(file.read_bytes() if file is not None else b"", type=_Record)
        except (FileNotFoundError, msgspec.DecodeError) as exc:
            raise TaskNotFound(f"there is no task {handle.config.id}") from exc
        if options.lost or record.started_ns > time.monotonic_ns():
            raise TaskNotFound(f"the task {handle.config.id} is lost")
        return self.task_type(handle.config, options, record, file)

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Records of tasks that nobody claims."""
        folder = self._folder
        files = sorted(folder.glob("*.json")) if folder is not None else []
        ids = [bytes.fromhex(file.stem).decode() for file in files]
        return [
            Leftover(task_id=task_id, ref=str(file), description=f"record of the mock task {task_id}")
            for task_id, file in zip(ids, files, strict=True)
            if task_id not in claimed
        ]

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Remove such a record."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(leftover.ref)

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Say what the settings say."""
        health = self.config.health
        yield Fingerprint(
            health=health,
            description=self.config.health_description,
            attributes={"driver.mock": (health == "healthy", "")},
        )

    async def events(self) -> AsyncGenerator[TaskEvent, None]:
        """Yield the ``events`` of tasks that start from now on."""
        queue: asyncio.Queue[TaskEvent] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)


def _ns(duration: str, name: str) -> int:
    """A duration in nanoseconds.

    :raises ConfigError: it is none.
    """
    return int(duration_s(duration, f"driver_config.{name}") * 1e9)


class MockTasks:
    """Tasks for the conformance suite (``cameleer.testing.Commands``); a mock runs no commands."""

    def ends(self, exit_code: int = 0) -> TaskConfig:
        """A task that ends at once."""
        return TaskConfig(driver_config={"exit_code": exit_code})

    def lasts(self) -> TaskConfig:
        """A task of an hour."""
        return TaskConfig(driver_config={"run_for": "1h", "memory_bytes": 1 << 20})

    def busy(self) -> TaskConfig:
        """A task of an hour whose counters grow."""
        return TaskConfig(driver_config={"run_for": "1h", "cpu_user_percent": 80, "cpu_system_percent": 15})

    def refused(self) -> TaskConfig:
        """A task whose start fails."""
        return TaskConfig(driver_config={"start_error": "this task does not start"})

    def shell(self, script: str, *args: str) -> None:
        """None: it has no shell."""

    def exec_argv(self, script: str) -> None:
        """None: its further commands run nothing."""

    def foreign(self) -> None:
        """None: nobody else runs mocks."""
