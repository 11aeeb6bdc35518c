"""A task that a supervisor looks after: the host's side."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

from cameleer.config import TaskConfig
from cameleer.driver import SIGKILL, ExecSession, RunningTask
from cameleer.drivers.supervisor.connection import Connection
from cameleer.drivers.supervisor.ends import exit_of
from cameleer.drivers.supervisor.protocol import Message, frame, number, text
from cameleer.errors import (
    CommandNotExecutable,
    CommandNotFound,
    DriverError,
    StartError,
    StartRecoverable,
    UnrecoverableError,
)
from cameleer.status import Exit

if TYPE_CHECKING:
    import socket

    from cameleer.drivers.supervisor.session import Session
    from cameleer.drivers.supervisor.supervisors import Supervisors

T = TypeVar("T")


class NotInGroup(StartError):
    """A task's control group cannot be made, or its command cannot enter it; nothing was executed."""


_ERRORS: Mapping[str, type[DriverError]] = {
    "not_found": CommandNotFound,
    "not_executable": CommandNotExecutable,
    "start": StartError,
    "group": NotInGroup,
    "again": StartRecoverable,
}
UNKNOWN_END = "the task's supervisor was killed: nobody knows how the task ended"


def error_of(kind: str, message: str) -> DriverError:
    """What the supervisor says went wrong, as the contract's error."""
    return _ERRORS.get(kind, UnrecoverableError)(message)


