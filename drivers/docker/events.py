"""What happens to containers, from one stream of the engine's events for all of them.

Every container is looked at once after each connection, and when somebody begins to listen, so that nothing that
happened in between is missed: neither a thread nor a connection waits for a container's end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from cameleer.errors import DriverError, RecoverableError, TaskNotFound
from cameleer.log import Repeated, fields, log

if TYPE_CHECKING:
    from cameleer.drivers.docker.client.http import Client

_ACTIONS = ("die", "oom", "health_status", "destroy")
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_LOOK_AGAIN_S = 1.0

Inspected = Mapping[str, Any]
"""What the engine says of a container: ``GET /containers/ID/json``."""


class _State(msgspec.Struct, rename="pascal"):
    status: str = ""
    running: bool = False
    paused: bool = False
    restarting: bool = False
    oom_killed: bool = msgspec.field(name="OOMKilled", default=False)
    pid: int = 0
    exit_code: int | None = None
    error: str = ""


class _Config(msgspec.Struct, rename="pascal"):
    image: str = ""
    stop_signal: str | None = None


class _Network(msgspec.Struct):
    address: str = msgspec.field(name="IPAddress", default="")


class _Binding(msgspec.Struct):
    port: str = msgspec.field(name="HostPort", default="")


class _Networks(msgspec.Struct, rename="pascal"):
    networks: dict[str, _Network | None] | None = None
    ports: dict[str, list[_Binding] | None] | None = None


class _Container(msgspec.Struct, rename="pascal"):
    """What we read of an answer: whatever has another shape is no container."""

    id: str
    name: str
    state: _State
    config: _Config | None = None
    network_settings: _Networks | None = None


class Listener(Protocol):
    """Who is told of one container."""

    def happened(self, action: str, attributes: Mapping[str, str], at_ns: int) -> None:
        """An event: ``die``, ``oom``, ``health_status: healthy``, ``destroy``.

        :param at_ns: the engine's Unix time, nanoseconds.
        """

    def looked_at(self, found: Inspected | None) -> None:
        """The container was looked at after a connection; None: it is gone."""


class Events:
    """The engine's events, and who listens to which container.

    :ivar connected: set while the stream is open.
    """

    def __init__(
        self, client: Client, changed: Callable[[], object] = lambda: None, *, timeout_s: float = 10.0
    ) -> None:
        """Do nothing yet.

        :param changed: called when the stream was opened or lost.
        :param timeout_s: how long the engine may take to answer.
        """
        self._client = client
        self._timeout_s = timeout_s
        self._changed = changed
        self._listeners: dict[str, list[Listener]] = {}
        self._work: asyncio.Task[None] | None = None
        self._looking: set[asyncio.Task[None]] = set()
        self._trouble = Repeated()
        self.connected = asyncio.Event()

    async def ready(self, timeout_s: float) -> None:
        """Wait until the stream is open, so that no end is missed.

        :raises EngineGone: it cannot be opened.
        """
        from cameleer.drivers.docker.client.failures import EngineGone

        if self._work is None:
            self._work = asyncio.get_running_loop().create_task(self._follow())
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected.wait()
        except TimeoutError as exc:
            raise EngineGone(f"the engine sends no events within {timeout_s:g} s") from exc

    def listen(self, container: str, listener: Listener) -> None:
        """Tell this one of a container from now on, beside others that listen to it.

        It is looked at too: it may have ended since whoever listens has asked for it.
        """
        self._listeners.setdefault(container, []).append(listener)
        if self.connected.is_set():
            self._look(container, listener)

    def leave(self, container: str, listener: Listener) -> None:
        """Tell this one no more; twice without error."""
        left = [each for each in self._listeners.pop(container, ()) if each is not listener]
        if left:
            self._listeners[container] = left

    async def inspect(self, container: str) -> dict[str, Any]:
        """Ask the engine for all that it knows of a container, by id or name.

        :raises TaskNotFound: there is no such container.
        :raises RecoverableError: it does not answer, or not with a container.
        """
        what = f"inspect the container {container[:12]}"
        response = await self._client.request(
            "GET", f"/containers/{container}/json", timeout_s=self._timeout_s, what=what
        )
        found: dict[str, Any] = response.json()
        try:
            msgspec.convert(found, _Container)
        except (msgspec.ValidationError, RecursionError) as exc:
            raise RecoverableError(f"{what}: the engine's answer makes no sense: {exc}") from exc
        return found

    async def close(self) -> None:
        """Stop listening."""
        tasks = [task for task in (self._work, *self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._work = None

    # -- the stream ----------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._read()
                pause_s = _FIRST_PAUSE_S
            except DriverError as exc:
                if self.connected.is_set():
                    pause_s = _FIRST_PAUSE_S
                self._trouble.report("the engine's events cannot be followed", exc, driver="docker")
            self._disconnected()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _disconnected(self) -> None:
        if self.connected.is_set():
            self.connected.clear()
            self._changed()

    async def _read(self) -> None:
        """Read one stream to its end."""
        filters = msgspec.json.encode({"type": ["container"], "event": list(_ACTIONS)}).decode()
        async with self._client.stream(
            "GET", "/events", query={"filters": filters}, timeout_s=self._timeout_s, what="follow events"
        ) as stream:
            self._trouble.reset()
            self.connected.set()
            self._changed()
            for container, listeners in self._listeners.items():
                for listener in listeners:
                    self._look(container, listener)
            async for event in stream.json():
                self._dispatch(event)

    def _dispatch(self, event: object) -> None:
        if not isinstance(event, dict):
            return
        actor = event.get("Actor")
        if not isinstance(actor, dict):
            return
        attributes = actor.get("Attributes")
        told = {str(k): str(v) for k, v in attributes.items()} if isinstance(attributes, dict) else {}
        at_ns = event.get("timeNano")
        for listener in self._listeners.get(str(actor.get("ID")), ())[:]:
            try:
                listener.happened(str(event.get("Action", "")), told, at_ns if isinstance(at_ns, int) else 0)
            except Exception:  # whatever it is: the others must hear of theirs
                log.exception("an event of a container cannot be understood", extra=fields(driver="docker"))

    def _look(self, container: str, listener: Listener) -> None:
        """Look at a container in the background, until the engine has said something or is lost again."""

        async def look() -> None:
            while self.connected.is_set() and listener in self._listeners.get(container, ()):
                try:
                    found = await self.inspect(container)
                except TaskNotFound:
                    listener.looked_at(None)
                    return
                except DriverError:
                    await asyncio.sleep(_LOOK_AGAIN_S)
                else:
                    listener.looked_at(found)
                    return

        task = asyncio.get_running_loop().create_task(look())
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)
