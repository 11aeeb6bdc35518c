"""Trees of real processes."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cameleer.drivers.procfs import NS_PER_TICK, ProcessTable, Tree
from cameleer.errors import TaskNotFound, UnrecoverableError

StartScript = Callable[[str], Any]
Until = Callable[[Callable[[], bool]], None]


def pids(table: ProcessTable, tree: Tree) -> set[int]:
    table.refresh()
    tree.usage()
    return set(tree.pids)


def cpu_ns(tree: Tree) -> int:
    usage = tree.usage()
    return usage.cpu_user_ns + usage.cpu_system_ns


def test_children_and_theirs_belong_to_the_tree(table: ProcessTable, script: StartScript) -> None:
    root = script("say(child(lambda: (say(child(signal.pause)), signal.pause()))); signal.pause()")
    below = {int(root.hear()[0]), int(root.hear()[0])}
    assert pids(table, table.track(root.pid)) == {root.pid, *below}
    assert pids(table, table.track(root.pid, include_root=False)) == below


def test_a_tree_that_exists_is_found_when_it_is_old(
    table: ProcessTable, script: StartScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cameleer.drivers.procfs.table.YOUNG_TICKS", 0)
    root = script("say(child(signal.pause)); signal.pause()")
    child = int(root.hear()[0])
    assert pids(table, table.track(root.pid)) == {root.pid, child}


def test_processes_that_come_later_are_found(table: ProcessTable, script: StartScript) -> None:
    root = script("say('up')\nwhile hear(): say(child(signal.pause))")
    root.hear()
    tree = table.track(root.pid)
    seen = {root.pid}
    assert pids(table, tree) == seen
    for _ in range(5):
        seen.add(int(root.ask("more")[0]))
        assert pids(table, tree) == seen
    assert tree.usage().seen == 6
    assert tree.usage().processes == 6


def test_an_orphan_comes_to_the_subreaper_and_counts(table: ProcessTable, script: StartScript) -> None:
    root = script("subreaper()\nsay('up')\nhear()\nsay(orphan(signal.pause))\nsignal.pause()")
    root.hear()
    tree = table.track(root.pid, include_root=False)
    assert pids(table, tree) == set()
    orphan = int(root.ask("go")[0])
    assert pids(table, tree) == {orphan}


def test_an_orphan_that_was_seen_stays_without_a_subreaper(table: ProcessTable, script: StartScript) -> None:
    root = script("""
def middle():
    say(child(signal.pause))
    hear()
pid = child(middle)
os.waitpid(pid, 0)
say(pid)
signal.pause()
""")
    orphan = int(root.hear()[0])
    tree = table.track(root.pid)
    assert orphan in pids(table, tree)
    middle = int(root.ask("end")[0])
    left = pids(table, tree)
    assert orphan in left
    assert middle not in left


def test_cpu_of_ended_children_and_orphans_is_kept(table: ProcessTable, script: StartScript) -> None:
    root = script("""
subreaper()
say('up')
hear()
child(lambda: spin(0.15))
orphan(lambda: spin(0.15))
child(lambda: os._exit(0) if child(lambda: spin(0.15)) else 0)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
times = os.times()
say(times.children_user + times.children_system)
spin(0.3)
say('spun')
hear()
""")
    root.hear()
    tree = table.track(root.pid, include_root=False)
    assert cpu_ns(tree) == 0
    truth_ns = float(root.ask("go")[0]) * 1e9
    table.refresh()
    assert truth_ns > 0.42e9
    assert abs(cpu_ns(tree) - truth_ns) <= 2 * NS_PER_TICK
    root.hear()
    assert abs(cpu_ns(tree) - truth_ns) <= 2 * NS_PER_TICK, "a supervisor's own time is not the task's"


def test_cpu_never_falls_while_short_children_come_and_go(table: ProcessTable, script: StartScript) -> None:
    root = script("""
subreaper()
say('up')
hear()
for n in range(40):
    child(lambda: spin(0.005))
    orphan(lambda: spin(0.005))
    if n % 4 == 3:
        for _ in range(8):
            os.wait()
