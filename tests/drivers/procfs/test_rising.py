from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.procfs.tree import Rising

readings = st.lists(st.tuples(st.integers(0, 10_000), st.booleans()))


@given(readings)
def test_a_rising_sum_never_falls(readings: list[tuple[int, bool]]) -> None:
    rising, before = Rising(), 0
    for total, settled in readings:
        value = rising.update(total, settled)
        assert value >= before
        assert value >= total
        before = value


@given(readings, st.integers(0, 10_000), st.integers(0, 1_000))
def test_new_work_shows_at_once_after_a_settled_reading(
    readings: list[tuple[int, bool]], total: int, work: int
) -> None:
    rising = Rising()
    for earlier, settled in readings:
        rising.update(earlier, settled)
    value = rising.update(total, True)
    assert rising.update(total + work, True) == value + work


@given(st.lists(st.integers(0, 1_000)))
def test_a_sum_that_never_falls_is_shown_as_it_is(steps: list[int]) -> None:
    rising, total = Rising(), 0
    for step in steps:
        total += step
        assert rising.update(total, True) == total


def test_an_unsettled_fall_is_held_and_then_forgotten() -> None:
    rising = Rising()
    assert rising.update(100, True) == 100
    assert rising.update(40, False) == 100
    assert rising.update(105, True) == 105


def test_a_settled_fall_is_kept_as_lost() -> None:
    rising = Rising()
    rising.update(100, True)
    assert rising.update(40, True) == 100
    assert rising.update(41, True) == 101
