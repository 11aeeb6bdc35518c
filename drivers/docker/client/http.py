"""The engine's API for what is long or hot, without a thread: events, output, statistics.

Requests share a few connections that stay open; a stream, and a hijacked connection, each have one of their own. All
else goes through the SDK (:mod:`cameleer.drivers.docker.client.sdk`).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from cameleer.drivers.docker.client import failures
from cameleer.drivers.docker.client.answer import Body, Head, Objects, read_head
from cameleer.drivers.docker.client.frames import Frames
from cameleer.drivers.docker.client.wire import CHUNK, Wire, connect
from cameleer.errors import DriverError, PluginShutdown, RecoverableError, TaskNotFound, UnrecoverableError

if TYPE_CHECKING:
    import ssl

    from cameleer.drivers.docker.client.endpoint import Endpoint

T = TypeVar("T")

NEWEST: Final = (1, 45)
"""The version of the API that we know, and the SDK speaks; an engine that knows only others has its way."""
OLDEST: Final = (1, 24)
_LONGEST_ANSWER: Final = 1 << 26
_LONGEST_REFUSAL: Final = 1 << 20
_IDLE_S: Final = 60.0
_SAFE: Final = "/:@%!$&'()*+,;=~"
_REPEATABLE: Final = ("GET", "HEAD")


class Response:
    """An answer, whole.

    :ivar status: 2xx or 304.
    :ivar headers: their names in small letters.
    """

    __slots__ = ("body", "headers", "status", "what")

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, what: str) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.what = what

    def json(self) -> Any:
        """The body.

        :raises Malformed: it is no JSON.
        """
        try:
            return msgspec.json.decode(self.body)
        except (ValueError, RecursionError) as exc:
            raise failures.malformed(self.what, f"the engine's answer is no JSON ({exc})", self.body) from exc


class Stream:
    """An answer that goes on; iterating yields its bytes as they come.

    :ivar headers: their names in small letters.
    """

    def __init__(self, wire: Wire, head: Head) -> None:
        self._wire = wire
        self._body = Body(wire, head)
        self.headers = head.headers

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if data := await self._body.read():
            return data
        raise StopAsyncIteration

    async def read(self, most: int = CHUNK) -> bytes:
        """What there is, once there is something; empty at the end. May be cancelled, and nothing is lost.

        :raises EngineGone: it was cut short.
        :raises Malformed: it makes no sense.
        """
        return await self._body.read(most)

    def json(self) -> AsyncIterator[Any]:
        """The JSON objects in it, each when it is whole.

        :raises EngineGone: it was cut short, also within an object.
        :raises Malformed: it is no JSON.
        """
        objects = Objects(self._wire)
        return _Pieces(self._body.read, objects.feed, lambda: objects.is_inside, self._wire)

    def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Of a container without a terminal: 1 for stdout, 2 for stderr, and the bytes; parts of a frame as they come.

        :raises EngineGone: it was cut short, also within a frame.
        :raises RecoverableError: it makes no sense.
        """
        frames = Frames()
        return _Pieces(self._body.read, frames.feed, lambda: frames.is_inside, self._wire)


class Hijacked(Stream):
    """A connection that is the container's own: its output, or a command's, can be read, and its input written.

    Whoever has it closes it.
    """

    def __init__(self, wire: Wire, head: Head, close: Callable[[Wire], None]) -> None:
        super().__init__(wire, head)
        self._close = close

    async def __aenter__(self) -> Hijacked:
        return self

    async def __aexit__(self, *args: object) -> None:
        self.close()

    async def write(self, data: bytes) -> None:
        """Returns when the kernel has it all: who writes faster than the container reads has to wait.

        :raises EngineGone: nobody reads it any more; what was written before can still be read.
        """
        await self._wire.write(data)

    async def close_write(self) -> None:
        """Let the container see the end of its input.

        :raises EngineGone: the connection was lost.
        """
        await self._wire.close_write()

    def close(self) -> None:
        """Close the connection; twice without harm."""
        self._close(self._wire)


