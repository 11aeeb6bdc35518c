"""No live view: a container's own terminal stands in for ours. Every key is the container's, also Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cameleer.cli import console
from cameleer.cli.noview import NoView
from cameleer.cli.terminal import Terminal
from cameleer.config import Stdio
from cameleer.errors import DriverError

if TYPE_CHECKING:
    from cameleer.cli.view import View
    from cameleer.task import Task

STREAMS = (0, 1, 2)


def leads_to(terminal: Terminal | None) -> bool:
    """Whether all three streams are this terminal, and it is ours to use."""
    return (
        terminal is not None
        and terminal.modes is not None
        and terminal.foreground
        and all(terminal.is_at(fd) for fd in STREAMS)
    )


async def keep_size(task: Task, size: Callable[[], tuple[int, int]]) -> None:
    """Tell a task its terminal's rows and columns, until it has been told those that there are."""
    told: tuple[int, int] | None = None
    with suppress(DriverError):  # it may have ended meanwhile
        while told != size():
            told = size()
            await task.resize(*told)


class Through(NoView):
    """Shows nothing, and lets the driver connect the two terminals.

    The driver gets a descriptor of our own, so that nothing which it sets on that reaches the shell's.
    """

    drawn = True

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._task: Task | None = None
        self._taken = False
        self._resizing: asyncio.Task[None] | None = None

    def task_fields(self) -> Mapping[str, Any]:
        """Our terminal, as the other end of the container's."""
        ours = Stdio.fd(self._terminal.fd)
        return {"stdin": ours, "stdout": ours, "stderr": ours, "terminal": "pty"}

    def starting(self) -> None:
        """Let the container's output through as it is; Ctrl-C still ends a pull."""
        self._taken = True
        console.take_over(self._say)
        self._terminal.raw(output_only=True)

    def begin(self, task: Task, command: Sequence[str]) -> View | None:
        """Let every key through."""
        self._task = task
        self._take()
        return None

    def _take(self) -> None:
        self._terminal.raw()
        if self._task is not None and (self._resizing is None or self._resizing.done()):
            self._resizing = asyncio.get_running_loop().create_task(keep_size(self._task, lambda: self._terminal.size))

    def signal(self, signum: int) -> None:
        """Follow the terminal's size; stop when asked to, and take the terminal again after that."""
        if self._task is None:
            return
        if signum == signal.SIGTSTP:
            self._terminal.restore()
            caught = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.killpg(os.getpgrp(), signal.SIGTSTP)  # our job stops here; the container goes on
            signal.signal(signal.SIGTSTP, caught)
        self._take()

    async def close(self) -> None:
        """Give the terminal back."""
        if self._taken:
            self._taken = False
            self._task = None
            if self._resizing is not None:
                self._resizing.cancel()
            console.give_back(self._say)
            self._terminal.restore()

    def _say(self, text: str) -> None:
        console.give_back(self._say)
        console.write(text.replace("\n", "\r\n"))
        console.take_over(self._say)
