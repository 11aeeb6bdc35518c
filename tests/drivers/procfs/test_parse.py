from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.procfs.files import ProcFiles
from cameleer.drivers.procfs.member import Member
from cameleer.drivers.procfs.parse import (
    STAT_BYTES,
    Io,
    SmapsRollup,
    Stat,
    display_name,
    parse_io,
    parse_last_pid,
    parse_smaps_rollup,
    parse_stat,
    parse_status,
)
from cameleer.errors import RecoverableError

RECORDINGS = Path(__file__).parents[2] / "data" / "proc"
KERNELS = ["6.1", "6.18"]
KINDS = [
    "plain",
    "name-with-parentheses",
    "name-with-newline",
    "name-not-text",
    "threads",
    "zombie",
    "kernel-thread",
]
NAMES = {
    "name-with-parentheses": "a) R (b c",
    "name-with-newline": "new\\x0aline\\",
    "name-not-text": "\\xff\\xfe café",
    "kernel-thread": "kthreadd",
}
OLD_STATUS = b"""Name:\tcat
State:\tR (running)
Tgid:\t1342
Pid:\t1342
PPid:\t1313
TracerPid:\t0
Uid:\t1000\t1000\t1000\t1000
VmPeak:\t    4560 kB
VmSize:\t    4560 kB
VmHWM:\t     348 kB
VmRSS:\t     348 kB
Threads:\t1
Mems_allowed_list:\t0
voluntary_ctxt_switches:\t3
nonvoluntary_ctxt_switches:\t2
"""


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
class TestRecordedProcesses:
    def test_stat_gives_name_state_and_threads(self, kernel: str, kind: str) -> None:
        stat = parse_stat((RECORDINGS / kernel / kind / "stat").read_bytes()[:STAT_BYTES])
        assert display_name(stat.name) == NAMES.get(kind, "python3.11" if kernel == "6.1" else "python")
        assert stat.state == "Z" if kind == "zombie" else stat.state in "SR"
        assert stat.threads == (3 if kind == "threads" else 1)
        assert (stat.rss_pages > 0) == (kind not in ("zombie", "kernel-thread"))
        assert stat.ppid == 0 if kind == "kernel-thread" else stat.ppid > 1

    def test_status_gives_memory_only_where_there_is_some(self, kernel: str, kind: str) -> None:
        status = parse_status((RECORDINGS / kernel / kind / "status").read_bytes())
        with_memory = kind not in ("zombie", "kernel-thread")
        assert (status.peak_rss_bytes is not None) == with_memory
        assert status.swap_bytes == (0 if with_memory else None)
        assert status.voluntary_switches is not None

    def test_io_is_read(self, kernel: str, kind: str) -> None:
        io = parse_io((RECORDINGS / kernel / kind / "io").read_bytes())
        assert io.read_bytes == 0

    def test_pss_is_not_more_than_the_resident_set(self, kernel: str, kind: str) -> None:
        path = RECORDINGS / kernel / kind / "smaps_rollup"
        if kind in ("zombie", "kernel-thread"):
            assert not path.exists()
            return
        rollup = parse_smaps_rollup(path.read_bytes())
        assert 0 < rollup.pss_bytes <= rollup.rss_bytes
        assert rollup.swap_pss_bytes == 0


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_last_pid_is_read_from_loadavg(kernel: str) -> None:
    assert parse_last_pid((RECORDINGS / kernel / "loadavg").read_bytes()) > 100


def test_an_old_kernel_without_swap_says_nothing_about_swap() -> None:
    status = parse_status(OLD_STATUS)
    assert status.swap_bytes is None
    assert status.peak_rss_bytes == 348 * 1024
    assert (status.voluntary_switches, status.involuntary_switches) == (3, 2)


def test_a_name_cannot_pass_for_another_line_of_status() -> None:
    forged = OLD_STATUS.replace(b"Name:\tcat", b"Name:\t\\nVmSwap:\t7 kB")
    assert parse_status(forged).swap_bytes is None


counts = st.integers(0, 2**40)
names = st.binary(max_size=15).map(lambda name: name.replace(b"\0", b""))
stats = st.builds(
    Stat,
    st.integers(1, 2**22),
    names,
    st.sampled_from("RSDTtZXI"),
    st.integers(0, 2**22),
    *[counts] * 11,
)


