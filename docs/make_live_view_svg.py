"""Record the real live view of ``cameleer run --live`` on a pseudo-terminal and draw it as ``docs/live-view.svg``.

    python docs/make_live_view_svg.py [FILE]

The program is started as anybody would start it; what it writes to its terminal is read by a small emulator, and the
screen a moment before the end of the run becomes plain SVG text. Nothing but the standard library is used.
"""

from __future__ import annotations

import fcntl
import html
import os
import pty
import re
import select
import struct
import sys
import termios
import time
import unicodedata
from pathlib import Path
from typing import NamedTuple

ROWS, COLUMNS = 14, 84
RECORD_S = 7.5
WORK = """
import time
text = []
for step in range(1, 9):
    end = time.monotonic() + 0.35 + 0.09 * step
    while time.monotonic() < end:
        sum(range(20000))
    text.append(bytearray(6_000_000 * step))
    print(f"step {step} of 12: {sum(map(len, text)) / 1e6:.0f} MB of matrices", flush=True)
    time.sleep(0.35 if step % 3 else 0.05)
time.sleep(9)
"""
COMMAND = ["run", "--live", "--", "python3", "train.py"]

_TOKEN = re.compile(
    r"\x1b\[(?P<params>[0-9;?]*)(?P<final>[@-~])|\x1b(?P<short>[78cM=>])|\x1b[\]P][^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|(?P<control>[\x00-\x1a\x1c-\x1f])|(?P<text>[^\x00-\x1f]+)"
)


class Cell(NamedTuple):
    """One character and how it is painted."""

    text: str = " "
    bold: bool = False
    dim: bool = False
    colour: int | None = None


_EMPTY = Cell()


