"""Calling the hook plugins: plain functions in one consumer thread, ``async`` ones in the loop.

Events go to every plugin, newest first, under one deadline; one that raises is named in the log and the others run.
Readings go through a mailbox per plugin: one that is slow gets the newest reading of each task and loses the others.
A plugin that holds the thread past its deadline is left out for a minute and then tried again; a new thread serves
the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cameleer.log import fields, log
from cameleer.threads import Worker, post

if TYPE_CHECKING:
    from pluggy import PluginManager

    from cameleer.calls import Calls
    from cameleer.task import TaskInfo
    from cameleer.usage import TaskResourceUsage

    Pair = tuple[TaskInfo, TaskResourceUsage]

SUSPENDED_S = 60.0
"""How long a plugin that held the thread past its deadline is left out, seconds."""


class Implementation:
    """One plugin's function for one hook."""

    def __init__(self, plugin: str, function: Callable[..., Any], argnames: Sequence[str]) -> None:
        self.plugin = plugin
        self.function = function
        self.argnames = tuple(argnames)
        self.is_async = inspect.iscoroutinefunction(function)


class Mailbox:
    """Readings on their way to one plugin: one delivery at a time, the newest reading per task in between."""

    def __init__(self, implementation: Implementation) -> None:
        self.to = implementation
        self.busy = False
        self.waiting: dict[str, Pair] = {}


