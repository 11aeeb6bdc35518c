"""Which devices a task in a root of its own may use: a list that the kernel enforces, by cgroup v1's controller.

Version 2 has nothing of the kind but programs loaded into the kernel; there, and where the controller is not mounted,
what is in the task's ``/dev`` and the missing mknod are all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Final

from cameleer.config import Device
from cameleer.errors import StartError, StartRecoverable

_CONTROLLER: Final = "devices"
_TRIES: Final = 50
_ALWAYS: Final = (
    *("c *:* m", "b *:* m"),  # making a node gives no access to what is behind it
    *("c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm"),  # null, zero, full, random, urandom
    *("c 5:0 rwm", "c 5:2 rwm", "c 136:* rwm"),  # terminals
)


def mount_point(mountinfo: str = "/proc/self/mountinfo") -> str | None:
    """Where the controller is mounted; None: nowhere."""
    try:
        with open(mountinfo, encoding="utf-8", errors="replace") as file:
            for line in file:
                before, _, after = line.partition(" - ")
                kind, _, options = after.rstrip("\n").split(" ", 2)
                if kind == "cgroup" and _CONTROLLER in options.split(","):
                    return before.split(" ")[4]
    except (OSError, ValueError):
        pass
    return None


def rules(devices: Sequence[Device]) -> list[str]:
    """Lines of ``devices.allow``.

    :raises StartError: one of them is no device.
    """
    found = list(_ALWAYS)
    for position, device in enumerate(devices):
        try:
            status = os.stat(device.source)
        except OSError as exc:
            raise StartError(f"TaskConfig.devices[{position}].source is {device.source!r}: {exc.strerror}") from exc
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
        if not kind:
            raise StartError(f"TaskConfig.devices[{position}].source is {device.source!r}: it is no device")
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        found.append(f"{kind} {number} {device.permissions}")
    return found


def folder(base: str, freezer: str) -> str | None:
    """The folder beside a task's own group.

    :param base: where the freezer is mounted.
    :param freezer: the task's folder there.
    """
    point = mount_point()
    return None if point is None else point + freezer.removeprefix(base)


def make(path: str, allowed: Sequence[str]) -> None:
    """Make the group and write its list.

    :raises StartError: the kernel refuses.
    :raises StartRecoverable: a group of that name is there.
    """
    try:
        _make_folder(path)
        _write(f"{path}/devices.deny", "a")
        for line in allowed:
            _write(f"{path}/devices.allow", line)
    except OSError as exc:
        raise StartError(f"cannot limit the task's devices in {path}: {exc.strerror}") from exc


def _make_folder(path: str) -> None:
    """Make it with the folders above, which the end of another task may take away between two steps of ours.

    :raises OSError: the kernel refuses.
    :raises StartRecoverable: it is there.
    """
    above = os.path.dirname(path)
    for _ in range(_TRIES):
        try:
            os.makedirs(above, exist_ok=True)
        except (FileNotFoundError, FileExistsError):  # also says this of one that was there, and has gone since
            continue
        try:
            os.mkdir(path)
        except FileExistsError as exc:
            raise StartRecoverable(f"a list of devices of that name is there: {path}; another task left it") from exc
        except FileNotFoundError:
            continue
        return
    raise StartRecoverable(f"the folder {above} was removed again and again")


def remove(path: str) -> None:
    """Remove it with the folders above that only it was in; again without error."""
    for each in (path, os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        try:
            os.rmdir(each)
        except FileNotFoundError:
            continue
        except OSError:
            return


def _write(path: str, line: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)
