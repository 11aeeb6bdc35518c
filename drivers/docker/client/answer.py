"""An answer of HTTP/1.1 as it arrives: its header, the parts of its body, the JSON objects in them.

Only what engines and proxies before them send: no compression, no folded headers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cameleer.drivers.docker.client.wire import CHUNK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cameleer.drivers.docker.client.wire import Wire

LONGEST_HEAD: Final = 65536
_LONGEST_LINE: Final = 8192
_LONGEST_OBJECT: Final = 1 << 26
_UNTIL_CLOSED: Final = -1
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")
_NEXT: Final = re.compile(rb'["{}\[\]]')
_NEXT_IN_STRING: Final = re.compile(rb'["\\]')
_SPACE: Final = b" \t\r\n"


class Head(msgspec.Struct, frozen=True):
    """What comes before the body; names of headers are in small letters.

    :ivar keeps_alive: the connection may be used again after the body.
    """

    status: int
    headers: Mapping[str, str]
    keeps_alive: bool


async def read_head(wire: Wire) -> Head:
    """Read the header of the next answer, past those that only say "go on".

    :raises EngineGone: the connection was closed before its end.
    :raises Malformed: it is none.
    """
    while True:
        head = await _read_head(wire)
        if head.status >= 200 or head.status == 101:
            return head


async def _read_head(wire: Wire) -> Head:
    data = wire.buffered
    seen = 0
    while (end := _END_OF_HEAD.search(data, max(seen - 3, 0))) is None:
        _check_begin(wire, data)
        if len(data) > LONGEST_HEAD:
            raise wire.malformed(f"the header of the answer is longer than {LONGEST_HEAD} bytes", data)
        seen = len(data)
        if not await wire.more():
            raise wire.cut_short()
    _check_begin(wire, data)
    if end.start() > LONGEST_HEAD:
        raise wire.malformed(f"the header of the answer is longer than {LONGEST_HEAD} bytes", data)
    return _parsed(wire, wire.taken(end.end())[: end.start()])


def _check_begin(wire: Wire, data: bytearray) -> None:
    """Do not wait for the end of what is no header."""
    if not data.startswith(b"HTTP/1."[: len(data)]):
        raise wire.malformed("the answer is not HTTP/1.1", data)


def _parsed(wire: Wire, data: bytes) -> Head:
    first, *lines = data.split(b"\n")
    found = _STATUS.fullmatch(first.rstrip(b"\r"))
    if found is None:
        raise wire.malformed("the answer is not HTTP/1.1", data)
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not name or name != name.strip():
            raise wire.malformed("the header of the answer has a line that is none", line)
        name = name.lower()
        value = value.strip()
        if name == "content-length" and headers.get(name, value) != value:
            raise wire.malformed("the answer has two lengths", line)
        headers[name] = f"{headers[name]}, {value}" if name in headers and name != "content-length" else value
    connection = headers.get("connection", "").lower()
    keeps = "close" not in connection if found[1] == b"1" else "keep-alive" in connection
    return Head(status=int(found[2]), headers=headers, keeps_alive=keeps)


class Body:
    """The body of one answer, part by part.

    :ivar is_complete: its end was read, and the connection may be used again.
    """

    __slots__ = ("_awaits_line", "_chunked", "_in_trailer", "_left", "_wire", "is_complete")

    def __init__(self, wire: Wire, head: Head, *, has_none: bool = False) -> None:
        """Take it from the connection, behind the header.

        :raises Malformed: its length makes no sense.
        """
        self._wire = wire
        self._left = 0
        self._chunked = False
        self._awaits_line = False
        self._in_trailer = False
        self.is_complete = False
        coding = head.headers.get("transfer-encoding", "").lower()
        length = head.headers.get("content-length")
        if head.status == 101:
            self._left = _UNTIL_CLOSED
        elif has_none or head.status in (204, 304):
            self.is_complete = True
        elif coding == "chunked":
            self._chunked = True
        elif coding:
            raise wire.malformed(f"the answer is encoded as {coding!r}")
        elif length is not None:
            if not (length.isascii() and length.isdigit() and len(length) < 16):
                raise wire.malformed(f"the answer has the length {length[:40]!r}")
            self._left = int(length)
            self.is_complete = not self._left
        else:
            self._left = _UNTIL_CLOSED

    async def read(self, most: int = CHUNK) -> bytes:
        """The next part, as it comes; empty at the end.

        :raises EngineGone: the connection was closed before its end.
        :raises Malformed: it makes no sense.
        """
        if self.is_complete:
            return b""
        if self._chunked and not self._left:
            await self._begin_chunk()
            if self.is_complete:
                return b""
        if self._left == _UNTIL_CLOSED:
            data = await self._wire.read(most)
            self.is_complete = not data
            return data
        data = await self._wire.read(min(self._left, most))
        if not data:
            raise self._wire.cut_short()
        self._left -= len(data)
        self.is_complete = not self._left and not self._chunked
        return data

    async def whole(self, most: int) -> bytes:
        """All of it.

        :raises Malformed: it is longer than so many bytes.
        """
        parts = []
        size = 0
        while part := await self.read():
            parts.append(part)
            size += len(part)
            if size > most:
                raise self._wire.malformed(f"the answer is longer than {most} bytes")
        return b"".join(parts)

    async def _begin_chunk(self) -> None:
        """Read up to the next chunk's data, or to the end of it all. May be cancelled at any wait."""
        if self._awaits_line:
            if line := await self._line():
                raise self._wire.malformed("a chunk of the answer has no end", line)
            self._awaits_line = False
        if not self._in_trailer:
            line = await self._line()
            size = line.partition(b";")[0].strip()
            if not _SIZE.fullmatch(size):
                raise self._wire.malformed("a chunk of the answer has no size", line)
            self._left = int(size, 16)
            if self._left:
                self._awaits_line = True
                return
            self._in_trailer = True
        while await self._line():
            pass
        self.is_complete = True

    async def _line(self) -> bytes:
        """The next line, without its end. Nothing is taken before it is whole, so this may be cancelled."""
        data = self._wire.buffered
        while (end := data.find(b"\n")) < 0:
            if len(data) > _LONGEST_LINE:
                raise self._wire.malformed("a part of the answer has no length", data)
            if not await self._wire.more():
                raise self._wire.cut_short()
        return self._wire.taken(end + 1).rstrip(b"\r\n")


