"""One process per task: starts the command, is the subreaper of all that comes of it, and keeps the result.

Forked from the launcher; import-free like it. A loop over poll: children that ended, the launcher's report pipe of a
command that is being started, the host (its control connection, and whether it lives), further connections of a later
host. It ends when the command has ended and nothing of it is left. See ``protocol`` and ``record`` for the formats.

Where the task has a namespace of processes, the supervisor is the first process in it, so that all of them end with
it, whatever ends it; then pids here are those inside, and what others are told is translated (``_public``). It is
never in the task's group.
"""

# ruff: noqa: SIM105 # contextlib would be one more import
from __future__ import annotations

import _signal  # type: ignore[import-not-found] # the C part of signal, which has no stub
import _socket
import errno
import posix
import resource
import select
import time

from . import command, confine, proc, record, syscalls
from .launcher import receive
from .protocol import Frames, Garbled, Message, frame, number, parse, text
from .syscalls import prctl

_PR_SET_CHILD_SUBREAPER = 36
_SIGKILL = 9
_SO_PEERCRED_BYTES = 12
_SETTLE_MS = 20
"""How long after the command's end others that die of the same signal are given, before they count as left."""
_UNKILLABLE_S = 2.0
"""After so long the result is told although processes have not died: they hang in the kernel."""
_BRISK_S = 0.2
_TICKS_HZ = posix.sysconf("SC_CLK_TCK")
_PAGE_KIB = posix.sysconf("SC_PAGE_SIZE") // 1024

_ENDED = "the task has ended"


def main(descriptors: list[int], host: int, alone: bool) -> None:
    """Supervise one task; never returns.

    :param descriptors: the control connection, then the task's own.
    :param host: a pidfd of the host; −1: the kernel has none.
    :param alone: we are the first process of a namespace.
    """
    try:
        control = Connection(_socket.socket(fileno=descriptors[0]))
        outside, pid = -1, posix.getpid()
        if alone:
            try:
                outside, pid = confine.own_processes()
            except OSError as exc:
                reason = posix.strerror(exc.errno or 0)
                message = f"cannot give the task a namespace of processes: {reason}"
                control.send(event="failed", kind=command.OTHER, message=message)
                return
        control.send(event="hello", pid=pid)
        spec = _read_spec(control)
        if spec is not None:
            Supervisor(spec, control, descriptors[1:], host, (outside, pid)).run()
    finally:
        posix._exit(0)


