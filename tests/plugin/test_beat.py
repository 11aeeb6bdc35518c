from __future__ import annotations

import asyncio
from contextlib import aclosing
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_clock import VirtualLoop, on_a_virtual_clock

from cameleer import ticks
from cameleer.beat import SLICE_SIZE, next_due, phase_of_slice


def now() -> float:
    return asyncio.get_running_loop().time()


async def moments(interval_s: float, count: int, work_s: float = 0.0) -> list[float]:
    """When each of some ticks came, seconds after the first."""
    found: list[float] = []
    async with aclosing(ticks(interval_s)) as stream:
        async for _ in stream:
            found.append(now())
            if len(found) == count:
                break
            await asyncio.sleep(work_s)
    return [moment - found[0] for moment in found]


@on_a_virtual_clock
async def test_the_first_tick_comes_at_once_and_is_fresh() -> None:
    begun = now()
    async with aclosing(ticks(5)) as stream:
        first = await anext(stream)
        assert now() == begun
        second = await anext(stream)
    assert (first.fresh, first.extended) == (True, True)
    assert (second.fresh, second.extended) == (False, True)


@on_a_virtual_clock
async def test_work_between_ticks_makes_no_drift() -> None:
    found = await moments(interval_s=1.0, count=100, work_s=0.3)
    gaps = [later - earlier for earlier, later in pairwise(found[1:])]
    assert gaps == pytest.approx([1.0] * len(gaps))


@on_a_virtual_clock
async def test_intervals_that_pass_during_work_are_skipped() -> None:
    found = await moments(interval_s=1.0, count=5, work_s=2.5)
    assert found[2] - found[1] == pytest.approx(3.0)
    assert found[4] - found[1] == pytest.approx(9.0)


@on_a_virtual_clock
async def test_streams_of_one_interval_wake_together() -> None:
    async def joined_late(delay_s: float) -> float:
        await asyncio.sleep(delay_s)
        async with aclosing(ticks(1.0)) as stream:
            await anext(stream)
            await anext(stream)
            return now()

    woken = await asyncio.gather(*(joined_late(position / 1000) for position in range(SLICE_SIZE)))
    assert len(set(woken)) == 1


@on_a_virtual_clock
async def test_more_streams_than_a_slice_holds_are_spread() -> None:
    async def second_tick() -> float:
        async with aclosing(ticks(1.0)) as stream:
            await anext(stream)
            await anext(stream)
            return now()

    woken = await asyncio.gather(*(second_tick() for _ in range(3 * SLICE_SIZE)))
    counts = [woken.count(moment) for moment in sorted(set(woken))]
    assert counts == [SLICE_SIZE] * 3


@on_a_virtual_clock
async def test_a_stream_that_is_closed_leaves_no_timer() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    stream = ticks(3600)
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))  # type: ignore[var-annotated,arg-type]
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await stream.aclose()
    begun = now()
    await asyncio.sleep(7200)
    assert now() == begun + 7200
    assert all(handle.cancelled() for handle in loop._scheduled)  # type: ignore[attr-defined]


@on_a_virtual_clock
async def test_one_stream_that_leaves_does_not_hold_up_the_others() -> None:
    async with aclosing(ticks(1.0)) as stays:
        leaves = ticks(1.0)
        await anext(stays)
        await anext(leaves)
        await leaves.aclose()
        begun = now()
        await anext(stays)
        assert now() - begun <= 1.0


@pytest.mark.parametrize("interval_s", [0, -1, float("nan")])
async def test_an_interval_must_be_above_zero(interval_s: float) -> None:
    with pytest.raises(ValueError, match="interval_s is"):
        await anext(ticks(interval_s))


@given(count=st.integers(1, 400))
def test_slices_are_spread_over_the_interval(count: int) -> None:
    phases = sorted(phase_of_slice(index) for index in range(count))
    assert phases[0] == 0.0
    assert phases[-1] < 1.0
    gaps = [later - earlier for earlier, later in zip(phases, [*phases[1:], 1.0], strict=True)]
    assert min(gaps) > 0
    assert max(gaps) <= 2 * min(gaps)


@given(
    moment=st.floats(0, 1e7),
    interval_s=st.floats(0.01, 86400),
    index=st.integers(0, 40),
)
def test_the_next_moment_lies_ahead_on_the_grid(moment: float, interval_s: float, index: int) -> None:
    phase = phase_of_slice(index)
    due = next_due(moment, interval_s, phase)
    assert moment < due <= moment + interval_s * (1 + 1e-5)
    steps = due / interval_s - phase
    assert abs(steps - round(steps)) * interval_s < 1e-6
