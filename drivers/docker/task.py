"""A container as a task: its end from the engine's events, its readings from its control group or from the engine."""

from __future__ import annotations

import asyncio
import dataclasses
import re
import signal
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cameleer.config import TaskConfig
from cameleer.driver import AttachedTask, ExecSession, NetworkOverride, RunningTask, Tick
from cameleer.errors import DriverError, TaskNotFound, UnrecoverableError
from cameleer.log import fields, log
from cameleer.status import Exit

if TYPE_CHECKING:
    from cameleer.drivers.cgroup.paths import GroupPaths
    from cameleer.drivers.docker.driver import Docker
    from cameleer.drivers.docker.events import Inspected
    from cameleer.drivers.docker.stats.local import LocalCounters
    from cameleer.drivers.docker.stats.parent import Parent
    from cameleer.drivers.docker.streams.output import Streams
    from cameleer.usage import Counters

_HURRY_S: Final = 10.0
"""How long the last output of a task that was stopped waits at most, while nobody takes any of it."""
_LOOK_S: Final = 0.5
_LAST_OUTPUT_S: Final = 0.5
"""How long it may take where the container runs again."""
_LATE_OOM_S: Final = 0.5
"""How much later than the end of a container an engine under load may hear that memory was what it lacked."""
_SIGKILL_CODE: Final = 128 + signal.SIGKILL
_SIGNAL: Final = re.compile(r"(?:SIG)?([A-Z0-9]+?)([+-][0-9]+)?")
_NEVER: Final = "0001-01-01"
"""How the engine writes the time of what has not happened."""


