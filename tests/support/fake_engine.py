"""An engine that answers from a script, on a Unix socket: for answers no real one gives, and faults at any byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

VERSION = {"ApiVersion": "1.41", "MinAPIVersion": "1.12"}

Script = Callable[["Connection", "Request"], Awaitable[None]]


@dataclass
class Request:
    """What was asked.

    :ivar line: the first line: ``GET /v1.41/info HTTP/1.1``.
    """

    line: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def method(self) -> str:
        return self.line.split(" ")[0]

    @property
    def target(self) -> str:
        return self.line.split(" ")[1]


@dataclass
class Connection:
    """One connection to it.

    :ivar number: how many there were before.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int
    requests: list[Request] = field(default_factory=list)

    async def send(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def dribble(self, data: bytes) -> None:
        """Send byte by byte, each in a packet that the other side may read alone."""
        for at in range(len(data)):
            await self.send(data[at : at + 1])
            await asyncio.sleep(0)

    def reset(self) -> None:
        """Close it so that the other side sees an error."""
        self.writer.transport.abort()


class FakeEngine:
    """Answers each request by its script; ``GET /version`` by itself, unless told otherwise.

    :ivar address: for an endpoint.
    :ivar requests: what was asked, ``GET /version`` left out.
    :ivar connections: how many there were.
    :ivar open: how many there are.
    :ivar prefix: before each path.
    :ivar reads_bodies: else an answer comes before the request's body was read.
    """

    def __init__(self, path: Path, *, version: object = VERSION) -> None:
        self.path = path
        self.address = f"unix://{path}"
        self.requests: list[Request] = []
        self.versions_asked = 0
        self.connections = 0
        self.open = 0
        self.version = version
        self.reads_bodies = True
        self.prefix = ""
        self._scripts: list[Script] = []
        self._default: Script = missing
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def then(self, *scripts: Script) -> None:
        """Answer the next requests so, one each."""
        self._scripts += scripts

    def always(self, script: Script) -> None:
        """Answer all others so."""
        self._default = script

    async def start(self) -> None:
        self._servers.append(await asyncio.start_unix_server(self._accept, self.path))

    async def start_tcp(self) -> str:
        """Listen on a port of the loopback too; its address."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._servers.append(server)
        return f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Close everything; the socket's file goes away too."""
        for server in self._servers:
            server.close()
        self._servers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.path.unlink(missing_ok=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer, self.connections)
        self.connections += 1
        self.open += 1
        try:
            while (request := await _request(reader, body=self.reads_bodies)) is not None:
                connection.requests.append(request)
                if request.target == f"{self.prefix}/version" and self.version is not None:
                    self.versions_asked += 1
                    await answer(self.version)(connection, request)
                    continue
                self.requests.append(request)
                await (self._scripts.pop(0) if self._scripts else self._default)(connection, request)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def serving(folder: Path, *, version: object = VERSION) -> AsyncIterator[FakeEngine]:
    """One that is there for the time of the context."""
    engine = FakeEngine(folder / "sock", version=version)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def _request(reader: asyncio.StreamReader, *, body: bool) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.rstrip("\r\n").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
    size = int(headers.get("content-length", "0")) if body else 0
    return Request(line, headers, await reader.readexactly(size))


# -- scripts -------------------------------------------------------------------------------------------------------


def response(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    """A whole answer with a length."""
    return "\r\n".join(
        [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers, "", ""]
    ).encode() + body  # fmt: skip


def chunked(parts: Iterable[bytes], *, extension: bytes = b"", trailers: bytes = b"", end: bool = True) -> bytes:
    """A whole answer in chunks."""
    data = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    data += b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return data + (b"0\r\n" + trailers + b"\r\n" if end else b"")


def frame(stream: int, data: bytes) -> bytes:
    """One frame of a container's output."""
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


def raw(*parts: bytes) -> Script:
    """Send this, and keep the connection."""

    async def script(connection: Connection, request: Request) -> None:
        await connection.send(*parts)

    return script


def answer(body: object, status: str = "200 OK") -> Script:
    """Answer with this as JSON."""
    return raw(response(msgspec.json.encode(body), status))


def then_close(*parts: bytes) -> Script:
    """Send this, and close the connection."""

    async def script(connection: Connection, request: Request) -> None:
        await connection.send(*parts)
        connection.writer.close()

    return script


def dribbled(data: bytes, *, close: bool = False) -> Script:
    """Send this byte by byte."""

    async def script(connection: Connection, request: Request) -> None:
        await connection.dribble(data)
        if close:
            connection.writer.close()

    return script


def pieces(parts: Sequence[bytes]) -> Script:
    """Send these one by one, each after the other side had time to read the one before it."""

    async def script(connection: Connection, request: Request) -> None:
        for part in parts:
            await connection.send(part)
            await asyncio.sleep(0)

    return script


async def silence(connection: Connection, request: Request) -> None:
    """Say nothing until the other side leaves."""
    await connection.reader.read()
    connection.writer.close()


async def reset(connection: Connection, request: Request) -> None:
    """Close the connection with an error."""
    connection.reset()


async def missing(connection: Connection, request: Request) -> None:
    """Answer as the engine does for what it does not have."""
    await answer({"message": f"No such container: {request.target}"}, "404 Not Found")(connection, request)


def decoded(request: Request) -> Any:
    """The JSON that was sent."""
    return msgspec.json.decode(request.body)
