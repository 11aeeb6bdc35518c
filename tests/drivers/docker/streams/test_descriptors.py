"""What output is opened as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cameleer.config import Stdio
from cameleer.drivers.docker.streams.descriptors import open_target
from cameleer.errors import StartError


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_output_follows_no_link_that_somebody_else_may_have_made(kind: str, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    if kind == "fifo":
        os.mkfifo(target)
    link.symlink_to(target)
    stream = Stdio.file(link) if kind == "file" else Stdio.fifo(link)
    with pytest.raises(StartError, match="stdout: it is (a symbolic link|no FIFO)"):
        open_target("stdout", stream)
    assert target.exists() == (kind == "fifo")
