"""Where the live view is drawn: below the task's own output, beside it, as plain lines, or not at all."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import struct
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cameleer.cli import console
from cameleer.cli.noview import NoView
from cameleer.cli.screen import Above, Beside
from cameleer.cli.terminal import Terminal, dumb, encoding_is_utf8, is_pipe, raw_modes
from cameleer.cli.through import STREAMS, keep_size
from cameleer.cli.view import HEIGHT, Style, View
from cameleer.config import Stdio

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cameleer.task import Task

_FRAME_S = 0.2
_LINE_S = 5.0
_LEAST_ROWS, _LEAST_COLUMNS = HEIGHT + 4, 20
_CHUNK = 1 << 16
_PATIENCE = 5  # frames that the task may keep us waiting for a good moment
_STOPS = 100  # a job that nobody can continue in the foreground is not stopped by these signals
_OUTPUTS = (1, 2)


class Live(NoView):
    """A view that is drawn again and again."""

    period_s = _FRAME_S

    def __init__(self) -> None:
        self.view: View | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._shown: tuple[int, int] = (-1, -1)

    def begin(self, task: Task, command: Sequence[str]) -> View | None:
        """The task runs."""
        info = task.info
        self.view = View(command, info.config.resources, info.driver, time.monotonic_ns())
        self.start(task)
        return self.view

    def start(self, task: Task) -> None:
        """Begin to draw."""
        self._timer = asyncio.get_running_loop().call_later(self.period_s, self._run)

    async def close(self) -> None:
        """Stop drawing."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def draw(self, view: View) -> bool:
        """Show it as it is now; False: not a good moment, it is tried again."""
        return True

    def _run(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.period_s, self._run)
        view = self.view
        if view is None:
            return
        now = (view.account.readings, (time.monotonic_ns() - view.started_ns) // 1_000_000_000)
        if now != self._shown and self.draw(view):
            self._shown = now


class PlainLines(Live):
    """A line of text on stderr every few seconds, where nothing can be drawn."""

    period_s = _LINE_S

    def draw(self, view: View) -> bool:
        """Say it."""
        console.say(view.line(time.monotonic_ns()))
        return True


class BesideTask(Live):
    """On the terminal, while the task's output goes elsewhere. Rests while somebody else uses the terminal."""

    drawn = True

    def __init__(self, terminal: Terminal) -> None:
        super().__init__()
        self._terminal = terminal
        self._screen = Beside()
        self._style = style()
        os.set_blocking(terminal.fd, False)  # a terminal held by Ctrl-S must not hold us

    def start(self, task: Task) -> None:
        """Begin to draw."""
        console.take_over(self._say)
        super().start(task)

    def signal(self, signum: int) -> None:
        """After a stop the shell has written to the terminal."""
        if signum == signal.SIGCONT:
            self._screen.leave()

    def draw(self, view: View) -> bool:
        """Redraw in place."""
        if not self._terminal.foreground or self._terminal.in_use:
            self._screen.leave()
            return False
        _, columns = self._terminal.size
        self._write(self._screen.draw(view.frame(time.monotonic_ns(), columns, self._style)))
        return True

    async def close(self) -> None:
        """Leave the last frame for the user to read."""
        await super().close()
        console.give_back(self._say)
        if self.view is not None:
            self.draw(self.view)
            self.view = None

    def _say(self, text: str) -> None:
        console.give_back(self._say)
        console.write(text)
        console.take_over(self._say)
        if self._terminal.is_at(2):
            self._screen.leave()

    def _write(self, data: bytes) -> None:
        try:
            if os.write(self._terminal.fd, data) < len(data):
                self._screen.leave()
        except OSError:
            self._screen.leave()


class AboveView(Live):
    """The task has a pty above the view: a relay between it and the terminal.

    :param streams: which of the descriptors 0, 1, 2 lead to the terminal; the others stay the task's own.
    :param container: the task has a terminal of its own, which the driver connects with the pty.
    """

    drawn = True

    def __init__(self, terminal: Terminal, streams: frozenset[int], *, container: bool = False) -> None:
        super().__init__()
        rows, columns = terminal.size
        self._terminal = terminal
        self._streams = streams
        self._style = style()
        self._screen = Above(rows, HEIGHT)
        self._columns = columns
        self._container = container and 0 in streams
        self._resizing: asyncio.Task[None] | None = None
        self._task: Task | None = None
        self._keys = bytearray()
        self._output = bytearray()
        self._reading = False
        self._impatience = 0
        self._stopping: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._written = asyncio.Event()
        self._master, self._slave = os.openpty()
        os.set_blocking(self._master, False)
        os.set_blocking(terminal.fd, False)
        self._resize_pty()
        if terminal.modes is not None:
            modes = list(terminal.modes)
            if 0 not in streams:  # then the terminal is not made raw, and turns line ends itself
                modes[1] &= ~termios.OPOST
            termios.tcsetattr(self._slave, termios.TCSANOW, raw_modes(modes) if self._container else modes)

    def task_fields(self) -> Mapping[str, Any]:
        """The pty in place of the terminal."""
        fields: dict[str, Any] = {
            name: Stdio.fd(self._slave) for fd, name in enumerate(("stdin", "stdout", "stderr")) if fd in self._streams
        }
        fields["terminal"] = "pty" if 0 in self._streams else "none"
        return fields

    def start(self, task: Task) -> None:
        """Take the terminal."""
        self._task = task
        self._resize_pty()
        os.close(self._slave)
        self._slave = -1
        self._take()
        console.take_over(self._say)
        self._run()

    def _take(self) -> None:
        loop = asyncio.get_running_loop()
        if 0 in self._streams:
            self._terminal.raw()
            loop.add_reader(self._terminal.fd, self._read_keys)
        self._put(self._screen.begin())
        self._read_output(on=True)

    def _give(self) -> None:
        """Give the terminal back, at the end or for a stop; what waits is written first."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._terminal.fd)
        loop.remove_writer(self._terminal.fd)
        self._read_output(on=False)
        self._output += self._screen.release() + self._screen.end()
        os.set_blocking(self._terminal.fd, True)
        try:
            while self._output:
                del self._output[: os.write(self._terminal.fd, self._output)]
        except OSError:
            self._output.clear()
        os.set_blocking(self._terminal.fd, False)
        self._terminal.restore()

    async def close(self) -> None:
        """Pass on the rest of the task's output, then give the terminal back."""
        await super().close()
        if self._task is not None:
            if self._stopping is not None:
                await self._stopping
            try:
                async with asyncio.timeout(1.0):
                    await self._drain()
            except TimeoutError:
                pass
            console.give_back(self._say)
            self._give()
            self._task = None
            if self._resizing is not None:
                self._resizing.cancel()
        for fd in {self._master, self._slave} - {-1}:
            os.close(fd)
        self._master = self._slave = -1

    async def _drain(self) -> None:
        """What the task wrote before its end is in the pty already; a process left running may hold it open."""
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._master)
        while not self._ended.is_set():
            before = len(self._output)
            self._read_output(on=True)
            self._relay()
            if len(self._output) == before and not self._ended.is_set() and not readable(self._master):
                return
            await asyncio.sleep(0)
        if self._output:
            self._written.clear()
            await self._written.wait()

    def signal(self, signum: int) -> None:
        """Follow the terminal's size; stop when asked to."""
        if signum == signal.SIGWINCH:
            rows, self._columns = self._terminal.size
            self._put(self._screen.resize(max(rows, HEIGHT + 1)))
            self._resize_pty()
        elif signum == signal.SIGTSTP:
            self._suspend()

    def draw(self, view: View) -> bool:
        """Draw below the task's rows, between its escape sequences."""
        if self._screen.busy and self._impatience < _PATIENCE:
            self._impatience += 1
            return False
        if self._screen.busy:
            self._put(self._screen.release())
        self._impatience = 0
        if not self._output:  # a terminal that is behind gets no further frames
            self._put(self._screen.draw(view.frame(time.monotonic_ns(), self._columns, self._style)))
        return True

    def _resize_pty(self) -> None:
        size = struct.pack("HHHH", self._screen.task_rows, self._columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        if self._container and self._task is not None and (self._resizing is None or self._resizing.done()):
            self._resizing = asyncio.get_running_loop().create_task(
                keep_size(self._task, lambda: (self._screen.task_rows, self._columns))
            )

    def _say(self, text: str) -> None:
        if self._terminal.is_at(2):
            self._put(text.replace("\n", "\r\n").encode())
        else:
            console.give_back(self._say)
            console.write(text)
            console.take_over(self._say)

    # the terminal's keys to the pty

    def _read_keys(self) -> None:
        try:
            keys = os.read(self._terminal.fd, 4096)
        except BlockingIOError:
            return
        except OSError:
            keys = b""
        if not keys:
            asyncio.get_running_loop().remove_reader(self._terminal.fd)
            return
        modes = termios.tcgetattr(self._master)
        suspend = modes[6][termios.VSUSP]
        if modes[3] & termios.ISIG and suspend not in (b"\0", b"\xff") and suspend in keys:
            keys = keys.replace(suspend, b"")
            self._suspend()
        self._keys += keys
        self._push_keys()

    def _push_keys(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._keys:
                del self._keys[: os.write(self._master, self._keys)]
        except BlockingIOError:
            loop.add_writer(self._master, self._push_keys)
            return
        except OSError:
            self._keys.clear()
        loop.remove_writer(self._master)

    # the pty's output to the terminal

    def _read_output(self, *, on: bool) -> None:
        if on != self._reading and not self._ended.is_set():
            loop = asyncio.get_running_loop()
            self._reading = on
            if on:
                loop.add_reader(self._master, self._relay)
            else:
                loop.remove_reader(self._master)

    def _relay(self) -> None:
        """Pass on what there is; a pty hands out 4 KiB at a time, so several pieces are written as one."""
        data = bytearray()
        try:
            while len(data) < _CHUNK:
                piece = os.read(self._master, _CHUNK)
                if not piece:
                    raise OSError
                data += piece
        except BlockingIOError:
            pass
        except OSError:  # the last process that had the pty is gone
            self._read_output(on=False)
            self._ended.set()
        if not data:
            return
        self._put(self._screen.feed(bytes(data)))
        if self._screen.spoilt and not self._screen.busy and self.view is not None:
            self.draw(self.view)

    def _put(self, data: bytes) -> None:
        self._output += data
        self._push_output()

    def _push_output(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._output:
                del self._output[: os.write(self._terminal.fd, self._output)]
        except BlockingIOError:
            loop.add_writer(self._terminal.fd, self._push_output)
            self._read_output(on=len(self._output) < _CHUNK)
            return
        except OSError:  # the terminal hung up; the task hears of it by its own signal
            self._output.clear()
        loop.remove_writer(self._terminal.fd)
        self._written.set()
        self._read_output(on=True)

    # Ctrl-Z

    def _suspend(self) -> None:
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.get_running_loop().create_task(self._stop_and_go())

    async def _stop_and_go(self) -> None:
        """Stop the task and our own job, as the terminal would have; then go on where we were."""
        assert self._task is not None
        await send(self._task, signal.SIGSTOP)
        console.give_back(self._say)
        self._give()
        caught = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(os.getpgrp(), signal.SIGTSTP)  # we stop here
        for _ in range(_STOPS):
            if self._terminal.foreground:
                break
            os.killpg(os.getpgrp(), signal.SIGTTOU)  # continued in the background: as every program that draws
        signal.signal(signal.SIGTSTP, caught)
        rows, self._columns = self._terminal.size
        self._screen.rows = max(rows, HEIGHT + 1)
        self._resize_pty()
        self._take()
        console.take_over(self._say)
        self._shown = (-1, -1)
        await send(self._task, signal.SIGCONT)


async def send(task: Task, signum: int) -> None:
    """Signal a task that may have ended meanwhile."""
    from cameleer.errors import DriverError

    with suppress(DriverError):
        await task.signal(signum)


def readable(fd: int) -> bool:
    """Whether a read would not wait."""
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def style() -> Style:
    """What the environment says the terminal can show."""
    return Style(colour=not os.environ.get("NO_COLOR"), unicode=encoding_is_utf8())


def choose(
    terminal: Terminal | None, *, asked: bool, quiet: bool, task_writes: bool = True, container: bool = False
) -> NoView:
    """Choose the view.

    By itself it comes only where the task's output goes to files: not to this terminal, and into no pipe at whose
    other end somebody may write to it.

    :param asked: ``--live``.
    :param quiet: ``--quiet``: none by itself.
    :param task_writes: the task writes to our own descriptors; no for one that somebody else runs.
    :param container: the task has a terminal of its own, where all its streams are one.
    """
    drawable = terminal is not None and not dumb() and terminal.foreground and terminal.modes is not None
    if not asked:
        outputs = [fd for fd in _OUTPUTS if task_writes]
        alone = terminal is not None and not any(terminal.is_at(fd) or is_pipe(fd) for fd in outputs)
        if quiet or not drawable or not alone or (not task_writes and not os.isatty(2)):
            return NoView()
    if terminal is None or not drawable:
        return PlainLines()
    streams = frozenset(fd for fd in STREAMS if task_writes and terminal.is_at(fd))
    rows, columns = terminal.size
    if rows < _LEAST_ROWS or columns < _LEAST_COLUMNS:
        if asked:
            console.say(f"the terminal has {rows} rows and {columns} columns: too few for the live view")
        return NoView()
    if container and len(streams) < len(STREAMS):
        streams -= {0}
    return AboveView(terminal, streams, container=container) if streams & set(_OUTPUTS) else BesideTask(terminal)
