from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from cameleer.drivers.cgroup import kernel
from cameleer.drivers.cgroup.group import Cgroups
from cameleer.drivers.cgroup.mode import detect


@pytest.fixture
def cgroups() -> Iterator[Cgroups]:
    """Groups below a parent of the test's own, of the version that this machine has; nothing of them is left."""
    parent = f"cameleer-test-{os.getpid()}-{os.urandom(4).hex()}"
    mode = detect(parent)
    if not mode.usable:
        pytest.skip(f"no control groups: {mode.reason}")
    yield Cgroups(mode, node="node")
    for folder in mode.parents().values():
        for node in {os.path.basename(each) for each in kernel.children(folder)}:
            for group in Cgroups(mode, node=node).all():
                group.remove()
    for folder in mode.parents().values():
        for node in kernel.children(folder):
            kernel.remove(node)
        assert kernel.remove(folder), f"{folder} is in use"
