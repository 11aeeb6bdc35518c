"""Groups go with everything in them, whatever it does; those of others stay."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from inside import FORK_BOMB, RELAY, SLEEPER, ended, file_of, into_nested, line, nested_folder, ready, start

from cameleer.config import Resources
from cameleer.drivers.cgroup import removal
from cameleer.drivers.cgroup.group import Cgroups, Group
from cameleer.drivers.cgroup.paths import GroupPaths
from cameleer.errors import NotSupported, RecoverableError, UnrecoverableError

DAEMON = """
import os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        print(os.getpid(), flush=True)
        time.sleep(1000)
    os._exit(0)
os.wait()
"""


def folders_left(group: Group) -> list[str]:
    return [folder for folder in group.paths.folders.values() if os.path.exists(folder)]


def test_an_empty_group_is_removed_and_again_without_error(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    group.remove()
    assert not group.exists()
    assert not folders_left(group)
    group.remove()
    group.kill()
    group.thaw()
    assert group.freeze()
    assert group.pids() == set()


def test_a_process_dies_with_its_group(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    group.remove()
    assert ended(process) == -signal.SIGKILL
    assert not folders_left(group)


def test_a_process_that_left_its_session_and_parent_dies_too(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = start(group, DAEMON)
    orphan = int(line(process))
    assert ended(process) == 0
    assert group.pids() == {orphan}
    group.remove()
    assert not folders_left(group)


@pytest.mark.parametrize("code", [FORK_BOMB, RELAY], ids=["bomb", "relay"])
def test_processes_that_keep_forking_are_all_ended(cgroups: Cgroups, code: str) -> None:
    group = cgroups.make("alloc", "task", Resources(pids=40))
    process = ready(group, code)
    group.remove(60)
    ended(process)
    assert not folders_left(group)


def test_processes_that_keep_forking_are_frozen_killed_and_thawed_one_by_one(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task", Resources(pids=40))
    process = ready(group, FORK_BOMB)
    assert group.freeze(30)
    frozen = group.pids()
    assert group.pids() == frozen
    group.signal(signal.SIGKILL)
    group.thaw()
    group.remove(60)
    assert ended(process) == -signal.SIGKILL


def test_groups_that_the_task_made_inside_go_too(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    name = nested_folder(group, "inner")
    deep = nested_folder(group, f"{name}/deep")
    nested_folder(group, f"{name}/empty")
    process = ready(group, SLEEPER)
    into_nested(group, deep, process.pid)
    assert group.pids() == {process.pid}
    group.remove()
    assert ended(process) == -signal.SIGKILL
    assert not folders_left(group)


def test_a_group_of_threads_that_the_task_made_inside_goes_too(cgroups: Cgroups) -> None:
    if cgroups.mode.version != 2:
        pytest.skip("version 1 has no groups of threads")
    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    inner = Path(group.paths.folders["unified"], nested_folder(group, "inner"))
    (inner / "cgroup.type").write_text("threaded")
    (inner / "cgroup.threads").write_text(str(process.pid))
    assert group.pids() == {process.pid}
    group.remove()
    assert ended(process) == -signal.SIGKILL
    assert not folders_left(group)


@pytest.mark.parametrize("where", ["itself", "inside"])
def test_a_frozen_group_is_removed(cgroups: Cgroups, where: str) -> None:
    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    folder = "."
    if where == "inside":
        folder = nested_folder(group, "inner")
        into_nested(group, folder, process.pid)
    if group.paths.version == 1:
        file_of(group, "freezer", f"{folder}/freezer.state").write_text("FROZEN")
    else:
        file_of(group, "freezer", f"{folder}/cgroup.freeze").write_text("1")
    group.remove()
    assert ended(process) == -signal.SIGKILL
    assert not folders_left(group)


def test_a_stopped_process_dies(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    os.kill(process.pid, signal.SIGSTOP)
    group.remove()
    assert ended(process) == -signal.SIGKILL


def test_a_zombie_is_not_in_the_way(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = start(group, "")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    group.remove()
    assert not folders_left(group)
    assert ended(process) == 0


def test_kill_leaves_the_group_and_a_signal_reaches_all(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    name = nested_folder(group, "inner")
    first, second = ready(group, SLEEPER), ready(group, SLEEPER)
    into_nested(group, name, second.pid)
    group.signal(signal.SIGTERM)
    assert [ended(first), ended(second)] == [-signal.SIGTERM] * 2
    third = ready(group, SLEEPER)
    group.kill()
    assert ended(third) == -signal.SIGKILL
    assert group.exists()


def test_a_number_that_another_process_got_meanwhile_is_not_signalled(cgroups: Cgroups) -> None:
    class Stale(Group):
        """Lists a process that is in it no more, once, as a look before its end would."""

        looks = 0

        def pids(self) -> set[int]:
            type(self).looks += 1
            return {outsider.pid} if self.looks == 1 else set()

    group = cgroups.make("alloc", "task")
    with subprocess.Popen(["sleep", "1000"]) as outsider:
        removal.signal_all(Stale(name=group.name, paths=group.paths), signal.SIGKILL)
        assert outsider.poll() is None
        outsider.kill()


def test_nothing_is_killed_where_this_process_itself_is_inside(cgroups: Cgroups) -> None:
    class Ours(Group):
        def pids(self) -> set[int]:
            return super().pids() | {os.getpid()}

    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    with pytest.raises(UnrecoverableError, match=f"this process \\({os.getpid()}\\)"):
        Ours(name=group.name, paths=group.paths).remove()
    assert process.poll() is None
    group.remove()
    ended(process)


def test_what_does_not_die_in_time_is_named(cgroups: Cgroups, monkeypatch: pytest.MonkeyPatch) -> None:
    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    with monkeypatch.context() as hung_in_the_kernel:
        hung_in_the_kernel.setattr(removal, "kill", lambda group: None)
        with pytest.raises(RecoverableError, match=rf"alloc\.task still has processes 0.05 s .*: {process.pid} \(S\)"):
            group.remove(0.05)
    group.remove()
    ended(process)


def test_a_group_of_others_is_never_frozen_killed_or_removed(cgroups: Cgroups) -> None:
    theirs = cgroups.make("theirs", "task")
    process = ready(theirs, SLEEPER)
    joined = Group(name="joined", paths=theirs.paths, joined=frozenset(theirs.paths.folders))
    for act in (joined.freeze, joined.thaw, joined.kill, lambda: joined.signal(9)):
        with pytest.raises(NotSupported, match="is not ours"):
            act()
    joined.remove()
    assert process.poll() is None
    assert theirs.exists()
    theirs.remove()
    ended(process)


def test_the_folder_of_a_node_goes_with_its_last_group(cgroups: Cgroups) -> None:
    first, second = cgroups.make("alloc", "one"), cgroups.make("alloc", "two")
    node = os.path.dirname(next(iter(first.paths.folders.values())))
    first.remove()
    assert os.path.isdir(node)
    second.remove()
    assert not os.path.exists(node)


def test_removal_waits_no_longer_than_it_takes(cgroups: Cgroups) -> None:
    group = cgroups.make("alloc", "task")
    process = ready(group, SLEEPER)
    started = time.monotonic()
    group.remove(300)
    assert time.monotonic() - started < 30
    ended(process)


def test_a_restored_group_is_removed_by_another_host(cgroups: Cgroups) -> None:
    wanted = Resources(cpuset_cpus="0") if "cpuset" in cgroups.mode.controllers else Resources()
    group = cgroups.make("alloc", "task", wanted)
    process = ready(group, SLEEPER)
    kept = GroupPaths(version=group.paths.version, folders=dict(group.paths.folders))
    Cgroups(cgroups.mode, node="node").restore(kept).remove()
    ended(process)
    assert not folders_left(group)


def test_the_groups_beside_it_stay(cgroups: Cgroups) -> None:
    group, beside = cgroups.make("alloc", "task"), cgroups.make("alloc", "task.2")
    process = ready(beside, SLEEPER)
    group.remove()
    assert beside.pids() == {process.pid}
    assert all(Path(folder).is_dir() for folder in beside.paths.folders.values())
    beside.remove()
    ended(process)