class Connection:
    """A connection to a host.

    :ivar early: what came together with the specification.
    :ivar said_goodbye: its end is no accident.
    """

    def __init__(self, sock: _socket.socket) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.frames = Frames()
        self.descriptors: list[int] = []
        self.early: list[Message] = []
        self.said_goodbye = False
        self.lost = False

    def send(self, **values: int | str | bytes | list[bytes]) -> None:
        """Send a frame; a peer that does not read is given up."""
        data = frame(**values)
        try:
            while data:
                data = data[self.sock.send(data, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT) :]
        except OSError:
            self.lost = True

    def receive(self) -> list[Message]:
        """The messages that are there; sets ``lost`` at the end."""
        try:
            data, descriptors = receive(self.sock, 65536, _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except OSError:
            self.lost = True
            return []
        self.descriptors += descriptors
        if not data:
            self.lost = True
        return self.frames.feed(data)

    def close(self) -> None:
        """Close it, with what nobody took of it."""
        for fd in self.descriptors:
            posix.close(fd)
        self.descriptors.clear()
        self.sock.close()


def _read_spec(control: Connection) -> Message | None:
    while True:
        data, descriptors = receive(control.sock, 1 << 16)
        control.descriptors += descriptors
        if not data:
            return None
        messages = control.frames.feed(data)
        if messages:
            control.early = messages[1:]
            return messages[0]


class Job:
    """A command that was started: the task's own, or a further one.

    :ivar number: 0 for the task's own.
    :ivar report: read end of its pipe; −1 once it runs.
    """

    def __init__(self, number_: int, pid: int, report: int, asked_by: Connection, request: int) -> None:
        self.number = number_
        self.pid = pid
        self.report = report
        self.heard = b""
        self.asked_by = asked_by
        self.request = request
        self.status: int | None = None
        self.killers: list[tuple[Connection, int]] = []


class Supervisor:
    """One task's supervisor."""

    def __init__(
        self, spec: Message, control: Connection, streams: list[int], host: int, place: tuple[int, int]
    ) -> None:
        self.spec = spec
        self.folder = spec["folder"][0]
        self.recoverable = number(spec, "recoverable") == 1
        self.leave_rest = number(spec, "leave_rest") == 1
        self.inherit = text(spec, "terminal") == "inherit"
        self.first = control
        self.connections = [control]
        self.streams = streams
        self.host = host
        self.pid = posix.getpid()
        self.outside, self.public_pid = place  # the host's /proc (−1: it is ours), and our pid there
        self.command_pid = 0
        self.mounts = -1
        self.said_empty = False
        self.keeps_group = not self.recoverable and "own_group" in spec
        self.listener: _socket.socket | None = None
        self.file = -1
        self.main: Job | None = None
        self.jobs: dict[int, Job] = {}
        self.last_job = 0
        self.before_exec = [0] * 9
        self.childless = False
        self.running = False
        self.started_at_ns = 0
        self.ended_at_ns = 0
        self.ended_at = 0.0
        self.result: bytes | None = None
        self.killing = False
        self.kill_began = 0.0
        self.killers: list[tuple[Connection, int]] = []
        self.remove_at_end = False

    # -- start ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """From the start to the end of everything."""
        try:
            self._become_supervisor()
            self._make_folder()
        except OSError as exc:
            self._fail_early(exc)
            return
        try:
            self._start_main()
        except OSError as exc:
            self._remove_record()
            self._fail_early(exc)
            return
        self._loop()

    def _fail_early(self, exc: OSError) -> None:
        kind = command.OTHER if exc.errno == errno.EEXIST else command.AGAIN
        where = self.folder.decode("utf-8", "replace")
        message = f"cannot keep the task's record in {where}: {posix.strerror(exc.errno or 0)}"
        self.first.send(event="failed", kind=kind, message=message)

    def _become_supervisor(self) -> None:
        prctl(_PR_SET_CHILD_SUBREAPER, 1)
        if number(self.spec, "own_ipc"):
            syscalls.unshare(syscalls.CLONE_NEWIPC)
        if self.inherit:
            try:
                posix.setpgid(0, number(self.spec, "group"))
            except OSError:  # the host has left for a session of its own since it started the launcher
                pass
        else:
            posix.setsid()
        self.woken, wake = posix.pipe2(posix.O_CLOEXEC | posix.O_NONBLOCK)
        _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # the task gets the caller's; this is for the record

    def _make_folder(self) -> None:
        posix.mkdir(self.folder, 0o700)
        try:
            self.file = record.create(self.folder)
            record.write(
                self.file,
                record.SUPERVISOR,
                id=self.spec["id"][0],
                supervisor=self.public_pid,
                supervisor_start=proc.start_of(self.pid) or 0,
                boot=proc.boot_id(),
                terminal=text(self.spec, "terminal"),
                leave_rest=int(self.leave_rest),
                recoverable=int(self.recoverable),
                group=self.spec.get("kill_group", []),
            )
            if self.recoverable:
                self._listen()
        except OSError:
            record.remove(self.folder)
            raise

    def _listen(self) -> None:
        posix.chdir(self.folder)  # a socket's path has room for 107 bytes
        try:
            self.listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
            self.listener.bind(record.SOCKET)
            self.listener.listen(8)
        finally:
            posix.chdir("/")

    def _start_main(self) -> None:
        if self._host_is_gone():  # before anything runs that nobody would know of
            self._remove_record()
            posix._exit(0)
        self.started_at_ns = time.time_ns()
        self.main = self._start(self.spec, self.spec.get("env", []), self.streams, self.first, 0)
        self.streams = []

    def _host_is_gone(self) -> bool:
        poll = select.poll()
        poll.register(self.first.fd, 0)
        if self.host >= 0:
            poll.register(self.host, select.POLLIN)
        return bool(poll.poll(0))

    def _start(self, spec: Message, env: list[bytes], streams: list[int], asked_by: Connection, request: int) -> Job:
        """Fork a command; its exec is told later by its pipe."""
        reader, writer = posix.pipe2(posix.O_CLOEXEC)
        try:
            pid = posix.fork()
        except OSError:
            posix.close(reader)
            raise
        else:
            if pid == 0:
                _signal.set_wakeup_fd(-1)
                command.become(spec, env, streams, writer, self.pid)
            self.childless = False
        finally:
            posix.close(writer)
            for fd in streams:
                posix.close(fd)
        job = Job(self.last_job, pid, reader, asked_by, request)
        self.jobs[pid] = job
        self.last_job += 1
        return job

    def _report(self, job: Job) -> None:
        """Something came through the pipe of a command that is being started; its end is the exec, or a failure."""
        chunk = posix.read(job.report, 65536)
        job.heard += chunk
        if chunk:
            return
        posix.close(job.report)
        job.report = -1
        found = parse(job.heard)
        if "used" in found:
            self._account(found["used"][0])
        if "kind" in found or "used" not in found:
            kind = text(found, "kind", command.OTHER)
            message = text(found, "message", "the process was killed before it could execute the command")
            self._refused(job, kind, message)
        elif job is self.main:
            self._started(job)
        else:
            job.asked_by.send(event="reply", request=job.request, job=job.number, pid=self._public(job.pid))

    def _account(self, words: bytes) -> None:
        """What a child used before its exec is not the task's; of its memory the largest counts."""
        used = [int(word) for word in words.split()]
        peak = max(self.before_exec[2], used[2])
        self.before_exec = [before + now for before, now in zip(self.before_exec, used, strict=True)]
        self.before_exec[2] = peak

    def _refused(self, job: Job, kind: str, message: str) -> None:
        if job is not self.main:
            del self.jobs[job.pid]
            self._reply(job.asked_by, job.request, error=message, kind=kind)
            return
        self._kill_all_now()
        self._reap()
        self._remove_record()
        for connection in self.connections:
            connection.send(event="failed", kind=kind, message=message)
        posix._exit(0)

    def _started(self, job: Job) -> None:
        self.running = True
        start = proc.start_of(job.pid) or 0  # a zombie still has it
        self.command_pid = pid = self._public(job.pid)
        record.write(self.file, record.COMMAND, pid=pid, start=start, session=0 if self.inherit else pid)
        if "root" in self.spec:
            try:
                self.mounts = posix.open(f"/proc/{job.pid}/ns/mnt", posix.O_RDONLY | posix.O_CLOEXEC)
            except OSError:  # it has ended already
                pass
        for connection in self.connections:
            connection.send(event="running", **self._identity())

    def _identity(self) -> dict[str, int | str | bytes | list[bytes]]:
        return {
            "supervisor": self.public_pid,
            "supervisor_start": proc.start_of(self.pid) or 0,
            "pid": self.command_pid,
            "started_at_ns": self.started_at_ns,
        }

    def _public(self, pid: int) -> int:
        """The pid by which a child of ours is known outside."""
        return pid if self.outside < 0 else proc.public_pid(self.outside, self.public_pid, pid)

    # -- the loop ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        for message in self.first.early:
            self._obey(self.first, message)
        while True:
            self._reap()
            self._advance()
            if self.childless and self.result is not None:
                self._finish()
            for fd, events in self._poll(self._timeout_ms()):
                self._handle(fd, events)

    def _poll(self, timeout_ms: int | None) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self.woken, select.POLLIN)
        if self.host >= 0:
            poll.register(self.host, select.POLLIN)
        if self.listener is not None:
            poll.register(self.listener.fileno(), select.POLLIN)
        for connection in self.connections:
            poll.register(connection.fd, select.POLLIN)
        for job in self.jobs.values():
            if job.report >= 0:
                poll.register(job.report, select.POLLIN)
        return poll.poll(timeout_ms)

    def _timeout_ms(self) -> int | None:
        if self.killing:
            return 2 if time.monotonic() - self.kill_began < _BRISK_S else 50
        if any(job is not self.main and (job.killers or self.result is not None) for job in self.jobs.values()):
            return 5
        if self.main is not None and self.main.status is not None and self.result is None:
            return 2
        return None

    def _handle(self, fd: int, events: int) -> None:
        if fd == self.woken:
            try:
                posix.read(self.woken, 4096)
            except BlockingIOError:
                pass
        elif fd == self.host:
            self._host_died()
        elif self.listener is not None and fd == self.listener.fileno():
            self._accept()
        else:
            for connection in list(self.connections):
                if connection.fd == fd:
                    self._hear(connection)
                    return
            for job in list(self.jobs.values()):
                if job.report == fd:
                    self._report(job)
                    return

    def _host_died(self) -> None:
        """The process that started us is gone; a copy of its connection in a process that it forked changes nothing."""
        posix.close(self.host)
        self.host = -1
        self._lose(self.first)

    def _accept(self) -> None:
        assert self.listener is not None
        try:
            fd, _ = self.listener._accept()  # type: ignore[attr-defined] # accept() of socket.py calls it
        except OSError:
            return
        sock = _socket.socket(fileno=fd)
        peer = memoryview(sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, _SO_PEERCRED_BYTES)).cast("I")
        if peer[1] not in (0, posix.geteuid()):
            sock.close()
            return
        connection = Connection(sock)
        self.connections.append(connection)
        if self.running:
            connection.send(event="running", ended=int(self.result is not None), **self._identity())
        if self.result is not None:
            self._tell_end(connection)

    def _hear(self, connection: Connection) -> None:
        for message in connection.receive():
            try:
                self._obey(connection, message)
            except (Garbled, LookupError, ValueError):  # nonsense costs its sender the connection, not us the task
                connection.lost = True
        if connection.lost:
            self._lose(connection)

    def _lose(self, connection: Connection) -> None:
        """A connection has ended. Without goodbye, and where nobody could find the task again, this ends the task."""
        if connection not in self.connections:
            return
        self.connections.remove(connection)
        connection.close()
        for job in self.jobs.values():
            if job.asked_by is connection and job is not self.main:
                job.killers.append((connection, 0))
        if connection.said_goodbye or (self.recoverable and self.running):
            return
        self.remove_at_end = True
        if not (self.leave_rest and self.result is not None):
            self._kill()

    # -- what a host asks for ------------------------------------------------------------------------------------

    def _obey(self, connection: Connection, message: Message) -> None:
        what, request = text(message, "op"), number(message, "request")
        if what == "signal":
            self._reply(connection, request, error=self._signal(number(message, "signal")))
        elif what == "kill":
            self.killers.append((connection, request))
            self._kill()
        elif what == "destroy":
            connection.said_goodbye = self.remove_at_end = True
            self._kill()
        elif what == "leave":
            connection.said_goodbye = self.remove_at_end = True
            self._reply(connection, request)
        elif what == "bye":
            connection.said_goodbye = True
        elif what == "exec":
            self._exec(connection, request, message)
        elif what == "kill_job":
            self._kill_job(connection, request, number(message, "job"))
        elif request:
            self._reply(connection, request, error=f"{what}: no such operation")

    def _reply(self, connection: Connection, request: int, error: str = "", kind: str = "") -> None:
        if error:
            connection.send(event="reply", request=request, error=error, kind=kind)
        else:
            connection.send(event="reply", request=request)

    def _signal(self, signum: int) -> str:
        """Signal the task's group, or its processes where the group is the caller's; what went wrong."""
        if not self.running or self.main is None or self.main.status is not None:
            return _ENDED if self.running else "the task is not running yet"
        try:
            if not self.inherit:
                posix.kill(-self.main.pid, signum)
                return ""
            return self._signal_each(signum)
        except OSError as exc:
            return posix.strerror(exc.errno or 0)

    def _signal_each(self, signum: int) -> str:
        error = ""
        reached = False
        for each in proc.below({self.pid}, proc.processes()):
            try:
                posix.kill(each.pid, signum)
                reached = True
            except ProcessLookupError:
                continue
            except OSError as exc:
                error = posix.strerror(exc.errno or 0)
        return "" if reached else error

    def _exec(self, connection: Connection, request: int, message: Message) -> None:
        count = number(message, "streams")
        streams, connection.descriptors[:count] = connection.descriptors[:count], []
        gone = "root" in self.spec and self.mounts < 0
        if not self.running or self.main is None or self.main.status is not None or self.killing or gone:
            for fd in streams:
                posix.close(fd)
            self._reply(connection, request, error=_ENDED)
            return
        tty = number(message, "tty") == 1
        spec = {
            **self.spec,
            "command": message["command"],
            "arg": message.get("arg", []),
            "stdin": [b"fd"],
            "stdout": [b"fd"],
            "stderr": [b"fd"],
            "terminal": [b"pty" if tty else b"none"],
            "mounts": [b"%d" % self.mounts],
        }
        env = [*self.spec.get("env", ()), *message.get("env", ())]
        try:
            self._start(spec, env, streams, connection, request)
        except OSError as exc:
            self._reply(connection, request, error=posix.strerror(exc.errno or 0), kind=command.AGAIN)

    def _kill_job(self, connection: Connection, request: int, job_number: int) -> None:
        for job in self.jobs.values():
            if job.number == job_number and job is not self.main:
                job.killers.append((connection, request))
                return
        self._reply(connection, request)

    # -- ends ----------------------------------------------------------------------------------------------------

    def _reap(self) -> None:
        """Take note of all children that ended, orphans included."""
        while not self.childless:
            try:
                pid, status = posix.waitpid(-1, posix.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            if pid == 0:
                return
            job = self.jobs.get(pid)
            if job is None or job.status is not None:
                continue
            if job.report >= 0:  # it ends before its pipe was read to the end
                while job.report >= 0:
                    self._report(job)
                if pid not in self.jobs:
                    continue
            job.status = status
            if job is self.main:
                self.ended_at_ns, self.ended_at = time.time_ns(), time.monotonic()
            else:
                job.asked_by.send(event="job_ended", job=job.number, **exit_fields(status))

    def _advance(self) -> None:
        """Go on with kills, and tell the command's end once what dies with it has died."""
        for job in [job for job in self.jobs.values() if job is not self.main]:
            if (job.killers or self.result is not None) and self._job_is_gone(job):
                for connection, request in job.killers:
                    self._reply(connection, request)
                job.killers.clear()
                del self.jobs[job.pid]
        if self.killing:
            self._kill_round()
        if self.main is None or self.main.status is None or self.result is not None:
            return
        waited = time.monotonic() - self.ended_at
        patience = _UNKILLABLE_S if self.killing else _SETTLE_MS / 1000
        if self.childless or waited >= patience:
            self._end()

    def _kill(self) -> None:
        if not self.killing:
            self.killing, self.kill_began = True, time.monotonic()

    def _kill_round(self) -> None:
        """Kill our children and their groups; what they leave becomes our children. Ends when there are none."""
        refused = self._kill_all_now()
        self._reap()
        if self.childless:
            self.killing = False
            answers, self.killers = self.killers, []
            if self.main is not None and self.main.status is not None and self.result is None:
                self._end()
            for connection, request in answers:
                self._reply(connection, request)
        elif refused and time.monotonic() - self.kill_began > _UNKILLABLE_S:
            self.killing = False
            for connection, request in self.killers:
                self._reply(connection, request, error=f"cannot kill processes of the task: {refused}")
            self.killers = []

    def _kill_all_now(self) -> str:
        """One round; what went wrong, if nothing was reached."""
        refused = ""
        reached = False
        if "kill_group" in self.spec:
            reached = confine.kill_group(self.spec)
        if self.outside >= 0:
            return self._kill_namespace(reached)
        own_session = posix.getsid(0)
        for pid in proc.children(self.pid):
            try:
                # a group is killed in one go, so that it cannot outrun us by forking; never the caller's
                if posix.getsid(pid) != own_session:
                    posix.kill(-posix.getpgid(pid), _SIGKILL)
                posix.kill(pid, _SIGKILL)
                reached = True
            except ProcessLookupError:
                reached = True
            except OSError as exc:
                refused = posix.strerror(exc.errno or 0)
        return "" if reached else refused

    def _kill_namespace(self, reached: bool) -> str:
        try:
            posix.kill(-1, _SIGKILL)
        except ProcessLookupError:
            return ""
        except OSError as exc:
            return "" if reached else posix.strerror(exc.errno or 0)
        return ""

    def _job_is_gone(self, job: Job) -> bool:
        """Kill the session of a further command; whether nothing of it is left."""
        found = [
            each
            for each in proc.below({self.pid}, proc.processes())
            if each.session == job.pid and each.state != proc.ZOMBIE
        ]
        for each in found:
            try:
                posix.kill(each.pid, _SIGKILL)
            except OSError:
                continue
        return not found and job.status is not None

    def _end(self) -> None:
        """The command has ended: write the result, tell it."""
        assert self.main is not None
        assert self.main.status is not None
        rest = [] if self.childless else self._rest()
        values: dict[str, int | str | bytes | list[bytes]] = {
            "event": "exited",
            **exit_fields(self.main.status),
            "ended_at_ns": self.ended_at_ns,
            **self._usage(rest),
            "left": len(rest),
        }
        if self.outside >= 0 and rest:
            names = proc.public_pids(self.outside)
            for each in rest:
                each.pid, each.parent = names.get(each.pid, 0), names.get(each.parent, 0)
        rows = [each.row for each in rest]
        while not record.fits(record.RESULT, **values, rest=rows):
            rows.pop()
        record.write(self.file, record.RESULT, **values, rest=rows)
        self.result = frame(**values, rest=rows)
        for connection in self.connections:
            self._tell_end(connection)

    def _tell_end(self, connection: Connection) -> None:
        assert self.result is not None
        try:
            connection.sock.sendall(self.result, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)
        except OSError:
            connection.lost = True

    def _rest(self) -> list[proc.Process]:
        """What is left of the task, without its further commands, which are ended with it."""
        sessions = {job.pid for job in self.jobs.values() if job is not self.main}
        return [
            each
            for each in proc.below({self.pid}, proc.processes())
            if each.state != proc.ZOMBIE and each.session not in sessions
        ]

    def _usage(self, rest: list[proc.Process]) -> dict[str, int | str | bytes | list[bytes]]:
        """The kernel's totals of all that was waited for, less our own children's before their exec.

        Of what lives on, its CPU time so far. The largest resident set is left out where it may be that of a child
        before its exec, which starts with our own memory.
        """
        used = [int(word) for word in command.usage_words(resource.getrusage(resource.RUSAGE_CHILDREN)).split()]
        total = [value - before for value, before in zip(used, self.before_exec, strict=True)]
        peak, before_exec = used[2], self.before_exec[2]
        user_us = total[0] + sum(each.user + each.children_user for each in rest) * 1_000_000 // _TICKS_HZ
        system_us = total[1] + sum(each.system + each.children_system for each in rest) * 1_000_000 // _TICKS_HZ
        return {
            "user_us": max(user_us, 0),
            "system_us": max(system_us, 0),
            "peak_kib": peak if peak > before_exec * 5 // 4 else 0,
            "minor_faults": max(total[3], 0),
            "major_faults": max(total[4], 0),
            "read_blocks": max(total[5], 0),
            "written_blocks": max(total[6], 0),
            "voluntary": max(total[7], 0),
            "involuntary": max(total[8], 0),
        }

    def _finish(self) -> None:
        """Nothing is left: end, and leave the record to a later host, if one can find it.

        A group that no later host could find is kept for the host's last reading, and goes with the host or before.
        """
        if self.keeps_group and not self.remove_at_end:
            if not self.said_empty:
                self.said_empty = True
                for connection in self.connections:
                    connection.send(event="empty")
            return
        if self.remove_at_end or not self.recoverable:
            self._remove_record()
        posix._exit(0)

    def _remove_record(self) -> None:
        confine.remove_groups(self.spec)
        record.remove(self.folder)


def exit_fields(status: int) -> dict[str, int | str | bytes | list[bytes]]:
    """A wait status as fields."""
    if posix.WIFSIGNALED(status):
        signum = posix.WTERMSIG(status)
        return {"code": 128 + signum, "signal": signum}
    return {"code": posix.WEXITSTATUS(status), "signal": 0}
