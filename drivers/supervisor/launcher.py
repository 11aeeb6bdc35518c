"""The warm parent of all supervisors of one driver: forks one for each task, and does nothing else.

Run as ``python -I -S -c "…; main(FD, HOST)"``. It imports no module of Python's own library that is not built in or a
plain extension, because every supervisor starts with its memory. Each packet on its socket carries the descriptors of
one task: the control connection first; its one byte says whether the supervisor is to be the first process of a
namespace of its own. It ends when the host does.
"""

# ruff: noqa: SIM105 # contextlib would be one more import
from __future__ import annotations

import _signal  # type: ignore[import-not-found] # the C part of signal, which has no stub
import _socket
import errno
import gc
import posix
import select

from . import proc, syscalls
from .protocol import Frames, frame, number, text

_IGNORED = ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGUSR1", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGXFSZ", "SIGIO")
_MOST_DESCRIPTORS = 16
_OFTEN = 12
_NEVER = (errno.EPERM, errno.EINVAL, errno.ENOSYS)
PLAIN, OWN_PROCESSES = b"\0", b"p"


def ignore_signals() -> None:
    """What a terminal or a careless ``kill`` sends to a whole group is for the tasks, not for who looks after them."""
    for name in _IGNORED:
        _signal.signal(getattr(_signal, name), _signal.SIG_IGN)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def main(fd: int, host_pid: int) -> None:
    """Serve until the host is gone.

    :param fd: our end of the socket.
    :param host_pid: the process that started us.
    """
    from . import supervise

    posix.set_inheritable(fd, False)
    ignore_signals()
    _signal.signal(
        _signal.SIGCHLD, _signal.SIG_IGN
    )  # the kernel reaps the supervisors; their connections tell the rest
    requests = _socket.socket(fileno=fd)
    try:
        host = posix.pidfd_open(host_pid)
    except OSError:
        host = -1
    if posix.getppid() != host_pid:
        return
    try:
        posix.setpgid(0, 0)  # Ctrl-Z stops the host and its tasks, which is enough
    except OSError:
        pass
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if host >= 0:
        poll.register(host, select.POLLIN)
    _warm_up()
    gc.collect()
    gc.freeze()
    while True:
        ready = [each for each, _ in poll.poll()]
        if fd not in ready:
            return
        wanted, descriptors = receive(requests, 1)
        if not descriptors:
            return
        alone = wanted == OWN_PROCESSES
        try:
            pid = _fork_alone() if alone else posix.fork()
        except OSError as exc:
            _refuse(descriptors[0], exc, alone)
        else:
            if pid == 0:
                requests.close()
                supervise.main(descriptors, host, alone)
        for each in descriptors:
            posix.close(each)


def _fork_alone() -> int:
    """Fork the first process of a new namespace; our later children are born in our own again."""
    own = posix.open("/proc/self/ns/pid", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWPID)
        try:
            pid = posix.fork()
        except BaseException:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
            raise
        if pid:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
        return pid
    finally:
        posix.close(own)


def _warm_up() -> None:
    """Run what each supervisor will: the interpreter rewrites code that it sees often, so once for all of them."""
    sample = frame(id="warm", number=1, env=[b"KEY=a value that is as long as they are"] * 20)
    for _ in range(_OFTEN):
        for message in Frames().feed(sample):
            number(message, "number")
            text(message, "id")
        proc.start_of(posix.getpid())


def receive(source: _socket.socket, size: int, flags: int = 0) -> tuple[bytes, list[int]]:
    """Receive bytes and descriptors, which are closed on exec."""
    data, ancillary, _, _ = source.recvmsg(
        size, _socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4), flags | _socket.MSG_CMSG_CLOEXEC
    )
    found = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            found += list(memoryview(payload[: len(payload) // 4 * 4]).cast("i"))
    return data, found


def _refuse(control: int, error: OSError, alone: bool) -> None:
    reason = posix.strerror(error.errno or 0)
    kind, message = "again", f"cannot fork a supervisor: {reason}"
    if alone and error.errno in _NEVER:
        kind, message = "start", f"this kernel or container gives the task no namespace of processes: {reason}"
    try:
        posix.write(control, frame(event="failed", kind=kind, message=message))
    except OSError:
        pass