class ContainerTask(RunningTask):
    """A container that we started or found again.

    :ivar container: its id.
    :ivar pid: its first process, where that is one of this machine's; else None.
    :ivar default_kill_signal: the image's StopSignal.
    """

    def __init__(self, config: TaskConfig, driver: Docker, found: Inspected, parent: Parent | None) -> None:
        super().__init__(config)
        self.driver = driver
        self.container = str(found["Id"])
        self.container_name = str(found.get("Name", "")).lstrip("/")
        self.parent = parent
        self.pid: int | None = None
        self._streams: Streams | None = None
        self._following: asyncio.Task[None] | None = None
        self.default_kill_signal = stop_signal(found)
        self.started_at_ns = _unix_ns(found["State"].get("StartedAt"))
        self.network = _network(found)
        self._image = str(found.get("Image", ""))
        self._end: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        self._concluding: asyncio.Task[None] | None = None
        self._oom = asyncio.Event()
        self._kills = False
        self._hurries = False
        self._destroyed = False

    @property
    def end(self) -> Exit | None:
        """How it ended; None while it runs."""
        return self._end.result() if self._end.done() else None

    def follow(self, streams: Streams) -> None:
        """Deliver its output from now on."""
        self._streams = streams
        self._following = streams.follow(self.pid)

    # -- what the engine says ------------------------------------------------------------------------------------

    def happened(self, action: str, attributes: Mapping[str, str], at_ns: int) -> None:
        """Take note of an event of the engine's."""
        if action == "oom":
            self._oom.set()
            self.driver.tell(self.config, "out of memory: the kernel killed a process", at_ns)
        elif action.startswith("health_status"):
            self.driver.tell(self.config, action.replace("health_status", "health"), at_ns)
        elif action == "die":
            code = attributes.get("exitCode", "")
            self._conclude(int(code) if code.isascii() and code.isdigit() else None, at_ns)

    def looked_at(self, found: Inspected | None) -> None:
        """Take note of what the engine says after we were cut off from it."""
        if found is None:
            self._conclude(None, None)
        elif has_ended(found["State"]) or self._was_started_again(found):
            self._conclude(None, None, found)

    def _was_started_again(self, found: Inspected) -> bool:
        """Whether what runs is another run of the container than the task's: that one has ended."""
        started_at_ns = _unix_ns(found["State"].get("StartedAt"))
        return None not in (started_at_ns, self.started_at_ns) and started_at_ns != self.started_at_ns

    def _conclude(self, exit_code: int | None, at_ns: int | None, found: Inspected | None = None) -> None:
        if self._concluding is None and not self._end.done():
            self._concluding = asyncio.get_running_loop().create_task(self._ended(exit_code, at_ns, found))

    async def _ended(self, exit_code: int | None, at_ns: int | None, found: Inspected | None) -> None:
        """Ask how it ended, wait for the last of its output, take its totals.

        :param exit_code: as the event said; None: there was none.
        :param found: what the engine said of it, if it was asked.
        """
        try:
            if found is None:
                found = await self._last_look()
            if found is not None and not has_ended(found["State"]):  # somebody started it again: the end is an end
                end = self._unseen_exit(exit_code, at_ns, "was started again by somebody else")
                self._tell_end(end)
                await self._let_output_go()
            else:
                if found is not None and self._may_have_lacked_memory(found):
                    await self._late_oom()
                end = self._exit(found, exit_code, at_ns)
                self._tell_end(end)
                await self._drained()
            counters = await self._totals()
            if counters is not None:
                if end.oom_killed and not counters.memory.oom_kills:  # it was counted before the last one
                    memory = msgspec.structs.replace(counters.memory, oom_kills=None)
                    counters = msgspec.structs.replace(counters, memory=memory)
                end = dataclasses.replace(end, counters=counters)
        except Exception as exc:  # whatever it is: nobody may wait for the end for ever
            log.exception(
                "cannot sum up task %s", self.config.id, extra=fields(task_id=self.config.id, driver="docker")
            )
            end = Exit(exit_code=exit_code, error=f"its container has ended, and what it left cannot be read: {exc}")
        self.ended(end)

    async def _last_look(self) -> Inspected | None:
        """What the engine says of the ended container; None: it has gone, or does not answer."""
        try:
            return await self.driver.engine.events.inspect(self.container)
        except DriverError:
            return None

    def _may_have_lacked_memory(self, found: Inspected) -> bool:
        """Whether SIGKILL ended a container with a limit, nobody sent it by us, and the engine names no reason."""
        state, limits = found["State"], found.get("HostConfig") or {}
        is_explained = self._kills or self._oom.is_set() or state.get("OOMKilled")
        return state.get("ExitCode") == _SIGKILL_CODE and bool(limits.get("Memory")) and not is_explained

    async def _late_oom(self) -> None:
        """Wait a moment for the word: it reaches the engine by another way than the end, on a busy machine later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LATE_OOM_S):
                await self._oom.wait()

    def _exit(self, found: Inspected | None, exit_code: int | None, at_ns: int | None) -> Exit:
        if found is None:
            return self._unseen_exit(exit_code, at_ns, "was removed by somebody else")
        state = found["State"]
        return Exit(
            exit_code=state.get("ExitCode"),
            oom_killed=bool(state.get("OOMKilled")) or self._oom.is_set(),
            error=state.get("Error") or None,
            ended_at_ns=self._ended_at_ns(_unix_ns(state.get("FinishedAt")), at_ns),
        )

    def _ended_at_ns(self, finished_ns: int | None, told_ns: int | None) -> int | None:
        """When it ended; of what ends within its start the engine notes the end before the start.

        :param finished_ns: as the engine noted it.
        :param told_ns: when it told of it.
        """
        started_ns = self.started_at_ns
        if finished_ns is None or started_ns is None or finished_ns > started_ns:
            return finished_ns or told_ns
        return told_ns if told_ns is not None and told_ns > started_ns else None

    def _tell_end(self, end: Exit) -> None:
        """Tell it to who reads the events; also where the engine's own was missed, or came too early for us."""
        if end.oom_killed and not self._oom.is_set():
            self.happened("oom", {}, end.ended_at_ns or 0)
        code = "" if end.exit_code is None else str(end.exit_code)
        text = f"ended with exit code {code}" if code else end.error or "ended"
        self.driver.tell(self.config, text, end.ended_at_ns, {"exit_code": code})

    def _unseen_exit(self, exit_code: int | None, at_ns: int | None, fate: str) -> Exit:
        """What the event said, where the engine can say no more."""
        error = f"the container {fate}, and nobody saw how it ended" if exit_code is None else None
        return Exit(exit_code=exit_code, oom_killed=self._oom.is_set() or None, error=error, ended_at_ns=at_ns)

    async def _let_output_go(self) -> None:
        """Deliver what comes at once; the rest is another run's."""
        if self._following is not None:
            await asyncio.wait([self._following], timeout=_LAST_OUTPUT_S)
            self._following.cancel()

    @property
    def _patience_s(self) -> float:
        patience_s = self.driver.output_patience_s
        return min(patience_s, _HURRY_S) if self._hurries else patience_s

    async def _drained(self) -> None:
        """Wait until all output was taken, or nobody takes any."""
        streams, following = self._streams, self._following
        if streams is None or following is None:
            return
        loop = asyncio.get_running_loop()
        taken, since_s = streams.taken, loop.time()
        while not following.done():
            await asyncio.wait([following], timeout=_LOOK_S)
            if taken != streams.taken:
                taken, since_s = streams.taken, loop.time()
            elif loop.time() - since_s >= self._patience_s:
                log.warning(
                    "nobody takes the last output of task %s: what is left of it is lost when the task is removed",
                    self.config.id,
                    extra=fields(task_id=self.config.id, driver="docker"),
                )
                return

    async def _totals(self) -> Counters | None:
        """What the kernel counted over the whole run; None: nobody did."""
        parent = self.parent
        if parent is None:
            return None
        return await self.driver.in_thread(parent.totals)

    def ended(self, end: Exit) -> None:
        """Keep the end."""
        if not self._end.done():
            self._end.set_result(end)

    # -- the contract --------------------------------------------------------------------------------------------

    async def wait(self) -> Exit:
        """Wait for the container's end, and for the last of its output."""
        return await asyncio.shield(self._end)

    async def signal(self, signum: int) -> None:
        """Signal the container's first process.

        :raises UnrecoverableError: it does not run.
        """
        if self._end.done():
            raise UnrecoverableError(f"cannot signal task {self.config.id}: it has ended")
        self._kills = self._kills or signum == signal.SIGKILL
        await self.driver.engine.sdk.call(
            f"signal the container {self.container_name}", lambda client: client.kill(self.container, signum)
        )

    async def stop(self, timeout_s: float, signum: int) -> None:
        """End the container: a signal, ``timeout_s`` seconds of grace, SIGKILL; returns when it has ended.

        From now on the last of its output waits for a reader no longer than usual.
        """
        self._hurries = True
        try:
            if self._concluding is None:
                await super().stop(timeout_s, signum)
        except DriverError:
            if self._concluding is None:
                raise
        await self.wait()

    async def resize(self, rows: int, columns: int) -> None:
        """Tell the container's terminal its size."""
        await self.driver.engine.client.request(
            "POST",
            f"/containers/{self.container}/resize",
            query={"h": str(rows), "w": str(columns)},
            what=f"resize the terminal of {self.container_name}",
        )

    async def destroy(self, force: bool = False) -> None:
        """Remove the container, its anonymous volumes and its groups.

        :raises UnrecoverableError: it still runs, and ``force`` was not given.
        """
        if self._destroyed:
            return
        if not force and not self._end.done():
            raise UnrecoverableError(f"cannot destroy task {self.config.id}: it still runs")
        await self.driver.remove(self)
        self._destroyed = True
        self.ended(Exit(error="the container was removed while it ran"))
        self.let_go()

    def let_go(self) -> None:
        """Follow it no more; the container stays as it is."""
        self.driver.engine.events.leave(self.container, self)
        for work in (self._following, self._concluding):
            if work is not None:
                work.cancel()

    async def exec(
        self,
        command: Sequence[str],
        *,
        tty: bool = False,
        size: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ExecSession:
        """Run another command in the container.

        :raises StartError: it cannot be started.
        :raises UnrecoverableError: the container does not run.
        """
        from cameleer.drivers.docker.streams.session import DockerExecSession

        if self._end.done():
            raise UnrecoverableError(f"cannot run a command in task {self.config.id}: it has ended")
        return await DockerExecSession.start(
            self.driver.engine.client, self.container, command, tty=tty, size=size, env=env
        )

    async def inspect(self) -> Mapping[str, str]:
        """Id and name of the container, and its image's id."""
        return {"container_id": self.container, "container_name": self.container_name, "image_id": self._image}


class LocalContainer(ContainerTask):
    """One whose control group is on this machine."""

    def __init__(
        self,
        config: TaskConfig,
        driver: Docker,
        found: Inspected,
        parent: Parent | None,
        paths: GroupPaths | None,
    ) -> None:
        super().__init__(config, driver, found, parent)
        self._paths = paths
        self.pid = int(found["State"].get("Pid") or 0)
        host = found.get("HostConfig") or {}
        self._network_pid = 0 if host.get("NetworkMode") == "host" else self.pid
        self._counters: LocalCounters | None = None
        self._last: Counters | None = None

    def read(self, tick: Tick) -> Counters:
        """Count the container's group, or hand over what was counted last.

        :raises TaskNotFound: it has ended before it was ever read.
        """
        end = self.end
        if end is not None and end.counters is not None:
            return end.counters
        try:
            if self._counters is None:
                self._counters = self._open()
            self._last = self._counters.read(tick)
        except TaskNotFound:
            if self._last is None:
                raise
        return self._last

    def _open(self) -> LocalCounters:
        from cameleer.drivers.docker.stats.local import LocalCounters

        if self._paths is None:
            raise TaskNotFound(f"the container of task {self.config.id} had ended before its group was found")
        return LocalCounters(self._paths, pid=self._network_pid)

    async def _totals(self) -> Counters | None:
        """The parent group's totals, with what only the container's own group knew: limits, OOM kills."""
        totals, last = await super()._totals(), self._last
        if totals is None or last is None:
            return totals
        known = {name: getattr(last.memory, name) for name in last.memory.__struct_fields__}
        lacking = {name: value for name, value in known.items() if getattr(totals.memory, name) is None}
        return msgspec.structs.replace(totals, memory=msgspec.structs.replace(totals.memory, **lacking))

    def let_go(self) -> None:
        """Close the group's files too; they are read in this thread alone."""
        super().let_go()
        if self._counters is not None:
            self._counters.close()


class RemoteContainer(ContainerTask):
    """One whose engine is elsewhere, or whose groups we may not read."""

    def stats(self, interval_s: float) -> AsyncGenerator[Counters, None]:
        """Yield what the engine says of it, as long as it runs."""
        return self.driver.engine.sampler.stats(self.container, interval_s)


class _Foreign(AttachedTask, ContainerTask):
    """What both forms of an attached container have in common."""

    def what(self) -> str:
        """A container, by its name."""
        return f"the container {self.container_name}"

    async def destroy(self, force: bool = False) -> None:
        """Let go of it; it is not touched."""
        self.driver.forget(self)
        self.let_go()


class AttachedLocal(_Foreign, LocalContainer):
    """Somebody else's container on this machine."""


class AttachedRemote(_Foreign, RemoteContainer):
    """Somebody else's container elsewhere."""


def has_ended(state: Mapping[str, Any]) -> bool:
    """Whether a container ran and runs no more; one that restarts still runs."""
    if state.get("Running") or state.get("Restarting") or state.get("Paused"):
        return False
    return state.get("Status") not in ("created", "restarting")


def stop_signal(found: Inspected) -> int:
    """Number of the signal that ends a container: its image's StopSignal, else SIGTERM."""
    text = str((found.get("Config") or {}).get("StopSignal") or "").upper()
    if text.isdigit():
        return int(text)
    match = _SIGNAL.fullmatch(text)
    number = getattr(signal, f"SIG{match[1]}", None) if match else None
    if match is None or not isinstance(number, int):
        return int(signal.SIGTERM)
    return int(number) + int(match[2] or 0)


def _unix_ns(text: object) -> int | None:
    """Unix time of the engine's text, nanoseconds; None: it has not happened."""
    if not isinstance(text, str) or not text or text.startswith(_NEVER):
        return None
    from cameleer.drivers.docker.stats.clock import unix_ns

    return unix_ns(text)


def _network(found: Inspected) -> NetworkOverride | None:
    """Where a container of a network of its own is reached."""
    settings = found.get("NetworkSettings") or {}
    networks = settings.get("Networks") or {}
    address = next((str(each["IPAddress"]) for each in networks.values() if each.get("IPAddress")), "")
    if not address:
        return None
    ports: dict[str, int] = {}
    for name, bound in (settings.get("Ports") or {}).items():
        for each in bound or ():
            ports[str(name)] = int(each["HostPort"])
    return NetworkOverride(port_map=ports, address=address)
