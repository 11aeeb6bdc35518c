"""A process of our own beside the host: an interpreter without site packages, tied to us by a socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from cameleer.errors import StartRecoverable

_PROGRAM = (
    "import sys; sys.path.append(sys.argv[1]); from {module} import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)


def start_bare(
    module: str, folder: str, *, passed_on: Sequence[str] = ("LD_LIBRARY_PATH",), new_session: bool = False
) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Run ``main(descriptor, pid)`` of a module: of its end of a socket of packets, and of us.

    :param folder: where the module is found.
    :param passed_on: the variables of the environment that it gets.
    :param new_session: signals of our terminal do not reach it.
    :return: the process, and our end of the socket, which does not block.
    :raises StartRecoverable: no process can be started now.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    words = [_PROGRAM.format(module=module), folder, str(theirs.fileno()), str(os.getpid())]
    with theirs:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-X", "utf8", "-c", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: os.environ[name] for name in passed_on if name in os.environ},
                cwd="/",
                start_new_session=new_session,
            )
        except OSError as exc:
            ours.close()
            raise StartRecoverable(f"cannot start {sys.executable}: {exc.strerror}") from exc
    ours.setblocking(False)
    return process, ours
