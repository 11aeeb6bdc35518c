"""Drawing on a terminal that is not ours alone.

:class:`Beside` redraws a few lines in place, for a task whose output goes elsewhere. :class:`Above` keeps the bottom
lines for the view with a scroll region and lets a task's own output through above them: it corrects only what would
leave the region, and never draws in the middle of an escape sequence. It is no terminal emulator.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SAVE, _RESTORE = b"\x1b7", b"\x1b8"
_HIDE, _SHOW = b"\x1b[?25l", b"\x1b[?25h"

_SEQUENCE = re.compile(
    rb"\x1b(?:"
    rb"\[(?P<params>[0-9;:<=>?]*)(?P<between>[ -/]*)(?P<final>[@-~])"
    rb"|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)"  # a title and its like, to its end
    rb"|[ -/]+[0-~]"
    rb"|(?P<short>[0-OQ-WYZ\\`-~])"
    rb")"
)
_OPEN = re.compile(rb"\x1b(?:\[[0-9;:<=>?]*[ -/]*|[\]PX^_][^\x07\x1b]*|[ -/]*)")
_OPEN_STRING = re.compile(rb"\x1b[\]PX^_][^\x07\x1b]*")
_LONGEST_OPEN = 4096
_OURS_TO_CORRECT = frozenset(b"rHfdJ")


class Beside:
    """The view on a terminal that the task does not write to: redrawn in place, and left there at the end."""

    def __init__(self) -> None:
        self._drawn = 0

    def draw(self, lines: Sequence[str]) -> bytes:
        """What to write to show these lines in place of the last ones; the cursor ends below them."""
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        self._drawn = len(lines)
        return (up + "".join(f"\r{line}\x1b[K\r\n" for line in lines) + "\x1b[J").encode()

    def leave(self) -> None:
        """Somebody else wrote to the terminal: the next view begins anew, below."""
        self._drawn = 0


class Above:
    """The bottom lines of a terminal, kept from a task that writes above them.

    :param rows: of the whole terminal.
    :param height: of the view.
    """

    def __init__(self, rows: int, height: int) -> None:
        self.rows = rows
        self.height = height
        self._open = b""
        self._saved = False
        self.spoilt = False
        """The task may have drawn over the view: draw it soon."""

    @property
    def task_rows(self) -> int:
        """Rows of the task's own terminal."""
        return self.rows - self.height

    @property
    def busy(self) -> bool:
        """The task is inside an escape sequence, or holds the saved cursor: no drawing now."""
        return bool(self._open) or self._saved

    def begin(self) -> bytes:
        """Make room below the cursor, and keep the task's output above it."""
        return b"\n" * self.height + b"\x1b[%dA" % self.height + self._region()

    def _region(self) -> bytes:
        return _SAVE + b"\x1b[1;%dr" % self.task_rows + _RESTORE

    def resize(self, rows: int) -> bytes:
        """The terminal has another height; its text may have moved, so the region begins anew at the bottom."""
        self.rows = rows
        self.spoilt = True
        return b"\x1b[r\x1b[%d;1H\x1b[J" % max(1, self.task_rows) + self._region()

    def draw(self, lines: Sequence[str]) -> bytes:
        """What to write to show these lines in the bottom rows; the cursor stays where it is."""
        self.spoilt = False
        text = [_SAVE, b"\x1b[0m"]
        for position, line in enumerate(lines[: self.height]):
            text.append(b"\x1b[%d;1H%s\x1b[K" % (self.task_rows + 1 + position, line.encode()))
        return b"".join(text) + _RESTORE

    def end(self) -> bytes:
        """Wipe the view and give the whole terminal back, the cursor below the task's last line."""
        wiped = b"".join(b"\x1b[%d;1H\x1b[2K" % (self.task_rows + 1 + line) for line in range(self.height))
        return _SAVE + wiped + b"\x1b[r" + _RESTORE + b"\x1b[0m" + _SHOW

    def feed(self, data: bytes) -> bytes:
        """Pass on what the task wrote, corrected where it would leave its rows.

        A sequence that is cut off at the end waits for its rest.
        """
        data = self._open + data
        end = _whole(data)
        if len(data) - end > _LONGEST_OPEN:
            end = len(data)
        self._open = data[end:]
        data = data[:end]
        return _SEQUENCE.sub(self._correct, data) if b"\x1b" in data else data

    def _correct(self, match: re.Match[bytes]) -> bytes:
        whole = match.group()
        short = match["short"]
        if short is not None:
            return self._correct_short(short, whole)
        final = match["final"]
        if final is None or match["between"]:
            if final == b"p" and match["between"] == b"!":  # a soft reset forgets the region
                self.spoilt = True
                return whole + self._region()
            return whole
        params = match["params"]
        if final in (b"h", b"l"):
            return self._correct_mode(params, whole)
        if final == b"s" and not params:
            self._saved = True
        elif final == b"u" and not params:
            self._saved = False
        elif final[0] in _OURS_TO_CORRECT and not params.startswith((b"?", b"<", b"=", b">")):
            return self._correct_rows(final, params, whole)
        return whole

    def _correct_short(self, short: bytes, whole: bytes) -> bytes:
        if short == b"7":
            self._saved = True
        elif short == b"8":
            self._saved = False
        elif short == b"c":  # a full reset
            self._saved = False
            self.spoilt = True
            return whole + self._region()
        return whole

    def _correct_mode(self, params: bytes, whole: bytes) -> bytes:
        if params.startswith(b"?") and set(params[1:].split(b";")) & {b"47", b"1047", b"1049"}:
            self.spoilt = True  # another screen: margins may be its own
            return whole + self._region()
        return whole

    def _correct_rows(self, final: bytes, params: bytes, whole: bytes) -> bytes:
        numbers = [int(part) if part.isdigit() else 0 for part in params.split(b";")]
        if final == b"J":
            self.spoilt = True
        elif final == b"r":
            top = numbers[0] or 1
            bottom = numbers[1] if len(numbers) > 1 and numbers[1] else self.task_rows
            return b"\x1b[%d;%dr" % (min(top, self.task_rows), min(bottom, self.task_rows))
        elif numbers[0] > self.task_rows:
            return b"\x1b[%s%s" % (b";".join([b"%d" % self.task_rows, *params.split(b";")[1:]]), final)
        return whole

    def release(self) -> bytes:
        """Whatever is held back, when nothing more will come or the task has waited long."""
        held, self._open = self._open, b""
        self._saved = False
        return held


def _whole(data: bytes) -> int:
    """Where the last escape sequence or letter begins that is cut off; the length if none is."""
    last = data.rfind(b"\x1b")
    if last >= 0 and last == len(data) - 1:  # perhaps the first half of the end of a title
        before = data.rfind(b"\x1b", 0, last)
        return before if before >= 0 and _OPEN_STRING.fullmatch(data, before, last) else last
    if last >= 0 and _OPEN.fullmatch(data, last):
        return last
    for back in range(1, min(3, len(data)) + 1):  # UTF-8: a first byte says how many follow
        byte = data[-back]
        if byte >= 0xC0:
            return len(data) - back if back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4) else len(data)
        if byte < 0x80:
            break
    return len(data)
