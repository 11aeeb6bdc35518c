"""Sizes, durations and shares as people write and read them. Reading is exact; what is shown always has its unit."""

from __future__ import annotations

from cameleer.errors import ConfigError

NOT_MEASURED = "not measured"

_SIZES = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DIVIDED = {"ms": 1000, "us": 1_000_000, "µs": 1_000_000}
_LONGEST = 30


def parse_size(text: str) -> int:
    """Bytes of ``512``, ``64k``, ``1.5GiB``: k, m, g, t with or without B or iB, always powers of 1024.

    :raises ConfigError: it is no size; says what one looks like.
    """
    number, unit = _split(text)
    suffix = unit.lower()
    for ending in ("ib", "b"):
        if suffix.endswith(ending) and (suffix != "ib"):
            suffix = suffix.removesuffix(ending)
            break
    scaled = _scaled(number, 1 << _SIZES[suffix]) if suffix in _SIZES else None
    if scaled is None:
        raise ConfigError(f"{text!r} is no size: write bytes, or a number with k, m or g, such as 512m or 1.5GiB")
    return scaled


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``1.5``, ``500ms``, ``2m``, ``1h``.

    :raises ConfigError: it is no duration; says what one looks like.
    """
    number, unit = _split(text)
    unit = unit.lower()
    seconds: float | None = None
    try:
        if number and unit in _SECONDS:
            seconds = float(number) * _SECONDS[unit]
        elif number and unit in _DIVIDED:
            seconds = float(number) / _DIVIDED[unit]
    except ValueError:
        seconds = None
    if seconds is None:
        raise ConfigError(f"{text!r} is no duration: write seconds, or a number with ms, s, m or h, such as 0.5 or 2m")
    return seconds


def _split(text: str) -> tuple[str, str]:
    """Part a number from its unit."""
    text = text.strip()
    end = 0
    while end < len(text) and text[end] in "0123456789.":
        end += 1
    return (text[:end], text[end:].strip()) if len(text) <= _LONGEST else ("", "")


def _scaled(number: str, unit: int) -> int | None:
    """``number × unit``, rounded down, in whole numbers; None if it is no number."""
    whole, dot, fraction = number.partition(".")
    if (dot and not fraction) or not (whole + fraction) or "." in fraction:
        return None
    return int(whole or "0") * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)


def size(value: int | float | None) -> str:
    """``31.2 MiB``: a number of bytes, powers of 1024."""
    if value is None:
        return NOT_MEASURED
    if value < 1024:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1023.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:,.1f} PiB"


def seconds(value_ns: int | None) -> str:
    """``3.02 s``: a time, from milliseconds to hours, of nanoseconds."""
    if value_ns is None:
        return NOT_MEASURED
    if value_ns < 99_950_000:
        return f"{value_ns / 1e6:.1f} ms" if value_ns else "0 ms"
    if value_ns < 59_995_000_000:
        return f"{value_ns / 1e9:.2f} s"
    whole = round(value_ns / 1e9)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole // 60 % 60:02} min {whole % 60:02} s"


def percent(value: float | None) -> str:
    """``99.3 %``."""
    return NOT_MEASURED if value is None else f"{value:,.1f} %"


def number(value: int | None) -> str:
    """``3,120``."""
    return NOT_MEASURED if value is None else f"{value:,}"


def several(count: int, one: str, many: str) -> str:
    """``1 process``, ``3 processes``."""
    return f"{count:,} {one if count == 1 else many}"


def shown(words: tuple[str, ...] | list[str], width: int = 0) -> str:
    """A command as it can be shown on a terminal: quoted where a shell would need it, nothing that moves the cursor.

    :param width: longest text wanted, in characters; 0 for any.
    """
    text = " ".join(_quoted(word) for word in words)
    return text if not width or len(text) <= width else text[: max(0, width - 1)] + "…"


def _quoted(word: str) -> str:
    if not word.isprintable():
        return ascii(word) if any("\ud800" <= letter <= "\udfff" for letter in word) else repr(word)
    if word and all(letter.isalnum() or letter in "_@%+=:,./-" for letter in word):
        return word
    return "'" + word.replace("'", "'\"'\"'") + "'"
