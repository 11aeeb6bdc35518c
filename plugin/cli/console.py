"""Where cameleer itself speaks: stderr, one line at a time, never in the middle of a live view."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

_through: list[Callable[[str], None]] = []


def say(text: str) -> None:
    """Print ``cameleer: text`` on stderr."""
    write(f"cameleer: {text}\n")


def write(text: str) -> None:
    """Write to stderr, by way of the live view while there is one; an output that is closed or full is no failure."""
    if _through:
        _through[-1](text)
        return
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, full, or never open: there is nobody to tell
        pass


def take_over(writer: Callable[[str], None]) -> None:
    """Let a live view write what comes, so that it keeps its place."""
    _through.append(writer)


def give_back(writer: Callable[[str], None]) -> None:
    """End that; twice without error."""
    if writer in _through:
        _through.remove(writer)


def tracing() -> bool:
    """Whether ``CAMELEER_TRACE`` asks for every call of a driver or hook, and for tracebacks."""
    return os.environ.get("CAMELEER_TRACE", "") not in ("", "0")


def show_log() -> None:
    """Show what the library logs, from WARNING on, as lines of our own; with ``CAMELEER_TRACE`` all of it.

    Advice to authors of drivers is not for who runs a command.
    """
    import logging

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if getattr(record, "for_authors", False) and not tracing():
                return
            try:
                say(" ".join(record.getMessage().split()))
            except Exception:  # a message that cannot be formatted must not hurt the run
                self.handleError(record)

    logger = logging.getLogger("cameleer")
    logger.addHandler(Lines(logging.DEBUG if tracing() else logging.WARNING))
    logger.propagate = False
    if tracing():
        logger.setLevel(logging.DEBUG)