class Dispatcher:
    """Calls the hook plugins of one host.

    :ivar dropped: readings that a plugin did not get, by its name.
    """

    def __init__(self, manager: PluginManager, calls: Calls, deadline_s: float) -> None:
        self._calls = calls
        self._deadline_s = deadline_s
        self._loop = asyncio.get_running_loop()
        self._thread = Worker("cameleer-hooks")
        self._idle = asyncio.Event()
        self._running: Implementation | None = None  # in the thread
        self._suspended: dict[str, float] = {}
        self._hooks: dict[str, list[Implementation]] = {}
        self.manager = manager
        self.dropped: Counter[str] = Counter()
        for name in ("poststart", "exited", "shutdown", "update_stats"):
            self._hooks[name] = [
                Implementation(str(impl.plugin_name), impl.function, impl.argnames)
                for impl in reversed(getattr(manager.hook, name).get_hookimpls())
            ]
        self._mailboxes = [Mailbox(each) for each in self._hooks["update_stats"]]

    @property
    def consumers(self) -> list[str]:
        """Plugins that receive readings."""
        return [mailbox.to.plugin for mailbox in self._mailboxes]

    async def event(self, name: str, **arguments: object) -> None:
        """Tell every plugin; returns when all have answered or the deadline has passed.

        Those that come after one that used the deadline up still have a tenth of it each.
        """
        implementations = self._hooks[name]
        if not implementations:
            return
        deadline = self._loop.time() + self._deadline_s
        task = getattr(arguments.get("request"), "task", None)
        task_id = task.info.id if task is not None else ""
        for each in implementations:
            if self._is_suspended(each):
                log.warning("plugin %s is suspended and was left out of %s", each.plugin, name)
                continue
            began = time.monotonic()
            try:
                limit = max(deadline, self._loop.time() + self._deadline_s / 10)
                async with asyncio.timeout_at(limit) as timeout:
                    await self._call(each, {key: arguments[key] for key in each.argnames})
            except Exception as error:  # whatever it raised is that plugin's own affair
                if timeout.expired():
                    self._overdue(each, name)
                else:
                    log.error(
                        "plugin %s failed in %s", each.plugin, name, exc_info=error, extra=fields(task_id=task_id)
                    )
            if self._calls.trace:
                self._trace(each, name, began)

    async def _call(self, each: Implementation, arguments: dict[str, object]) -> None:
        if each.is_async:
            await self._calls.watched(each.function(**arguments), f"plugin {each.plugin}")
            return
        done: asyncio.Future[None] = self._loop.create_future()

        def settle(error: BaseException | None) -> None:
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(None)

        def job() -> None:
            if not done.cancelled():
                error = self._run(each, arguments)
                post(self._loop, settle, error)

        self._thread.submit(job)
        await done

    def _run(self, each: Implementation, arguments: dict[str, object]) -> Exception | None:
        """Call a plain function, in the thread; nothing it raises may end the thread that serves the others."""
        self._running = each
        try:
            each.function(**arguments)
        except Exception as error:
            return error
        except BaseException as error:
            return RuntimeError(f"it raised {error!r}")
        finally:
            if self._running is each:
                self._running = None
        return None

    def _is_suspended(self, each: Implementation) -> bool:
        until = self._suspended.get(each.plugin)
        if until is None:
            return False
        if self._loop.time() < until:
            return True
        del self._suspended[each.plugin]
        return False

    def _overdue(self, each: Implementation, hook: str) -> None:
        if not each.is_async and self._running is not each:
            log.error("plugin %s could not be called in %s: another one held the thread", each.plugin, hook)
            return
        log.error(
            "plugin %s did not return from %s within %g s: suspended for %g s",
            each.plugin,
            hook,
            self._deadline_s,
            SUSPENDED_S,
        )
        self._suspended[each.plugin] = self._loop.time() + SUSPENDED_S
        if not each.is_async:
            self._thread.replace()

    def _trace(self, each: Implementation, hook: str, began: float) -> None:
        log.log(logging.INFO, "plugin %s: %s took %.3f ms", each.plugin, hook, (time.monotonic() - began) * 1000)

    def publish(self, readings: list[Pair]) -> None:
        """Hand the readings of one sweep to every plugin that wants them. Never waits."""
        for mailbox in self._mailboxes:
            if not mailbox.busy and not self._suspended:
                self._deliver(mailbox, readings)
            else:
                self._keep(mailbox, readings)

    def _keep(self, mailbox: Mailbox, readings: list[Pair]) -> None:
        waiting = mailbox.waiting
        for pair in readings:
            key = pair[0].config.id
            if key in waiting:
                self.dropped[mailbox.to.plugin] += 1
            waiting[key] = pair
        if not mailbox.busy and not self._is_suspended(mailbox.to):
            self._next(mailbox)

    def _next(self, mailbox: Mailbox) -> None:
        mailbox.busy = False
        self._idle.set()
        if mailbox.waiting and not self._is_suspended(mailbox.to):
            waiting, mailbox.waiting = mailbox.waiting, {}
            self._deliver(mailbox, list(waiting.values()))

    def _deliver(self, mailbox: Mailbox, readings: list[Pair]) -> None:
        mailbox.busy = True
        self._calls.spawn(self._delivery(mailbox, readings)) if mailbox.to.is_async else self._send(mailbox, readings)

    async def _delivery(self, mailbox: Mailbox, readings: list[Pair]) -> None:
        try:
            async with asyncio.timeout(self._deadline_s) as timeout:
                arguments = {"readings": readings} if mailbox.to.argnames else {}
                await self._calls.watched(mailbox.to.function(**arguments), f"plugin {mailbox.to.plugin}")
        except Exception as error:  # that plugin's own affair
            if timeout.expired():
                self._overdue(mailbox.to, "update_stats")
            else:
                self._failed(mailbox, error)
        finally:
            self._next(mailbox)

    def _send(self, mailbox: Mailbox, readings: list[Pair]) -> None:
        each = mailbox.to
        arguments: dict[str, object] = {"readings": readings} if each.argnames else {}
        overdue = False
        timer: asyncio.TimerHandle

        def watch() -> None:
            nonlocal overdue, timer
            if self._running is not each:  # still waiting for another plugin to leave the thread
                timer = self._loop.call_later(self._deadline_s, watch)
                return
            overdue = True
            self._overdue(each, "update_stats")
            self._next(mailbox)

        timer = self._loop.call_later(self._deadline_s, watch)

        def done(error: BaseException | None) -> None:
            timer.cancel()
            if error is not None:
                self._failed(mailbox, error)
            if not overdue:
                self._next(mailbox)

        def job() -> None:
            error = self._run(each, arguments)
            post(self._loop, done, error)

        self._thread.submit(job)

    def _failed(self, mailbox: Mailbox, error: BaseException) -> None:
        log.error("plugin %s failed in update_stats", mailbox.to.plugin, exc_info=error)

    async def _delivered(self) -> None:
        while any(mailbox.busy for mailbox in self._mailboxes):
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Deliver what is under way, then end the thread."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                await self._delivered()
        self._thread.close()
