"""The readings of one task for one reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from cameleer.usage import TaskResourceUsage

if TYPE_CHECKING:
    from cameleer.measurement import Measurement


class Readings(AsyncIterator[TaskResourceUsage]):
    """The readings of one task for one reader: the latest wins, and it may be dropped at any time without closing."""

    def __init__(self, account_drop: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._usage: TaskResourceUsage | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False
        self._error: Exception | None = None
        self._account_drop = account_drop
        self.measurement: Measurement | None = None  # kept alive by its reader

    def put(self, usage: TaskResourceUsage) -> None:
        """Hand over a reading; one that was not taken is replaced and counted."""
        if self._usage is not None:
            self._account_drop()
        self._usage = usage
        self._wake()

    def finish(self, error: Exception | None = None) -> None:
        """No more readings; what was put is still taken."""
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def __aiter__(self) -> Readings:
        return self

    async def __anext__(self) -> TaskResourceUsage:
        if self._waiter is not None:
            raise RuntimeError("two readers wait on one iterator: give each its own readings()")
        while self._usage is None:
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                raise StopAsyncIteration
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        usage, self._usage = self._usage, None
        return usage
