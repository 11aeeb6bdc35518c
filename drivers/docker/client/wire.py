"""A connection to the engine: a Unix socket, TCP, or TLS over that, read on demand and written with back-pressure.

Not asyncio's transports: one whose peer takes no more throws away what the peer has said, so the last output of a
container that closes its stdin; and its TLS cannot end one direction, so a container's stdin would never end.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from cameleer.drivers.docker.client import failures

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from cameleer.drivers.docker.client.endpoint import Endpoint
    from cameleer.errors import DriverError

CHUNK: Final = 65536
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES = 30, 10, 3
_ATTEMPT_S: Final = 2.0
"""How long one of several addresses of a name may take."""
_FULL_S: Final = 0.05
_STREAM: Final = socket.SOCK_STREAM


class Wire:
    """One connection, and what of it was read and not yet taken.

    :ivar what: what it is used for, for messages.
    :ivar received: whether anything came since :meth:`use`.
    """

    __slots__ = (
        "_address",
        "_armed",
        "_buffer",
        "_gone",
        "_idle",
        "_loop",
        "_reading",
        "_sending",
        "_sock",
        "_tls",
        "_writing",
        "received",
        "what",
    )

    def __init__(self, sock: socket.socket, address: str, what: str) -> None:
        self._sock = sock
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._tls: _Tls | None = None
        self._armed = False
        self._reading: asyncio.Future[None] | None = None
        self._writing: asyncio.Future[None] | None = None
        self._sending = asyncio.Lock()
        self._idle: Callable[[], object] | None = None
        self._gone = False
        self.what = what
        self.received = False

    async def encrypt(self, context: ssl.SSLContext, host: str) -> None:
        """Speak TLS from now on.

        :raises DriverError: it is not to be trusted, does not trust us, or does not speak TLS.
        """
        try:
            self._tls = _Tls(context, host)
            while not self._tls.handshake():
                await self._flush()
                self._tls.arrived(await self._recv(CHUNK))
            await self._flush()
        except (OSError, ValueError) as exc:
            raise self._translated(exc) from exc

    # -- one use after the other ---------------------------------------------------------------------------------

    def use(self, what: str) -> None:
        """It is for this from now on."""
        self.what = what
        self.received = False
        self._idle = None

    def rest(self, closed: Callable[[], object]) -> None:
        """Nobody uses it: if the engine closes it, it is closed here too, and this is called."""
        self._idle = closed
        self._arm()

    @property
    def is_stale(self) -> bool:
        """Whether it is of no use for another request: closed, or something can be read that nobody has asked for."""
        if self._gone or self._buffer or (self._tls is not None and self._tls.is_pending):
            return True
        try:
            data = self._sock.recv(CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if self._tls is None or not data:
            return True
        self._tls.arrived(data)  # tickets for sessions to come
        try:
            return self._tls.decrypted(1) is not None
        except OSError:
            return True

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self, most: int = CHUNK) -> bytes:
        """What there is, once there is something; empty at the end. May be cancelled, and nothing is lost.

        :raises DriverError: the connection was lost.
        """
        return self.taken(most) if self._buffer else await self._receive(most)

    async def more(self) -> bool:
        """Read on behind what :attr:`buffered` has; false at the end."""
        data = await self._receive(CHUNK)
        self._buffer += data
        return bool(data)

    @property
    def buffered(self) -> bytearray:
        """What was read and not yet taken; not to be changed."""
        return self._buffer

    def taken(self, count: int) -> bytes:
        """Take so many bytes, or what there is, of what was read already."""
        data = bytes(self._buffer[:count])
        del self._buffer[:count]
        return data

    async def _receive(self, most: int) -> bytes:
        try:
            if self._tls is None:
                data = await self._recv(most)
            else:
                while (found := self._tls.decrypted(most)) is None:
                    with suppress(OSError):  # what was said before can still be read
                        self._push(self._tls)  # no wait: the peer may read no more until we do
                    self._tls.arrived(await self._recv(CHUNK))
                data = found
        except OSError as exc:
            raise self._translated(exc) from exc
        if data:
            self.received = True
        return data

    async def _recv(self, most: int) -> bytes:
        while True:
            if self._gone:
                raise ConnectionAbortedError("the connection was closed")
            try:
                return self._sock.recv(most)
            except BlockingIOError:
                await self._readable()

    async def _readable(self) -> None:
        if self._reading is not None:
            raise RuntimeError("two read from one connection")
        self._arm()
        self._reading = self._loop.create_future()
        try:
            await self._reading
        finally:
            self._reading = None

    def _arm(self) -> None:
        """Be told of news; it stays so, which is cheaper than to begin and end it with each wait."""
        if not self._armed and not self._gone:
            self._armed = True
            self._loop.add_reader(self._sock.fileno(), self._news)

    def _news(self) -> None:
        if self._reading is not None:
            _wake(self._reading)
        elif self._idle is None:
            self._disarm()
        elif self.is_stale:
            closed, self._idle = self._idle, None
            self.close()
            closed()

    def _disarm(self) -> None:
        if self._armed:
            self._armed = False
            self._loop.remove_reader(self._sock.fileno())

    # -- writing -------------------------------------------------------------------------------------------------

    async def write(self, data: bytes) -> None:
        """Returns when the kernel has it all. What the engine has sent can still be read when this fails.

        Cancelled, it may have sent a part; over TLS all of it is sent with what is written or read next.

        :raises DriverError: the engine takes no more.
        """
        try:
            if self._tls is None:
                async with self._sending:
                    await self._send(data)
            else:
                self._tls.encrypt(data)
                await self._flush()
        except OSError as exc:
            raise self._translated(exc) from exc

    async def close_write(self) -> None:
        """Say that there is no more; what the engine sends can still be read.

        :raises DriverError: the connection was lost.
        """
        try:
            if self._tls is not None:
                while data := self._tls.decrypted(CHUNK):  # it would be lost
                    self._buffer += data
                self._tls.close_write()
                await self._flush()
            elif not self._gone:
                async with self._sending:
                    self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise self._translated(exc) from exc

    async def _flush(self) -> None:
        assert self._tls is not None
        async with self._sending:
            while not self._push(self._tls):
                await self._writable()

    def _push(self, tls: _Tls) -> bool:
        """Send of what is encrypted what the kernel takes now; whether that was all."""
        while rest := tls.to_send():
            if self._gone:
                raise ConnectionAbortedError("the connection was closed")
            try:
                tls.sent(self._sock.send(rest, socket.MSG_NOSIGNAL))
            except BlockingIOError:
                return False
        return True

    async def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            if self._gone:
                raise ConnectionAbortedError("the connection was closed")
            try:
                rest = rest[self._sock.send(rest, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                await self._writable()

    async def _writable(self) -> None:
        self._writing = self._loop.create_future()
        self._loop.add_writer(self._sock.fileno(), _wake, self._writing)
        try:
            await self._writing
        finally:
            self._writing = None
            if not self._gone:
                self._loop.remove_writer(self._sock.fileno())

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of it; who waits for it gets EngineGone. Twice without harm."""
        if self._gone:
            return
        self._gone = True
        if not self._loop.is_closed():
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            for each in (self._reading, self._writing):
                if each is not None:
                    _wake(each)
        self._sock.close()

    def cut_short(self) -> failures.EngineGone:
        """The engine ended it where there was to be more."""
        return failures.closed(self.what, self._address)

    def malformed(self, reason: str, data: bytes | bytearray = b"") -> failures.Malformed:
        """What came makes no sense."""
        return failures.malformed(self.what, reason, data)

    def _translated(self, exc: Exception) -> DriverError:
        return failures.translated(exc, self.what, address=self._address)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class _Tls:
    """TLS between two buffers."""

    __slots__ = ("_incoming", "_object", "_outgoing", "_unsent")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        from ssl import MemoryBIO

        self._incoming = MemoryBIO()
        self._outgoing = MemoryBIO()
        self._unsent = memoryview(b"")
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def handshake(self) -> bool:
        """Whether it is done; else something is to be sent, or must arrive."""
        from ssl import SSLWantReadError

        try:
            self._object.do_handshake()
        except SSLWantReadError:
            return False
        return True

    def arrived(self, data: bytes) -> None:
        """Bytes from the engine; none: it closed the connection."""
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    def to_send(self) -> memoryview:
        """What is to be sent to the engine next, the rest of a record included that was sent in part."""
        if not self._unsent:
            self._unsent = memoryview(self._outgoing.read())
        return self._unsent

    def sent(self, count: int) -> None:
        """So many bytes of :meth:`to_send` are on their way."""
        self._unsent = self._unsent[count:]

    def decrypted(self, most: int) -> bytes | None:
        """What the engine said; empty: it says no more; None: more must arrive first."""
        from ssl import SSLWantReadError, SSLZeroReturnError

        try:
            return self._object.read(most)
        except SSLWantReadError:
            return None
        except SSLZeroReturnError:
            return b""

    def encrypt(self, data: bytes) -> None:
        """Have it sent."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._object.write(rest) :]

    def close_write(self) -> None:
        """Have the end sent."""
        from ssl import SSLWantReadError

        with suppress(SSLWantReadError):  # of the engine's own end, which comes later
            self._object.unwrap()

    @property
    def is_pending(self) -> bool:
        """Whether something is decrypted already."""
        return self._object.pending() > 0


async def connect(endpoint: Endpoint, context: ssl.SSLContext | None, what: str) -> Wire:
    """A new connection to the engine.

    :raises EngineGone: it cannot be reached.
    :raises DriverError: it does not speak TLS, or is not to be trusted.
    """
    try:
        sock = await (_connect_unix(endpoint.path) if endpoint.path is not None else _connect_tcp(endpoint))
    except (OSError, ValueError) as exc:
        raise failures.translated(exc, what, address=endpoint.url) from exc
    wire = Wire(sock, endpoint.url, what)
    if context is not None:
        try:
            await wire.encrypt(context, endpoint.host)
        except BaseException:
            wire.close()
            raise
    return wire


async def _connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, _STREAM)
    try:
        sock.setblocking(False)
        while True:
            try:
                sock.connect(path)
                return sock
            except BlockingIOError:  # too many wait to be accepted, and nothing tells when there is room
                await asyncio.sleep(_FULL_S)
    except BaseException:
        sock.close()
        raise


_Address = tuple[str | int, ...] | tuple[int, bytes]


async def _connect_tcp(endpoint: Endpoint) -> socket.socket:
    addresses = await _resolved(endpoint.host, endpoint.port)
    failure: OSError = OSError(f"no address of {endpoint.host}")
    for nth, (family, address) in enumerate(addresses, 1):
        try:
            async with asyncio.timeout(_ATTEMPT_S if nth < len(addresses) else None):
                return await _connect_to(family, address)
        except OSError as exc:
            failure = exc
    raise failure


async def _connect_to(family: int, address: _Address) -> socket.socket:
    sock = socket.socket(family, _STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # a stream that is silent by nature would otherwise not notice that the engine's machine is gone
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _resolved(host: str, port: int) -> list[tuple[int, _Address]]:
    """Addresses of a host; only a name costs a thread."""
    try:
        found = socket.getaddrinfo(host, port, type=_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        from cameleer.threads import Pool

        pool = Pool("cameleer-resolve", 1)
        try:
            found = await pool.call(lambda: socket.getaddrinfo(host, port, type=_STREAM))
        finally:
            pool.close()
    return [(family, address) for family, _, _, _, address in found]
