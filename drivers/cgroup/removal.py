"""Ending and removing a group of ours, with everything in it.

Freeze, so that nothing forks while it is being killed; kill; thaw, so that the dead can go; wait until all have gone;
remove, the groups that the task made inside first. Where the kernel has ``cgroup.kill``, that takes the first three
steps' place. All of it is repeated until nothing is left: a process that could not be frozen in time may have forked.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Final

from cameleer.drivers.cgroup import kernel, v1, v2
from cameleer.errors import RecoverableError, UnrecoverableError

if TYPE_CHECKING:
    from cameleer.drivers.cgroup.group import Group

FREEZE_S: Final = 0.5
"""How long a freeze may take: a process that hangs in the kernel cannot be frozen, and is killed all the same."""
_AT_ONCE: Final = 128
"""Processes of which descriptors are held at the same time."""
_FIRST_GAP_S: Final = 0.001
_LONGEST_GAP_S: Final = 0.05


def remove(group: Group, timeout_s: float) -> None:
    """Kill everything in a group of ours and remove it; nothing where it is gone. Folders of others stay as they are.

    :raises RecoverableError: processes did not die in time; names them.
    :raises UnrecoverableError: this process itself is in it; no permission.
    """
    deadline = time.monotonic() + timeout_s
    gap = _FIRST_GAP_S
    try:
        while not _remove_folders(group):
            kill(group)
            if group.paths.version == 2:
                v2.wait_for(group.own["unified"], "populated 0", min(gap, max(0.0, deadline - time.monotonic())))
            if _remove_folders(group):
                return
            if time.monotonic() >= deadline:
                raise RecoverableError(_what_is_left(group, timeout_s))
            if group.paths.version == 1:
                time.sleep(gap)  # version 1 says nothing when the last process has gone
            gap = min(2 * gap, _LONGEST_GAP_S)
    except OSError as exc:
        raise UnrecoverableError(f"cannot remove the group {group.name}: {exc.filename}: {exc.strerror}") from exc


def kill(group: Group, freeze_s: float = FREEZE_S) -> None:
    """SIGKILL everything in a group of ours and in the groups inside; does not wait.

    :raises UnrecoverableError: this process itself is in it.
    :raises OSError: no permission.
    """
    pids = group.pids()
    if os.getpid() in pids:
        raise UnrecoverableError(f"this process ({os.getpid()}) is in the group {group.name}: nothing was killed")
    if not pids:
        return
    if group.paths.version == 2:
        folder = group.own["unified"]
        try:
            kernel.write(f"{folder}/cgroup.kill", "1")
            return
        except FileNotFoundError:  # before Linux 5.14, or the group is gone
            if not os.path.isdir(folder):
                return
    try:
        group.freeze(freeze_s)
        signal_all(group, signal.SIGKILL)
    finally:
        group.thaw()


def signal_all(group: Group, signum: int) -> None:
    """Send a signal to each process; never to another that got the number of one that ended meanwhile.

    :raises OSError: no permission.
    """
    waiting = sorted(group.pids())
    for start in range(0, len(waiting), _AT_ONCE):
        held = {pid: fd for pid in waiting[start : start + _AT_ONCE] if (fd := _hold(pid)) is not None}
        try:
            for pid in group.pids() & held.keys():  # still listed: so it is this process that is held
                try:
                    signal.pidfd_send_signal(held[pid], signum)
                except ProcessLookupError:
                    continue
        finally:
            for fd in held.values():
                os.close(fd)


def _hold(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _remove_folders(group: Group) -> bool:
    """Remove what is empty; whether all is gone. The freezer's goes last: as long as it is there, so is the group."""
    if group.paths.version == 2:
        return _remove_tree(group, "unified")
    gone = True
    for controller, _ in reversed(v1.controllers_of(group.own)):
        if controller == "freezer":
            continue
        gone = _remove_tree(group, controller) and gone
    return gone and ("freezer" not in group.own or _remove_tree(group, "freezer"))


def _remove_tree(group: Group, controller: str) -> bool:
    folder = group.own[controller]
    if not all([kernel.remove(each) for each in reversed(kernel.nested(folder))]):  # noqa: C419 # try them all
        return False
    return v1.remove(controller, folder, plain=group.plain)


def _what_is_left(group: Group, timeout_s: float) -> str:
    pids = sorted(group.pids())
    if pids:
        shown = ", ".join(f"{pid} ({_state(pid)})" for pid in pids[:5])
        return f"the group {group.name} still has processes {timeout_s:g} s after SIGKILL: {shown}"
    return f"the group {group.name} is empty and could not be removed in {timeout_s:g} s"


def _state(pid: int) -> str:
    try:
        text = kernel.read(f"/proc/{pid}/stat")
        return text[text.rindex(")") + 2]
    except (OSError, ValueError):
        return "gone"
