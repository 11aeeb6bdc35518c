"""Processes inside a group, for tests: each is in before its first instruction, and says when it is ready."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

from cameleer.drivers.cgroup.group import Group

PATIENCE_S = 60.0
"""User-mode Linux is slow."""
FORK_BOMB = """
import os
os.set_blocking(1, True)
print("ready", flush=True)
while True:
    try:
        os.fork()
    except BlockingIOError:
        pass
"""
RELAY = """
import os
print("ready", flush=True)
while True:
    try:
        if os.fork():
            os._exit(0)
    except BlockingIOError:
        pass
"""
"""Never two at a time for long, and never the same one: each forks and ends."""
SLEEPER = "import time; print('ready', flush=True); time.sleep(1000)"
BUSY = "print('ready', flush=True)\nwhile True: pass"


def start(group: Group, code: str) -> subprocess.Popen[bytes]:
    """Start a Python program inside; waits for no line of it."""
    return subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: _enter(group.entry.files),
    )


def ready(group: Group, code: str) -> subprocess.Popen[bytes]:
    """Start one and wait until it has written a line."""
    process = start(group, code)
    line(process)
    return process


def line(process: subprocess.Popen[bytes]) -> str:
    """Its next line."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], PATIENCE_S)[0], "it says nothing"
    return process.stdout.readline().decode().strip()


def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit status, as subprocess has it."""
    try:
        return process.wait(PATIENCE_S)
    finally:
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def file_of(group: Group, controller: str, name: str) -> Path:
    """A file of a group, whichever version."""
    return Path(group.paths.folders["unified" if group.paths.version == 2 else controller], name)


def number(group: Group, controller: str, name: str, key: str) -> int:
    """One value of a file of ``key value`` lines."""
    for text in file_of(group, controller, name).read_text().splitlines():
        words = text.split()
        if words[0] == key:
            return int(words[1])
    raise KeyError(key)


def cpu_ns(group: Group) -> int:
    """CPU time of a group."""
    if group.paths.version == 2:
        return number(group, "cpu", "cpu.stat", "usage_usec") * 1000
    return int(file_of(group, "cpuacct", "cpuacct.usage").read_text())


def nested_folder(group: Group, name: str) -> str:
    """Make a group inside a group, as a task may, in every controller's folder."""
    for folder in group.paths.folders.values():
        os.mkdir(f"{folder}/{name}")
    return name


def into_nested(group: Group, name: str, pid: int) -> None:
    """Move a process into it."""
    for folder in group.paths.folders.values():
        Path(folder, name, "cgroup.procs").write_text(str(pid))


def _enter(files: tuple[str, ...]) -> None:
    for path in files:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)
