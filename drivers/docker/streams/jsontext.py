"""What the log driver ``json-file`` keeps of a stream: each byte that is not UTF-8 becomes U+FFFD, three bytes long.

Needed to find in such a log the place up to which the stream itself was delivered.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Final

PART: Final = 16384
"""Bytes of a part of a long line: the engine logs one as soon as it is full, else a line when it has ended."""
_NO_TEXT: Final = re.compile("[\udc80-\udcff]")


class JsonText:
    """One stream.

    :param size: bytes of its line that has not ended.
    """

    def __init__(self, size: int = 0) -> None:
        self._size = size % PART
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")

    def feed(self, data: bytes) -> bytes:
        """The next bytes as the log has them; a character that is cut off at their end comes with its rest."""
        if data.isascii() and not self._decoder.getstate()[0]:
            begin = data.rfind(b"\n") + 1
            self._size = (len(data) - begin + (0 if begin else self._size)) % PART
            return data
        text = "".join(self._decoder.decode(piece, final) for piece, final in self._pieces(data))
        return _NO_TEXT.sub("\ufffd", text).encode()

    def _pieces(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Cut where a part of a long line is full: a character across that is two halves, and none to the log."""
        at = 0
        while at < len(data):
            full = at + PART - self._size
            end = data.rfind(b"\n", at, full) + 1
            self._size = 0 if end else (self._size + min(full, len(data)) - at) % PART
            end = end or min(full, len(data))
            yield data[at:end], end == full and not self._size
            at = end
