from __future__ import annotations

import json
import os
from pathlib import Path
from types import MappingProxyType

import pytest

from cameleer.cli.output import Lines, Readings, as_json, open_output
from cameleer.errors import ConfigError
from cameleer.usage import CpuUsage, TaskResourceUsage


def test_lines_arrive_whole_and_in_order(tmp_path: Path) -> None:
    lines = Lines(str(tmp_path / "out"), "--stats-out")
    for number in range(1000):
        lines.write(b"%d" % number)
    lines.close()
    assert (tmp_path / "out").read_text().split() == [str(number) for number in range(1000)]


def test_a_full_disk_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("/dev/full", "--stats-out")
    for _ in range(5):
        lines.write(b"x")
    lines.close()
    assert (
        capsys.readouterr().err
        == "cameleer: --stats-out /dev/full: No space left on device; the task goes on without it\n"
    )


def test_a_closed_pipe_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    lines = Lines(f"fd:{writer}", "--stats-out")
    lines.write(b"first")
    os.close(reader)
    for _ in range(5):
        lines.write(b"x")
    lines.close()
    os.close(writer)
    assert capsys.readouterr().err.count("Broken pipe") == 1


def test_a_reader_that_does_not_read_holds_nothing_up_and_loses_whole_lines(capsys: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    lines = Lines(f"fd:{writer}", "--stats-out")
    for number in range(2000):
        lines.write(b"%d " % number + b"x" * 1500)
    assert lines.dropped > 0
    os.set_blocking(reader, False)
    received = bytearray()
    while chunk := os.read(reader, 1 << 20):
        received += chunk
        lines.write(b"more")
        if b"more\n" in received:
            break
    whole = received.decode().split("\n")[:-1]
    assert [int(line.split(" ")[0]) for line in whole if line != "more"] == list(
        range(len(whole) - whole.count("more"))
    )
    os.close(reader)
    os.close(writer)


def test_a_reading_is_one_object_named_as_the_model_with_the_tasks_id(tmp_path: Path) -> None:
    reading = TaskResourceUsage(
        at_ns=5,
        taken_at_ns=6,
        measured=frozenset({"cpu.total_ns", "cpu.percent"}),
        missing=MappingProxyType({"io": "not permitted"}),
        cpu=CpuUsage(total_ns=7),
    )
    out = Readings(str(tmp_path / "out"))
    out.add("t1", reading)
    out.close()
    found = json.loads((tmp_path / "out").read_text())
    assert found.pop("task_id") == "t1"
    assert set(found) == set(TaskResourceUsage.__struct_fields__)
    assert found["cpu"]["total_ns"] == 7
    assert found["memory"]["pss_bytes"] is None
    assert found["measured"] == ["cpu.percent", "cpu.total_ns"]
    assert found["missing"] == {"io": "not permitted"}


def test_an_output_that_cannot_be_opened_is_an_error_that_names_it(tmp_path: Path) -> None:
    for target in (str(tmp_path / "no" / "file"), "fd:x", "fd:987", str(tmp_path)):
        with pytest.raises(ConfigError, match="--json"):
            open_output(target, "--json")


def test_json_keeps_the_order_in_which_keys_were_written() -> None:
    assert as_json({"b": 1, "a": None}) == b'{"b":1,"a":null}'