def stat_line(stat: Stat) -> bytes:
    fields = [0] * 49
    (fields[6], fields[7], fields[8], fields[9]) = (
        stat.minor_faults,
        stat.child_minor_faults,
        stat.major_faults,
        stat.child_major_faults,
    )
    fields[10:14] = stat.user_ticks, stat.system_ticks, stat.child_user_ticks, stat.child_system_ticks
    fields[0], fields[16], fields[18], fields[20] = stat.ppid, stat.threads, stat.start_ticks, stat.rss_pages
    rest = b" ".join(b"%d" % field for field in fields)
    return b"%d (%s) %s %s\n" % (stat.pid, stat.name, stat.state.encode(), rest)


@given(stats)
def test_stat_is_read_whatever_the_name_is(stat: Stat) -> None:
    line = stat_line(stat)
    assert parse_stat(line[:STAT_BYTES]) == stat
    member = Member(ProcFiles(), stat.pid)
    assert member.load(line[:STAT_BYTES])
    assert member.user == stat.user_ticks + stat.child_user_ticks
    assert member.system == stat.system_ticks + stat.child_system_ticks
    assert (member.own_minor, member.own_major) == (stat.minor_faults, stat.major_faults)
    assert (member.threads, member.rss_pages) == (stat.threads, stat.rss_pages)
    assert member.start == b"%d" % stat.start_ticks


@given(stats, st.data())
def test_a_stat_cut_short_is_never_taken_for_whole(stat: Stat, data: st.DataObject) -> None:
    line = stat_line(stat)
    whole = len(line) - len(line.rsplit(b" ", 28)[0]) + 1  # everything behind rss
    cut = line[: data.draw(st.integers(0, len(line) - whole))]
    with pytest.raises(RecoverableError):
        parse_stat(cut)
    with pytest.raises(RecoverableError):
        Member(ProcFiles(), stat.pid).load(cut)


@given(st.binary(max_size=600))
def test_garbage_raises_recoverable_errors_only(data: bytes) -> None:
    for parse in (parse_stat, parse_status, parse_io, parse_smaps_rollup, parse_last_pid, Member(ProcFiles(), 1).load):
        with suppress(RecoverableError):
            parse(data)


def test_an_error_names_the_file_and_shows_how_it_begins() -> None:
    with pytest.raises(RecoverableError, match=r"/proc/7/stat: b'7 \(x\) S 1'"):
        parse_stat(b"7 (x) S 1", "/proc/7/stat")


@given(counts, counts, counts, counts)
def test_io_is_read_as_written(read_ops: int, write_ops: int, read_bytes: int, write_bytes: int) -> None:
    text = (
        f"rchar: 1\nwchar: 2\nsyscr: {read_ops}\nsyscw: {write_ops}\n"
        f"read_bytes: {read_bytes}\nwrite_bytes: {write_bytes}\ncancelled_write_bytes: -1024\n"
    )
    assert parse_io(text.encode()) == Io(read_bytes, write_bytes, read_ops, write_ops)
    for length in range(len(text) - len("cancelled_write_bytes: -1024\n")):
        with pytest.raises(RecoverableError):
            parse_io(text[:length].encode())


@given(counts, counts, st.none() | counts)
def test_smaps_rollup_is_read_as_written(rss: int, pss: int, swap_pss: int | None) -> None:
    text = f"00400000-7fff000 ---p 00000000 00:00 0 [rollup]\nRss: {rss} kB\nPss: {pss} kB\nPss_Dirty: 1 kB\n"
    if swap_pss is not None:
        text += f"SwapPss: {swap_pss} kB\n"
    expected = SmapsRollup(rss * 1024, pss * 1024, None if swap_pss is None else swap_pss * 1024)
    assert parse_smaps_rollup(text.encode()) == expected


@given(st.none() | counts, st.none() | counts, st.none() | counts)
def test_status_is_read_as_written(peak: int | None, swap: int | None, switches: int | None) -> None:
    text = "Name:\tx\n"
    text += "" if peak is None else f"VmHWM:\t{peak:8} kB\n"
    text += "" if swap is None else f"VmSwap:\t{swap:8} kB\n"
    text += "" if switches is None else f"voluntary_ctxt_switches:\t{switches}\nnonvoluntary_ctxt_switches:\t1\n"
    status = parse_status(text.encode())
    assert status.peak_rss_bytes == (None if peak is None else peak * 1024)
    assert status.swap_bytes == (None if swap is None else swap * 1024)
    assert status.voluntary_switches == switches
    assert status.involuntary_switches == (None if switches is None else 1)


@given(st.integers(0, 2**22))
def test_the_last_pid_is_the_last_word(pid: int) -> None:
    assert parse_last_pid(f"0.00 0.01 0.05 1/87 {pid}\n".encode()) == pid


@given(names)
def test_a_displayed_name_can_be_printed_and_encoded(name: bytes) -> None:
    shown = display_name(name)
    assert shown.isprintable()
    shown.encode()
