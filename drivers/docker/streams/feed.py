"""Feeds a container's stdin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cameleer.errors import DriverError
from cameleer.log import log

if TYPE_CHECKING:
    from cameleer.drivers.docker.client.http import Hijacked
    from cameleer.drivers.docker.streams.descriptors import Descriptor

_CHUNK: Final = 65536
_END_OF_INPUT: Final = b"\x04"


async def feed(source: Descriptor, sink: Hijacked, *, tty: bool = False) -> None:
    """Write all that the source has, then let the container see the end; returns early where it takes no more.

    :param tty: the container has a terminal: the end is typed (the engine takes a half-closed connection for one that
        wants no more output either).
    """
    last = b"\n"
    try:
        while data := await _read(source):
            await sink.write(data)
            last = data[-1:]
        if tty:
            await sink.write(_END_OF_INPUT * (1 if last in (b"\n", b"\r", _END_OF_INPUT) else 2))
        else:
            await sink.close_write()
    except DriverError as exc:  # it has ended, or closed its stdin
        log.debug("stdin is fed no more: %s", exc)


async def _read(source: Descriptor) -> bytes:
    while True:
        await source.readable()
        try:
            return source.read(_CHUNK)
        except BlockingIOError:
            continue
        except OSError:  # a terminal that was hung up, a connection that was reset: there is no more
            return b""
