"""Drivers that break one rule each, and the checks of the suite that must notice. Run by ``test_suite.py``.

Those in ``ON_MOCK`` break a task that exists in the clock alone, those in ``ON_COMMANDS`` a real process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar

import msgspec

from cameleer import (
    Counters,
    CpuUsage,
    Driver,
    ExecSession,
    Exit,
    Fingerprint,
    MemoryUsage,
    RecoverableError,
    RunningTask,
    StartError,
    Stdio,
    TaskConfig,
    TaskEvent,
    TaskHandle,
    TaskNotFound,
    Tick,
    UnrecoverableError,
)
from cameleer.driver import SIGKILL
from cameleer.drivers.mock import Mock, MockTask, MockTasks
from cameleer.drivers.raw_exec import RawExec
from cameleer.testing import DriverSuite

replace = msgspec.structs.replace


class BrokenMock(Mock):
    name = "broken"


# -- ends ------------------------------------------------------------------------------------------------------------


class HasEndedAtOnce(BrokenMock):
    class Task(MockTask):
        async def wait(self) -> Exit:
            return Exit(exit_code=0)

    task_type = Task


class NeverTellsItsEnd(BrokenMock):
    class Task(MockTask):
        async def wait(self) -> Exit:
            return await asyncio.get_running_loop().create_future()

    task_type = Task


class TellsOneWaiterOnly(BrokenMock):
    class Task(MockTask):
        told = False

        async def wait(self) -> Exit:
            end = await super().wait()
            if self.told:
                await asyncio.get_running_loop().create_future()
            self.told = True
            return end

    task_type = Task


class KnowsNoExitCode(BrokenMock):
    class Task(MockTask):
        async def wait(self) -> Exit:
            return dataclasses.replace(await super().wait(), exit_code=None, signal=None)

    task_type = Task


class TellsAnotherExitCode(BrokenMock):
    class Task(MockTask):
        async def wait(self) -> Exit:
            end = await super().wait()
            return dataclasses.replace(end, exit_code=(end.exit_code or 0) + 1)

    task_type = Task


class IgnoresSignals(BrokenMock):
    class Task(MockTask):
        async def signal(self, signum: int) -> None:
            if signum == SIGKILL:
                await super().signal(signum)

    task_type = Task


class StopsNothing(BrokenMock):
    class Task(MockTask):
        async def stop(self, timeout_s: float, signum: int) -> None:
            return

        async def destroy(self, force: bool = False) -> None:
            return

    task_type = Task


class KnowsNoStopWithoutGrace(BrokenMock):
    class Task(MockTask):
        async def stop(self, timeout_s: float, signum: int) -> None:
            if timeout_s:
                await super().stop(timeout_s, signum)
            await self.wait()

    task_type = Task


class RefusesToDestroy(BrokenMock):
    class Task(MockTask):
        async def destroy(self, force: bool = False) -> None:
            raise UnrecoverableError("no")

    task_type = Task


# -- life ------------------------------------------------------------------------------------------------------------


class IsUnhealthy(BrokenMock):
    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        yield Fingerprint(health="unhealthy")


class StopsAllTasksAtOnce(BrokenMock):
    class Task(MockTask):
        all: ClassVar[list[MockTask]] = []

        async def stop(self, timeout_s: float, signum: int) -> None:
            for task in self.all:
                task._end(None, 9)

    task_type = Task

    async def start(self, task: TaskConfig) -> MockTask:
        started = await super().start(task)
        self.Task.all.append(started)
        return started

    async def close(self) -> None:
        for task in self.Task.all:
            task._end(None, 9)
        self.Task.all.clear()


class TakesTenTasksOnly(BrokenMock):
    started = 0

    async def start(self, task: TaskConfig) -> MockTask:
        self.started += 1
        if self.started > 10:
            raise StartError("too many")
        return await super().start(task)


class IsStuckAfterACancelledStart(BrokenMock):
    stuck = False

    async def start(self, task: TaskConfig) -> MockTask:
        if self.stuck:
            await asyncio.get_running_loop().create_future()
        self.stuck = True
        await asyncio.sleep(0.01)
        self.stuck = False
        return await super().start(task)


class RemembersIds(BrokenMock):
    known: ClassVar[set[str]] = set()

    async def start(self, task: TaskConfig) -> MockTask:
        if task.id in self.known:
            raise StartError("this id is taken")
        self.known.add(task.id)
        return await super().start(task)


class InspectsNumbers(BrokenMock):
    class Task(MockTask):
        async def inspect(self) -> Mapping[str, str]:
            return {"pid": 1}  # type: ignore[dict-item]

    task_type = Task


class HidesStartErrors(BrokenMock):
    async def start(self, task: TaskConfig) -> MockTask:
        options = {name: value for name, value in task.driver_config.items() if name != "start_error"}
        return await super().start(dataclasses.replace(task, driver_config=options))


# -- readings --------------------------------------------------------------------------------------------------------


class CountersThatFall(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            found = super().read(tick)
            return replace(found, cpu=CpuUsage(total_ns=10**12 - (found.cpu.total_ns or 0)))

    task_type = Task


class CountersThatStand(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            return replace(super().read(tick), cpu=CpuUsage(total_ns=1))

    task_type = Task


class CountersInPicoseconds(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            found = super().read(tick)
            return replace(found, cpu=CpuUsage(total_ns=(found.cpu.total_ns or 0) * 1000))

    task_type = Task


class CountsUserTimeTwice(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            found = super().read(tick)
            return replace(found, cpu=replace(found.cpu, user_ns=(found.cpu.total_ns or 0) * 2))

    task_type = Task


class ComputesRates(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            found = super().read(tick)
            return replace(found, cpu=replace(found.cpu, percent=50.0))

    task_type = Task


class ReadsAtOneMoment(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            return replace(super().read(tick), at_ns=self._started_ns)

    task_type = Task


class TellsAnotherClock(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            return replace(super().read(tick), taken_at_ns=int(time.time()))

    task_type = Task


class NoMeasureOfMemory(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            return replace(super().read(tick), memory=MemoryUsage(rss_bytes=1))

    task_type = Task


class NegativeMemory(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            return replace(super().read(tick), memory=MemoryUsage(rss_bytes=-1, measure="rss_sum"))

    task_type = Task


class MeasuresNothing(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            return Counters(at_ns=time.monotonic_ns(), taken_at_ns=time.time_ns())

    task_type = Task


class CannotReadAfterAll(BrokenMock):
    class Task(MockTask):
        def read(self, tick: Tick) -> Counters:
            raise UnrecoverableError("no")

    task_type = Task


class _Streamed(RunningTask):
    """A mock whose counters come as a stream."""

    def __init__(self, inner: MockTask) -> None:
        super().__init__(inner.config, inner.driver_state)
        self.inner = inner

    async def wait(self) -> Exit:
        return await self.inner.wait()

    async def signal(self, signum: int) -> None:
        await self.inner.signal(signum)

    async def destroy(self, force: bool = False) -> None:
        await self.inner.destroy(force)


class _StreamingDriver(Driver):
    name = "broken"
    task_schema = Mock.task_schema
    kind: ClassVar[type[_Streamed]]

    async def open(self) -> None:
        self.inner = Mock(Mock.config_schema(), self.node)
        await self.inner.open()

    async def start(self, task: TaskConfig) -> RunningTask:
        return self.kind(await self.inner.start(task))


class StreamsAtItsOwnBeat(_StreamingDriver):
    class Task(_Streamed):
        async def stats(self, interval_s: float) -> AsyncGenerator[Counters, None]:
            while True:
                yield self.inner.read(Tick(0))
                await asyncio.sleep(interval_s * 2)

    task_type = kind = Task


class StreamsOnce(_StreamingDriver):
    class Task(_Streamed):
        opened = False

        async def stats(self, interval_s: float) -> AsyncGenerator[Counters, None]:
            if self.opened:
                raise UnrecoverableError("the stream was opened before")
            self.opened = True
            while True:
                yield self.inner.read(Tick(0))
                await asyncio.sleep(interval_s)

    task_type = kind = Task


class ForgetsAtTheEnd(BrokenMock):
    class Task(MockTask):
        async def wait(self) -> Exit:
            end = await super().wait()
            nothing = Counters(at_ns=time.monotonic_ns(), taken_at_ns=time.time_ns(), cpu=CpuUsage(total_ns=1))
            return dataclasses.replace(end, counters=nothing)

    task_type = Task


# -- recovery --------------------------------------------------------------------------------------------------------


class FindsNothing(BrokenMock):
    async def recover(self, handle: TaskHandle) -> MockTask:
        raise TaskNotFound("nothing")


class FindsATaskThatCannotBeStopped(BrokenMock):
    async def recover(self, handle: TaskHandle) -> MockTask:
        found = await super().recover(handle)
        return StopsNothing.Task(found.config, found._options, _record(found), found._file)


class FindsATaskThatNeverEnds(BrokenMock):
    async def recover(self, handle: TaskHandle) -> MockTask:
        found = await super().recover(handle)
        return NeverTellsItsEnd.Task(found.config, found._options, _record(found), found._file)


class CountsFromZeroAfterRecovery(BrokenMock):
    async def recover(self, handle: TaskHandle) -> MockTask:
        found = await super().recover(handle)
        found._reset_ns = time.monotonic_ns()
        return found


class LeavesTraces(BrokenMock):
    class Task(MockTask):
        async def destroy(self, force: bool = False) -> None:
            path, self._file = self._file, None
            await super().destroy(force)
            self._file = path

    task_type = Task

    async def recover(self, handle: TaskHandle) -> MockTask:
        return await super().recover(handle)


class NeverSaysThatATaskIsGone(BrokenMock):
    async def recover(self, handle: TaskHandle) -> MockTask:
        try:
            return await super().recover(handle)
        except TaskNotFound as exc:
            raise UnrecoverableError("what do I know") from exc


def _record(task: MockTask) -> Any:
    from cameleer.drivers.mock import _Record

    return _Record(started_ns=task._started_ns)


# -- events ----------------------------------------------------------------------------------------------------------


class TellsOneListenerOnly(BrokenMock):
    async def events(self) -> AsyncGenerator[TaskEvent, None]:
        if self._listeners:
            await asyncio.get_running_loop().create_future()
        async for event in super().events():
            yield event

    async def start(self, task: TaskConfig) -> MockTask:
        return await super().start(
            dataclasses.replace(task, driver_config={**task.driver_config, "events": ["something happened"]})
        )


# -- leaks -----------------------------------------------------------------------------------------------------------


class LeavesAsyncioTasks(BrokenMock):
    left: ClassVar[list[object]] = []

    async def open(self) -> None:
        await super().open()
        self.left.append(asyncio.create_task(asyncio.sleep(3600)))


class LeavesThreads(BrokenMock):
    async def open(self) -> None:
        await super().open()
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


class LeavesDescriptors(BrokenMock):
    async def start(self, task: TaskConfig) -> MockTask:
        os.open("/", os.O_RDONLY)
        return await super().start(task)


class LeavesProcesses(BrokenMock):
    left: ClassVar[list[object]] = []

    async def start(self, task: TaskConfig) -> MockTask:
        self.left.append(await asyncio.to_thread(subprocess.Popen, ["sleep", "60"]))
        return await super().start(task)


class HandlesSignals(BrokenMock):
    async def open(self) -> None:
        await super().open()
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)


class CollectsEverybodysChildren(BrokenMock):
    async def start(self, task: TaskConfig) -> MockTask:
        await asyncio.sleep(0.05)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:  # that is what is broken
                pass
        except ChildProcessError:
            pass
        return await super().start(task)


class HoldsTheLoop(BrokenMock):
    async def start(self, task: TaskConfig) -> MockTask:
        time.sleep(0.2)  # that is what is broken
        return await super().start(task)


# -- on real processes -----------------------------------------------------------------------------------------------


class _Process(RunningTask):
    """A process of raw_exec's, handed through."""

    def __init__(self, inner: RunningTask) -> None:
        super().__init__(inner.config, inner.driver_state)
        self.inner = inner

    async def wait(self) -> Exit:
        return await self.inner.wait()

    async def signal(self, signum: int) -> None:
        await self.inner.signal(signum)

    async def stop(self, timeout_s: float, signum: int) -> None:
        await self.inner.stop(timeout_s, signum)

    def read(self, tick: Tick) -> Counters:
        return self.inner.read(tick)

    async def destroy(self, force: bool = False) -> None:
        await self.inner.destroy(force)

    async def exec(
        self,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecSession:
        return await self.inner.exec(command, tty=tty, size=size, env=env)


class Unbroken(Driver):
    """raw_exec under another name: fails nothing. Those below change a task before its start, or break its methods."""

    name = "broken"
    task_type = _Process
    config_schema = RawExec.config_schema
    task_schema = RawExec.task_schema
    capabilities = RawExec.capabilities

    async def open(self) -> None:
        self.inner = RawExec(self.config, self.node)
        await self.inner.open()

    async def close(self) -> None:
        await self.inner.close()

    def changed(self, task: TaskConfig) -> TaskConfig:
        return task

    async def start(self, task: TaskConfig) -> RunningTask:
        return self.task_type(await self.inner.start(self.changed(task)))

    async def recover(self, handle: TaskHandle) -> RunningTask:
        return self.task_type(await self.inner.recover(handle))

    async def attach(self, ref: str) -> RunningTask:
        return self.task_type(await self.inner.attach(ref))


class _WrappedCommand(Unbroken):
    """Runs something before the command, in its process."""

    before: ClassVar[str]

    def changed(self, task: TaskConfig) -> TaskConfig:
        words = ["-c", f'{self.before}; exec "$@"', "sh", task.command, *task.args]
        return dataclasses.replace(task, command="/bin/sh", args=words)


class _ChangedFields(Unbroken):
    fields: ClassVar[dict[str, Any]]

    def changed(self, task: TaskConfig) -> TaskConfig:
        return dataclasses.replace(task, **self.fields)


class IsCancelledWithOneWaiter(Unbroken):
    class Task(_Process):
        ended: asyncio.Task[Exit] | None = None

        async def wait(self) -> Exit:
            if self.ended is None:
                self.ended = asyncio.create_task(self.inner.wait())
            return await self.ended

        async def stop(self, timeout_s: float, signum: int) -> None:
            await self.signal(signum)
            try:
                async with asyncio.timeout(timeout_s):
                    await self.wait()
            except TimeoutError:
                await self.inner.stop(0, signum)

    task_type = Task


class KillsAtOnce(Unbroken):
    class Task(_Process):
        async def stop(self, timeout_s: float, signum: int) -> None:
            await self.inner.stop(0, signum)

    task_type = Task


class NeverKills(Unbroken):
    class Task(_Process):
        async def stop(self, timeout_s: float, signum: int) -> None:
            await self.inner.signal(signum)
            await self.inner.wait()

    task_type = Task


class LosesSignals(Unbroken):
    class Task(_Process):
        async def signal(self, signum: int) -> None:
            return

    task_type = Task


class TellsNoSignal(Unbroken):
    class Task(_Process):
        async def wait(self) -> Exit:
            end = await self.inner.wait()
            return dataclasses.replace(end, exit_code=1, signal=None) if end.signal else end

    task_type = Task


class LeavesTheTree(_ChangedFields):
    class Task(_Process):
        async def stop(self, timeout_s: float, signum: int) -> None:
            await self.inner.stop(max(timeout_s, 30), signum)  # where the grace is over, even it kills them all

    fields: ClassVar = {"leave_rest": True}
    task_type = Task


class InheritsTheEnvironment(Unbroken):
    def changed(self, task: TaskConfig) -> TaskConfig:
        return dataclasses.replace(task, env={**os.environ, **task.env})


class SplitsArguments(Unbroken):
    def changed(self, task: TaskConfig) -> TaskConfig:
        script, *words = task.args[1:]
        return dataclasses.replace(task, args=["-c", script, *" ".join(words).split()])


class IgnoresTheDirectory(_ChangedFields):
    fields: ClassVar = {"cwd": "/"}


class ThrowsOutputAway(_ChangedFields):
    fields: ClassVar = {"stdout": Stdio.discard()}


class ThrowsInputAway(_ChangedFields):
    fields: ClassVar = {"stdin": Stdio.discard()}


class LeavesStdinOpen(Unbroken):
    ends: ClassVar[list[int]] = []

    def changed(self, task: TaskConfig) -> TaskConfig:
        if task.stdin.kind != "discard":
            return task
        self.ends += os.pipe()
        return dataclasses.replace(task, stdin=Stdio.fd(self.ends[-2]))


class KeepsDescriptors(Unbroken):
    def changed(self, task: TaskConfig) -> TaskConfig:
        if task.stdout.descriptor is not None:
            os.dup(task.stdout.descriptor)
        if task.stdout.path is not None and task.stdout.kind == "file":
            os.open(task.stdout.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        return task


class IgnoresSigpipe(_WrappedCommand):
    before = "trap '' PIPE"


class PassesADescriptor(_WrappedCommand):
    before = "exec 7</usr"


class ChangesTheUmask(_WrappedCommand):
    before = "umask 077"


class SharesTheSession(_ChangedFields):
    fields: ClassVar = {"terminal": "inherit"}


class ProtectsFromTheOomKiller(_WrappedCommand):
    before = "echo -500 >/proc/self/oom_score_adj"


class LosesTheResult(Unbroken):
    async def recover(self, handle: TaskHandle) -> RunningTask:
        class Task(_Process):
            async def wait(self) -> Exit:
                await self.inner.wait()
                return Exit(exit_code=0)

        return Task(await self.inner.recover(handle))


class _ChangedSession(ExecSession):
    def __init__(self, inner: ExecSession) -> None:
        self.inner = inner

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        return self.inner.output()

    async def write(self, data: bytes) -> None:
        await self.inner.write(data)

    async def close_stdin(self) -> None:
        await self.inner.close_stdin()

    async def resize(self, rows: int, columns: int) -> None:
        return

    async def wait(self) -> Exit:
        await self.inner.wait()
        return Exit(exit_code=0)

    async def aclose(self) -> None:
        await self.inner.aclose()


class ExecLosesCodeAndSize(Unbroken):
    class Task(_Process):
        async def exec(self, command: Sequence[str], **options: Any) -> ExecSession:
            return _ChangedSession(await self.inner.exec(command, **options))

    task_type = Task


class ExecLosesStdinAndEnvironment(Unbroken):
    class Task(_Process):
        async def exec(self, command: Sequence[str], **options: Any) -> ExecSession:
            class Session(_ChangedSession):
                async def write(self, data: bytes) -> None:
                    return

            options["env"] = None
            return Session(await self.inner.exec(command, **options))

    task_type = Task


class ExecIsNotClosed(Unbroken):
    class Task(_Process):
        async def exec(self, command: Sequence[str], **options: Any) -> ExecSession:
            class Session(_ChangedSession):
                async def aclose(self) -> None:
                    return

            return Session(await self.inner.exec(command, **options))

    task_type = Task


class ExecPretendsInAnEndedTask(BrokenMock):
    class Task(MockTask):
        async def exec(self, command: Sequence[str], **options: Any) -> ExecSession:
            from cameleer.drivers.mock import MockExec

            return MockExec(self._options)

    task_type = Task


class EndsWhatItMeasures(Unbroken):
    async def attach(self, ref: str) -> RunningTask:
        class Task(_Process):
            async def destroy(self, force: bool = False) -> None:
                os.kill(int(ref), 9)
                await self.inner.destroy(force)

        return Task(await self.inner.attach(ref))


class MissesTheEndOfWhatItMeasures(Unbroken):
    async def attach(self, ref: str) -> RunningTask:
        class Task(_Process):
            async def wait(self) -> Exit:
                return await asyncio.get_running_loop().create_future()

        return Task(await self.inner.attach(ref))


class AttachesToNothing(Unbroken):
    async def attach(self, ref: str) -> RunningTask:
        if not ref.isdigit():
            raise RecoverableError("perhaps later")
        return await super().attach(ref)


ON_MOCK: dict[type[Driver], tuple[str, ...]] = {
    HasEndedAtOnce: (
        "test_a_started_task_runs_until_it_is_stopped",
        "test_tasks_at_the_same_time_end_each_for_itself",
        "test_a_waiter_that_is_cancelled_harms_no_other",
        "test_a_second_host_leaves_the_tasks_of_the_first_alone",
    ),
    NeverTellsItsEnd: (
        "test_waiting_for_a_task_that_has_ended_answers_at_once",
        "test_any_number_of_waiters_get_the_same_result",
        "test_readings_end_with_the_task",
        "test_a_run_whose_owner_is_cancelled_ends_its_task",
    ),
    TellsOneWaiterOnly: ("test_a_task_that_was_stopped_is_killed", "test_any_number_of_waiters_get_the_same_result"),
    KnowsNoExitCode: ("test_a_task_that_ends_well_is_a_success", "test_a_task_that_ends_in_time_knows_no_timeout"),
    TellsAnotherExitCode: ("test_exit_codes_are_handed_on",),
    IgnoresSignals: ("test_a_signal_ends_a_task",),
    StopsNothing: (
        "test_closing_the_host_ends_what_still_runs",
        "test_a_timeout_ends_the_task",
        "test_destroying_a_running_task_ends_it",
    ),
    KnowsNoStopWithoutGrace: ("test_stop_without_grace_kills_at_once",),
    RefusesToDestroy: ("test_an_ended_task_can_be_destroyed_twice", "test_destroying_a_running_task_ends_it"),
    IsUnhealthy: ("test_the_driver_says_that_it_is_healthy",),
    StopsAllTasksAtOnce: (
        "test_tasks_at_the_same_time_end_each_for_itself",
        "test_a_second_host_leaves_the_tasks_of_the_first_alone",
    ),
    TakesTenTasksOnly: ("test_twenty_tasks_started_at_once_all_end",),
    IsStuckAfterACancelledStart: ("test_a_start_that_is_cancelled_leaves_no_task",),
    RemembersIds: ("test_an_id_is_free_again_after_destroy",),
    InspectsNumbers: ("test_inspect_gives_text",),
    HidesStartErrors: ("test_a_task_that_cannot_start_raises_and_leaves_nothing",),
    CountersThatFall: ("test_counters_never_fall",),
    CountersThatStand: ("test_the_counters_of_a_busy_task_grow",),
    CountersInPicoseconds: ("test_the_counters_of_a_busy_task_grow",),
    CountsUserTimeTwice: ("test_user_and_system_time_add_up",),
    ComputesRates: ("test_the_driver_hands_over_counters_without_rates",),
    ReadsAtOneMoment: (
        "test_rates_agree_with_the_counters",
        "test_the_interval_is_kept",
        "test_a_sample_covers_its_window",
    ),
    TellsAnotherClock: ("test_times_are_true",),
    NoMeasureOfMemory: ("test_memory_says_what_it_measures",),
    NegativeMemory: ("test_no_figure_is_negative",),
    MeasuresNothing: ("test_what_is_measured_does_not_change",),
    CannotReadAfterAll: ("test_a_driver_measures_or_says_that_it_does_not",),
    StreamsAtItsOwnBeat: ("test_the_interval_is_kept", "test_two_readers_at_once_get_what_they_asked_for"),
    StreamsOnce: ("test_two_readers_at_once_get_what_they_asked_for", "test_a_reader_that_leaves_harms_nothing"),
    ForgetsAtTheEnd: ("test_the_summary_is_no_less_than_the_readings",),
    FindsNothing: ("test_a_task_outlives_its_host_and_is_found_again",),
    FindsATaskThatCannotBeStopped: ("test_a_task_that_was_found_again_can_be_stopped",),
    FindsATaskThatNeverEnds: ("test_a_task_that_was_found_again_tells_its_end",),
    CountsFromZeroAfterRecovery: ("test_counters_go_on_where_they_were",),
    LeavesTraces: ("test_a_destroyed_task_is_not_found_again",),
    NeverSaysThatATaskIsGone: ("test_a_task_that_never_was_is_not_found",),
    TellsOneListenerOnly: ("test_every_listener_gets_all_events",),
    ExecPretendsInAnEndedTask: ("test_exec_in_a_task_that_has_ended_is_an_error",),
    LeavesAsyncioTasks: ("test_no_asyncio_task_is_left",),
    LeavesThreads: ("test_no_thread_is_left",),
    LeavesDescriptors: ("test_no_descriptor_is_left",),
    LeavesProcesses: ("test_no_process_is_left",),
    HandlesSignals: ("test_nothing_of_the_process_is_changed",),
    CollectsEverybodysChildren: ("test_the_embedders_own_processes_keep_their_exit_codes",),
    HoldsTheLoop: ("test_the_event_loop_is_not_held",),
}

ON_COMMANDS: dict[type[Driver], tuple[str, ...]] = {
    IsCancelledWithOneWaiter: ("test_a_stop_whose_grace_passes_still_ends_in_one_result",),
    KillsAtOnce: (
        "test_stop_sends_the_tasks_own_signal_and_waits_for_its_grace",
        "test_stop_kills_a_task_that_ignores_its_signal",
    ),
    NeverKills: ("test_stop_kills_a_task_that_ignores_its_signal",),
    LosesSignals: ("test_a_signal_reaches_the_command",),
    TellsNoSignal: ("test_a_signal_that_ends_a_task_is_told",),
    LeavesTheTree: (
        "test_stop_kills_the_whole_tree",
        "test_a_timeout_kills_the_whole_tree",
        "test_destroy_kills_what_outlived_the_command",
    ),
    InheritsTheEnvironment: ("test_the_environment_is_the_one_that_was_asked_for",),
    SplitsArguments: ("test_arguments_arrive_as_they_are",),
    IgnoresTheDirectory: ("test_the_working_directory_is_the_one_that_was_asked_for",),
    ThrowsOutputAway: (
        "test_stdout_and_stderr_go_where_they_were_sent",
        "test_all_output_is_there_when_the_task_has_ended",
    ),
    ThrowsInputAway: ("test_stdin_comes_from_a_file",),
    LeavesStdinOpen: ("test_stdin_ends_at_once_by_default",),
    KeepsDescriptors: (
        "test_a_descriptor_is_the_tasks_alone_once_the_caller_has_closed_it",
        "test_outputs_are_closed_when_the_host_has",
    ),
    IgnoresSigpipe: ("test_signals_have_their_defaults_and_none_is_blocked",),
    PassesADescriptor: ("test_no_descriptor_is_inherited_but_the_standard_streams",),
    ChangesTheUmask: ("test_umask_nice_and_limits_are_the_callers",),
    SharesTheSession: ("test_a_task_has_a_session_of_its_own",),
    ProtectsFromTheOomKiller: ("test_a_task_is_not_protected_from_the_oom_killer",),
    LosesTheResult: ("test_a_task_that_ended_meanwhile_is_found_with_its_exit_code",),
    ExecLosesCodeAndSize: (
        "test_exec_gives_output_and_exit_code",
        "test_exec_has_a_terminal_of_the_size_that_was_asked_for",
    ),
    ExecLosesStdinAndEnvironment: ("test_exec_takes_stdin", "test_exec_adds_to_the_environment"),
    ExecIsNotClosed: ("test_closing_an_exec_kills_its_command_and_not_the_task",),
    EndsWhatItMeasures: ("test_what_others_run_is_measured_and_left_alone",),
    MissesTheEndOfWhatItMeasures: ("test_the_end_of_what_others_run_is_seen",),
    AttachesToNothing: ("test_attaching_to_nothing_is_task_not_found",),
}

NEEDS_OOM_SCORE = {ProtectsFromTheOomKiller}
"""Need a kernel and a user that may lower a process's ``oom_score_adj``."""


def _suite(driver: type[Driver], **attributes: object) -> type[DriverSuite]:
    body = {"driver": driver, "patience_s": 1.0, "interval_s": 0.1, "__module__": __name__, **attributes}
    return type(f"Test{driver.__name__}", (DriverSuite,), body)


for _driver in ON_MOCK:
    globals()[f"Test{_driver.__name__}"] = _suite(_driver, commands=MockTasks())
for _driver in ON_COMMANDS:
    globals()[f"Test{_driver.__name__}"] = _suite(_driver, patience_s=2.0)
