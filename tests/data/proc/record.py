"""Record what this kernel writes in /proc about a few processes of ours.

    python tests/data/proc/record.py tests/data/proc/6.18

Makes a folder for each process, named for what it is, with its stat, status, io and smaps_rollup as far as they can be
read, and copies loadavg.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

FILES = ("stat", "status", "io", "smaps_rollup")


def named(name: bytes) -> None:
    Path("/proc/self/comm").write_bytes(name)


def threads() -> None:
    for _ in range(2):
        threading.Thread(target=signal.pause, daemon=True).start()


KINDS: dict[str, Callable[[], None]] = {
    "plain": lambda: None,
    "name-with-parentheses": lambda: named(b"a) R (b c"),
    "name-with-newline": lambda: named(b"new\nline\\"),
    "name-not-text": lambda: named(b"\xff\xfe caf\xc3\xa9"),
    "threads": threads,
    "zombie": lambda: os._exit(0),
}


def start(prepare: Callable[[], None]) -> int:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        prepare()
        os.write(writer, b".")
        signal.pause()
    os.close(writer)
    os.read(reader, 1)  # ready, or ended
    os.close(reader)
    return pid


def record(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in FILES:
        try:
            data = (source / name).read_bytes()
        except OSError:
            continue
        (folder / name).write_bytes(data)


def main(target: Path) -> None:
    for kind, prepare in KINDS.items():
        pid = start(prepare)
        try:
            if kind == "zombie":
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            record(Path("/proc", str(pid)), target / kind)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    record(Path("/proc/2"), target / "kernel-thread")
    (target / "loadavg").write_bytes(Path("/proc/loadavg").read_bytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
