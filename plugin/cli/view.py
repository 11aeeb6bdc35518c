"""The live view as text: a few lines, made of the readings alone. Nothing here knows a terminal.

Own code instead of a library of widgets: it is four lines of text, they must share the terminal with a program that
believes it has it alone, and such libraries cost more CPU at import than the whole of a short run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from cameleer.cli.units import NOT_MEASURED, several, shown, size
from cameleer.runusage import RunAccount

if TYPE_CHECKING:
    from cameleer.config import Resources
    from cameleer.usage import TaskResourceUsage

HEIGHT = 4
"""Lines of a frame."""

_KEPT = 240
_SHORTEST_NS = 90_000_000  # the kernel counts CPU time in ticks of 10 ms: shorter windows would draw its grain
_STEADY_NS = 500_000_000  # the figure beside the graph is over half a second, as peaks are
_LEAST_GRAPH = 6
_MOST_GRAPH = 60
_LABEL = 7
_VALUE = 11
_BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_BLOCKS = "_.-:=+*#"
_MEASURES = {"cgroup": "cgroup", "pss": "PSS", "rss_sum": "RSS sum", "max_rss": "max RSS"}


class Style(NamedTuple):
    """What a terminal can show.

    :ivar colour: SGR sequences may be used.
    :ivar unicode: block characters and dashes may be used.
    """

    colour: bool = False
    unicode: bool = True

    def paint(self, code: str, text: str) -> str:
        """``text`` with an SGR code around it, or as it is."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


class View:
    """What the view remembers of a task."""

    def __init__(self, command: Sequence[str], limits: Resources, driver: str, started_ns: int) -> None:
        self.command = list(command)
        self.limits = limits
        self.driver = driver
        self.started_ns = started_ns
        self.account = RunAccount()
        self.cpu: deque[float] = deque(maxlen=_KEPT)
        self.memory: deque[float] = deque(maxlen=_KEPT)
        self.percent: float | None = None
        self.peak: float | None = None
        self._past: deque[tuple[int, int]] = deque()

    def add(self, reading: TaskResourceUsage) -> None:
        """Take in a reading; both graphs get a bar, or none where the time since the last one is too short."""
        self.account.add(reading)
        total_ns, in_use = reading.cpu.total_ns, reading.memory.in_use_bytes
        if total_ns is not None:
            if reading.cpu.percent is None or (reading.window_ns or 0) < _SHORTEST_NS:
                self._past.append((reading.at_ns, total_ns))
                return
            self.cpu.append(reading.cpu.percent)
            self._steady(reading.at_ns, total_ns, reading.cpu.percent)
        if in_use is not None:
            self.memory.append(in_use)

    def _steady(self, at_ns: int, total_ns: int, percent: float) -> None:
        """CPU over the last half second, or over as much as there is."""
        past = self._past
        past.append((at_ns, total_ns))
        while len(past) > 2 and at_ns - past[1][0] >= _STEADY_NS:
            past.popleft()
        span_ns, used_ns = at_ns - past[0][0], total_ns - past[0][1]
        self.percent = used_ns * 100 / span_ns if span_ns > 0 and used_ns >= 0 else percent
        peaks = [self.peak, self.account.peak, self.percent if span_ns >= _STEADY_NS else None]
        self.peak = max((each for each in peaks if each is not None), default=None)

    def frame(self, now_ns: int, columns: int, style: Style) -> list[str]:
        """The view as lines, none wider than ``columns``.

        :param now_ns: on the clock of ``started_ns``.
        """
        return [
            self._title(now_ns, columns, style),
            self._cpu().text(columns, style),
            self._memory().text(columns, style),
            self._rest(columns, style),
        ]

    def line(self, now_ns: int) -> str:
        """The view in one line of plain text, for an output that cannot be drawn on."""
        cpu, memory = self._cpu(), self._memory()
        parts = [clock(now_ns - self.started_ns), f"cpu {cpu.value}", f"memory {memory.value}", *memory.notes]
        return ", ".join(parts).replace("…", "...")

    def _title(self, now_ns: int, columns: int, style: Style) -> str:
        dash = "─" if style.unicode else "-"
        elapsed = clock(now_ns - self.started_ns)
        room = columns - len(elapsed) - 8
        if room < 1:
            return style.paint("1", elapsed[:columns])
        name = _narrow(_ascii(shown(self.command), style), room, style)
        rule = dash * (room + 1 - _width(name))
        ends = style.paint("2", dash * 2), style.paint("2", dash)
        return f"{ends[0]} {style.paint('1', name)} {style.paint('2', rule)} {style.paint('1', elapsed)} {ends[1]}"

    def _cpu(self) -> Row:
        quota, peak = self.limits.cpu_quota_cores, self.peak
        top = max(quota * 100 if quota is not None else 100.0, *self.cpu, 0.0)
        notes = [f"peak {peak:.1f} %"] if peak is not None else []
        if quota is not None:
            notes.append(f"limit {quota * 100:.0f} %")
        value = "…" if self.percent is None else f"{self.percent:.1f} %"
        return Row("cpu", value, self.cpu, top, notes, "36")

    def _memory(self) -> Row:
        last = self.account.last
        now = last.memory.in_use_bytes if last is not None else None
        peak, limit = self.account.memory_peak_bytes, self.limits.memory_limit_bytes
        notes = [f"peak {size(peak)}"] if peak >= 0 else []
        if limit is not None:
            notes.append(f"limit {size(limit)}")
        if self.account.memory_measure is not None:
            notes.append(_MEASURES[self.account.memory_measure])
        value = size(now) if now is not None else "…" if last is None else NOT_MEASURED
        return Row("memory", value, self.memory, float(limit or max(peak, 1)), notes, "35")

    def _rest(self, columns: int, style: Style) -> str:
        last = self.account.last
        parts: list[str] = []
        if last is not None:
            processes, io = last.processes, last.io
            if processes.processes is not None:
                parts.append(several(processes.processes, "process", "processes"))
            if processes.threads is not None:
                parts.append(several(processes.threads, "thread", "threads"))
            if io.read_bytes is not None and io.write_bytes is not None:
                parts.append(f"read {size(io.read_bytes)}")
                parts.append(f"written {size(io.write_bytes)}")
        parts.append(self.driver)
        text = ""
        for part in parts:
            longer = f"{text}, {part}" if text else part
            if _LABEL + 1 + len(longer) > columns:
                break
            text = longer
        if columns <= _LABEL + 1:
            return "tree"[:columns]
        return f"{style.paint('1', 'tree'.ljust(_LABEL))} {text}"


