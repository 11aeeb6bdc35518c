"""Drivers in plain functions, served as if they were asyncio ones.

Control calls run in a small pool of threads, one thread for all tasks asks ``poll``, and the host reads in the driver's
sampler thread. No thread per task.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TYPE_CHECKING

from cameleer.driver import Driver, Fingerprint, RunningTask, Tick
from cameleer.log import fields, log
from cameleer.threads import Pool, post

if TYPE_CHECKING:
    from cameleer.blocking import BlockingDriver, BlockingTask
    from cameleer.config import TaskConfig
    from cameleer.status import Exit
    from cameleer.task import TaskHandle
    from cameleer.usage import Counters

POLL_S = 0.1
"""How often ``poll`` is asked of tasks without a descriptor, seconds."""

FINGERPRINT_S = 30.0
"""How often a blocking driver is asked how it is, seconds."""


_Ended = Callable[["Exit | BaseException"], None]


class Poller:
    """One thread that asks the tasks of one driver whether they have ended.

    ``poll`` must return at once: one that hangs holds up the ends of its driver's other tasks.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._changes: list[tuple[BlockingTask, _Ended | None]] = []  # None: ask it no more
        self._thread: threading.Thread | None = None
        self._waker: tuple[int, int] | None = None
        self._closed = False
        # from here on the thread's own
        self._poll = select.poll()
        self._fds: dict[int, BlockingTask] = {}
        self._seeing: dict[BlockingTask, _Ended] = {}
        self._blind: dict[BlockingTask, _Ended] = {}

    def add(self, task: BlockingTask, ended: _Ended) -> None:
        """Ask this task from now on; ``ended`` is called in the thread, once."""
        self._change(task, ended)

    def remove(self, task: BlockingTask) -> None:
        """Ask this task no more."""
        if self._thread is not None:
            self._change(task, None)

    def _change(self, task: BlockingTask, ended: _Ended | None) -> None:
        with self._lock:
            self._changes.append((task, ended))
            if self._thread is None:
                self._waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                self._thread = threading.Thread(target=self._run, args=self._waker, name=self._name, daemon=True)
                self._thread.start()
        self._wake()

    def _wake(self) -> None:
        if self._waker is not None:
            with contextlib.suppress(BlockingIOError):  # full: it will wake anyway
                os.write(self._waker[1], b"\0")

    def _run(self, read_end: int, write_end: int) -> None:
        self._poll.register(read_end, select.POLLIN)
        due = time.monotonic()
        try:
            while not self._closed:
                wait_ms = max(due - time.monotonic(), 0) * 1000 if self._blind else None
                for fd, _ in self._poll.poll(wait_ms):
                    if fd == read_end:
                        os.read(read_end, 4096)
                        self._take_changes()
                    else:
                        self._ready(fd)
                if self._blind and time.monotonic() >= due:
                    due = time.monotonic() + POLL_S
                    self._ask_blind()
        finally:
            os.close(read_end)
            os.close(write_end)

    def _take_changes(self) -> None:
        with self._lock:
            changes, self._changes = self._changes, []
        for task, ended in changes:
            if ended is None:
                self._blind.pop(task, None)
                self._forget(task)
                continue
            fd = task.fileno()
            if fd is None or fd in self._fds:
                self._blind[task] = ended
            else:
                self._fds[fd] = task
                self._seeing[task] = ended
                self._poll.register(fd, select.POLLIN)

    def _forget(self, task: BlockingTask) -> None:
        if self._seeing.pop(task, None) is not None:
            for fd in [fd for fd, each in self._fds.items() if each is task]:
                del self._fds[fd]
                self._poll.unregister(fd)

    def _ready(self, fd: int) -> None:
        task = self._fds.get(fd)
        if task is None:
            return
        ended = self._seeing[task]
        self._forget(task)
        self._blind[task] = ended  # if it was readable for nothing, waiting for it again would spin
        try:
            end: Exit | BaseException | None = task.poll()
        except Exception as error:  # it is the waiter's
            end = error
        if end is not None:
            self._blind.pop(task)(end)

    def _ask_blind(self) -> None:
        """Ask every task that has no descriptor: ten times a second, so nothing is done but the call."""
        news: list[tuple[BlockingTask, Exit | BaseException]] = []
        for task in self._blind:
            try:
                end = task.poll()
            except Exception as error:  # it is the waiter's
                news.append((task, error))
            else:
                if end is not None:
                    news.append((task, end))
        for task, each in news:
            self._blind.pop(task)(each)

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        thread, self._thread = self._thread, None
        self._wake()
        self._waker = None
        if thread is not None:
            thread.join(1)


