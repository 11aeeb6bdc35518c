from __future__ import annotations

import dataclasses

from cameleer.cli import summary
from cameleer.config import Resources
from cameleer.status import ExitResult, FinalStatus
from cameleer.usage import ProcessRow, RunUsage

FULL = RunUsage(
    wall_ns=3_020_000_000,
    cpu_total_ns=3_000_000_000,
    cpu_user_ns=2_900_000_000,
    cpu_system_ns=100_000_000,
    cpu_percent_average=99.3,
    cpu_percent_peak=101.0,
    memory_peak_bytes=64 << 20,
    memory_measure="pss",
    minor_faults=3120,
    major_faults=1,
    voluntary_switches=12,
    involuntary_switches=340,
    io_read_bytes=0,
    io_write_bytes=4096,
    processes_seen=3,
    readings=15,
)


def result(usage: RunUsage = FULL, **other: object) -> ExitResult:
    base = ExitResult(task_id="t1", driver="raw_exec", status=FinalStatus.SUCCESS, exit_code=0, usage=usage)
    return dataclasses.replace(base, **other)  # type: ignore[arg-type]


def text(what: ExitResult, limits: Resources | None = None) -> str:
    return "\n".join(summary.lines(what, ["make", "-j4"], limits or Resources()))


def test_the_summary_of_an_ordinary_run() -> None:
    assert (
        text(result())
        == """\
cameleer: make -j4 exited with 0, 3.02 s elapsed (raw_exec)
  cpu      3.00 s (user 2.90 s, system 0.10 s), average 99.3 %, peak 101.0 %; no quota
  memory   peak 64.0 MiB (PSS); no limit
  faults   1 major, 3,120 minor, pages of 4.0 KiB; switches 12 voluntary, 340 involuntary
  io       read 0 B, written 4.0 KiB; 3 processes seen in 15 readings"""
    )


def test_unknown_is_called_not_measured_and_never_zero() -> None:
    said = text(result(RunUsage()))
    assert said.count("not measured") == 8
    assert " 0 B" not in said
    assert "0 ms" not in said


def test_every_limit_is_shown_with_its_share() -> None:
    usage = dataclasses.replace(
        FULL, cpu_limit_percent=49.7, memory_limit_percent=25.0, throttled_ns=1_200_000_000, throttled_percent=3.2
    )
    said = text(result(usage), Resources(cpu_quota_cores=2, memory_bytes=256 << 20))
    assert "49.7 % of 2 cores, held back 1.20 s (3.2 % of periods)" in said
    assert "peak 64.0 MiB (PSS), 25.0 % of the limit 256.0 MiB" in said


def test_it_has_at_most_six_lines_and_names_what_was_left_running() -> None:
    rows = tuple(ProcessRow(pid=4700 + n, name="sleep") for n in range(9))
    lines = summary.lines(result(left_running=rows), ["x"], Resources())
    assert len(lines) == 6
    assert "4700 (sleep), 4701 (sleep)" in lines[-1]
    assert lines[-1].endswith("and 3 more")


def test_it_says_how_the_command_ended() -> None:
    ended = {
        "was killed by SIGSEGV": result(status=FinalStatus.ERROR, signal=11, exit_code=139),
        "was killed by SIGKILL, out of memory": result(
            status=FinalStatus.KILLED, signal=9, exit_code=137, oom_killed=True
        ),
        "ran into its timeout": result(status=FinalStatus.TIMEOUT, signal=15, exit_code=143),
        "exited with 3": result(status=FinalStatus.ERROR, exit_code=3),
        "ended, nobody knows how": result(status=FinalStatus.ERROR, exit_code=None),
    }
    for said, what in ended.items():
        assert f"make -j4 {said}" in text(what)


def test_a_command_cannot_write_escape_sequences_into_the_summary() -> None:
    assert "\x1b" not in "\n".join(summary.lines(result(), ["evil\x1b[2J"], Resources()))


def test_the_record_has_the_promised_keys_and_the_rest_of_the_usage() -> None:
    record = summary.record(result())
    promised = [
        "task_id",
        "driver",
        "status",
        "exit_code",
        "signal",
        "oom_killed",
        "wall_seconds",
        "cpu_seconds",
        "cpu_user_seconds",
        "cpu_system_seconds",
        "cpu_percent_average",
        "cpu_percent_peak",
        "memory_peak_bytes",
        "memory_measure",
        "readings",
        "readings_dropped",
        "processes_seen",
    ]
    assert list(record)[: len(promised)] == promised
    renamed = {"wall_ns", "cpu_total_ns", "cpu_user_ns", "cpu_system_ns"}
    assert {field.name for field in dataclasses.fields(RunUsage)} - renamed <= record.keys()
    assert record["wall_seconds"] == 3.02
    assert record["status"] == "success"
