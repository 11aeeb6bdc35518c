"""Real processes that do as they are told, and a folder that looks like /proc."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cameleer.drivers.procfs import ProcessTable

_PREAMBLE = """
import ctypes, os, signal, sys, threading, time

def say(*words):
    os.write(1, (' '.join(map(str, words)) + '\\n').encode())  # in one piece: several processes share the pipe

def hear():
    return sys.stdin.readline().strip()

def subreaper():
    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0

def spin(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass

def child(body):
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    return pid

def orphan(body):
    reader, writer = os.pipe()
    def middle():
        os.write(writer, b"%d" % child(body))
    os.waitpid(child(middle), 0)
    os.close(writer)
    pid = int(os.read(reader, 20))
    os.close(reader)
    return pid
"""


class Script:
    """A Python program in a session of its own; killed with all its descendants at the end of the test."""

    def __init__(self, code: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _PREAMBLE + code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = self._process.pid

    def hear(self) -> list[str]:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()

    def say(self, word: str = "") -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)

    def ask(self, word: str = "") -> list[str]:
        self.say(word)
        return self.hear()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with self._process:
            pass


@pytest.fixture
def script() -> Iterator[Callable[[str], Script]]:
    scripts: list[Script] = []

    def start(code: str) -> Script:
        scripts.append(Script(code))
        return scripts[-1]

    yield start
    for each in scripts:
        each.kill()


@pytest.fixture
def table() -> Iterator[ProcessTable]:
    table = ProcessTable()
    yield table
    table.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    """Try again and again, since the kernel tells nobody when a process has got so far."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    return wait_until


class FakeProc:
    """A folder with what a table reads of /proc, moved by hand."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir()

    def put(self, pid: int, ppid: int, *, start: int = 0, user: int = 0, rss: int = 0, name: str = "x") -> None:
        folder = self.root / str(pid)
        folder.mkdir(exist_ok=True)
        line = f"{pid} ({name}) S {ppid} 1 1 0 -1 0 0 0 0 0 {user} 0 0 0 20 0 1 0 {start or pid} 0 {rss} 0 0 0\n"
        (folder / "stat").write_text(line)

    def file(self, pid: int, name: str) -> Path:
        return self.root / str(pid) / name

    def end(self, pid: int) -> None:
        """Take a process away; who has its line open sees another's start, where the kernel would say ESRCH."""
        self.put(pid, 0, start=10**9)
        self.forget(pid)

    def forget(self, pid: int) -> None:
        """Let what comes next under this pid have a new inode."""
        (self.root / str(pid)).rename(self.root.parent / f"ended-{pid}-{time.monotonic_ns()}")


@pytest.fixture
def proc(tmp_path: Path) -> FakeProc:
    return FakeProc(tmp_path / "proc")
