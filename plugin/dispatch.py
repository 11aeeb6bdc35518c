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
import threading
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
    """Readings on their way to one plugin: one delivery at a time, the newest reading per task in between.

    The loop alone begins a delivery. The thread ends it without waking the loop, unless something waits by then.

    :ivar delivery: number of the delivery under way; one that hung and was given up has an older one.
    """

    def __init__(self, implementation: Implementation) -> None:
        self.to = implementation
        self.lock = threading.Lock()
        self.busy = False
        self.delivery = 0
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
        self._closing = False
        self._idle = asyncio.Event()
        self._watching: asyncio.TimerHandle | None = None
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
            if mailbox.busy or mailbox.waiting or self._suspended:
                self._keep(mailbox, readings)
            else:
                self._deliver(mailbox, readings)

    def _keep(self, mailbox: Mailbox, readings: list[Pair]) -> None:
        with mailbox.lock:
            waiting = mailbox.waiting
            for pair in readings:
                key = pair[0].config.id
                if key in waiting:
                    self.dropped[mailbox.to.plugin] += 1
                waiting[key] = pair
            busy = mailbox.busy
        if not busy:
            self._next(mailbox)

    def _next(self, mailbox: Mailbox) -> None:
        """A delivery has ended: begin another if anything waits."""
        self._idle.set()
        if mailbox.waiting and not self._is_suspended(mailbox.to):
            waiting, mailbox.waiting = mailbox.waiting, {}
            self._deliver(mailbox, list(waiting.values()))

    def _deliver(self, mailbox: Mailbox, readings: list[Pair]) -> None:
        mailbox.busy = True
        mailbox.delivery += 1
        if mailbox.to.is_async:
            self._calls.spawn(self._delivery(mailbox, readings))
        else:
            self._send(mailbox, readings)

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
            mailbox.busy = False
            self._next(mailbox)

    def _send(self, mailbox: Mailbox, readings: list[Pair]) -> None:
        each, number = mailbox.to, mailbox.delivery
        arguments: dict[str, object] = {"readings": readings} if each.argnames else {}

        def job() -> None:
            error = self._run(each, arguments)
            with mailbox.lock:
                current = mailbox.delivery == number
                if current:
                    mailbox.busy = False
                wanted = current and (self._closing or bool(mailbox.waiting))
            if wanted or error is not None:
                post(self._loop, done, error)

        def done(error: BaseException | None) -> None:
            if error is not None:
                self._failed(mailbox, error)
            if not mailbox.busy:
                self._next(mailbox)

        self._thread.submit(job)
        if self._watching is None:
            self._watching = self._loop.call_later(self._deadline_s / 4, self._watch)

    def _watch(self) -> None:
        """Look for a plugin that holds the thread; only while readings are under way."""
        self._watching = None
        since, each = self._thread.busy_since, self._running
        for mailbox in self._mailboxes:
            if mailbox.to is each and since is not None and time.monotonic() - since > self._deadline_s:
                self._overdue(each, "update_stats")
                mailbox.delivery += 1
                mailbox.busy = False
                self._next(mailbox)
        if any(mailbox.busy for mailbox in self._mailboxes):
            self._watching = self._loop.call_later(self._deadline_s / 4, self._watch)

    def _failed(self, mailbox: Mailbox, error: BaseException) -> None:
        log.error("plugin %s failed in update_stats", mailbox.to.plugin, exc_info=error)

    async def _delivered(self) -> None:
        for mailbox in self._mailboxes:
            with mailbox.lock:
                busy = mailbox.busy
            if not busy:
                self._next(mailbox)
        while any(mailbox.busy for mailbox in self._mailboxes):
            self._idle.clear()
            await self._idle.wait()

    async def close(self) -> None:
        """Deliver what is under way, then end the thread."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._deadline_s):
                await self._delivered()
        if self._watching is not None:
            self._watching.cancel()
        self._thread.close()
