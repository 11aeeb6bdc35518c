"""From a forked supervisor to the task's command: what is set up between fork and exec. Import-free, as its parent.

What goes wrong is told through a pipe that the exec closes, with the kind of error, so that the host can name it
exactly. Before the exec the child tells what it has used itself: that is not the task's.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # the C part of signal, which has no stub
import errno
import posix
import resource

from . import confine
from .protocol import Message, fields, number, text
from .syscalls import prctl

NOT_FOUND, NOT_EXECUTABLE, OTHER, AGAIN = "not_found", "not_executable", "start", "again"
NOT_IN_GROUP = "group"

_PR_SET_PDEATHSIG = 1
_TIOCSCTTY = 0x540E
_TEXT = 256
_LIST_TOO_LONG = errno.E2BIG


class Refused(Exception):
    """The command cannot be started; ``kind`` is one of the words above."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def become(spec: Message, env: list[bytes], streams: list[int], report: int, supervisor: int) -> None:
    """Turn this forked process into the command; never returns.

    The groups are entered late, so that little of ours counts as the task's, and while we may still do so.

    :param spec: the task's.
    :param env: ``KEY=value``.
    :param streams: descriptors for those streams that are no path, in order.
    :param report: write end of the pipe.
    :param supervisor: our parent.
    """
    try:
        mounts = number(spec, "mounts", -1)  # of the task, for a further command where it has a root of its own
        _cut_loose(streams, [report, mounts], supervisor)
        _set_up(spec, streams)
        groups = confine.open_groups(spec)
        if mounts >= 0:
            confine.enter_mounts(mounts)
        elif "root" in spec:
            confine.enter_root(spec)
        if "root" in spec:
            confine.use_own_null()
        _give_default_signals()
        _keep_our_own(spec)
        argv, variables = _words(spec, env)
        used = resource.getrusage(resource.RUSAGE_SELF)
        confine.enter_groups(groups, spec)
        _become_user(spec)
        _enter_folder(text(spec, "cwd"))
        prctl(_PR_SET_PDEATHSIG, 0)
        posix.write(report, fields(used=usage_words(used)))
        _execute(text(spec, "command"), argv, variables)
    except Refused as exc:
        _tell(report, exc.kind, str(exc))
    except confine.NotEntered as exc:
        _tell(report, NOT_IN_GROUP, str(exc))
    except confine.Failed as exc:
        _tell(report, OTHER, str(exc))
    except MemoryError:
        _tell(report, AGAIN, "no memory")
    except OSError as exc:
        _tell(report, AGAIN if exc.errno in (errno.EAGAIN, errno.ENOMEM) else OTHER, posix.strerror(exc.errno or 0))
    finally:
        posix._exit(127)


def usage_words(used: resource.struct_rusage) -> str:
    """Microseconds, KiB, faults, blocks of 512 bytes and switches, in the order of ``USAGE``."""
    return (
        f"{round(used.ru_utime * 1e6)} {round(used.ru_stime * 1e6)} {used.ru_maxrss} {used.ru_minflt} {used.ru_majflt}"
        f" {used.ru_inblock} {used.ru_oublock} {used.ru_nvcsw} {used.ru_nivcsw}"
    )


def _tell(report: int, kind: str, message: str) -> None:
    posix.write(report, fields(kind=kind, message=message))


# surroundings


def _cut_loose(streams: list[int], ours: list[int], supervisor: int) -> None:
    """Close the supervisor's descriptors: what follows may wait long (a FIFO), and they end with it, as do we."""
    prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL)
    if posix.getppid() != supervisor:
        posix._exit(127)
    keep = {0, 1, 2, *ours, *streams}
    for name in posix.listdir("/proc/self/fd"):
        if int(name) not in keep:
            try:
                posix.close(int(name))
            except OSError:  # the listing's own
                continue


