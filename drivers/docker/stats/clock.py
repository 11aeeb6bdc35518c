"""The engine's clock, mapped to our monotonic one.

Rates come from the engine's own times, not from when its answers arrive: the difference between the clocks is kept as
it is, so that the time between two readings is the time that the engine saw between them.
"""

from __future__ import annotations

import re
import time
from datetime import date
from typing import Final

from cameleer.errors import RecoverableError

_SECOND_NS: Final = 1_000_000_000
_EPOCH: Final = date(1970, 1, 1).toordinal()
_TIME: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))", re.ASCII
)
_NEVER: Final = "0001-01-01T"

TOLERANCE_NS: Final = 250_000_000
"""An engine may have read so long before we asked: it answers with what another request made it read."""
WINDOW_NS: Final = 60 * _SECOND_NS
LAG_NS: Final = 10_000_000
"""When all answers of a window seem older than this, the clocks run apart."""
SLEW: Final = 5000
"""The difference is then changed by this part of the window at most: 12 ms a minute, little beside an interval."""
MARGIN_NS: Final = 5_000_000
"""How old an answer is taken for that sets the difference: the next, a little quicker, does not set it again then."""


def is_never(text: str) -> bool:
    """Whether the engine means "not yet", or "not at all"."""
    return not text or text.startswith(_NEVER)


def unix_ns(text: str) -> int:
    """Unix time of an engine's text, nanoseconds: RFC 3339 with up to nine digits after the dot.

    :raises RecoverableError: it is something else.
    """
    found = _TIME.fullmatch(text)
    if found is None:
        raise _garbled(text)
    year, month, day, hour, minute, second, fraction, sign, hours, minutes = found.groups(default="")
    try:
        days = date(int(year), int(month), int(day)).toordinal() - _EPOCH
    except ValueError as exc:
        raise _garbled(text) from exc
    if int(hour) > 23 or int(minute) > 59 or int(second) > 60:
        raise _garbled(text)
    seconds = ((days * 24 + int(hour)) * 60 + int(minute)) * 60 + int(second)
    if sign:
        offset = (int(hours) * 60 + int(minutes)) * 60
        seconds += offset if sign == "-" else -offset
    return seconds * _SECOND_NS + int(fraction[:9].ljust(9, "0"))


def _garbled(text: str) -> RecoverableError:
    return RecoverableError(f"cannot make sense of the engine's time {text[:80]!r}; trying again may help")


def taken_at_ns(at_ns: int) -> int:
    """Unix time of a moment of our monotonic clock, nanoseconds."""
    return at_ns + time.time_ns() - time.monotonic_ns()


class EngineClock:
    """Maps one engine's times to ``time.monotonic_ns()``.

    The first reading gives the difference between the clocks. It is changed only when a reading would lie in the
    future, when the engine's clock was set, and a little at a time where the clocks run apart.

    :ivar ahead_ns: how far our clock is ahead of the engine's, nanoseconds; None: not known yet.
    """

    __slots__ = ("_least_age_ns", "_window_from_ns", "ahead_ns")

    def __init__(self) -> None:
        self.ahead_ns: int | None = None
        self._least_age_ns = 0
        self._window_from_ns = 0

    def at_ns(self, read_ns: int, *, received_ns: int, asked_ns: int | None = None, after_ns: int | None = None) -> int:
        """When a reading was true, by our monotonic clock; never later than it was received.

        :param read_ns: the engine's time of the reading.
        :param received_ns: when it arrived, by our clock.
        :param asked_ns: when it was asked for: it cannot be much older. None: it was not asked for.
        :param after_ns: the engine's time of the reading before, of the same container: it cannot be older.
        """
        ahead_ns = self.ahead_ns
        if ahead_ns is None:
            return self._set(read_ns, received_ns)
        age_ns = received_ns - read_ns - ahead_ns
        was_set_back = (after_ns is not None and read_ns <= after_ns) or (
            asked_ns is not None and age_ns > received_ns - asked_ns + TOLERANCE_NS
        )
        if age_ns < 0 or was_set_back:
            return self._set(read_ns, received_ns)
        self._least_age_ns = min(self._least_age_ns, age_ns)
        passed_ns = received_ns - self._window_from_ns
        if passed_ns > WINDOW_NS:
            if self._least_age_ns > LAG_NS:
                slewed_ns = min(self._least_age_ns - LAG_NS, passed_ns // SLEW)
                ahead_ns += slewed_ns
                age_ns -= slewed_ns
                self.ahead_ns = ahead_ns
            self._least_age_ns, self._window_from_ns = age_ns, received_ns
        return read_ns + ahead_ns

    def _set(self, read_ns: int, received_ns: int) -> int:
        at_ns = received_ns - MARGIN_NS
        self.ahead_ns = at_ns - read_ns
        self._least_age_ns, self._window_from_ns = MARGIN_NS, received_ns
        return at_ns
