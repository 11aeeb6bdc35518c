"""Starts tasks through the launcher, finds them again, and clears up after supervisors that were killed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cameleer.drivers.supervisor import proc, record
from cameleer.drivers.supervisor.ends import exit_of
from cameleer.drivers.supervisor.launching import OWN_PROCESSES, PLAIN, Launcher
from cameleer.drivers.supervisor.protocol import Message, frame, number, text
from cameleer.drivers.supervisor.task import UNKNOWN_END, SupervisedTask
from cameleer.errors import ConfigError, RecoverableError, StartError, StartRecoverable, TaskNotFound
from cameleer.openfiles import callers_limit
from cameleer.state import Starts
from cameleer.status import Exit

if TYPE_CHECKING:
    from cameleer.config import Stdio, TaskConfig
    from cameleer.driver import Leftover
    from cameleer.drivers.supervisor.confinement import Confinement
    from cameleer.node import NodeInfo
    from cameleer.task import TaskHandle

T = TypeVar("T", bound=SupervisedTask)
Maker = Callable[["TaskConfig", "Supervisors", str], T]

_RLIMITS = range(16)
_ATTEMPTS = 3
_PATIENCE_S = 5.0
_POLL_S = 0.01


class Supervisors:
    """All supervisors of one driver instance.

    :param node: where it keeps its folder, and whether tasks are to outlive this process.
    :ivar recoverable: they are.
    """

    def __init__(self, node: NodeInfo) -> None:
        self._node = node
        self.recoverable = node.recoverable
        self._launcher = Launcher()
        self._tasks: set[SupervisedTask] = set()
        self._abandoned: set[asyncio.Task[None]] = set()
        self._private: str | None = None
        self._starts = Starts()

    @property
    def launcher_pid(self) -> int | None:
        """The process that forks the supervisors; None before the first task."""
        return self._launcher.pid

    # -- folders -------------------------------------------------------------------------------------------------

    def _root(self) -> str:
        if self._node.state_dir is not None:
            return os.path.join(os.path.abspath(self._node.state_dir), "tasks")
        if self._private is None:
            base = os.environ.get("TMPDIR") or "/tmp"
            self._private = os.path.join(base, f"cameleer-tasks-{os.geteuid()}-{os.urandom(6).hex()}")
        return self._private

    def folder(self, task_id: str) -> str:
        """Folder of a task; its name is a digest, so an id never becomes a path."""
        return os.path.join(self._root(), _digest(task_id))

    def kept_end(self, folder: str) -> Exit | None:
        """The end of a task as its record says; None without one."""
        with suppress(OSError):
            result = record.read(os.fsencode(folder), record.RESULT)
            if result is not None:
                return exit_of(result)
        return None

    # -- start ---------------------------------------------------------------------------------------------------

    async def start(self, config: TaskConfig, make: Maker[T], confinement: Confinement | None = None) -> T:
        """Start a task; returns when its command was executed. Whatever fails or is cancelled leaves nothing.

        :param make: makes the driver's own task object.
        :param confinement: None: a plain process.
        :raises StartError: it cannot be started.
        :raises StartRecoverable: not now.
        """
        folder = self.folder(config.id)
        try:
            os.makedirs(os.path.dirname(folder), mode=0o700, exist_ok=True)
        except OSError as exc:
            raise StartRecoverable(f"cannot keep records in {os.path.dirname(folder)}: {exc.strerror}") from exc
        descriptors, spec = self._describe(config, folder, confinement)
        kind = OWN_PROCESSES if confinement is not None and confinement.own_processes else PLAIN
        own_root = confinement is not None and confinement.root
        for _ in range(_ATTEMPTS):
            task = make(config, self, folder)
            if await self._try(task, descriptors, spec, kind, own_root):
                self._tasks.add(task)
                return task
        raise StartRecoverable("the process that starts supervisors was killed again and again")

    async def _try(
        self, task: SupervisedTask, descriptors: list[int], spec: bytes, kind: bytes, own_root: bool
    ) -> bool:
        ours, theirs = socket.socketpair()
        connection = task.connect(ours)
        try:
            with theirs:
                await self._launcher.fork([theirs.fileno(), *descriptors], kind, own_root=own_root)
            connection.send(spec)
            return await task.until_running()
        except asyncio.CancelledError:
            ending = asyncio.get_running_loop().create_task(task.abandon())
            self._abandoned.add(ending)
            ending.add_done_callback(self._abandoned.discard)
            raise
        except OSError as exc:
            connection.close()
            raise StartError(f"cannot hand the task's descriptors over: {exc.strerror}") from exc
        except BaseException:
            connection.close()
            raise

    def _describe(self, config: TaskConfig, folder: str, confinement: Confinement | None) -> tuple[list[int], bytes]:
        if not config.command:
            raise ConfigError("TaskConfig.command is '': this driver has no image that would bring one")
        descriptors: list[int] = []
        values: dict[str, int | str | bytes | list[bytes]] = {
            "id": config.id,
            "folder": os.fsencode(folder),
            "recoverable": int(self._node.recoverable),
            "leave_rest": int(config.leave_rest),
            "terminal": config.terminal,
            "command": os.fsencode(config.command),
            "arg": [os.fsencode(arg) for arg in config.args],
            "cwd": os.fsencode(_cwd(config)),
            "group": os.getpgrp(),
            "umask": _umask(),
            "nice": os.getpriority(os.PRIO_PROCESS, 0),
            "rlimit": [b"%d %d %d" % (each, *callers_limit(each)) for each in _RLIMITS],
        }
        env: Mapping[str, str] = config.whole_env
        for target, name in enumerate(("stdin", "stdout", "stderr")):
            stream: Stdio = getattr(config, name)
            values[name] = _stream(name, stream, target, descriptors)
        if config.user is not None:
            from cameleer.drivers.supervisor import account

            values["user"] = os.fsencode(config.user)
            user = account.find(config.user)
            values.update(user.fields())
            env = user.environment(env)
        if confinement is not None:
            values.update(confinement.fields(folder))
            env = {**env, **confinement.env}
            if confinement.root and config.cwd is None:
                values["cwd"] = "/"
        values["env"] = [os.fsencode(f"{key}={value}") for key, value in env.items()]
        if config.resources.oom_score_adj is not None:
            values["oom_score_adj"] = config.resources.oom_score_adj
        return descriptors, frame(**values)

    # -- recovery ------------------------------------------------------------------------------------------------

    async def recover(self, handle: TaskHandle, make: Maker[T]) -> T:
        """Find a task again: by its id, verified by the supervisor's pid, start time and boot.

        :raises TaskNotFound: it is gone for good.
        :raises RecoverableError: its supervisor does not answer.
        """
        folder = self.folder(handle.config.id)
        task = make(handle.config, self, folder)
        deadline = asyncio.get_running_loop().time() + _PATIENCE_S
        while True:
            owner = self._owner(handle, folder)
            if owner is not None:
                if not _is_alive(owner):
                    return await self._ended_meanwhile(task, owner)
                if await self._reach(task):
                    self._tasks.add(task)
                    return task
            elif _age_s(folder) > _PATIENCE_S:
                await self.remove(folder)
                raise TaskNotFound(f"task {handle.config.id} was never started: its supervisor was killed before")
            if asyncio.get_running_loop().time() > deadline:
                raise RecoverableError(f"the supervisor of task {handle.config.id} does not answer")
            await asyncio.sleep(_POLL_S)

    def _owner(self, handle: TaskHandle, folder: str) -> Message | None:
        """What the record says of the supervisor; None: not yet written."""
        try:
            owner = record.read(os.fsencode(folder), record.SUPERVISOR)
        except FileNotFoundError:
            record.remove(os.fsencode(folder))  # empty: its host was killed while it removed it
            raise TaskNotFound(f"there is no task {handle.config.id} in {self._root()}") from None
        except OSError as exc:
            raise RecoverableError(f"cannot read the record in {folder}: {exc.strerror}") from exc
        if owner is None:
            return None
        state = b"%d %d" % (number(owner, "supervisor"), number(owner, "supervisor_start"))
        if handle.driver_state and handle.driver_state.split(b" ", 2)[:2] != state.split(b" "):
            raise TaskNotFound(f"the record in {folder} is of another run of task {handle.config.id}")
        return owner

    async def _ended_meanwhile(self, task: T, owner: Message) -> T:
        end = self.kept_end(task.folder)
        if end is None and text(owner, "boot") != proc.boot_id():
            await self.remove(task.folder)
            raise TaskNotFound(f"task {task.config.id} ended with the machine: it was started before the last boot")
        task.keep_state(number(owner, "supervisor"), number(owner, "supervisor_start"))
        task.never_connected()
        task.ended(end or Exit(error=UNKNOWN_END))
        return task

    async def _reach(self, task: SupervisedTask) -> bool:
        """Connect to a task's supervisor; False: it is ending, or not ready yet."""
        try:
            sock = _connect(task.folder)
        except OSError:
            return False
        task.connect(sock)
        try:
            return await task.until_running()
        except StartRecoverable:  # it died while we asked
            return False
        except StartError as exc:
            raise TaskNotFound(f"task {task.config.id} could not be started: {exc}") from exc
        except asyncio.CancelledError:
            task.let_go()
            raise

    # -- what is left over ---------------------------------------------------------------------------------------

    async def leftovers(self, claimed: Collection[str]) -> Sequence[Leftover]:
        """Find records without handle whose supervisor is gone, and the processes that it left."""
        from cameleer.driver import Leftover

        names = {_digest(task_id) for task_id in claimed}
        found: list[Leftover] = []
        for folder in self._unclaimed(names):
            owner = _read(folder, record.SUPERVISOR)
            if owner is None:
                if not self._starts.may_own(folder):
                    found.append(Leftover(task_id="", ref=folder, description=f"unfinished record {folder}"))
                continue
            if _is_alive(owner):
                continue
            task_id = text(owner, "id")
            for each in _remains(folder, owner):
                found.append(
                    Leftover(
                        task_id=task_id,
                        ref=f"{folder}:{each.pid}:{each.start}",
                        description=f"process {each.pid} ({each.name.decode('utf-8', 'backslashreplace')})"
                        f" of task {task_id}",
                    )
                )
            found.append(Leftover(task_id=task_id, ref=folder, description=f"record of task {task_id}: {folder}"))
        return found

    def groups_in_use(self, claimed: Collection[str]) -> set[str]:
        """Control groups, as their tasks' records name them, whose supervisor lives or whose task is claimed."""
        names = {_digest(task_id) for task_id in claimed}
        found = set()
        for folder in self._unclaimed(set()):
            owner = _read(folder, record.SUPERVISOR)
            if owner is not None and (os.path.basename(folder) in names or _is_alive(owner)):
                found.add(text(owner, "group"))
        return found - {""}

    def group_of(self, task_id: str) -> str | None:
        """The control group that a task's record names, empty for none; None: there is no record yet."""
        owner = _read(self.folder(task_id), record.SUPERVISOR)
        return None if owner is None else text(owner, "group")

    def _unclaimed(self, claimed: set[str]) -> list[str]:
        root = self._root()
        try:
            names = sorted(os.listdir(root))
        except OSError:
            return []
        return [os.path.join(root, name) for name in names if name not in claimed and len(name) == _DIGEST_LENGTH]

    async def remove_leftover(self, leftover: Leftover) -> None:
        """Kill one such process, or remove such a record; what lives again is left alone."""
        folder, _, process = leftover.ref.partition(":")
        if os.path.dirname(folder) != self._root():
            return
        owner = _read(folder, record.SUPERVISOR)
        if owner is not None and _is_alive(owner):
            return
        if not process:
            await self.remove(folder)
            return
        pid, start = map(int, process.split(":"))
        await _kill({pid: start})

    async def remove(self, folder: str) -> None:
        """Kill what a killed supervisor left of the task, and remove its record; twice without error."""
        owner = _read(folder, record.SUPERVISOR)
        if owner is not None:
            await _until_gone(owner)
            while remains := _remains(folder, owner):
                await _kill({each.pid: each.start for each in remains})
        record.remove(os.fsencode(folder))

    async def remove_own(self, folder: str, supervisor: int) -> None:
        """Remove the record of a supervisor that died, if it is its own."""
        owner = _read(folder, record.SUPERVISOR)
        if owner is None or number(owner, "supervisor") == supervisor:
            await self.remove(folder)

    # -- the end -------------------------------------------------------------------------------------------------

    def forget(self, task: SupervisedTask) -> None:
        """For the task: it is destroyed."""
        self._tasks.discard(task)

    async def close(self) -> None:
        """Let go of all tasks, wait for those whose start was given up, and end the launcher.

        Those that nobody could find again, because their host keeps no state, are ended by their supervisors.
        """
        for task in list(self._tasks):
            task.let_go()
        if self._abandoned:
            await asyncio.wait(set(self._abandoned), timeout=_PATIENCE_S)
        await self._launcher.close()
        if self._private is not None:
            with suppress(OSError):
                os.rmdir(self._private)