def _set_up(spec: Message, streams: list[int]) -> None:
    if text(spec, "terminal") != "inherit":
        posix.setsid()
    _connect_streams(spec, streams)
    if text(spec, "terminal") == "pty":
        _take_terminal()
    _set_oom_score(text(spec, "oom_score_adj"))
    _set_limits(spec)


def _enter_folder(folder: str) -> None:
    try:
        posix.chdir(folder)
    except OSError as exc:
        raise Refused(OTHER, f"cannot enter the working directory {folder}: {posix.strerror(exc.errno or 0)}") from exc


def _connect_streams(spec: Message, streams: list[int]) -> None:
    given = iter(streams)
    for target, name in enumerate(("stdin", "stdout", "stderr")):
        kind, _, path = text(spec, name).partition(":")
        fd = next(given) if kind == "fd" else _open_stream(name, kind, path)
        posix.dup2(fd, target, True)


def _open_stream(name: str, kind: str, path: str) -> int:
    flags = posix.O_CLOEXEC | posix.O_NOCTTY
    if kind == "discard":
        return posix.open("/dev/null", flags | posix.O_RDWR)
    flags |= posix.O_RDONLY if name == "stdin" else posix.O_WRONLY
    if kind == "file" and name != "stdin":
        flags |= posix.O_APPEND | posix.O_CREAT
    if kind == "fifo" or flags & posix.O_CREAT:  # else who may write to the folder chooses a file of the host's
        flags |= posix.O_NOFOLLOW
    try:
        if kind == "fifo" and posix.lstat(path).st_mode & 0o170000 != 0o010000:
            raise Refused(OTHER, f"cannot open {path} as {name}: it is no FIFO")
        return posix.open(path, flags, 0o600)  # a FIFO: waits for the other end, as a shell's redirection does
    except OSError as exc:
        is_link = exc.errno == errno.ELOOP and flags & posix.O_NOFOLLOW
        reason = "it is a symbolic link" if is_link else posix.strerror(exc.errno or 0)
        raise Refused(OTHER, f"cannot open {path} as {name}: {reason}") from exc


def _take_terminal() -> None:
    import fcntl

    try:
        fcntl.ioctl(0, _TIOCSCTTY, 0)
    except OSError as exc:
        raise Refused(OTHER, f"stdin cannot be the task's terminal: {posix.strerror(exc.errno or 0)}") from exc


def _set_oom_score(asked: str) -> None:
    path = "/proc/self/oom_score_adj"
    try:
        fd = posix.open(path, posix.O_RDWR | posix.O_CLOEXEC)
    except FileNotFoundError:
        if asked:
            raise Refused(OTHER, "cannot set oom_score_adj: the kernel has none") from None
        return
    try:
        if asked or int(posix.read(fd, 16)) < 0:
            posix.pwrite(fd, (asked or "0").encode(), 0)
    except OSError as exc:
        raise Refused(OTHER, f"cannot set oom_score_adj to {asked or 0}: {posix.strerror(exc.errno or 0)}") from exc
    finally:
        posix.close(fd)


def _set_limits(spec: Message) -> None:
    for limit in spec.get("rlimit", ()):
        which, soft, hard = map(int, limit.split())
        if resource.getrlimit(which) != (soft, hard):
            resource.setrlimit(which, (soft, hard))
    nice = number(spec, "nice")
    if posix.getpriority(posix.PRIO_PROCESS, 0) != nice:
        posix.setpriority(posix.PRIO_PROCESS, 0, nice)
    posix.umask(number(spec, "umask", 0o022))


def _keep_our_own(spec: Message) -> None:
    try:
        confine.keep_out_of_reach(spec)
    except OSError as exc:
        raise Refused(AGAIN, f"cannot make a keyring for the task: {posix.strerror(exc.errno or 0)}") from exc


