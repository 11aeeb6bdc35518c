"""The terminal that cameleer was started on: which one it is, who may use it now, and its modes."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import struct
import termios
from contextlib import suppress
from typing import Any

_LOCAL = 3  # index of the local flags (echo, canonical) in what tcgetattr returns
_CONTROL = 6


class Terminal:
    """A terminal, through a descriptor of our own, so that nothing we set on it reaches the task's.

    :ivar fd: our descriptor.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.modes: list[Any] | None = None
        with suppress(termios.error):
            self.modes = termios.tcgetattr(fd)

    @classmethod
    def controlling(cls) -> Terminal | None:
        """The session's own terminal; None where there is none."""
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        except OSError:
            return None

    def close(self) -> None:
        """Close our descriptor."""
        os.close(self.fd)

    def is_at(self, fd: int) -> bool:
        """Whether a descriptor leads to this very terminal."""
        device = controlling_device()
        try:
            return device is not None and os.isatty(fd) and os.fstat(fd).st_rdev in (device, os.fstat(self.fd).st_rdev)
        except OSError:
            return False

    @property
    def foreground(self) -> bool:
        """Whether our process group may use the terminal now."""
        try:
            return os.tcgetpgrp(self.fd) == os.getpgrp()
        except OSError:
            return False

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; 24 and 80 where the terminal does not say."""
        try:
            rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(self.fd, termios.TIOCGWINSZ, b"\0" * 8))
        except OSError:
            rows = columns = 0
        return rows or 24, columns or 80

    @property
    def in_use(self) -> bool:
        """Somebody changed the echo or line modes since we came: a prompt or a pager, not to be drawn over."""
        try:
            return self.modes is not None and termios.tcgetattr(self.fd)[_LOCAL] != self.modes[_LOCAL]
        except termios.error:
            return True

    def raw(self, *, output_only: bool = False) -> None:
        """Let every key and all output through as it is, if the terminal is ours to use.

        :param output_only: the keys keep their meaning.
        """
        if self.modes is not None and self.foreground:
            modes = raw_modes(self.modes)
            self._set([self.modes[0], modes[1], *self.modes[2:]] if output_only else modes)

    def restore(self) -> None:
        """Set the modes that we found, if the terminal is ours to use."""
        if self.modes is not None and self.foreground:
            try:
                if termios.tcgetattr(self.fd) != self.modes:
                    self._set(self.modes)
            except termios.error:
                pass

    def _set(self, modes: list[Any]) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            termios.tcsetattr(self.fd, termios.TCSADRAIN, modes)
        except termios.error:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def raw_modes(modes: list[Any]) -> list[Any]:
    """Modes with which every key and every byte goes through as it is."""
    raw = [*modes[:_CONTROL], list(modes[_CONTROL])]
    raw[0] &= ~(termios.BRKINT | termios.ICRNL | termios.INPCK | termios.ISTRIP | termios.IXON | termios.INLCR)
    raw[1] &= ~termios.OPOST
    raw[2] = (raw[2] & ~(termios.CSIZE | termios.PARENB)) | termios.CS8
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    raw[_CONTROL][termios.VMIN], raw[_CONTROL][termios.VTIME] = 1, 0
    return raw


def controlling_device() -> int | None:
    """Device number of the session's terminal, as the kernel's process table has it; None without one."""
    try:
        with open("/proc/self/stat", "rb") as file:
            number = int(file.read().rpartition(b")")[2].split()[4])
    except (OSError, ValueError, IndexError):
        return None
    if not number:
        return None
    return os.makedev((number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00))


def is_pipe(fd: int) -> bool:
    """Whether a descriptor is a pipe or socket, at whose other end somebody may use the terminal."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def dumb() -> bool:
    """Whether the environment says that the terminal knows no escape sequences."""
    return os.environ.get("TERM", "") in ("", "dumb", "unknown")


def encoding_is_utf8() -> bool:
    """Whether the locale, as the environment has it, can show block characters."""
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        if value := os.environ.get(name):
            return "utf-8" in value.lower() or "utf8" in value.lower()
    return False
