"""Tasks on a terminal: in the caller's process group, and on a terminal of their own."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from supervised import PATH, PATIENCE_S, running, shell, until

from cameleer.config import Stdio
from cameleer.drivers.raw_exec import RawExec
from cameleer.drivers.supervisor import proc

HOST = f"""
import asyncio, os, signal, sys
sys.path[:0] = {sys.path!r}
import supervised
from cameleer.config import Stdio
from pathlib import Path

for number in (signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_IGN)

async def main(folder, script):
    async with supervised.raw_exec(Path(folder)) as driver:
        streams = dict(stdin=Stdio.inherit(), stdout=Stdio.inherit(), stderr=Stdio.inherit())
        config = supervised.shell(script, terminal="inherit", leave_rest=True, **streams)
        async with supervised.running(driver, config) as task:
            print("PIDS", os.getpid(), task.supervisor_pid, task.pid, driver.supervisors.launcher_pid, "", flush=True)
            end = await task.wait()
            print("END", end.exit_code, end.signal, len(end.left_running), "", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


class Shell:
    """An interactive shell with job control, on a terminal that we type on."""

    def __init__(self) -> None:
        self.terminal, slave = os.openpty()
        attributes = termios.tcgetattr(slave)
        attributes[3] &= ~termios.ECHO
        termios.tcsetattr(slave, termios.TCSANOW, attributes)
        self.process = subprocess.Popen(
            ["setsid", "-c", "bash", "--norc", "--noprofile", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={"PATH": PATH, "PS1": "PROMPT ", "TERM": "dumb"},
        )
        os.close(slave)
        os.set_blocking(self.terminal, False)
        self.text = ""

    def type(self, text: str) -> None:
        """Type on it."""
        os.write(self.terminal, text.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """Read until this has appeared, and take it out of what was read."""
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.text)):
            assert time.monotonic() < deadline, f"{pattern} did not appear: {self.text!r}"
            try:
                self.text += os.read(self.terminal, 4096).decode()
            except BlockingIOError:
                time.sleep(0.01)
        self.text = self.text[: found.start()] + self.text[found.end() :]
        return found

    def close(self) -> None:
        """End the shell."""
        os.close(self.terminal)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal() -> Iterator[Shell]:
    made = Shell()
    try:
        made.until("PROMPT ")
        yield made
    finally:
        made.close()


def begin(terminal: Shell, folder: Path, script: str) -> list[int]:
    """Run a host with a task from the shell; pids of host, supervisor, task and launcher."""
    program = folder / "host.py"
    program.write_text(HOST)
    terminal.type(f"{sys.executable} {program} {folder} '{script}'\n")
    return [int(word) for word in terminal.until(r"PIDS (\d+ \d+ \d+ \d+) ").group(1).split()]


def wait_for(pids: list[int], states: bytes) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = [each.state for pid in pids if (each := proc.process(pid)) is not None]
        if len(found) == len(pids) and all(state in states for state in found):
            return
        assert time.monotonic() < deadline, f"states {found} in place of {states!r}"
        time.sleep(0.01)


@pytest.mark.pty
def test_a_task_is_in_the_callers_group_and_reads_its_terminal(terminal: Shell, tmp_path: Path) -> None:
    pids = begin(terminal, tmp_path, "read a; echo got $a; read b </dev/tty; echo also $b; exit 4")
    host, supervisor, task, _ = pids
    assert os.getpgid(task) == os.getpgid(host) == os.getpgid(supervisor) == os.tcgetpgrp(terminal.terminal)
    assert os.getsid(task) == os.getsid(host) == terminal.process.pid
    terminal.type("one\n")
    terminal.until("got one")
    terminal.type("two\n")
    terminal.until("also two")
    terminal.until("END 4 None 0 ")
    terminal.until("PROMPT ")


@pytest.mark.pty
@pytest.mark.parametrize(("key", "signum"), [("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)])
def test_the_keys_that_interrupt_end_the_task_and_not_its_supervisor(
    terminal: Shell, tmp_path: Path, key: str, signum: int
) -> None:
    begin(terminal, tmp_path, "ulimit -c 0; echo ready; sleep 60; :")
    terminal.until("ready")
    terminal.type(key)
    terminal.until(f"END {128 + signum} {signum:d} 0 ")
    terminal.until("PROMPT ")


@pytest.mark.pty
def test_ctrl_z_stops_everything_and_fg_goes_on(terminal: Shell, tmp_path: Path) -> None:
    pids = begin(terminal, tmp_path, "echo ready; read a; echo got $a")
    terminal.until("ready")
    for _ in range(2):
        terminal.type("\x1a")
        terminal.until("Stopped")
        wait_for(pids[:3], b"T")
        terminal.type("fg\n")
        wait_for(pids[:3], b"SRD")
    terminal.type("word\n")
    terminal.until("got word")
    terminal.until("END 0 None 0 ")
    terminal.until("PROMPT ")


@pytest.mark.pty
def test_what_is_left_in_the_callers_session_is_named(terminal: Shell, tmp_path: Path) -> None:
    begin(terminal, tmp_path, "sleep 3 & exit 0")
    terminal.until("END 0 None 1 ")
    terminal.until("PROMPT ")


async def test_a_signal_to_a_task_in_the_callers_group_spares_the_caller(driver: RawExec, tmp_path: Path) -> None:
    out = tmp_path / "out"
    child = "(trap 'echo child; exit' TERM; echo a; while :; do sleep 0.02; done) &"
    script = child + "trap 'echo main' TERM; echo b; wait; wait; exit 6"
    async with running(driver, shell(script, terminal="inherit", stdout=Stdio.file(out))) as task:
        assert os.getpgid(task.pid) == os.getpgrp()
        await until(lambda: out.exists() and out.read_text().count("\n") >= 2, "it did not get ready")
        await task.signal(signal.SIGTERM)  # would end this process, were it sent to the group
        assert (await task.wait()).exit_code == 6
        assert set(out.read_text().split()) == {"a", "b", "main", "child"}


async def test_a_tree_in_the_callers_group_is_killed_and_the_caller_is_not(
    driver: RawExec, tmp_path: Path, mark: str
) -> None:
    out = tmp_path / "out"
    script = "trap '' INT TERM; (setsid sh -c 'sleep 60; :' $0 &); (sleep 60; :) & echo ready; sleep 60; :"
    from supervised import marked, text_of

    async with running(driver, shell(script, mark, terminal="inherit", stdout=Stdio.file(out))) as task:
        await text_of(out)
        await task.stop(0.1, signal.SIGTERM)
        assert (await task.wait()).signal == signal.SIGKILL
        assert not marked(mark)


async def test_a_terminal_of_its_own_controls_the_session(driver: RawExec) -> None:
    terminal, slave = os.openpty()
    stream = Stdio.fd(slave)
    try:
        script = "tty; trap 'echo interrupted; exit 3' INT; echo ready; sleep 60 & wait; :"
        config = shell(script, terminal="pty", stdin=stream, stdout=stream, stderr=stream)
        async with running(driver, config) as task:
            os.close(slave)
            slave = -1
            assert os.getsid(task.pid) == os.getpgid(task.pid) == task.pid
            text = b""
            loop = asyncio.get_running_loop()
            while b"ready" not in text:
                text += await loop.run_in_executor(None, os.read, terminal, 1000)
            assert b"/dev/pts/" in text
            os.write(terminal, b"\x03")
            assert (await task.wait()).exit_code == 3
    finally:
        os.close(terminal)
        if slave >= 0:
            os.close(slave)
