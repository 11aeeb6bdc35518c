"""Kill -9 of a host at any moment, while it starts and ends tasks as fast as it can."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from supervised import handle_of, marked, raw_exec, shell, until

from cameleer.errors import TaskNotFound

BUSY_HOST = f"""
import asyncio, sys
sys.path[:0] = {sys.path!r}
import supervised
from pathlib import Path

async def main(folder, mark, recoverable):
    async with supervised.raw_exec(Path(folder), recoverable=recoverable == "True") as driver:
        async def again(number):
            turn = 0
            while True:
                turn += 1
                config = supervised.shell("(sleep 60 &); sleep 60; :", mark, id=f"{{number}} {{turn}}")
                task = await driver.start(config)
                await task.stop(1, 15)
                await task.destroy()
                print(number, turn, flush=True)
        await asyncio.gather(*map(again, range(5)))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("recoverable", [False, True])
async def test_nothing_is_lost_whenever_a_host_is_killed(
    tmp_path: Path, mark: str, monkeypatch: pytest.MonkeyPatch, recoverable: bool
) -> None:
    monkeypatch.setattr("cameleer.state._CLOCK_S", -1.0)
    for turn in range(8):
        folder = tmp_path / str(turn)
        host = await asyncio.create_subprocess_exec(
            sys.executable, "-c", BUSY_HOST, str(folder), mark, str(recoverable), stdout=subprocess.PIPE
        )
        assert host.stdout is not None
        await host.stdout.readline()
        await asyncio.sleep(0.013 * turn)
        host.kill()
        await host.wait()
        if recoverable:
            await _find_all(folder)
        await until(lambda: not marked(mark), "processes are left")
        await until(lambda folder=folder: os.listdir(folder / "tasks") == [], "records are left")
        await _collect(folder)


async def _collect(folder: Path) -> None:
    """What is left of a host that was killed between the making of a group and the start of its supervisor."""
    async with raw_exec(folder) as driver:
        for each in await driver.leftovers(()):
            assert each.description.startswith("group ")
            await driver.remove_leftover(each)
        assert await driver.leftovers(()) == []


async def _find_all(folder: Path) -> None:
    """What a later host does with the handles that it found, pending ones among them."""
    async with raw_exec(folder, recoverable=True) as driver:
        for number in range(5):
            for turn in range(1, 200):
                try:
                    task = await driver.recover(handle_of(shell("", id=f"{number} {turn}")))
                except TaskNotFound:
                    continue
                await task.stop(0, 9)
                await task.destroy()
        assert [each for each in await driver.leftovers(()) if not each.description.startswith("group ")] == []


async def test_a_launcher_holds_nothing_of_what_it_started(tmp_path: Path) -> None:
    async with raw_exec(tmp_path) as driver:
        counts = []
        for _ in range(3):
            for _ in range(20):
                task = await driver.start(shell("exit 0"))
                await task.wait()
                await task.destroy()
            launcher = driver.supervisors.launcher_pid
            counts.append(len(os.listdir(f"/proc/{launcher}/fd")))
        assert len(set(counts)) == 1
        children = Path(f"/proc/{launcher}/task/{launcher}/children")
        if children.exists():
            await until(lambda: children.read_text() == "", "supervisors that ended are not reaped")
