"""The list of devices beside a task's group."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from confined import executing, needs_groups, needs_root, running, shell

from cameleer.drivers.exec import devices
from cameleer.errors import StartRecoverable

POINT = devices.mount_point()
pytestmark = [
    pytest.mark.root,
    needs_root,
    pytest.mark.skipif(POINT is None, reason="the controller of devices is not mounted"),
]


@pytest.fixture
def parent() -> Iterator[Path]:
    """A group of the test's own; nothing of it is left."""
    folder = Path(str(POINT), f"cameleer-test-{os.getpid()}-{os.urandom(4).hex()}")
    yield folder
    assert not folder.exists()


def test_it_is_made_while_the_end_of_others_takes_the_folders_above_away(parent: Path) -> None:
    """With real groups: those above go whenever the last task below ends."""
    failed: list[Exception] = []
    together = threading.Barrier(4)

    def work(number: int) -> None:
        path = str(parent / "node" / f"task-{number}")
        together.wait()
        try:
            for _ in range(150):
                devices.make(path, ["c 1:3 rwm"])
                assert "c 1:3 rwm" in Path(path, "devices.list").read_text()
                devices.remove(path)
        except Exception as error:
            failed.append(error)
        finally:
            devices.remove(path)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_one_that_is_there_is_in_the_way_for_a_time(parent: Path) -> None:
    path = str(parent / "node" / "task")
    devices.make(path, [])
    try:
        with pytest.raises(StartRecoverable, match="is there"):
            devices.make(path, [])
    finally:
        devices.remove(path)


@needs_groups
async def test_a_task_starts_after_one_whose_list_was_left(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        config = shell("true", driver_config={"chroot": True})
        made = driver.groups.cgroups.make(config.id, config.name)
        path = driver.groups.devices(made)
        assert path is not None
        made.remove()
        devices.make(path, [])
        with pytest.raises(StartRecoverable):
            await driver.start(config)
        async with running(driver, config) as task:
            assert (await task.wait()).exit_code == 0
    assert not os.path.exists(path)
