"""The limit of open files: raised once, and the one before is known."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
from cameleer.openfiles import callers_limit, raise_limit

hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
before = min(100, hard), hard
resource.setrlimit(resource.RLIMIT_NOFILE, before)
assert callers_limit(resource.RLIMIT_NOFILE) == before
for _ in range(2):
    raise_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    assert callers_limit(resource.RLIMIT_NOFILE) == before
assert callers_limit(resource.RLIMIT_CORE) == resource.getrlimit(resource.RLIMIT_CORE)
"""


def test_it_is_raised_once_and_the_callers_is_kept() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)


EMBEDDER = """
import asyncio, resource
from cameleer import Host, TaskConfig

async def main():
    async with Host({"plugins": {"hooks": []}}) as host:
        result = await host.run(TaskConfig(command="/bin/true"))
        assert result.exit_code == 0, result

before = [resource.getrlimit(each) for each in range(16)]
asyncio.run(main())
assert [resource.getrlimit(each) for each in range(16)] == before
"""


def test_a_program_that_embeds_a_host_keeps_its_own() -> None:
    subprocess.run([sys.executable, "-c", EMBEDDER], check=True)
