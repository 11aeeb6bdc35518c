from collections.abc import Iterator

import pytest
from engine import Engine, missing, running


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """One engine for the whole session; a test that harms it starts another."""
    if missing:
        pytest.skip(f"no Docker engine can be started here: {missing}")
    with running() as started:
        yield started
