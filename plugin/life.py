"""One task's life: start, end, stop, destroy, in the order that the contract gives."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from cameleer.errors import DriverError, NotSupported, RecoverableError, TaskNotFound, UnrecoverableError
from cameleer.hooks.specs import ExitedRequest, PoststartRequest
from cameleer.log import fields, log
from cameleer.retrying import is_recoverable, retry
from cameleer.runusage import RunAccount
from cameleer.status import Cause, Exit, ExitResult, describe_end, final_status
from cameleer.task import Task, TaskHandle, TaskInfo, TaskState

if TYPE_CHECKING:
    from cameleer.config import TaskConfig
    from cameleer.driver import RunningTask
    from cameleer.host import Host
    from cameleer.opened import OpenDriver
    from cameleer.usage import TaskResourceUsage


_ROUNDS = 12
"""Rounds of the loop after which a driver's ``wait`` that could return at once has returned."""


class Life:
    """What the host knows of one task.

    :ivar running: the driver's side of it; None while it starts, or cannot be reached.
    :ivar over: its end was seen.
    :ivar hanging: done when a read of it that was given up returns; None while none hangs.
    :ivar unreachable: why the driver cannot say now what became of it.
    :ivar measured: names of the fields that its readings carry.
    """

    def __init__(self, host: Host, driver: OpenDriver, config: TaskConfig, *, attached: bool = False) -> None:
        self.host = host
        self.driver = driver
        self.config = config
        self.id = config.id
        self.limits = config.resources
        self.node = host.node
        self.running: RunningTask | None = None
        self.over = False
        self.unreachable: str | None = None
        self.hanging: asyncio.Future[None] | None = None
        self.cause: Cause | None = None
        self.account = RunAccount()
        self.measured: frozenset[str] = frozenset()
        self.info = TaskInfo(
            config=config, driver=driver.name, state=TaskState.PENDING, node=host.node, attached=attached
        )
        self.ended: asyncio.Future[ExitResult] = asyncio.get_running_loop().create_future()
        self.task = Task(self)
        self._recovered = False
        self._driver_state = b""
        self._poststart_done = asyncio.Event()
        self._watcher: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._destroying: asyncio.Task[None] | None = None
        self._destroyed = False

    # -- handle and state ----------------------------------------------------------------------------------------

    @property
    def latest(self) -> TaskResourceUsage | None:
        """The last reading anybody took."""
        return self.account.last

    @property
    def handle(self) -> TaskHandle:
        """What finds the task again."""
        return TaskHandle(
            driver=self.driver.name,
            config=self.config,
            state=self.info.state,
            started_at_ns=self.info.started_at_ns,
            cause=self.cause,
            driver_state=self._driver_state,
        )

    def _keep(self) -> None:
        """Write the handle; where that fails, the older one still finds the task."""
        if self.info.attached or self._destroyed:
            return
        try:
            self.host.state.write(self.handle)
        except RecoverableError as exc:
            log.error("%s", exc, extra=fields(task_id=self.id, driver=self.driver.name))

    def _set_cause(self, cause: Cause) -> None:
        if self.cause is None and not self.over:
            self.cause = cause
            self._keep()

    # -- start ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the task, up to the end of ``poststart``. Whatever fails or is cancelled leaves nothing behind."""
        self.host.state.write(self.handle)
        try:
            await self.driver.prepare(self.config)
            running = await self.driver.start(self.config)
        except BaseException:
            self.forget()
            raise
        self._begin(running, running.started_at_ns or time.time_ns())
        try:
            await self._poststart()
        except BaseException:  # a cancellation: the caller will never see the task
            self.host.calls.spawn(self._undo())
            raise

    async def attach(self, running: RunningTask) -> None:
        """Measure what somebody else runs."""
        self._begin(running, running.started_at_ns)
        await self._poststart()

    async def _undo(self) -> None:
        self._set_cause(Cause.CANCELLED)
        await self.destroy(force=True)

    def _begin(self, running: RunningTask, started_at_ns: int | None) -> None:
        self.running = running
        self.unreachable = None
        self._driver_state = running.driver_state
        self.info = dataclasses.replace(self.info, state=TaskState.RUNNING, started_at_ns=started_at_ns)
        self._keep()
        loop = asyncio.get_running_loop()
        self._watcher = loop.create_task(self._watch(running))
        if self.config.timeout_s is not None and not self.info.attached and started_at_ns is not None:
            left_s = self.config.timeout_s - (time.time_ns() - started_at_ns) / 1e9
            self._timer = loop.call_later(max(left_s, 0), self._time_is_up)

    async def _poststart(self) -> None:
        try:
            await self.host.hooks.event(
                "poststart", request=PoststartRequest(task=self.task, recovered=self._recovered)
            )
        finally:
            self._poststart_done.set()

    def forget(self) -> None:
        """Nothing is left of the task: no handle, no entry."""
        self._destroyed = True
        self.host.state.remove(self.id)
        self.host.forget(self)

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, handle: TaskHandle) -> None:
        """Find the task again; one that is lost ends with exit code None, one out of reach stays ``unknown``."""
        self._recovered = True
        self.cause = handle.cause
        self._driver_state = handle.driver_state
        self.info = dataclasses.replace(self.info, state=TaskState.UNKNOWN, started_at_ns=handle.started_at_ns)
        try:
            running = await self.driver.recover(handle)
        except TaskNotFound as exc:
            await self._lost(handle, exc)
            return
        except DriverError as exc:
            self._out_of_reach(handle, exc)
            return
        await self._found(handle, running)

    async def _lost(self, handle: TaskHandle, error: TaskNotFound) -> None:
        self._poststart_done.set()
        if handle.state is TaskState.EXITED:  # its end was told, and the host died while it destroyed it
            self.forget()
            self.ended.cancel()
            return
        await self._finish(Exit(error=f"the task was lost: {error}"))

    def _out_of_reach(self, handle: TaskHandle, error: Exception) -> None:
        self.unreachable = str(error)
        log.error(
            "task %s cannot be recovered for now: %s",
            self.id,
            error,
            extra=fields(task_id=self.id, driver=handle.driver),
        )
        if is_recoverable(error):
            self._watcher = asyncio.get_running_loop().create_task(self._recover_later(handle, error))

    async def _recover_later(self, handle: TaskHandle, error: Exception) -> None:
        try:
            running = await retry(lambda: self.driver.recover(handle), failure=error, wait=self.driver.cls.retry)
        except TaskNotFound as exc:
            await self._lost(handle, exc)
        except DriverError as exc:
            self._out_of_reach(handle, exc)
        else:
            await self._found(handle, running)

    async def _found(self, handle: TaskHandle, running: RunningTask) -> None:
        self._begin(running, handle.started_at_ns or running.started_at_ns)
        watcher = self._watcher
        assert watcher is not None
        for _ in range(_ROUNDS):  # a task that ended meanwhile says so at once, and then gets no poststart
            await asyncio.sleep(0)
            if self.over:
                self._poststart_done.set()
                await asyncio.shield(self.ended)
                return
        await self._poststart()
        if self.cause is not None and not self.over:  # we were ending it when the host died
            self.host.calls.spawn(self._stop_quietly(self.cause, self.config.kill_timeout_s))

    # -- the end -------------------------------------------------------------------------------------------------

    async def _watch(self, running: RunningTask) -> None:
        end = await self._end_of(running)
        await self._finish(end)

    async def _end_of(self, running: RunningTask) -> Exit:
        """Wait for the end; a wait that fails is tried again, and never taken for success."""
        failure: Exception | None = None
        driver = self.driver

        async def wait() -> Exit:
            return await running.wait()

        async def attempt() -> Exit:
            end = await driver.call("wait", wait(), None)
            if not isinstance(end, Exit):
                raise RecoverableError(f"the driver {driver.name} returned {end!r} from wait in place of an Exit")
            return end

        try:
            return await attempt()
        except UnrecoverableError as exc:
            return Exit(error=f"the driver {driver.name} cannot say how the task ended: {exc}")
        except DriverError as exc:
            failure = exc
        log.error(
            "cannot wait for task %s: %s",
            self.id,
            failure,
            exc_info=failure,
            extra=fields(task_id=self.id, driver=driver.name),
        )
        try:
            return await retry(attempt, failure=failure, wait=driver.cls.retry)
        except UnrecoverableError as exc:
            return Exit(error=f"the driver {driver.name} cannot say how the task ended: {exc}")

    async def _finish(self, end: Exit) -> None:
        ended_at_ns = max(
            end.ended_at_ns or time.time_ns(), self.info.started_at_ns or 0
        )  # it may end within its start
        self.over = True
        if self._timer is not None:
            self._timer.cancel()
        started_at_ns = self.info.started_at_ns
        self.info = dataclasses.replace(self.info, state=TaskState.EXITED, ended_at_ns=ended_at_ns)
        self._keep()
        await self.host.collector.finish(self, end.counters)
        result = self._result(end, started_at_ns, ended_at_ns)
        self.info = dataclasses.replace(self.info, result=result)
        await self._poststart_done.wait()
        await self.host.hooks.event("exited", request=ExitedRequest(task=self.task, result=result))
        if not self.ended.done():
            self.ended.set_result(result)

    def _result(self, end: Exit, started_at_ns: int | None, ended_at_ns: int) -> ExitResult:
        status = final_status(end.exit_code, end.signal, end.oom_killed, self.cause)
        wall_ns = ended_at_ns - started_at_ns if started_at_ns is not None else None
        return ExitResult(
            task_id=self.id,
            driver=self.driver.name,
            status=status,
            exit_code=end.exit_code,
            signal=end.signal,
            oom_killed=end.oom_killed,
            error=describe_end(end, status, self.cause),
            started_at_ns=started_at_ns,
            ended_at_ns=ended_at_ns,
            usage=self.account.summary(
                end.counters,
                self.limits,
                max(wall_ns, 0) if wall_ns is not None else None,
                since_recovery=self._recovered,
            ),
            left_running=end.left_running,
        )

    async def wait(self) -> ExitResult:
        """Wait for the result. Cancelling this ends the waiting alone."""
        return await asyncio.shield(self.ended)

    # -- acting on it --------------------------------------------------------------------------------------------

    def _own(self, action: str) -> RunningTask:
        if self.info.attached:
            raise NotSupported(f"cannot {action} task {self.id}: somebody else runs it, it is only measured here")
        if self.running is None:
            raise RecoverableError(
                f"cannot {action} task {self.id}: it is out of reach ({self.unreachable or 'not started'})"
            )
        return self.running

    async def stop(self, timeout_s: float | None, signum: int | None, cause: Cause = Cause.STOP) -> None:
        """End the task and wait until its end was seen; an ended one is left as it is."""
        running = self._own("stop")
        if self.over:
            return
        grace_s = self.config.kill_timeout_s if timeout_s is None else timeout_s
        if grace_s < 0:
            raise ValueError(f"timeout_s is {timeout_s!r}: it must be 0 or more seconds")
        number = signum or self.config.kill_signal or running.default_kill_signal
        self._set_cause(cause)
        limit_s = grace_s + self.host.settings.deadlines.stop
        await self.driver.call("stop", running.stop(grace_s, number), limit_s)
        with contextlib.suppress(TimeoutError):  # it has ended; hooks that are slow to hear of it are not waited for
            async with asyncio.timeout(self.host.settings.deadlines.stop):
                await self._seen_to_end()

    async def _seen_to_end(self) -> None:
        """Wait for the result, unless this is one of the hooks that it waits for."""
        if not self.ended.done() and self._poststart_done.is_set():
            await asyncio.shield(self.ended)

    async def _stop_quietly(self, cause: Cause, grace_s: float | None = None) -> None:
        try:
            await self.stop(grace_s, None, cause)
        except (DriverError, TimeoutError) as exc:
            log.error("cannot stop task %s: %r", self.id, exc, extra=fields(task_id=self.id, driver=self.driver.name))

    def _time_is_up(self) -> None:
        self._set_cause(Cause.TIMEOUT)
        self.host.calls.spawn(self._stop_quietly(Cause.TIMEOUT))

    async def cancel(self) -> None:
        """End it because its owner was cancelled, then remove it."""
        if not self.over and self.running is not None:
            self._set_cause(Cause.CANCELLED)
            await self._stop_quietly(Cause.CANCELLED)
        await self.destroy(force=True)

    async def signal(self, signum: int) -> None:
        """Send a signal."""
        running = self._own("signal")
        if self.over:
            raise UnrecoverableError(f"cannot signal task {self.id}: it has ended")
        await self.driver.call("signal", running.signal(signum), self.host.settings.deadlines.call)

    async def ask(self, method: str, work: Callable[[RunningTask], Awaitable[object]]) -> object:
        """Await one of the running task's other methods."""
        running = self._own(method)

        async def call() -> object:
            return await work(running)

        return await self.driver.call(method, call(), self.host.settings.deadlines.call)

    async def destroy(self, *, force: bool = False) -> None:
        """Free everything of the task; twice without error. Shared by all who ask for it at once."""
        if self.info.attached:
            raise NotSupported(f"cannot destroy task {self.id}: somebody else runs it, it is only measured here")
        if not self.over and not force and self.running is not None:
            raise UnrecoverableError(f"cannot destroy task {self.id}: it still runs; stop it, or use force=True")
        if self._destroyed:
            return
        if self._destroying is None:
            self._destroying = self.host.calls.spawn(self._destroy())
        try:
            await asyncio.shield(self._destroying)
        finally:
            if self._destroying is not None and self._destroying.done() and not self._destroyed:
                self._destroying = None  # it failed: it may be tried again

    async def _destroy(self) -> None:
        if not self.over and self.running is not None:
            self._set_cause(Cause.DESTROY)
            await self._stop_quietly(Cause.DESTROY, 0.0)
        await self.host.collector.forget(self)
        await self._release()
        await self._no_watcher()
        self.forget()

    async def _release(self) -> None:
        if self.running is not None:
            await self.driver.call("destroy", self.running.destroy(force=True), self.host.settings.deadlines.start)

    async def _no_watcher(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        watcher = self._watcher
        if watcher is not None and not watcher.done():
            watcher.cancel()
            await asyncio.wait([watcher])
        if not self.ended.done():
            self.ended.cancel()

    async def leave(self) -> None:
        """Let go of the task without touching it."""
        await self.host.collector.forget(self)
        await self._no_watcher()
        if self.info.attached and self.running is not None:
            await self._release()