class AdaptedTask(RunningTask):
    """A :class:`BlockingTask` as the host wants it."""

    def __init__(self, inner: BlockingTask, driver: AdaptedDriver, end: Exit | None) -> None:
        super().__init__(inner.config, inner.driver_state)
        self.inner = inner
        self.network = inner.network
        self.started_at_ns = inner.started_at_ns
        self.default_kill_signal = inner.default_kill_signal
        self._driver = driver
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        if end is not None:
            self._end.set_result(end)
        else:
            self._ask()

    def _ask(self) -> None:
        loop = asyncio.get_running_loop()
        self._driver.poller.add(self.inner, lambda end: post(loop, self._ended, end))

    def _ended(self, end: Exit | BaseException) -> None:
        if self._end.done():
            return
        if isinstance(end, BaseException):
            self._end.set_exception(end)
            self._end.exception()  # seen, also where nobody waits
        else:
            self._end.set_result(end)

    async def wait(self) -> Exit:
        """Wait for ``poll`` to say how it ended."""
        if self._end.done() and self._end.exception() is not None:  # the waiter tries again
            self._end = asyncio.get_running_loop().create_future()
            self._ask()
        return await asyncio.shield(self._end)

    async def signal(self, signum: int) -> None:
        """Send a signal, in a thread."""
        await self._driver.pool.call(lambda: self.inner.signal(signum))

    def read(self, tick: Tick) -> Counters:
        """Read; the host calls this in the driver's sampler thread."""
        return self.inner.read(tick)

    async def destroy(self, force: bool = False) -> None:
        """Free everything, in a thread."""
        await self._driver.pool.call(lambda: self.inner.destroy(force))
        self._driver.poller.remove(self.inner)
        if not self._end.done():
            self._end.cancel()

    async def inspect(self) -> Mapping[str, str]:
        """Ask for its attributes, in a thread."""
        return await self._driver.pool.call(self.inner.inspect)


class AdaptedDriver(Driver):
    """A :class:`BlockingDriver` as the host wants it."""

    task_type = AdaptedTask

    def __init__(self, inner: BlockingDriver) -> None:
        super().__init__(inner.config, inner.node)
        self.inner = inner
        self.name = inner.name  # type: ignore[misc]
        self.pool = Pool(f"cameleer-{inner.name}-control")
        self.poller = Poller(f"cameleer-{inner.name}-poll")
        self._undoing: set[asyncio.Future[None]] = set()

    async def open(self) -> None:
        """Open, in a thread."""
        await self.pool.call(self.inner.open)

    async def close(self) -> None:
        """Close, and end the threads."""
        try:
            if self._undoing:
                await asyncio.wait(self._undoing)
            await self.pool.call(self.inner.close)
        finally:
            self.poller.close()
            self.pool.close()

    async def prepare(self, task: TaskConfig) -> None:
        """Prepare, in a thread."""
        await self.pool.call(lambda: self.inner.prepare(task))

    async def start(self, task: TaskConfig) -> RunningTask:
        """Start, in a thread; a start that was given up and succeeds later is undone."""
        return await self._obtain(lambda: self.inner.start(task))

    async def recover(self, handle: TaskHandle) -> RunningTask:
        """Recover, in a thread, and ask at once whether it has ended."""
        return await self._obtain(lambda: self.inner.recover(handle), ask=True)

    async def attach(self, ref: str) -> RunningTask:
        """Attach, in a thread."""
        return await self._obtain(lambda: self.inner.attach(ref), undo=False)

    async def _obtain(self, make: Callable[[], BlockingTask], *, ask: bool = False, undo: bool = True) -> RunningTask:
        def made() -> tuple[BlockingTask, Exit | None]:
            task = make()
            return task, task.poll() if ask else None

        def drop(result: tuple[BlockingTask, Exit | None]) -> None:
            job = self.pool.call(lambda: _undo(result[0]))
            self._undoing.add(job)
            job.add_done_callback(self._undone)

        call = self.pool.call(made, late=drop if undo else None)
        try:
            task, end = await call
        except asyncio.CancelledError:
            if undo and call.done() and not call.cancelled() and call.exception() is None:
                drop(call.result())  # it succeeded in the very moment in which it was given up
            raise
        return AdaptedTask(task, self, end)

    def _undone(self, job: asyncio.Future[None]) -> None:
        self._undoing.discard(job)
        if not job.cancelled() and (error := job.exception()) is not None:
            log.error("a start that was abandoned could not be undone", exc_info=error, extra=fields(driver=self.name))

    async def fingerprint(self) -> AsyncGenerator[Fingerprint, None]:
        """Ask now, and every 30 s; yield changes."""
        last: Fingerprint | None = None
        while True:
            found = await self.pool.call(self.inner.fingerprint)
            if found != last:
                last = found
                yield found
            await asyncio.sleep(FINGERPRINT_S)


def _undo(task: BlockingTask) -> None:
    try:
        task.signal(9)
    finally:
        task.destroy(force=True)
