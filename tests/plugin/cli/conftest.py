"""A terminal to run the command line on, and a way to run it without one."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CAMELEER = [sys.executable, "-m", "cameleer.cli"]
ENVIRONMENT = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "PS1": "$ ", "HISTFILE": "", "INPUTRC": "/dev/null"}
PATIENCE_S = 30.0


def environment(changes: Mapping[str, str | None] = {}) -> dict[str, str]:
    """The tests' own environment, but for what would change the outcome."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CAMELEER_")}
    env["PATH"] = os.pathsep.join(each for each in env.get("PATH", "").split(os.pathsep) if os.access(each, os.X_OK))
    for name in ("NO_COLOR", "PROMPT_COMMAND", "COLUMNS", "LINES"):
        env.pop(name, None)
    for name, value in {**ENVIRONMENT, **changes}.items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


def load_drawing() -> ModuleType:
    """The script that draws the picture of the README: its emulator serves the tests too."""
    path = Path(__file__).parents[3] / "docs" / "make_live_view_svg.py"
    spec = importlib.util.spec_from_file_location("make_live_view_svg", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Session:
    """A program on a pseudo-terminal of its own, in a session of its own.

    :ivar raw: all that it wrote.
    :ivar screen: what a terminal would show.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        rows: int = 24,
        columns: int = 80,
        env: Mapping[str, str | None] = {},
        cwd: Any = None,
    ) -> None:
        self.raw = b""
        self.screen = load_drawing().Screen(rows, columns)
        self.status: int | None = None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
                os.chdir(cwd or "/")
                os.execve(argv[0], list(argv), environment(env))
            finally:
                os._exit(70)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def output(self) -> str:
        """All that it wrote, as text."""
        return self.raw.decode("utf-8", "replace")

    def send(self, keys: str) -> None:
        """Type."""
        os.write(self.fd, keys.encode())

    def modes(self) -> list[Any]:
        """Of the terminal."""
        return termios.tcgetattr(self.fd)

    def pump(self, timeout_s: float) -> bool:
        """Read once; False when it hung up."""
        if select.select([self.fd], [], [], timeout_s)[0]:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return False
            if not data:
                return False
            self.raw += data
            self.screen.feed(data)
        return True

    def until(self, what: str | Callable[[], object], *, after: int = 0) -> int:
        """Read until it wrote this, or until this is true; returns where the text ends in the output."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if callable(what):
                if what():
                    return len(self.output)
            elif (at := self.output.find(what, after)) >= 0:
                return at + len(what)
            alive = self.pump(0.05)
            if not alive and not (what() if callable(what) else what in self.output[after:]):
                raise AssertionError(f"it ended before {what!r}:\n{self.output}")
            if time.monotonic() > deadline:
                raise AssertionError(f"waited in vain for {what!r}:\n{self.output}")

    def wait(self) -> int:
        """Read to its end; its exit status, 128+N for a signal."""
        deadline = time.monotonic() + PATIENCE_S
        while self.pump(0.05):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._ended(status)
                while self.pump(0) and select.select([self.fd], [], [], 0)[0]:
                    pass
                break
            assert time.monotonic() < deadline, f"it does not end:\n{self.output}"
        if self.status is None:
            self._ended(os.waitpid(self.pid, 0)[1])
        assert self.status is not None
        return self.status

    def _ended(self, status: int) -> None:
        code = os.waitstatus_to_exitcode(status)
        self.status = code if code >= 0 else 128 - code

    def close(self) -> None:
        """Hang up; whatever still runs in the session hears of it."""
        os.close(self.fd)
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Start programs on terminals; all are closed at the end."""
    made: list[Session] = []

    def start(argv: Sequence[str], **options: Any) -> Session:
        made.append(Session(argv, **{"cwd": tmp_path, **options}))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def on_terminal(session: Callable[..., Session]) -> Callable[..., Session]:
    """Start cameleer itself on a terminal."""
    return lambda *words, **options: session([*CAMELEER, *words], **options)


@pytest.fixture
def cameleer(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run cameleer without any terminal, in an empty folder, to its end."""

    def run(*words: str, env: Mapping[str, str | None] = {}, **options: Any) -> subprocess.CompletedProcess[str]:
        settings: dict[str, Any] = {
            "capture_output": True,
            "text": True,
            "timeout": PATIENCE_S,
            "cwd": tmp_path,
            "stdin": subprocess.DEVNULL,
            "start_new_session": True,
        }
        if "stdout" in options or "stderr" in options:
            settings["capture_output"] = False
        if "input" in options:
            del settings["stdin"]
        return subprocess.run([*CAMELEER, *words], env=environment(env), check=False, **{**settings, **options})

    return run


@pytest.fixture(scope="session")
def drawing() -> ModuleType:
    """The script that draws the picture of the README."""
    return load_drawing()
