from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer import Exit, ExitResult, FinalStatus, TaskFailed
from cameleer.status import Cause, describe_end, final_status, signal_name

KILL = 9
causes = st.none() | st.sampled_from(Cause)
codes = st.none() | st.integers(0, 255)
signals = st.none() | st.integers(1, 64)
oom = st.none() | st.booleans()


def result(status: FinalStatus, error: str | None = None) -> ExitResult:
    return ExitResult(task_id="t", driver="fake", status=status, exit_code=1, error=error)


@given(code=codes, signal=signals, oom_killed=oom)
def test_row_1_a_timeout_is_a_timeout_however_it_ended(
    code: int | None, signal: int | None, oom_killed: bool | None
) -> None:
    assert final_status(code, signal, oom_killed, Cause.TIMEOUT) is FinalStatus.TIMEOUT


@given(code=codes, signal=signals, oom_killed=oom, cause=st.sampled_from([Cause.CANCELLED, Cause.CLOSING]))
def test_row_2_the_owners_cancellation_and_the_hosts_closing(
    code: int | None, signal: int | None, oom_killed: bool | None, cause: Cause
) -> None:
    assert final_status(code, signal, oom_killed, cause) is FinalStatus.CANCELLED


@given(code=codes, signal=signals, oom_killed=oom, cause=st.sampled_from([Cause.STOP, Cause.DESTROY]))
def test_row_3_stopped_or_destroyed_by_us_is_killed(
    code: int | None, signal: int | None, oom_killed: bool | None, cause: Cause
) -> None:
    assert final_status(code, signal, oom_killed, cause) is FinalStatus.KILLED


@given(oom_killed=oom)
def test_row_4_exit_code_0_is_success_also_where_a_child_ran_out_of_memory(oom_killed: bool | None) -> None:
    assert final_status(0, None, oom_killed) is FinalStatus.SUCCESS


@pytest.mark.parametrize(
    ("code", "signal", "oom_killed"),
    [
        (1, None, True),
        (None, None, True),
        (137, KILL, False),
        (None, KILL, None),
        (137, None, None),
        (137, None, False),
    ],
)
def test_row_5_signs_of_a_kill(code: int | None, signal: int | None, oom_killed: bool | None) -> None:
    assert final_status(code, signal, oom_killed) is FinalStatus.KILLED


@pytest.mark.parametrize(
    ("code", "signal"), [(1, None), (255, None), (143, 15), (139, 11), (130, None), (None, None), (0, 15)]
)
def test_row_6_anything_else_is_an_error(code: int | None, signal: int | None) -> None:
    assert final_status(code, signal, None) is FinalStatus.ERROR
    assert final_status(code, signal, False) is FinalStatus.ERROR


@given(code=codes, signal=signals, oom_killed=oom, cause=causes)
def test_success_means_exit_code_0_and_nothing_done_by_us(
    code: int | None, signal: int | None, oom_killed: bool | None, cause: Cause | None
) -> None:
    succeeded = final_status(code, signal, oom_killed, cause) is FinalStatus.SUCCESS
    assert succeeded == (code == 0 and signal is None and cause is None)


@given(code=codes, signal=signals, oom_killed=oom, cause=causes)
def test_there_is_an_error_text_exactly_where_there_is_no_success(
    code: int | None, signal: int | None, oom_killed: bool | None, cause: Cause | None
) -> None:
    status = final_status(code, signal, oom_killed, cause)
    text = describe_end(Exit(exit_code=code, signal=signal, oom_killed=oom_killed), status, cause)
    assert (text is None) == (status is FinalStatus.SUCCESS)
    assert text != ""


@pytest.mark.parametrize(
    ("end", "cause", "words"),
    [
        (Exit(exit_code=3), None, "exit code 3"),
        (Exit(exit_code=143, signal=15), None, "SIGTERM"),
        (Exit(exit_code=99 + 128, signal=99), None, "signal 99"),
        (Exit(exit_code=137, signal=9, oom_killed=True), None, "out of memory"),
        (Exit(), None, "nobody knows"),
        (Exit(error="no such image"), None, "no such image"),
        (Exit(exit_code=137, signal=9), Cause.TIMEOUT, "timeout"),
        (Exit(exit_code=137, signal=9), Cause.CLOSING, "host closed"),
        (Exit(exit_code=137, signal=9), Cause.CANCELLED, "cancelled by its owner"),
        (Exit(exit_code=137, signal=9), Cause.STOP, "stopped"),
        (Exit(exit_code=137, signal=9), Cause.DESTROY, "destroyed"),
    ],
)
def test_the_error_says_what_happened(end: Exit, cause: Cause | None, words: str) -> None:
    status = final_status(end.exit_code, end.signal, end.oom_killed, cause)
    assert words in (describe_end(end, status, cause) or "")


def test_a_signal_has_its_exit_code_and_a_code_has_no_signal() -> None:
    assert Exit(signal=15).exit_code == 143
    assert Exit(exit_code=143).signal is None
    assert Exit(exit_code=3, signal=0) == Exit(exit_code=3)


def test_a_signal_is_named_as_the_system_does() -> None:
    assert signal_name(15) == "SIGTERM"
    assert signal_name(1000) == "signal 1000"


def test_check_returns_a_success() -> None:
    succeeded = result(FinalStatus.SUCCESS)
    assert succeeded.check() is succeeded


@pytest.mark.parametrize("status", [status for status in FinalStatus if status is not FinalStatus.SUCCESS])
def test_check_raises_for_every_other_status(status: FinalStatus) -> None:
    failed = result(status, "it broke")
    with pytest.raises(TaskFailed, match="it broke") as caught:
        failed.check()
    assert caught.value.result is failed


def test_a_failure_survives_the_way_to_another_process() -> None:
    failed = result(FinalStatus.ERROR, "it broke")
    copied = pickle.loads(pickle.dumps(TaskFailed(failed)))
    assert copied.result == failed
    assert str(copied) == "it broke"