class Screen:
    """As much of a terminal as the live view needs: cursor, margins, erasing, colours.

    :ivar lines: rows of cells; a wide letter is followed by an empty text.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.lines = [[_EMPTY] * columns for _ in range(rows)]
        self.row = self.column = 0
        self.top, self.bottom = 0, rows - 1
        self.scrolled: list[str] = []
        self._saved = (0, 0)
        self._pen = _EMPTY
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Take in what a program wrote."""
        data = self._rest + data
        text = data.decode("utf-8", "ignore")
        cut = text.rfind("\x1b")
        if cut >= 0 and not _TOKEN.match(text, cut):
            self._rest, text = text[cut:].encode(), text[:cut]
        else:
            self._rest = data[len(text.encode()) :] if len(text.encode()) < len(data) else b""
        for token in _TOKEN.finditer(text):
            if token["text"]:
                for letter in token["text"]:
                    self._put(letter)
            elif token["control"]:
                self._control(token["control"])
            elif token["short"]:
                self._short(token["short"])
            elif token["final"]:
                self._sequence(token["final"], token["params"])

    def text(self) -> list[str]:
        """The rows as text, without what is blank at their ends."""
        return ["".join(cell.text for cell in line).rstrip() for line in self.lines]

    def _put(self, letter: str) -> None:
        if unicodedata.combining(letter):
            return
        wide = unicodedata.east_asian_width(letter) in "WF"
        if self.column + wide >= self.columns:
            self.column = 0
            self._down()
        self.lines[self.row][self.column] = self._pen._replace(text=letter)
        self.column += 1
        if wide:
            self.lines[self.row][self.column] = self._pen._replace(text="")
            self.column += 1

    def _down(self) -> None:
        if self.row == self.bottom:
            self.scrolled.append("".join(cell.text for cell in self.lines[self.top]).rstrip())
            del self.lines[self.top]
            self.lines.insert(self.bottom, [_EMPTY] * self.columns)
        elif self.row < self.rows - 1:
            self.row += 1

    def _control(self, letter: str) -> None:
        if letter == "\r":
            self.column = 0
        elif letter in "\n\v\f":
            self._down()
        elif letter == "\b":
            self.column = max(0, self.column - 1)
        elif letter == "\t":
            self.column = min(self.columns - 1, (self.column // 8 + 1) * 8)

    def _short(self, letter: str) -> None:
        if letter == "7":
            self._saved = (self.row, self.column)
        elif letter == "8":
            self.row, self.column = self._saved
        elif letter == "c":
            rest = self._rest
            self.__init__(self.rows, self.columns)  # type: ignore[misc]
            self._rest = rest

    def _sequence(self, final: str, params: str) -> None:
        if params.startswith("?"):
            return
        numbers = [int(part or 0) for part in params.split(";")]
        count = max(1, numbers[0])
        if final in "Hf":
            self.row = min(self.rows, count) - 1
            self.column = min(self.columns, max(1, numbers[1] if len(numbers) > 1 else 1)) - 1
        elif final == "d":
            self.row = min(self.rows, count) - 1
        elif final == "G":
            self.column = min(self.columns, count) - 1
        elif final == "A":
            self.row = max(self.top if self.row >= self.top else 0, self.row - count)
        elif final == "B":
            self.row = min(self.bottom if self.row <= self.bottom else self.rows - 1, self.row + count)
        elif final == "C":
            self.column = min(self.columns - 1, self.column + count)
        elif final == "D":
            self.column = max(0, self.column - count)
        elif final == "r":
            self.top = max(1, numbers[0]) - 1
            self.bottom = (numbers[1] if len(numbers) > 1 and numbers[1] else self.rows) - 1
            self.row = self.column = 0
        elif final == "J":
            self._erase_screen(numbers[0])
        elif final == "K":
            self._erase_line(numbers[0])
        elif final == "m":
            self._paint(numbers)

    def _erase_screen(self, mode: int) -> None:
        first = self.row + 1 if mode == 0 else 0
        last = self.row if mode == 1 else self.rows
        for row in range(first, last):
            self.lines[row] = [_EMPTY] * self.columns
        if mode < 2:
            self._erase_line(mode)

    def _erase_line(self, mode: int) -> None:
        first = self.column if mode == 0 else 0
        last = self.column + 1 if mode == 1 else self.columns
        self.lines[self.row][first:last] = [_EMPTY] * (last - first)

    def _paint(self, numbers: list[int]) -> None:
        for number in numbers:
            if number == 0:
                self._pen = _EMPTY
            elif number == 1:
                self._pen = self._pen._replace(bold=True)
            elif number == 2:
                self._pen = self._pen._replace(dim=True)
            elif 30 <= number <= 37:
                self._pen = self._pen._replace(colour=number - 30)


def record(seconds: float, rows: int = ROWS, columns: int = COLUMNS) -> Screen:
    """Run the live view on a pseudo-terminal, and return its screen after so many seconds."""
    import tempfile

    screen = Screen(rows, columns)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(WORK)
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(folder)
            env = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
            env.pop("NO_COLOR", None)
            size = struct.pack("HHHH", rows, columns, 0, 0)
            fcntl.ioctl(0, termios.TIOCSWINSZ, size)
            os.execve(sys.executable, [sys.executable, "-m", "cameleer.cli", *COMMAND], env)
        try:
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            end = time.monotonic() + seconds
            screen.feed(b"$ cameleer run --live python3 train.py\r\n")
            while (left := end - time.monotonic()) > 0:
                if select.select([fd], [], [], left)[0]:
                    screen.feed(os.read(fd, 65536))
            os.write(fd, b"\x03")
            _drain(fd)
        finally:
            os.close(fd)
            os.waitpid(pid, 0)
    return screen


def _drain(fd: int) -> None:
    """Read to the end, so that nothing waits for us."""
    try:
        while os.read(fd, 65536):
            pass
    except OSError:
        pass


# drawing

_CELL, _LINE, _PAD, _BAR = 8.43, 19.0, 18.0, 30.0
_STYLE = """
    .back { fill: #fbfcfe; stroke: #c9d3e0 }
    .bar { fill: #eef2f8 }
    text { font: 14px ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
           fill: #1f2a3a; white-space: pre }
    .b { font-weight: 600; fill: #0b1524 } .d { fill: #93a1b5 }
    .c6 { fill: #0b7f95 } .c5 { fill: #9a3fb5 } .title { fill: #6a788d; font-size: 12px }
    @media (prefers-color-scheme: dark) {
      .back { fill: #10161f; stroke: #2b3644 } .bar { fill: #18202c }
      text { fill: #d4dde9 } .b { fill: #f4f8fd } .d { fill: #5d6c80 }
      .c6 { fill: #43c8df } .c5 { fill: #d58bea } .title { fill: #8494a8 }
    }
"""


def svg(screen: Screen) -> str:
    """Draw a screen: runs of equal paint as text, block characters as rectangles so that no font leaves gaps."""
    width = screen.columns * _CELL + 2 * _PAD
    height = screen.rows * _LINE + _BAR + 2 * _PAD - 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="The live view of cameleer run below the output of a program">',
        f"  <style>{_STYLE}  </style>",
        f'  <rect class="back" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="9"/>',
        f'  <path class="bar" d="M1 {_BAR} V10 Q1 1 10 1 H{width - 10:.0f} Q{width - 1:.0f} 1 {width - 1:.0f} 10 '
        f'V{_BAR} Z"/>',
        *(
            f'  <circle cx="{18 + 18 * place}" cy="15" r="5" fill="{fill}"/>'
            for place, fill in enumerate(("#f2695c", "#f1b63f", "#57c04f"))
        ),
        f'  <text class="title" x="{width / 2:.0f}" y="19" text-anchor="middle">cameleer run --live</text>',
    ]
    for row, line in enumerate(screen.lines):
        parts += _runs(row, line)
    return "\n".join([*parts, "</svg>", ""])


def _runs(row: int, line: list[Cell]) -> list[str]:
    parts = []
    bottom = _BAR + _PAD + row * _LINE + 10
    start = 0
    while start < len(line):
        paint = line[start][1:]
        end = start
        while end < len(line) and line[end][1:] == paint:
            end += 1
        text = "".join(cell.text for cell in line[start:end])
        left = _PAD + start * _CELL
        kind = "b" if paint[0] else "d" if paint[1] else f"c{paint[2]}" if paint[2] is not None else ""
        of_class = f' class="{kind}"' if kind else ""
        if any("▁" <= letter <= "█" for letter in text):
            for place, letter in enumerate(text):
                if "▁" <= letter <= "█":
                    tall = (ord(letter) - ord("▁") + 1) / 8 * 14
                    parts.append(
                        f'  <rect{of_class} x="{left + place * _CELL:.1f}" y="{bottom + 3 - tall:.1f}" '
                        f'width="{_CELL - 0.9:.1f}" height="{tall:.1f}"/>'
                    )
        elif text.strip():
            shown = html.escape(text.rstrip(), quote=False)
            wide = len(text.rstrip()) * _CELL
            parts.append(
                f'  <text{of_class} x="{left:.1f}" y="{bottom:.1f}" textLength="{wide:.1f}" '
                f'xml:space="preserve">{shown}</text>'
            )
        start = end
    return parts


def main() -> None:
    """Record and draw."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("live-view.svg")
    target.write_text(svg(record(RECORD_S)), encoding="utf-8")
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