times = os.times()
say(times.children_user + times.children_system)
hear()
""")
    root.hear()
    tree = table.track(root.pid, include_root=False)
    answer: list[float] = []
    waiter = threading.Thread(target=lambda: answer.append(float(root.ask("go")[0])))
    waiter.start()
    before = 0
    while waiter.is_alive():
        table.refresh()
        now = cpu_ns(tree)
        assert now >= before
        before = now
    waiter.join()
    table.refresh()
    truth_ns = answer[0] * 1e9
    assert truth_ns > 0.35e9
    assert abs(cpu_ns(tree) - truth_ns) <= max(0.02 * truth_ns, 2 * NS_PER_TICK)
    assert tree.usage().processes == 0


def test_what_a_parent_that_ignores_sigchld_lets_go_of_counts_as_far_as_it_was_seen(
    table: ProcessTable, script: StartScript, until: Until
) -> None:
    root = script("""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
def body():
    spin(0.1)
    say(os.getpid())
    hear()
    spin(0.1)
child(body)
signal.pause()
""")
    child = int(root.hear()[0])
    tree = table.track(root.pid)
    assert child in pids(table, tree)
    seen_ns = cpu_ns(tree)
    assert seen_ns >= 0.09e9
    root.say("end")
    until(lambda: child not in pids(table, tree))
    assert cpu_ns(tree) >= seen_ns


def test_a_zombie_counts_until_it_is_waited_for(table: ProcessTable, script: StartScript) -> None:
    root = script("""
pid = child(lambda: spin(0.05))
os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
say(pid)
hear()
os.wait()
say('waited')
signal.pause()
""")
    child = int(root.hear()[0])
    tree = table.track(root.pid)
    assert child in pids(table, tree)
    (row,) = (row for row in tree.rows() if row.pid == child)
    assert row.state == "Z"
    assert row.rss_bytes == 0
    before = cpu_ns(tree)
    root.ask("wait")
    assert child not in pids(table, tree)
    assert cpu_ns(tree) >= before >= 0.04e9


def test_a_root_that_ended_is_a_zombie_and_then_not_found(table: ProcessTable) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        tree = table.track(process.pid)
        assert pids(table, tree) == {process.pid}
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert tree.root_state() == "Z"
        assert tree.usage().rss_bytes == 0
    with pytest.raises(TaskNotFound):
        tree.usage()
    assert tree.gone
    with pytest.raises(TaskNotFound):
        table.track(process.pid)


@pytest.mark.parametrize("name", ["a b", "a) R (b", "two\nlines", "\\n"])
def test_odd_names_are_read_and_shown(table: ProcessTable, script: StartScript, name: str) -> None:
    root = script(f"open('/proc/self/comm', 'w').write({name!r}); child(signal.pause); say('up'); signal.pause()")
    root.hear()
    tree = table.track(root.pid)
    pids(table, tree)
    shown = {row.name for row in tree.rows()}
    assert len(shown) == 1
    assert shown.pop().replace("\\x0a", "\n") == name


def test_rows_come_parents_first(table: ProcessTable, script: StartScript) -> None:
    root = script("say(child(lambda: (say(child(signal.pause)), signal.pause()))); signal.pause()")
    root.hear()
    root.hear()
    tree = table.track(root.pid)
    pids(table, tree)
    rows = tree.rows()
    assert rows[0].pid == root.pid
    assert rows[1].ppid == root.pid
    assert rows[2].ppid == rows[1].pid
    assert all(row.threads == 1 and row.rss_bytes for row in rows)


def test_threads_and_their_switches_are_counted(table: ProcessTable, script: StartScript) -> None:
    root = script("""
def naps():
    for _ in range(50):
        time.sleep(0.001)
threads = [threading.Thread(target=lambda: (naps(), signal.pause()), daemon=True) for _ in range(2)]
for thread in threads:
    thread.start()
naps()
time.sleep(0.1)
say('done')
signal.pause()
""")
    root.hear()
    tree = table.track(root.pid)
    assert tree.usage().threads == 3
    switches = tree.extended().voluntary_switches
    assert switches is not None
    assert switches >= 120


def test_a_process_in_two_trees_counts_in_both(table: ProcessTable, script: StartScript) -> None:
    root = script("""
def body():
    say(os.getpid())
    while hear():
        say(child(signal.pause))