class SupervisedTask(RunningTask):
    """A process tree with a supervisor of its own. Drivers derive from it and add ``read``.

    :ivar supervisor_pid: the supervisor, the subreaper of all processes of the task; 0 before it runs.
    :ivar pid: the command; 0 before it runs.
    """

    def __init__(self, config: TaskConfig, supervisors: Supervisors, folder: str) -> None:
        super().__init__(config)
        loop = asyncio.get_running_loop()
        self.supervisor_pid = 0
        self.pid = 0
        self.folder = folder
        self._supervisors = supervisors
        self._connection: Connection | None = None
        self._end: asyncio.Future[Exit] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._empty: asyncio.Future[None] = loop.create_future()
        self._running: asyncio.Future[Message] = loop.create_future()
        self._requests: dict[int, asyncio.Future[Message]] = {}
        self._last_request = 0
        self._opening: dict[int, Session] = {}
        self._sessions: dict[int, Session] = {}
        self._left = 0
        self._destroyed = False

    # -- the connection ------------------------------------------------------------------------------------------

    def connect(self, sock: socket.socket) -> Connection:
        """Talk to the supervisor at the other end of this socket."""
        self._connection = Connection(sock, self._hear, self._lost)
        return self._connection

    async def until_running(self) -> bool:
        """Wait for the supervisor's word; False: there is no supervisor, and nothing was started.

        :raises DriverError: the command could not be started; nothing is left of it.
        """
        message = await asyncio.shield(self._running)
        event = text(message, "event")
        if event == "lost":
            await self._supervisors.remove_own(self.folder, self.supervisor_pid)
            raise StartRecoverable("the task's supervisor was killed before it had started the command")
        if event == "failed":
            await asyncio.shield(self._gone)
            raise error_of(text(message, "kind"), text(message, "message"))
        if event != "running":
            return False
        if number(message, "ended"):
            await asyncio.shield(self._end)
        return True

    def _hear(self, message: Message) -> None:
        event = text(message, "event")
        if event == "hello":
            self.supervisor_pid = number(message, "pid")
        elif event in ("running", "failed"):
            if event == "running":
                self.pid, self.supervisor_pid = number(message, "pid"), number(message, "supervisor")
                self.started_at_ns = number(message, "started_at_ns") or None
                self.keep_state(self.supervisor_pid, number(message, "supervisor_start"))
            _resolve(self._running, message)
        elif event == "exited":
            self._left = number(message, "left")
            self.ended(exit_of(message))
        elif event == "empty":
            self._left = 0
            _resolve(self._empty, None)
        elif event == "reply":
            request = number(message, "request")
            session = self._opening.pop(request, None)
            if session is not None and "job" in message:  # now: the next message may be its end
                session.job = number(message, "job")
                self._sessions[session.job] = session
            waiting = self._requests.pop(request, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
        elif event == "job_ended":
            session = self._sessions.pop(number(message, "job"), None)
            if session is not None:
                session.ended(Exit(exit_code=number(message, "code"), signal=number(message, "signal") or None))

    def keep_state(self, supervisor: int, start: int) -> None:
        """Note who looks after it, for the handle; a driver's own part follows after a space."""
        self.driver_state = b"%d %d" % (supervisor, start)

    def _lost(self) -> None:
        """The supervisor is gone."""
        if not self._running.done():
            self._running.set_result({"event": [b"lost" if self.supervisor_pid else b"never"]})
        if not self._end.done():
            self.ended(self._supervisors.kept_end(self.folder) or Exit(error=UNKNOWN_END))
        for waiting in self._requests.values():
            if not waiting.done():
                waiting.set_exception(UnrecoverableError("the task has ended"))
                waiting.exception()
        self._requests.clear()
        self._opening.clear()
        for session in self._sessions.values():
            session.ended(Exit(error="the task has ended"))
        self._sessions.clear()
        _resolve(self._empty, None)
        _resolve(self._gone, None)

    def ended(self, end: Exit) -> None:
        """Take note of the end; for the supervisors, which also find ends on disk."""
        _resolve(self._end, end)

    @property
    def end(self) -> Exit | None:
        """How it ended; None while it runs."""
        return self._end.result() if self._end.done() else None

    def never_connected(self) -> None:
        """There is no supervisor any more; for the supervisors."""
        _resolve(self._empty, None)
        _resolve(self._gone, None)

    @property
    def is_supervised(self) -> bool:
        """Whether its supervisor lives and we talk to it."""
        return self._connection is not None and self._connection.is_open

    def tell(self, **values: int | str | bytes | list[bytes]) -> None:
        """Send the supervisor something that has no answer."""
        if self._connection is not None:
            self._connection.send(frame(**values))

    def ask(
        self, descriptors: list[int] | None = None, **values: int | str | bytes | list[bytes]
    ) -> asyncio.Future[Message]:
        """Send a request; its answer.

        :raises UnrecoverableError: (of the future) the supervisor is gone.
        """
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        if self._connection is None or not self._connection.is_open:
            answer.set_exception(UnrecoverableError("the task has ended"))
            return answer
        self._last_request += 1
        self._requests[self._last_request] = answer
        self._connection.send(frame(request=self._last_request, **values), descriptors)
        return answer

    # -- the contract --------------------------------------------------------------------------------------------

    async def wait(self) -> Exit:
        """Wait for the end of the command; processes that it left behind may live on."""
        return await asyncio.shield(self._end)

    async def signal(self, signum: int) -> None:
        """Signal the task's process group; with ``terminal="inherit"`` each of its processes.

        :raises UnrecoverableError: it has ended, or the kernel does not permit it.
        """
        if self._end.done():
            raise UnrecoverableError(f"cannot signal task {self.config.id}: it has ended")
        answer = await self.ask(op="signal", signal=signum)
        if "error" in answer:
            raise UnrecoverableError(f"cannot signal task {self.config.id}: {text(answer, 'error')}")

    async def stop(self, timeout_s: float, signum: int) -> None:
        """Signal, grace, SIGKILL to everything that is left, which ``leave_rest`` does not keep where time ran out."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if timeout_s > 0 and signum != SIGKILL and not self._end.done():
            try:
                await self.signal(signum)
            except UnrecoverableError:
                if not self._end.done() and not self._gone.done():
                    raise
            await asyncio.wait([self._end], timeout=deadline - loop.time())
            if self._end.done():
                if self.config.leave_rest:
                    return
                await asyncio.wait([self._empty], timeout=max(deadline - loop.time(), 0))
        await self._kill()
        await self.wait()

    async def _kill(self) -> None:
        """Kill the whole tree; returns when nothing of it is left."""
        if not self.is_supervised:
            return
        try:
            answer = await self.ask(op="kill")
        except UnrecoverableError:  # it ended by itself
            return
        if "error" in answer:
            raise UnrecoverableError(text(answer, "error"))

    async def destroy(self, force: bool = False) -> None:
        """Kill what is left of the tree and remove the record, or leave both to the supervisor (``leave_rest``).

        :raises UnrecoverableError: it still runs, and ``force`` was not given.
        """
        if self._destroyed:
            return
        if not force and not self._end.done():
            raise UnrecoverableError(f"cannot destroy task {self.config.id}: it still runs")
        if self.is_supervised:
            if self._end.done() and self._left and self.config.leave_rest:
                await self._leave()
                return
            if not self._end.done() or self._left:
                await self._kill()
            self.tell(op="destroy")
            await asyncio.shield(self._gone)
        await self._supervisors.remove(self.folder)
        self._done()

    async def _leave(self) -> None:
        try:
            await self.ask(op="leave")
        except UnrecoverableError:  # the rest ended in this very moment
            await self._supervisors.remove(self.folder)
        self._done()

    def _done(self) -> None:
        self._destroyed = True
        self.let_go()

    def let_go(self) -> None:
        """Close the connection; the supervisor goes on where somebody can find the task again, else it ends it."""
        if self._connection is not None:
            if self._supervisors.recoverable:
                self.tell(op="bye")
            self._connection.close()
        self._supervisors.forget(self)

    async def abandon(self) -> None:
        """Nobody owns it: end it and remove everything; for the supervisors, when a start is given up."""
        if self.is_supervised:
            self.tell(op="destroy")
            await asyncio.shield(self._gone)
        self._supervisors.forget(self)

    async def exec(
        self,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecSession:
        """Run another command beside the task's: same environment, folder and user, a session of its own.

        :raises StartError: it cannot be started.
        :raises UnrecoverableError: the task has ended.
        """
        from cameleer.drivers.supervisor.session import Session

        if self._end.done():
            raise UnrecoverableError(f"cannot run a command in task {self.config.id}: it has ended")
        if not command:
            raise StartError("exec needs a command")
        session = Session(self, tty, size)
        try:
            self._opening[self._last_request + 1] = session
            asked = self.ask(
                session.theirs,
                op="exec",
                command=os.fsencode(command[0]),
                arg=[os.fsencode(each) for each in command[1:]],
                env=[os.fsencode(f"{key}={value}") for key, value in (env or {}).items()],
                tty=int(tty),
                streams=len(session.theirs),
            )
            try:
                answer = await asyncio.shield(asked)
            except asyncio.CancelledError:
                asked.add_done_callback(self._not_wanted)
                raise
            if "error" in answer:
                raise error_of(text(answer, "kind"), text(answer, "error"))
        except BaseException:
            session.close_all()
            raise
        finally:
            session.close_theirs()
        return session

    def _not_wanted(self, answer: asyncio.Future[Message]) -> None:
        if answer.exception() is None and "job" in answer.result():
            self.ask(op="kill_job", job=number(answer.result(), "job"))

    async def inspect(self) -> Mapping[str, str]:
        """Process ids of command and supervisor, and the folder of the record."""
        return {"pid": str(self.pid), "supervisor_pid": str(self.supervisor_pid), "folder": self.folder}


def _resolve(future: asyncio.Future[T], value: T) -> None:
    if not future.done():
        future.set_result(value)