_DIGEST_LENGTH = 32


def _digest(task_id: str) -> str:
    return hashlib.sha256(task_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_LENGTH]


def _stream(name: str, stream: Stdio, target: int, descriptors: list[int]) -> bytes:
    if stream.kind in ("file", "fifo"):
        assert stream.path is not None
        return stream.kind.encode() + b":" + os.fsencode(os.path.abspath(stream.path))
    if stream.kind == "discard":
        return b"discard"
    fd = target if stream.kind == "inherit" else stream.descriptor
    assert fd is not None
    try:
        os.fstat(fd)
    except OSError as exc:
        if stream.kind == "inherit":  # closed in this process, as it is then in the task: nearly
            return b"discard"
        raise ConfigError(f"TaskConfig.{name} is descriptor {fd}: {exc.strerror}") from exc
    descriptors.append(fd)
    return b"fd"


def _cwd(config: TaskConfig) -> str:
    if config.cwd is not None:
        return os.path.abspath(config.cwd)
    if config.task_dir is not None:
        return os.path.abspath(config.task_dir)
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/"


def _umask() -> int:
    """This process's umask, without changing it for a moment as ``os.umask`` would."""
    status = proc.read_file("/proc/self/status")
    at = status.find(b"\nUmask:")
    return int(status[at + 7 :].split(None, 1)[0], 8) if at >= 0 else 0o022


