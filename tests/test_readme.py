"""The README's commands and programs do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False)


def commands() -> list[str]:
    return re.findall(r"^pip install .* && .*$", README, re.M)


def test_there_are_two_commands() -> None:
    first, second = commands()
    assert first.startswith("pip install . && cameleer run -- python3 -c ")
    assert second == "pip install '.[test]' && pytest"


def test_the_first_command_runs_a_few_seconds_of_work_and_sums_it_up(tmp_path: Path) -> None:
    done = run("bash", "-c", commands()[0].partition(" && ")[2], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()
    assert 1 <= len(done.stderr.splitlines()) <= 6


def test_the_embedding_program_runs(tmp_path: Path) -> None:
    (source,) = [
        block for block in re.findall(r"^```python\n(.*?)^```$", README, re.S | re.M) if "asyncio.run" in block
    ]
    done = run(sys.executable, "-c", source, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("success ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target