class Objects:
    """Takes JSON objects that follow each other apart, with or without anything between, however they are cut."""

    __slots__ = ("_at", "_data", "_depth", "_in_string", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._data = bytearray()
        self._at = 0
        self._depth = 0
        self._in_string = False

    def feed(self, chunk: bytes) -> list[Any]:
        """The objects that end in it.

        :raises Malformed: it is no JSON.
        """
        data = self._data
        data += chunk
        found: list[Any] = []
        begin = 0
        while True:
            if not self._depth:
                begin = self._after_space(begin)
                if begin == len(data):
                    break
                self._at = begin
            end = self._scan()
            if end is None:
                break
            found.append(self._decoded(bytes(memoryview(data)[begin:end])))
            begin = end
        del data[:begin]
        self._at = max(self._at - begin, 0)
        if len(data) > _LONGEST_OBJECT:
            raise self._wire.malformed(f"an object is longer than {_LONGEST_OBJECT} bytes", data)
        return found

    @property
    def is_inside(self) -> bool:
        """Whether an object has begun and not ended."""
        return bool(self._data)

    def _after_space(self, at: int) -> int:
        data = self._data
        while at < len(data) and data[at] in _SPACE:
            at += 1
        if at < len(data) and data[at] not in b"{[":
            raise self._wire.malformed("this is no JSON object", data[at : at + 200])
        return at

    def _scan(self) -> int | None:
        """Go on to where the outermost object ends; None: it does not end here."""
        data, at = self._data, self._at
        while found := (_NEXT_IN_STRING if self._in_string else _NEXT).search(data, at):
            at = found.end()
            mark = found[0]
            if mark == b"\\":
                if at == len(data):  # what it protects comes later
                    self._at = at - 1
                    return None
                at += 1
            elif mark == b'"':
                self._in_string = not self._in_string
            elif mark in b"{[":
                self._depth += 1
            else:
                self._depth -= 1
                if not self._depth:
                    self._at = at
                    return at
        self._at = len(data)
        return None

    def _decoded(self, data: bytes) -> Any:
        try:
            return msgspec.json.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError) as exc:
            raise self._wire.malformed(f"this is no JSON ({exc})", data) from exc
