"""A process of our own beside the host: an interpreter without site packages, tied to us by a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from cameleer.errors import StartRecoverable

_LET_GO = "import posix; posix.close({descriptor}); "
_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from {module} import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


def start_bare(
    module: str,
    folder: str,
    *,
    passed_on: Sequence[str] = ("LD_LIBRARY_PATH",),
    new_session: bool = False,
    program: tuple[int, str] | None = None,
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run ``main(descriptor, pid)`` of a module: of its end of a socket of packets, and of us.

    :param folder: where the module is found.
    :param passed_on: the variables of the environment that it gets.
    :param new_session: signals of our terminal do not reach it.
    :param program: a descriptor, and a path through it, by which the interpreter is executed; None: its own path.
    :return: the process, and our end of the socket, which does not block.
    :raises StartRecoverable: no process can be started now.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    let_go = "" if program is None else _LET_GO.format(descriptor=program[0])
    words = [let_go + _PROGRAM.format(module=module), folder, str(theirs.fileno()), str(os.getpid())]
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                executable=None if program is None else program[1],
                pass_fds=[theirs.fileno(), *([] if program is None else program[:1])],
                env={name: os.environ[name] for name in passed_on if name in os.environ},
                cwd="/",
                start_new_session=new_session,
            )
        except OSError as exc:
            ours.close()
            raise StartRecoverable(f"cannot start {sys.executable}: {exc.strerror}") from exc
    ours.setblocking(False)
    return process, ours
