"""Signals during a run: what is the terminal's own business, and what is passed on."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cameleer.cli.noview import NoView
    from cameleer.task import Task

_KEYBOARD = (signal.SIGINT, signal.SIGQUIT)
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OF_A_VIEW = (signal.SIGCONT, signal.SIGWINCH)
_START_S = 0.5
"""How long a start may go on after a signal, seconds."""
_GRACE_S = 5.0
"""How long a container may take to end after SIGTERM or SIGHUP, seconds."""
_LAST_INTERRUPT = 3


class Signals:
    """Catches signals from the moment it is entered; what it does with them depends on where the task stands.

    A signal that would end us ends a start that takes long; a start that is soon through has it passed on. While the
    task runs, the terminal sends Ctrl-C to it as well as to us, so we do nothing; where it does not hear the terminal,
    it is passed on. SIGTERM, SIGHUP and the user's signals are passed on always, and a second SIGTERM kills.

    The first process of a container does not hear signals that it has no handler for. So a container that does not end
    after SIGTERM or SIGHUP is killed, and so is one that is interrupted for the third time.

    :ivar ended_by: the signal for which the start was given up.
    :param ours: the task hears no key of the terminal: it has no terminal, or one of its own.
    """

    def __init__(self, *, ours: bool) -> None:
        self._pass_keyboard = ours
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Any] = {}
        self._starter: asyncio.Task[Any] | None = None
        self._task: Task | None = None
        self._view: NoView | None = None
        self._container = False
        self._interrupts = 0
        self._terminated = False
        self._work: set[asyncio.Future[None]] = set()
        self._early: list[int] = []
        self._giving_up: asyncio.TimerHandle | None = None
        self.ended_by: int | None = None

    def __enter__(self) -> Signals:
        """Catch, but for what the caller wants ignored (``nohup``)."""
        for signum in (*_KEYBOARD, *_PASSED_ON):
            if signum in _KEYBOARD or signal.getsignal(signum) is not signal.SIG_IGN:
                self._catch(signum)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Catch no more."""
        while self._before:
            signal.signal(*self._before.popitem())

    def _catch(self, signum: int) -> None:
        """Catch one; the loop's own ``add_signal_handler`` lists all signals of the system each time, 0.4 ms."""
        self._before[signum] = signal.signal(signum, self._noticed)

    def _noticed(self, signum: int, frame: object) -> None:
        self._loop.call_soon_threadsafe(self._came, signum)

    def for_container(self) -> None:
        """The task is a container: it hears nothing of our terminal's keys, and may be deaf to signals."""
        self._container = True
        self._pass_keyboard = True

    def starting(self, starter: asyncio.Task[Any] | None) -> None:
        """The start begins."""
        self._starter = starter
        if self._early:
            self._give_up_soon()

    def started(self, task: Task, view: NoView) -> None:
        """The task runs; what came meanwhile is for it."""
        self._task = task
        self._view = view
        if self._giving_up is not None:
            self._giving_up.cancel()
        self._pass_keyboard = self._pass_keyboard or bool(view.task_fields())
        if view.drawn:
            for signum in _OF_A_VIEW:
                self._catch(signum)
            if view.task_fields():
                self._catch(signal.SIGTSTP)
        for early in self._early:
            self._came(early)

    def _give_up_soon(self) -> None:
        if self._starter is not None and self._giving_up is None:
            self._giving_up = self._loop.call_later(_START_S, self._give_up, self._starter)

    def _give_up(self, starter: asyncio.Task[Any]) -> None:
        if self._task is None:
            self.ended_by = self._early[0]
            starter.cancel()

    def _came(self, signum: int) -> None:
        if self._task is None:
            self._early.append(signum)
            self._give_up_soon()
        elif signum in (*_OF_A_VIEW, signal.SIGTSTP):
            if self._view is not None:
                self._view.signal(signum)
        elif signum == signal.SIGTERM and self._terminated:
            self._spawn(self._task.stop(0))
        elif signum not in _KEYBOARD or self._pass_keyboard:
            self._terminated = self._terminated or signum == signal.SIGTERM
            self._spawn(self._task.signal(signum))
            if self._container:
                self._kill_if_deaf(signum, self._task)

    def _kill_if_deaf(self, signum: int, task: Task) -> None:
        self._interrupts += signum == signal.SIGINT
        if self._interrupts == _LAST_INTERRUPT:
            self._spawn(task.stop(0))
        elif signum in (signal.SIGTERM, signal.SIGHUP):
            self._loop.call_later(_GRACE_S, lambda: self._spawn(task.stop(0)))

    def _spawn(self, work: Awaitable[None]) -> None:
        doing = asyncio.ensure_future(_quietly(work))
        self._work.add(doing)
        doing.add_done_callback(self._work.discard)


async def _quietly(work: Awaitable[None]) -> None:
    """Send a signal to a task that may have ended meanwhile."""
    from cameleer.cli.console import say
    from cameleer.errors import DriverError, RecoverableError

    try:
        await work
    except RecoverableError as exc:
        say(f"cannot pass a signal on: {exc}")
    except DriverError:
        pass
