"""The parsers, on recordings, on texts that hypothesis makes up, and on texts that are cut short or garbled."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.cgroup import parse
from cameleer.drivers.cgroup.fields import keys
from cameleer.errors import RecoverableError

RECORDINGS = Path(__file__).parents[2] / "data" / "cgroup"
NAMES = st.text("abcdefghij_", min_size=1, max_size=12).map(str.encode)
NUMBERS = st.integers(0, 2**64 - 1)
TEXTS = st.dictionaries(NAMES, NUMBERS, min_size=2, max_size=60)
V1_STAT = (RECORDINGS / "v1-6.18/busy/memory.stat").read_bytes()
V2_STAT = (RECORDINGS / "v2-6.1/busy/memory.stat").read_bytes()


def text(values: dict[bytes, int]) -> bytes:
    return b"".join(b"%s %d\n" % each for each in values.items())


class TestLayout:
    @given(TEXTS, st.data())
    def test_it_finds_what_a_dict_of_all_lines_would(self, values: dict[bytes, int], data: st.DataObject) -> None:
        names = list(values)
        wanted = tuple(data.draw(st.lists(st.sampled_from(names), min_size=2, unique=True)))
        layout = parse.learn(wanted, frozenset(), text(values), "f")
        assert layout.values(text(values)) == [values[key] for key in wanted]
        other = {key: data.draw(NUMBERS) for key in names}
        assert layout.values(text(other)) == [other[key] for key in wanted]
        assert len(text(other)) < layout.size

    @given(TEXTS, NAMES, NUMBERS, st.data())
    def test_a_line_more_is_noticed_wherever_it_is(
        self, values: dict[bytes, int], name: bytes, number: int, data: st.DataObject
    ) -> None:
        wanted = tuple(values)[:2]
        layout = parse.learn(wanted, frozenset(), text(values), "f")
        lines = [(key, value) for key, value in values.items() if key != name]
        lines.insert(data.draw(st.integers(0, len(lines))), (name, number))
        changed = dict(lines)
        found = layout.values(text(changed))
        assert found is None or found == [changed[key] for key in wanted]
        if set(wanted) <= changed.keys():
            assert parse.read_keys(layout, wanted, frozenset(), text(changed), "f")[1] == [changed[k] for k in wanted]

    def test_a_key_that_a_kernel_does_not_write_is_absent(self) -> None:
        wanted = (b"b", b"x", b"a")
        layout = parse.learn(wanted, frozenset({b"x"}), b"a 1\nb 2\n", "f")
        assert layout.values(b"a 1\nb 2\n") == [2, parse.ABSENT, 1]

    def test_a_key_that_is_needed_and_not_there_is_an_error_that_names_the_file(self) -> None:
        with pytest.raises(RecoverableError, match="the/file"):
            parse.learn((b"a", b"x"), frozenset(), b"a 1\nb 2\n", "the/file")

    def test_a_key_that_was_there_and_is_gone_is_an_error(self) -> None:
        wanted, optional = (b"a", b"x"), frozenset({b"x"})
        layout = parse.learn(wanted, optional, b"a 1\nb 2\nx 3\n", "f")
        with pytest.raises(RecoverableError):
            parse.read_keys(layout, wanted, optional, b"a 1\nb 2\n", "f")

    @pytest.mark.parametrize(("version", "whole"), [(1, V1_STAT), (2, V2_STAT)])
    def test_a_text_cut_short_anywhere_is_never_taken_for_whole(self, version: int, whole: bytes) -> None:
        wanted = keys(1 if version == 1 else 2, "memory.stat")
        layout = parse.learn(wanted, frozenset(), whole, "f")
        expected = layout.values(whole)
        for length in range(len(whole)):
            try:
                _, found = parse.read_keys(layout, wanted, frozenset(), whole[:length], "f")
            except RecoverableError:
                continue
            assert found == expected, f"cut to {length} bytes"

    @given(st.integers(0, len(V1_STAT) - 1), st.binary(min_size=1, max_size=4))
    def test_a_garbled_text_gives_its_own_numbers_or_an_error(self, at: int, noise: bytes) -> None:
        wanted = keys(1, "memory.stat")
        layout = parse.learn(wanted, frozenset(), V1_STAT, "f")
        garbled = V1_STAT[:at] + noise + V1_STAT[at + len(noise) :]
        try:
            _, found = parse.read_keys(layout, wanted, frozenset(), garbled, "f")
        except RecoverableError:
            return
        words = garbled.split()
        assert found == [int(words[words.index(key) + 1]) for key in wanted]

    def test_groups_with_the_same_lines_share_one_layout(self) -> None:
        wanted = keys(1, "memory.stat")
        assert parse.learn(wanted, frozenset(), V1_STAT, "f") is parse.learn(wanted, frozenset(), V1_STAT, "g")


class TestNumbers:
    @given(NUMBERS)
    def test_a_number_is_itself(self, value: int) -> None:
        assert parse.number(b"%d\n" % value, "f") == value

    @pytest.mark.parametrize("data", [b"", b"\n", b"12", b"-1\n", b"1_0\n", b"max\n", b"1 2\n", b"+1\n"])
    def test_what_is_none_is_an_error_that_names_the_file(self, data: bytes) -> None:
        with pytest.raises(RecoverableError, match="the/file"):
            parse.number(data, "the/file")

    @pytest.mark.parametrize("data", [b"max\n", b"9223372036854771712\n", b"9223372036854710272\n"])
    def test_no_limit_is_none_on_both_versions_and_page_sizes(self, data: bytes) -> None:
        assert parse.limit(data, "f") is None

    def test_a_limit_is_a_number(self) -> None:
        assert parse.limit(b"67108864\n", "f") == 67108864

    @pytest.mark.parametrize(("data", "expected"), [(b"-1\n", False), (b"20000\n", True)])
    def test_a_quota_is_what_is_not_minus_one(self, data: bytes, expected: bool) -> None:
        assert parse.has_quota(data, "f") is expected


class TestOomKills:
    def test_they_are_counted_in_either_file(self) -> None:
        assert parse.oom_kills(b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", "f") == 2
        assert parse.oom_kills(b"low 0\nhigh 0\nmax 411\noom 3\noom_kill 2\noom_group_kill 1\n", "f") == 2

    def test_a_kernel_that_does_not_count_them_says_so(self) -> None:
        assert parse.oom_kills(b"oom_kill_disable 0\nunder_oom 0\n", "f") is None


DEVICES = st.lists(
    st.tuples(st.integers(0, 255), st.tuples(*[st.integers(0, 2**63)] * 4)), unique_by=lambda each: each[0], max_size=8
)


class TestIo:
    @given(DEVICES)
    def test_all_devices_of_version_2_are_added_up(self, devices: list[tuple[int, tuple[int, ...]]]) -> None:
        data = b"".join(
            b"8:%d rbytes=%d wbytes=%d rios=%d wios=%d dbytes=7 dios=7\n" % (n, *values) for n, values in devices
        )
        assert parse.io_stat(data, "f") == tuple(sum(each[1][i] for each in devices) for i in range(4))

    @given(DEVICES)
    def test_all_devices_of_version_1_are_added_up(self, devices: list[tuple[int, tuple[int, ...]]]) -> None:
        data = b"".join(
            b"8:%d Read %d\n8:%d Write %d\n8:%d Sync 9\n8:%d Total 9\n" % (n, v[0], n, v[1], n, n) for n, v in devices
        )
        expected = tuple(sum(each[1][i] for each in devices) for i in range(2)) if devices else None
        assert parse.blkio(data + b"Total 9\n", "f") == expected

    def test_a_device_without_counts_and_foreign_keys_are_passed_over(self) -> None:
        data = b"253:0\n8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0 cost.usage=99\n"
        assert parse.io_stat(data, "f") == (1, 2, 3, 4)

    @pytest.mark.parametrize("data", [b"8:0 rbytes=1", b"8:0 rbytes=x\n", b"8:0 rbytes=\n"])
    def test_a_garbled_text_of_version_2_is_an_error(self, data: bytes) -> None:
        with pytest.raises(RecoverableError):
            parse.io_stat(data, "f")

    @pytest.mark.parametrize("data", [b"", b"8:0 Read 1", b"8:0 Read x\n", b"Read\n", b"8:0 5\n"])
    def test_a_garbled_text_of_version_1_is_an_error(self, data: bytes) -> None:
        with pytest.raises(RecoverableError):
            parse.blkio(data, "f")


class TestPressure:
    @given(st.integers(0, 2**60), st.integers(0, 2**60))
    def test_totals_are_nanoseconds(self, some: int, full: int) -> None:
        line = b"%s avg10=0.12 avg60=3.00 avg300=99.99 total=%d\n"
        assert parse.pressure(line % (b"some", some) + line % (b"full", full), "f") == (some * 1000, full * 1000)
        assert parse.pressure(line % (b"some", some), "f") == (some * 1000, None)

    @pytest.mark.parametrize("data", [b"", b"\n", b"some avg10=0.12 total=12", b"some total=x\n", b"full total=1\n"])
    def test_a_garbled_text_is_an_error(self, data: bytes) -> None:
        with pytest.raises(RecoverableError):
            parse.pressure(data, "f")


HEAD = b"Inter-|   Receive |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes\n"


class TestNetwork:
    def test_all_devices_but_the_loopback_are_added_up(self) -> None:
        data = HEAD + (
            b"    lo:  100 1 0 0 0 0 0 0  100 1 0 0 0 0 0 0\n"
            b"  eth0: 1000 10 1 2 0 0 0 5 2000 20 3 4 0 0 0 0\n"
            b"eth1:7 7 7 7 0 0 0 0 7 7 7 7 0 0 0 0\n"
        )
        assert parse.network(data, "f") == (1007, 17, 8, 9, 2007, 27, 10, 11)

    def test_a_name_may_hold_a_colon(self) -> None:
        assert parse.network(HEAD + b"a:b: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n", "f") == (1, 2, 3, 4, 5, 6, 7, 8)

    @pytest.mark.parametrize("data", [b"", HEAD[:-1], HEAD + b"eth0: 1 2\n", HEAD + b"eth0 1 2 3 4\n"])
    def test_a_garbled_text_is_an_error(self, data: bytes) -> None:
        with pytest.raises(RecoverableError):
            parse.network(data, "f")


def test_processes_are_lines() -> None:
    assert parse.processes(b"", "f") == 0
    assert parse.processes(b"12\n4711\n", "f") == 2


@pytest.mark.parametrize("data", [b"12", b"12\nx\n"])
def test_a_garbled_list_of_processes_is_an_error(data: bytes) -> None:
    with pytest.raises(RecoverableError):
        parse.processes(data, "f")


@given(st.binary(max_size=200))
@pytest.mark.parametrize(
    "parser",
    [
        parse.number,
        parse.limit,
        parse.has_quota,
        parse.pairs,
        parse.oom_kills,
        parse.processes,
        parse.blkio,
        parse.io_stat,
        parse.pressure,
        parse.network,
    ],
)
def test_no_bytes_bring_a_parser_down(parser: Callable[[bytes, str], object], data: bytes) -> None:
    with suppress(RecoverableError):
        parser(data, "the/file")
