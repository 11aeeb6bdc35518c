"""Slices of systemd's around containers, for engines whose groups systemd makes.

A slice is asked for as what it is elsewhere, transient: it is gone when it is stopped, with its settings.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Final

from cameleer.drivers.cgroup import limits
from cameleer.drivers.docker.stats.parent import MARK, Parent
from cameleer.errors import ConfigError, RecoverableError, StartError

if TYPE_CHECKING:
    from cameleer.config import Resources
    from cameleer.drivers.cgroup.mode import CgroupMode

_LONGEST: Final = 100
"""Bytes of one part; the whole name may have 255."""
_DIGEST_DIGITS: Final = 32
_UNSAFE: Final = re.compile(rb"[^A-Za-z0-9.]")
_NAME: Final = re.compile(r"(?:[A-Za-z0-9_.~]+-)+[A-Za-z0-9_.~]+\.slice")
_MANAGER: Final = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
_CALL_S: Final = 20.0


def part(text: str) -> str:
    """One part of a slice's name. A dash would begin the next: what is no letter, digit or dot is ``_`` and two digits.

    Different for any two texts; a long one is cut, and a digest of the whole takes the rest's place after ``_7e_7e``.
    """
    name = _UNSAFE.sub(lambda found: b"_%02x" % found[0][0], text.encode("utf-8", "surrogatepass")) or b"_"
    if len(name) > _LONGEST:
        from hashlib import sha256

        digest = sha256(name).hexdigest()[:_DIGEST_DIGITS].encode()
        name = name[: _LONGEST - _DIGEST_DIGITS - 6] + b"_7e_7e" + digest
    return name.decode("ascii")


def start(name: str, weights: Resources, total_mhz: float | None) -> None:
    """Have systemd make a slice that counts, with such weights.

    :raises StartError: it does not.
    """
    asked: dict[str, int | None] = {
        "CPUAccounting": None,
        "MemoryAccounting": None,
        "IOAccounting": None,
        "TasksAccounting": None,
    }
    if weights.cpu_mhz is not None:
        asked["CPUWeight"] = limits.weight(limits.shares(weights.cpu_mhz, total_mhz))
    if weights.io_weight is not None:
        asked["IOWeight"] = limits.io_weight(weights.io_weight)
    words = [str(len(asked))]
    for key, value in asked.items():
        words += [key, "b", "true"] if value is None else [key, "t", str(value)]
    _run("busctl", "call", *_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", *words, "0")


class Slice(Parent):
    """The slice around one container."""

    def __init__(self, mode: CgroupMode, name: str) -> None:
        """Name it.

        :raises ConfigError: it is not one of ours.
        """
        parts = name.removesuffix(".slice").split("-")
        if not _NAME.fullmatch(name) or not parts[-2].startswith(MARK):
            raise ConfigError(f"the slice {name!r} is not around a container of ours")
        levels = ["-".join(parts[: number + 1]) for number in range(len(parts))]
        super().__init__(mode, name, "".join(f"/{level}.slice" for level in levels))

    @property
    def label(self) -> str:
        """What tells it from others of its host."""
        return self.cgroup_parent.removesuffix(".slice").rpartition("-")[2]

    def folders(self) -> list[str]:
        """None: systemd removes them when the slice is stopped."""
        return []

    def kept(self) -> dict[str, str]:
        """For ``driver_state``."""
        return {"slice": self.cgroup_parent}

    def remove_folders(self) -> bool:
        """Stop it where nothing is in it, and remove what systemd leaves; whether all is gone.

        :raises RecoverableError: systemd does not stop it.
        """
        if self.pids():  # they would be killed
            return False
        if self.exists():
            try:
                _run("systemctl", "stop", self.cgroup_parent)
            except StartError as exc:
                raise RecoverableError(str(exc)) from exc
        return super().remove_folders()

    def remove_levels_above(self) -> None:
        """Leave them: they are slices too, and stopping one stops all that is in it."""


def _run(*words: str) -> None:
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, timeout=_CALL_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise StartError(f"cannot run {words[0]}: {exc}") from exc
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip()
        raise StartError(f"{' '.join(words[:2])} failed for {_unit(words)}: {said or f'exit code {done.returncode}'}")


def _unit(words: tuple[str, ...]) -> str:
    return next((each for each in words if each.endswith(".slice")), "")
