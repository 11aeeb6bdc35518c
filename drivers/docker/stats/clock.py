"""The engine's clock, mapped to our monotonic one.

Rates come from the engine's own times, not from when its answers arrive: the time between two readings is the time that
the engine saw between them.
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
MARGIN_NS: Final = 5_000_000
"""A reading that lies in the future by no more means that the clocks run apart."""
RENEW_NS: Final = 300 * _SECOND_NS
"""So often an engine is asked for its time, should the clocks run apart."""
SET_NS: Final = RENEW_NS // 2000
"""An engine's clock that is off by more was set: no clock is made to run apart faster than 500 parts per million."""
SLEW: Final = 200
"""The time between two readings differs by this part of it at most from what the engine saw between them."""
LEAST_NS: Final = 500_000_000
"""After the clock was set, a reading is left out that seems to be nearer to the last: an engine takes longer."""


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


def system_ns(info: object) -> int | None:
    """The engine's time in its answer to ``GET /info``, Unix time in nanoseconds; None: it does not say."""
    text = info.get("SystemTime") if isinstance(info, dict) else None
    if not isinstance(text, str) or is_never(text):
        return None
    try:
        return unix_ns(text)
    except RecoverableError:
        return None


class EngineClock:
    """Maps one engine's times to ``time.monotonic_ns()``.

    The difference between the clocks is taken as if the engine had read its own at the very moment when it was asked.
    So no reading lies in the future, however late answers are handled, and there is no need to change it afterwards.

    :ivar ahead_ns: how far our clock is ahead of the engine's, nanoseconds; None: not known yet.
    :ivar times_set: how often the engine's clock was set so far.
    """

    __slots__ = ("_renew_ns", "_unsure_ns", "ahead_ns", "times_set")

    def __init__(self) -> None:
        self.ahead_ns: int | None = None
        self.times_set = 0
        self._unsure_ns = 0
        self._renew_ns = 0

    def told(self, time_ns: int, *, asked_ns: int, received_ns: int) -> None:
        """Take what the engine's clock said at some moment between question and answer."""
        least_ns, most_ns = asked_ns - time_ns, received_ns - time_ns
        before_ns = self.ahead_ns
        if before_ns is None or not least_ns <= before_ns <= most_ns:
            self.ahead_ns = least_ns
            if before_ns is not None:
                self.times_set += before_ns > most_ns + SET_NS or before_ns + self._unsure_ns < least_ns - SET_NS
            self._unsure_ns = most_ns - least_ns
        self._renew_ns = received_ns + RENEW_NS

    def is_due(self, now_ns: int) -> bool:
        """Whether the engine should be asked for its time again; true once only."""
        is_due = now_ns >= self._renew_ns
        if is_due:
            self._renew_ns = now_ns + RENEW_NS
        return is_due

    def fits(self, read_ns: int, *, received_ns: int, asked_ns: int | None = None) -> bool:
        """Whether a reading may have been made when this clock says; if not, the engine must be asked for its time.

        :param read_ns: the engine's time of the reading.
        :param received_ns: when it arrived, by our clock.
        :param asked_ns: when it was asked for: it cannot be much older. None: it was not asked for.
        """
        if self.ahead_ns is None:
            return False
        age_ns = received_ns - read_ns - self.ahead_ns
        if -MARGIN_NS <= age_ns < 0:
            self.ahead_ns += age_ns
            age_ns = 0
        is_too_old = asked_ns is not None and age_ns > received_ns - asked_ns + TOLERANCE_NS + self._unsure_ns
        return age_ns >= 0 and not is_too_old


class Times:
    """When one container's readings were true, by our clock.

    The time between two is what the engine saw between them, whatever becomes known of its clock in the meantime;
    unless that was set.
    """

    __slots__ = ("_at_ns", "_clock", "_read_ns", "_times_set")

    def __init__(self, clock: EngineClock) -> None:
        self._clock = clock
        self._read_ns: int | None = None
        self._at_ns = 0
        self._times_set = 0

    def is_newer(self, read_ns: int) -> bool:
        """Whether a reading was made after the one before, by the engine's clock."""
        return self._read_ns is None or read_ns > self._read_ns

    def at_ns(self, read_ns: int, *, received_ns: int) -> int | None:
        """When a reading was true, not later than it was received; None: it cannot be told from the one before.

        The clock must know the engine's.
        """
        assert self._clock.ahead_ns is not None
        at_ns = read_ns + self._clock.ahead_ns
        if self._read_ns is not None:
            least_ns = LEAST_NS
            if self._times_set == self._clock.times_set:
                passed_ns = read_ns - self._read_ns
                due_ns, least_ns = self._at_ns + passed_ns, 1
                at_ns = min(max(at_ns, due_ns - passed_ns // SLEW), due_ns + passed_ns // SLEW)
            if min(at_ns, received_ns) - self._at_ns < least_ns:
                return None
        self._read_ns, self._at_ns, self._times_set = read_ns, min(at_ns, received_ns), self._clock.times_set
        return self._at_ns