class _Pieces(Generic[T]):
    """Takes what is read apart. Leaving it early needs no closing; a wait that is cancelled loses nothing."""

    __slots__ = ("_feed", "_is_inside", "_read", "_ready", "_wire")

    def __init__(
        self,
        read: Callable[[], Awaitable[bytes]],
        feed: Callable[[bytes], list[T]],
        is_inside: Callable[[], bool],
        wire: Wire,
    ) -> None:
        self._read = read
        self._feed = feed
        self._is_inside = is_inside
        self._wire = wire
        self._ready: deque[T] = deque()

    def __aiter__(self) -> _Pieces[T]:
        return self

    async def __anext__(self) -> T:
        while not self._ready:
            data = await self._read()
            if not data:
                if self._is_inside():
                    raise self._wire.cut_short()
                raise StopAsyncIteration
            self._ready += self._feed(data)
        return self._ready.popleft()


class Client:
    """One engine; belongs to the event loop that it is first used in.

    :ivar endpoint: its address.
    :ivar api_version: what both know, once it was asked; after the engine was away it is asked again.
    """

    def __init__(self, endpoint: Endpoint, *, connections: int = 16) -> None:
        """Connect to nothing yet.

        :param connections: at most so many requests at a time; further ones wait, first come, first served. Streams and
            hijacked connections do not count.
        """
        self.endpoint = endpoint
        self.api_version = ""
        self._connections = connections
        self._slots = asyncio.Semaphore(connections)
        self._negotiating = asyncio.Lock()
        self._has_negotiated = False
        self._resting: deque[tuple[float, Wire]] = deque()
        self._open: set[Wire] = set()
        self._context: ssl.SSLContext | None = None
        self._is_closed = False

    @property
    def open_connections(self) -> int:
        """How many connections there are, those that rest included."""
        return len(self._open)

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        what: str = "",
        missing: type[DriverError] = TaskNotFound,
    ) -> Response:
        """Ask, and wait for the whole answer.

        :param path: without the API's version.
        :param body: sent as JSON.
        :param timeout_s: for all of it, the wait for a connection included; ``inf``: none.
        :param what: is to be done, for messages: ``inspect container web``.
        :param missing: raised where the engine has no such thing.
        :raises EngineGone: it cannot be reached, or did not answer in time.
        :raises DriverError: it refused, or its answer makes no sense.
        """
        ask = _Ask(method, path, what, query=query, body=body, headers=headers)
        has_slot = False
        try:
            async with asyncio.timeout(_finite(timeout_s)):
                await self._negotiate(ask.what)
                async with self._slots:
                    has_slot = True
                    head, data = await self._exchange(ask)
        except TimeoutError as exc:
            if not has_slot and self._slots.locked():
                raise failures.EngineGone(
                    f"{ask.what}: none of {self._connections} connections to {self.endpoint.url} was free within "
                    f"{timeout_s:g} s"
                ) from exc
            raise failures.silent(ask.what, timeout_s, self.endpoint.url) from exc
        except failures.EngineGone as exc:
            raise self._lost(exc) from exc.__cause__
        if not _is_good(head.status):
            raise self._refused(head.status, data, ask.what, missing)
        return Response(head.status, head.headers, data, ask.what)

    def stream(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = 10.0,
        what: str = "",
        missing: type[DriverError] = TaskNotFound,
    ) -> AbstractAsyncContextManager[Stream]:
        """Ask on a connection of its own, closed at the end of the context.

        :param timeout_s: until the answer begins; what follows may take as long as it takes.

        The rest is as for :meth:`request`.
        """
        return self._stream(_Ask(method, path, what, query=query, body=body, headers=headers), timeout_s, missing)

    async def hijack(
        self,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        timeout_s: float = 10.0,
        what: str = "",
        missing: type[DriverError] = TaskNotFound,
    ) -> Hijacked:
        """Ask with POST for a connection that is the container's from then on; the caller closes it.

        :param timeout_s: until the answer's header.

        The rest is as for :meth:`request`.
        """
        upgrade = {"Connection": "Upgrade", "Upgrade": "tcp"}
        ask = _Ask("POST", path, what, query=query, body=body, headers=upgrade)
        wire, head = await self._begin(ask, timeout_s, missing)
        try:
            return Hijacked(wire, head, self._close)
        except BaseException:
            self._close(wire)
            raise

    async def close(self) -> None:
        """Close all connections; who waits for an answer gets PluginShutdown."""
        self._is_closed = True
        self._resting.clear()
        for wire in list(self._open):
            self._close(wire)

    # -- one request ---------------------------------------------------------------------------------------------

    async def _exchange(self, ask: _Ask) -> tuple[Head, bytes]:
        wire = self._rested(ask.what)
        if wire is not None:
            try:
                return await self._on(wire, ask)
            except failures.EngineGone:
                if wire.received or ask.method not in _REPEATABLE or self._is_closed:
                    raise  # it may have been done
        return await self._on(await self._connect(ask.what), ask)

    async def _on(self, wire: Wire, ask: _Ask) -> tuple[Head, bytes]:
        is_reusable = False
        try:
            head = await self._head(wire, ask)
            body = Body(wire, head, has_none=ask.method == "HEAD")
            data = await body.whole(_LONGEST_ANSWER)
            is_reusable = body.is_complete and head.keeps_alive
        finally:
            if is_reusable:
                self._rest(wire)
            else:
                self._close(wire)
        return head, data

    async def _head(self, wire: Wire, ask: _Ask) -> Head:
        """Ask, and read the header of the answer."""
        message = ask.encoded(self.endpoint, f"/v{self.api_version}" if ask.has_version else "")
        with suppress(failures.EngineGone):  # it may have said why before it closed the connection
            await wire.write(message)
        return await read_head(wire)

    # -- streams -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _stream(self, ask: _Ask, timeout_s: float, missing: type[DriverError]) -> AsyncGenerator[Stream, None]:
        wire, head = await self._begin(ask, timeout_s, missing)
        try:
            yield Stream(wire, head)
        except failures.EngineGone as exc:
            raise self._lost(exc) from exc.__cause__
        finally:
            self._close(wire)

    async def _begin(self, ask: _Ask, timeout_s: float, missing: type[DriverError]) -> tuple[Wire, Head]:
        """Ask on a connection of its own, and read the header of the answer."""
        wire: Wire | None = None
        try:
            async with asyncio.timeout(_finite(timeout_s)):
                await self._negotiate(ask.what)
                wire = await self._connect(ask.what)
                head = await self._head(wire, ask)
                if not (_is_good(head.status) or head.status == 101):
                    data = await Body(wire, head).whole(_LONGEST_REFUSAL)
                    raise self._refused(head.status, data, ask.what, missing)
        except BaseException as exc:
            if wire is not None:
                self._close(wire)
            if isinstance(exc, TimeoutError):
                raise failures.silent(ask.what, timeout_s, self.endpoint.url) from exc
            if isinstance(exc, failures.EngineGone):
                raise self._lost(exc) from exc.__cause__
            raise
        return wire, head

    # -- connections ---------------------------------------------------------------------------------------------

    async def _negotiate(self, what: str) -> None:
        """Agree on a version of the API, once; one asks for all."""
        if self._is_closed:
            raise PluginShutdown(f"{what}: the driver docker is closed")
        if self._has_negotiated:
            return
        async with self._negotiating:
            if self._has_negotiated:
                return
            async with self._slots:
                head, data = await self._exchange(_Ask("GET", "/version", what, has_version=False))
            if not _is_good(head.status):
                raise failures.from_status(head.status, data, what, missing=UnrecoverableError)
            self.api_version = _agreed(data, what)
            self._has_negotiated = True

    def _refused(self, status: int, data: bytes, what: str, missing: type[DriverError]) -> DriverError:
        error = failures.from_status(status, data, what, missing=missing)
        if status == 400 and "client version" in str(error):  # another engine has taken its place unnoticed
            self._has_negotiated = False
            return RecoverableError(str(error))
        return error

    async def _connect(self, what: str) -> Wire:
        if self._context is None:
            self._context = self.endpoint.ssl_context()
        wire = await connect(self.endpoint, self._context, what)
        self._open.add(wire)
        if self._is_closed:
            self._close(wire)
        return wire

    def _rested(self, what: str) -> Wire | None:
        """The connection that has rested the shortest, if it can be used."""
        while self._resting:
            _, wire = self._resting.pop()
            if not wire.is_stale:
                wire.use(what)
                return wire
            self._close(wire)
            self._has_negotiated = False
        return None

    def _rest(self, wire: Wire) -> None:
        """Keep it for the next request; those that nobody has needed for a while are closed."""
        now = asyncio.get_running_loop().time()
        while self._resting and self._resting[0][0] < now - _IDLE_S:
            self._close(self._resting.popleft()[1])
        if self._is_closed or wire not in self._open:
            self._close(wire)
            return
        entry = (now, wire)
        self._resting.append(entry)

        def closed() -> None:
            self._resting.remove(entry)
            self._open.discard(wire)
            self._has_negotiated = False

        wire.rest(closed)

    def _close(self, wire: Wire) -> None:
        wire.close()
        self._open.discard(wire)

    def _lost(self, exc: failures.EngineGone) -> DriverError:
        """The engine was away, and may come back as another; or it was us."""
        self._has_negotiated = False
        return PluginShutdown("the driver docker is closed") if self._is_closed else exc