def _read(folder: str, slot: tuple[int, int]) -> Message | None:
    with suppress(OSError):
        return record.read(os.fsencode(folder), slot)
    return None


def _age_s(folder: str) -> float:
    import time

    try:
        return time.time() - Path(folder).stat().st_mtime
    except OSError:
        return 0.0


def _is_alive(owner: Message) -> bool:
    """Whether this very supervisor runs, and not another process that got its pid."""
    found = proc.process(number(owner, "supervisor"))
    return (
        found is not None
        and found.start == number(owner, "supervisor_start")
        and found.state != proc.ZOMBIE
        and text(owner, "boot") == proc.boot_id()
    )


async def _until_gone(owner: Message) -> None:
    """Wait for a supervisor that is ending: its connections close a moment before it is dead."""
    deadline = asyncio.get_running_loop().time() + _PATIENCE_S
    while _is_alive(owner) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 # nothing tells
        await asyncio.sleep(_POLL_S)


def _remains(folder: str, owner: Message) -> list[proc.Process]:
    """Processes of a task whose supervisor is gone: the command, its session, and all that descends from them."""
    command = _read(folder, record.COMMAND)
    if command is None or text(owner, "boot") != proc.boot_id() or _is_alive(owner):
        return []
    pid, start, session = number(command, "pid"), number(command, "start"), number(command, "session")
    everything = proc.processes()
    roots = {each.pid: each for each in everything if each.pid == pid and each.start == start}
    leader = next((each for each in everything if each.pid == session), None)
    if session and (leader is None or leader.start == start):  # else its number belongs to another session by now
        roots |= {each.pid: each for each in everything if each.session == session and each.start >= start}
    descendants = {each.pid: each for each in proc.below(set(roots), everything)}
    return [each for each in (roots | descendants).values() if each.state != proc.ZOMBIE]


async def _kill(processes: dict[int, int]) -> None:
    """Kill processes, each told from another with its pid by its start; returns when they are gone."""
    import signal

    for pid, start in processes.items():
        try:
            fd = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if proc.start_of(pid) == start:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except OSError as exc:
            raise RecoverableError(f"cannot kill process {pid}: {exc.strerror}") from exc
        finally:
            os.close(fd)
    while any(_runs(pid, start) for pid, start in processes.items()):  # noqa: ASYNC110 # nothing tells, but for pidfds
        await asyncio.sleep(_POLL_S)


def _runs(pid: int, start: int) -> bool:
    found = proc.process(pid)
    return found is not None and found.start == start and found.state != proc.ZOMBIE


def _connect(folder: str) -> socket.socket:
    """Connect to a supervisor; through /proc, since a socket's path has room for 107 bytes only."""
    at = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            sock.connect(f"/proc/self/fd/{at}/{record.SOCKET.decode()}")
        except BaseException:
            sock.close()
            raise
        return sock
    finally:
        os.close(at)