class Row(NamedTuple):
    """A line with a label, the value now, a graph of the past, and notes.

    :ivar top: what fills the graph's height.
    :ivar colour: SGR code of the graph.
    """

    label: str
    value: str
    history: Sequence[float]
    top: float
    notes: Sequence[str]
    colour: str

    def text(self, columns: int, style: Style) -> str:
        """The line: the graph as wide as there is room, the notes as far as there is room."""
        value = _ascii(self.value, style).rjust(_VALUE)
        left = _LABEL + 1 + _VALUE
        if columns < left:
            return f"{self.label} {value.strip()}"[:columns]
        notes = list(self.notes)
        while notes and left + 2 + _LEAST_GRAPH + 2 + len(", ".join(notes)) > columns:
            notes.pop()
        tail = ", ".join(notes)
        room = columns - left - 2 - (len(tail) + 2 if tail else 0)
        text = f"{style.paint('1', self.label.ljust(_LABEL))} {value}"
        if room >= _LEAST_GRAPH:
            chart = graph(self.history, self.top, min(room, _MOST_GRAPH), style)
            text += f"  {style.paint(self.colour, chart)}"
        return text + (f"  {tail}" if tail else "")


def graph(history: Sequence[float], top: float, width: int, style: Style) -> str:
    """The newest values as bars, one character each, padded on the right until there are enough."""
    blocks = _BLOCKS if style.unicode else _PLAIN_BLOCKS
    values = list(history)[-width:]
    bars = [blocks[min(len(blocks) - 1, max(0, int(value / top * len(blocks))))] for value in values]
    return "".join(bars).ljust(width)


def clock(value_ns: int) -> str:
    """``0:42``, ``1:02:03``: time since the start."""
    whole = max(0, value_ns) // 1_000_000_000
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _ascii(text: str, style: Style) -> str:
    return text if style.unicode else text.encode("ascii", "backslashreplace").decode().replace("\\u2026", "...")


def _width(text: str) -> int:
    """Columns that a text takes; wide letters take two, marks none."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(letter) else 2 if east_asian_width(letter) in "WF" else 1 for letter in text)


def _narrow(text: str, columns: int, style: Style) -> str:
    """Cut a text to so many columns."""
    if _width(text) <= columns:
        return text
    end = "…" if style.unicode else "..."
    while text and _width(text) + len(end) > columns:
        text = text[:-1]
    return (text + end)[:columns]
