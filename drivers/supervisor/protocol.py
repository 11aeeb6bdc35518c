"""How host, launcher and supervisors talk: frames of ``key=value`` fields. Imports nothing.

A frame is its length (4 bytes, big-endian) and fields that end with NUL, which none of what is sent can contain. The
same fields, without length, are what the task's record on disk holds. Readable by every version: unknown keys are
skipped.
"""

from __future__ import annotations

Message = dict[str, list[bytes]]
Value = int | str | bytes | list[bytes]

_LENGTH_BYTES = 4


class Garbled(ValueError):
    """What arrived is no frame."""


def fields(**values: Value) -> bytes:
    """Write fields; a list is one field for each of its elements."""
    parts = []
    for key, value in values.items():
        for each in value if isinstance(value, list) else [value]:
            data = each if isinstance(each, bytes) else str(each).encode("utf-8", "surrogateescape")
            parts.append(key.encode() + b"=" + data + b"\0")
    return b"".join(parts)


def parse(data: bytes) -> Message:
    """Read fields, also from a slot that is filled up with NUL."""
    found: Message = {}
    for part in data.split(b"\0"):
        if part:
            key, _, value = part.partition(b"=")
            found.setdefault(key.decode("ascii", "replace"), []).append(value)
    return found


def frame(**values: Value) -> bytes:
    """Write a frame."""
    body = fields(**values)
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def text(message: Message, key: str, default: str = "") -> str:
    """The first value of a key."""
    values = message.get(key)
    return values[0].decode("utf-8", "surrogateescape") if values else default


def number(message: Message, key: str, default: int = 0) -> int:
    """The first value of a key.

    :raises Garbled: it is no number.
    """
    values = message.get(key)
    if not values:
        return default
    try:
        return int(values[0])
    except ValueError:
        raise Garbled(f"{key} is {values[0]!r}") from None


class Frames:
    """Cuts a stream into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Take what arrived; return the messages that are complete."""
        self._buffer += data
        found = []
        while len(self._buffer) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                break
            found.append(parse(bytes(self._buffer[_LENGTH_BYTES:end])))
            del self._buffer[:end]
        return found