child(body)
signal.pause()
""")
    child = int(root.hear()[0])
    outer = table.track(root.pid)
    assert pids(table, outer) == {root.pid, child}
    inner, again = table.track(child), table.track(child, include_root=False)
    assert pids(table, inner) == {child}
    grandchild = int(root.ask("more")[0])
    assert pids(table, outer) == {root.pid, child, grandchild}
    assert pids(table, inner) == {child, grandchild}
    assert pids(table, again) == {grandchild}
    table.untrack(inner)
    second = int(root.ask("more")[0])
    assert pids(table, outer) == {root.pid, child, grandchild, second}
    with pytest.raises(UnrecoverableError):
        inner.usage()


def give_out_next(pid: int) -> None:
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))


def start_with_pid(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that gets this pid, unless somebody else on the machine is quicker too often."""
    for _ in range(200):
        give_out_next(pid)
        process = subprocess.Popen(["sleep", "60"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    pytest.skip("the pid was taken by others again and again")


def needs_pids_of_choice() -> None:
    if os.geteuid() != 0 or not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK):
        pytest.skip("needs root and /proc/sys/kernel/ns_last_pid, to choose a pid")


@pytest.mark.root
def test_a_reused_pid_is_not_taken_for_the_old_process(table: ProcessTable, script: StartScript) -> None:
    needs_pids_of_choice()
    root = script("""
pid = child(lambda: hear())
say(pid)
os.waitpid(pid, 0)
say('waited')
signal.pause()
""")
    child = int(root.hear()[0])
    tree = table.track(root.pid)
    assert child in pids(table, tree)
    root.ask("end")
    stranger = start_with_pid(child)
    try:
        assert pids(table, tree) == {root.pid}
        assert tree.usage().seen == 2
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.root
def test_a_reused_pid_of_a_stranger_is_found_as_a_child(table: ProcessTable, script: StartScript) -> None:
    needs_pids_of_choice()
    root = script("say('up')\nwhile True:\n    hear()\n    say(child(signal.pause))")
    root.hear()
    stranger = subprocess.Popen(["sleep", "60"])
    tree = table.track(root.pid)
    assert pids(table, tree) == {root.pid}
    stranger.kill()
    stranger.wait()
    for _ in range(200):
        give_out_next(stranger.pid)
        child = int(root.ask("more")[0])
        assert child in pids(table, tree)
        if child == stranger.pid:
            return
    pytest.skip("the pid was taken by others again and again")


@pytest.mark.root
def test_a_root_whose_pid_was_reused_is_gone(table: ProcessTable) -> None:
    needs_pids_of_choice()
    with subprocess.Popen(["sleep", "60"]) as process:
        tree = table.track(process.pid)
        assert pids(table, tree) == {process.pid}
        process.kill()
    stranger = start_with_pid(process.pid)
    try:
        table.refresh()
        with pytest.raises(TaskNotFound):
            tree.usage()
        assert pids(table, table.track(stranger.pid)) == {stranger.pid}
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.root
def test_a_process_of_another_user_is_counted(table: ProcessTable) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to start a process as somebody else")
    with subprocess.Popen(["sleep", "60"], user=65534, group=65534, extra_groups=[]) as process:
        try:
            tree = table.track(process.pid)
            assert pids(table, tree) == {process.pid}
            assert tree.extended().io_missing is None
            assert tree.pss()
        finally:
            process.kill()


def test_reads_from_several_threads_disturb_nobody(table: ProcessTable, script: StartScript) -> None:
    root = script("for _ in range(20): child(signal.pause)\nsay('up')\nsignal.pause()")
    root.hear()
    errors: list[BaseException] = []
    stop = threading.Event()

    def work() -> None:
        try:
            while not stop.is_set():
                tree = table.track(root.pid)
                table.refresh()
                assert tree.usage().processes == 21
                table.untrack(tree)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    end = time.monotonic() + 0.5
    while time.monotonic() < end and not errors:
        table.refresh()
    stop.set()
    for worker in workers:
        worker.join()
    assert errors == []


def test_a_tree_killed_while_it_is_read_ends_quietly(table: ProcessTable, script: StartScript, until: Until) -> None:
    root = script("subreaper()\nfor _ in range(30): child(lambda: (spin(0.002), hear()))\nsay('up')\nsignal.pause()")
    root.hear()
    tree = table.track(root.pid)
    assert len(pids(table, tree)) == 31
    os.killpg(root.pid, signal.SIGKILL)

    def ended() -> bool:
        table.refresh()
        tree.usage()
        tree.extended()
        tree.pss()
        return tree.root_state() == "Z"

    until(ended)