class _Ask:
    """One request."""

    __slots__ = ("_body", "_headers", "_path", "has_version", "method", "what")

    def __init__(
        self,
        method: str,
        path: str,
        what: str,
        *,
        query: Mapping[str, str] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        has_version: bool = True,
    ) -> None:
        from urllib.parse import quote, urlencode

        self.method = method
        self._path = quote(path, safe=_SAFE)
        self.what = what or f"{method} {path}"
        if query:
            self._path += f"?{urlencode(query)}"
        self._body = b"" if body is None else msgspec.json.encode(body)
        self._headers = {"Content-Type": "application/json"} if self._body else {}
        for name, value in (headers or {}).items():
            if not value.isprintable():
                raise UnrecoverableError(f"{self.what}: the header {name} has a character that it may not have")
            self._headers[name] = value
        self.has_version = has_version

    def encoded(self, endpoint: Endpoint, version: str) -> bytes:
        """As it is sent."""
        host = "docker" if endpoint.is_unix else endpoint.url.removeprefix("tcp://").partition("/")[0]
        lines = [f"{self.method} {endpoint.prefix}{version}{self._path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        if self._body or self.method != "GET":
            lines.append(f"Content-Length: {len(self._body)}")
        return "\r\n".join([*lines, "", ""]).encode("utf-8") + self._body


def _agreed(data: bytes, what: str) -> str:
    """The version of the API that both know."""
    try:
        found = msgspec.json.decode(data)
        newest = _version(found["ApiVersion"])
        oldest = _version(found.get("MinAPIVersion") or found["ApiVersion"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
        raise failures.malformed(what, "the engine does not say which version of its API it has", data) from exc
    if newest < OLDEST:
        raise UnrecoverableError(
            f"{what}: the engine's API is {newest[0]}.{newest[1]}; the oldest known here is {OLDEST[0]}.{OLDEST[1]}"
        )
    major, minor = max(min(newest, NEWEST), oldest)
    return f"{major}.{minor}"


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _is_good(status: int) -> bool:
    return 200 <= status < 300 or status == 304


def _finite(timeout_s: float) -> float | None:
    return None if math.isinf(timeout_s) else timeout_s
