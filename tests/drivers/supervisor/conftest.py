"""What tests of supervisors share."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import supervised

from cameleer.drivers.raw_exec import RawExec


@pytest.fixture(autouse=True)
def _no_group_is_left(tmp_path: Path) -> Iterator[None]:
    yield
    supervised.remove_groups(tmp_path)


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[RawExec]:
    """A driver whose tasks end with their host."""
    async with supervised.raw_exec(tmp_path) as made:
        yield made


@pytest.fixture
def mark() -> Iterator[str]:
    """A word for the arguments of processes, which are killed at the end."""
    word = f"mark-{os.urandom(6).hex()}"
    yield word
    for each in supervised.marked(word):
        with suppress(ProcessLookupError):
            os.kill(each.pid, 9)
