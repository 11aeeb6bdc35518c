"""Calling drivers: every awaited call has a deadline, is counted, and names who holds the event loop.

A call that passes its deadline is abandoned: it is cancelled, runs on in the background until it ends, and what comes
of it is disposed of. The driver counts as unhealthy until one of its calls succeeds again.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from cameleer.errors import DeadlineExceeded, DriverError, RecoverableError
from cameleer.log import fields, log

if TYPE_CHECKING:
    from types import FrameType

T = TypeVar("T")

INFO, WARNING = 20, 30
HOLDS_THE_LOOP_S = 0.1
"""A driver that keeps the event loop for longer is named."""


class LoopWatch:
    """Names who holds the event loop for too long, with the line.

    A thread looks at the loop's stack, but only while code of a driver runs there; when none does, it sleeps and costs
    nothing.
    """

    def __init__(self) -> None:
        self._loop_thread = threading.get_ident()
        self._step: tuple[str, float] | None = None  # who runs, and since when
        self._seen: tuple[float, str] | None = None  # the step that was caught, and where
        self._thread: threading.Thread | None = None
        self._idle = threading.Lock()
        self._asleep = False
        self._collections = gc.get_stats()[2]["collections"]
        self._stop = threading.Event()

    def enter(self, who: str) -> float:
        """Code of a driver begins to run in the loop."""
        now = time.monotonic()
        self._step = (who, now)
        if self._asleep:
            self._asleep = False
            self._idle.release()
        elif self._thread is None and not self._stop.is_set():
            self._idle.acquire()
            self._thread = threading.Thread(target=self._watch, name="cameleer-loop-watch", daemon=True)
            self._thread.start()
        return now

    def leave(self, who: str, began: float) -> None:
        """It returned to the loop."""
        self._step = None
        held = time.monotonic() - began
        if held > HOLDS_THE_LOOP_S:
            seen = self._seen
            where = f" at {seen[1]}" if seen is not None and seen[0] == began else ""
            level = INFO if where.endswith(" in <module>") or "<frozen importlib" in where else WARNING
            collections = gc.get_stats()[2]["collections"]
            if collections != self._collections:  # its pauses look the same from here
                self._collections = collections
                where += " (or a full garbage collection did)"
            log.log(  # what is imported for the first time is no fault of the driver's
                level,
                "%s held the event loop for %.0f ms%s: use await, or derive from BlockingDriver",
                who,
                held * 1000,
                where,
                extra={**fields(driver=who.partition(".")[0]), "for_authors": True},
            )

    def _watch(self) -> None:
        while True:
            if self._stop.wait(HOLDS_THE_LOOP_S * 0.8):
                return
            step = self._step
            if step is None:
                self._asleep = True
                self._idle.acquire()
            elif time.monotonic() - step[1] > HOLDS_THE_LOOP_S * 0.7 and (self._seen or (0,))[0] != step[1]:
                frame = sys._current_frames().get(self._loop_thread)
                if frame is not None and self._step is step:
                    self._seen = (step[1], _line_of(frame))

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        thread, self._thread = self._thread, None
        if self._asleep:
            self._asleep = False
            self._idle.release()
        if thread is not None:
            thread.join(1)


def _line_of(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


class _Watched(Generic[T]):
    """Awaits a coroutine step by step and stamps each."""

    def __init__(self, inner: Coroutine[Any, Any, T], watch: LoopWatch, who: str) -> None:
        self._inner = inner
        self._watch = watch
        self._who = who

    def __await__(self) -> Any:  # an iterator with a generator's methods
        return self

    def __iter__(self) -> _Watched[T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        began = self._watch.enter(self._who)
        try:
            return self._inner.send(value)
        finally:
            self._watch.leave(self._who, began)

    def throw(self, *error: Any) -> Any:
        began = self._watch.enter(self._who)
        try:
            return self._inner.throw(*error)
        finally:
            self._watch.leave(self._who, began)

    def close(self) -> None:
        self._inner.close()


def translated(error: BaseException, who: str) -> DriverError:
    """The error as ours; a foreign one counts as recoverable and becomes the cause of one that names the driver."""
    if isinstance(error, DriverError):
        return error
    made = RecoverableError(f"{who} raised {type(error).__name__}: {error}")
    made.__cause__ = error
    return made


class Calls:
    """The awaited calls of one host.

    :ivar trace: log each call with its duration (``CAMELEER_TRACE=1``).
    """

    def __init__(self) -> None:
        self.watch = LoopWatch()
        self.trace = os.environ.get("CAMELEER_TRACE", "") not in ("", "0")
        self._background: set[asyncio.Task[Any]] = set()

    def watched(self, inner: Coroutine[Any, Any, T], who: str) -> Coroutine[Any, Any, T]:
        """Wrap a coroutine of a driver's: holding the loop is noticed, and its ``SystemExit`` ends nobody's loop."""

        async def run() -> T:
            try:
                result: T = await _Watched(inner, self.watch, who)
            except SystemExit as exit_:
                raise RecoverableError(f"{who} raised {exit_!r}") from exit_
            return result

        return run()

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run something in the background that the host waits for when it closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def call(
        self,
        who: str,
        work: Coroutine[Any, Any, T],
        deadline_s: float | None,
        *,
        late: Callable[[T], Awaitable[object]] | None = None,
        abandoned: Callable[[], object] | None = None,
    ) -> T:
        """Await a driver's call.

        :param who: ``driver.method``, for messages.
        :param deadline_s: seconds; None: no deadline.
        :param late: disposes of a result that comes after the call was abandoned or cancelled.
        :param abandoned: told when the deadline passed.
        :raises DeadlineExceeded: the call was abandoned.
        :raises DriverError: what the driver raised; a foreign exception as ``RecoverableError``, with its cause.
        """
        began = time.monotonic()
        inner = asyncio.get_running_loop().create_task(self.watched(work, who))
        try:
            async with asyncio.timeout(deadline_s) as timeout:
                return await asyncio.shield(inner)
        except asyncio.CancelledError:
            if inner.cancelled():  # the driver cancelled itself
                current = asyncio.current_task()
                if current is None or not current.cancelling():
                    raise RecoverableError(f"{who} cancelled itself") from None
            self._let_go(who, inner, late)
            raise
        except Exception as error:
            if timeout.expired() and not (inner.done() and not inner.cancelled() and inner.exception() is error):
                self._let_go(who, inner, late)
                if abandoned is not None:
                    abandoned()
                raise DeadlineExceeded(f"{who} did not return within {deadline_s:g} s and was abandoned") from None
            raise translated(error, who) from error.__cause__ if isinstance(error, DriverError) else error
        finally:
            if self.trace:
                log.info(
                    "%s took %.3f ms",
                    who,
                    (time.monotonic() - began) * 1000,
                    extra=fields(driver=who.partition(".")[0]),
                )

    def _let_go(self, who: str, inner: asyncio.Task[T], late: Callable[[T], Awaitable[object]] | None) -> None:
        inner.cancel()
        self.spawn(self._dispose(who, inner, late))

    async def _dispose(self, who: str, inner: asyncio.Task[T], late: Callable[[T], Awaitable[object]] | None) -> None:
        await asyncio.wait([inner])
        if inner.cancelled() or inner.exception() is not None:
            return
        if late is not None:
            log.info("%s succeeded after it was abandoned: what it made is removed", who)
            try:
                await late(inner.result())
            except Exception:
                log.exception("what %s made too late could not be removed", who)

    async def close(self, patience_s: float) -> None:
        """Wait for what runs in the background, then cancel it."""
        if self._background:
            await asyncio.wait(self._background, timeout=patience_s)
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background, timeout=1)
        self.watch.close()
