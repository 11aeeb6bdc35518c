"""Daemon threads of our own for code that may block.

No ``ThreadPoolExecutor``: one hung thread there holds the interpreter's exit. A thread that hangs is abandoned: it ends
when its call returns, its result is thrown away, and a new thread serves the rest.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_Job = Callable[[], object]


def _serve(jobs: SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # a finished job must not keep its task alive


class Worker:
    """One thread that runs jobs one after the other.

    :ivar busy_since: ``time.monotonic()`` at which the running job began; None between jobs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self.busy_since: float | None = None

    def submit(self, job: Callable[[], object]) -> None:
        """Run this in the thread; it must not raise."""
        if self._thread is None:
            self._thread = threading.Thread(target=_serve, args=(self._jobs,), name=self._name, daemon=True)
            self._thread.start()
        jobs = self._jobs

        def run() -> None:
            self.busy_since = time.monotonic()
            try:
                job()
            finally:
                if jobs is self._jobs:  # else abandoned: the stamp is the new thread's
                    self.busy_since = None

        jobs.put(run)

    def replace(self) -> None:
        """Abandon the thread, which hangs; jobs that still wait go to a new one."""
        old, self._jobs = self._jobs, SimpleQueue()
        self._thread = None
        self.busy_since = None
        waiting: list[_Job] = []
        while not old.empty():
            job = old.get()
            if job is not None:
                waiting.append(job)
        old.put(None)
        for job in waiting:
            self.submit(job)

    def close(self) -> None:
        """End the thread; one that hangs is left to itself."""
        self._jobs.put(None)
        if self._thread is not None and self.busy_since is None:
            self._thread.join(1)
        self._thread = None


class Pool:
    """Threads for calls that may block, made when all others are busy, up to a limit."""

    def __init__(self, name: str, limit: int = 32) -> None:
        self._name = name
        self._limit = limit
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: set[threading.Thread] = set()
        self._free = 0  # threads less jobs that wait or run; on the loop only

    def call(self, function: Callable[[], T], late: Callable[[T], object] | None = None) -> asyncio.Future[T]:
        """Call in a thread. A cancelled future abandons the call: its thread no longer counts.

        :param late: given the result of a call that was abandoned, in the loop.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None, ran: bool = True) -> None:
            self._free += 1
            if future.cancelled():
                self._limit -= 1  # it had been raised when the call was abandoned
                if late is not None and ran and error is None:
                    late(result)  # type: ignore[arg-type]
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        def abandoned(done: asyncio.Future[T]) -> None:
            if done.cancelled():
                self._limit += 1

        future.add_done_callback(abandoned)

        def job() -> None:
            if future.cancelled():
                post(loop, settle, None, None, False)
                return
            try:
                result = function()
            except BaseException as error:  # it belongs to the caller, whatever it is
                if isinstance(error, StopIteration):  # which a future refuses
                    error = RuntimeError(f"the call raised {error!r}")
                post(loop, settle, None, error)
            else:
                post(loop, settle, result, None)

        self._free -= 1
        if self._free < 0 and len(self._threads) < self._limit:
            thread = threading.Thread(target=_serve, args=(self._jobs,), name=self._name, daemon=True)
            self._threads.add(thread)
            self._free += 1
            thread.start()
        self._jobs.put(job)
        return future

    def close(self) -> None:
        """End all threads; those that hang are left to themselves."""
        for _ in self._threads:
            self._jobs.put(None)
        if self._free >= len(self._threads):  # all idle
            for thread in self._threads:
                thread.join(1)
        self._threads.clear()


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: Any) -> None:
    """Call back in the loop from a thread; nothing happens when the loop has closed meanwhile."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        if not loop.is_closed():
            raise