def _become_user(spec: Message) -> None:
    """Change the user for good, supplementary groups first; then nothing can be gained any more."""
    confine.limit_capabilities(spec)
    if "uid" in spec:
        uid, gid = number(spec, "uid"), number(spec, "gid")
        try:
            if uid == 0 or (posix.getuid(), posix.geteuid(), posix.getgid()) != (uid, uid, gid):
                posix.setgroups([int(each) for each in spec.get("groups", ())])
                posix.setresgid(gid, gid, gid)
                posix.setresuid(uid, uid, uid)
        except OSError as exc:
            raise Refused(OTHER, f"cannot become user {text(spec, 'user')}: {posix.strerror(exc.errno or 0)}") from exc
    confine.drop_privileges(spec)


def _give_default_signals() -> None:
    for number_ in range(1, 65):
        try:
            _signal.signal(number_, _signal.SIG_DFL)
        except (OSError, ValueError):  # SIGKILL, SIGSTOP, and the two that the C library keeps
            continue
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


# exec


def _words(spec: Message, env: list[bytes]) -> tuple[list[bytes], dict[bytes, bytes]]:
    """Arguments and environment."""
    variables = dict(entry.split(b"=", 1) for entry in env)
    for key, values in ((b"HOME", "home"), (b"USER", "login"), (b"LOGNAME", "login")):
        if values in spec:
            variables.setdefault(key, spec[values][0])
    return [spec["command"][0], *spec.get("arg", ())], variables


def _execute(command: str, argv: list[bytes], variables: dict[bytes, bytes]) -> None:
    """Execute the first of that name in ``PATH`` that can be, as execvp does: what may not be is passed over.

    Folders of that name are nothing. Where one of ``PATH`` may not be searched, nobody knows that there is no such
    command: that is no permission too, as it is to ``env`` and ``time``.
    """
    barred = closed = ""
    for path in _candidates(command, variables.get(b"PATH", b"/bin:/usr/bin").decode("utf-8", "surrogateescape")):
        try:
            posix.execve(path, argv, variables)
        except OSError as exc:
            if exc.errno == errno.ENOEXEC and _is_text(path):
                posix.execve("/bin/sh", [b"sh", path.encode("utf-8", "surrogateescape"), *argv[1:]], variables)
            if exc.errno in (errno.ENOENT, errno.ENOTDIR):
                if _exists(path):
                    raise Refused(NOT_EXECUTABLE, f"cannot execute {path}: its interpreter does not exist") from exc
            elif exc.errno != errno.EACCES:
                raise _refusal(path, exc.errno or 0) from exc
            elif path == command or (_exists(path) and not _is_folder(path)):
                barred = barred or path
            elif not _exists(path):
                closed = closed or path.rpartition("/")[0]
    if barred:
        raise _refusal(barred, errno.EACCES)
    if closed:
        raise Refused(NOT_EXECUTABLE, f"{command}: command not found, and {closed} in PATH may not be searched")
    raise Refused(NOT_FOUND, f"{command}: command not found" if "/" not in command else f"{command}: no such file")


def _candidates(command: str, path: str) -> list[str]:
    if "/" in command:
        return [command]
    return [f"{folder or '.'}/{command}" for folder in path.split(":")]


def _refusal(path: str, error: int) -> Refused:
    if error == _LIST_TOO_LONG:
        return Refused(OTHER, f"cannot execute {path}: arguments and environment are too long for the kernel")
    if error in (errno.EAGAIN, errno.ENOMEM, errno.ETXTBSY, errno.EMFILE, errno.ENFILE):
        return Refused(AGAIN, f"cannot execute {path} now: {posix.strerror(error)}")
    return Refused(NOT_EXECUTABLE, f"cannot execute {path}: {posix.strerror(error)}")


def _exists(path: str) -> bool:
    try:
        posix.stat(path)
    except OSError:
        return False
    return True


def _is_folder(path: str) -> bool:
    try:
        return posix.stat(path).st_mode & 0o170000 == 0o040000
    except OSError:
        return False


def _is_text(path: str) -> bool:
    """Whether a shell would read this file, which begins with no ``#!``, as a script."""
    try:
        fd = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    except OSError:
        return False
    try:
        return b"\0" not in posix.read(fd, _TEXT)
    finally:
        posix.close(fd)
