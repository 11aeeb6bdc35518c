"""The examples do what they say, as short as they say, and a stranger can install and type-check them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DRIVER = EXAMPLES / "third_party_driver"
GUIDE = EXAMPLES.parent / "docs" / "write-a-driver.md"
EMBEDDER = EXAMPLES / "embed_asyncio"


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )


def lines_of_code(path: Path) -> int:
    """Lines that are neither blank nor the module's docstring nor an import."""
    text = path.read_text().partition('"""\n')[2]
    return sum(1 for line in text.splitlines() if line.strip() and not re.match(r"(import|from) ", line))


def test_the_third_party_driver_passes_the_suite() -> None:
    path = os.pathsep.join([str(DRIVER), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=DRIVER, PYTHONPATH=path)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = re.findall(r"^pyfunc \(.*TestPyFunc\): .* not offered: .*$", done.stdout, re.M)
    assert line in GUIDE.read_text().splitlines()


def test_the_third_party_driver_has_at_most_40_lines() -> None:
    assert lines_of_code(DRIVER / "cameleer_pyfunc.py") <= 40


def test_the_embedder_has_at_most_25_lines() -> None:
    assert len([line for line in (EMBEDDER / "embed.py").read_text().splitlines() if line.strip()]) <= 25


def test_the_embedder_runs_twenty_tasks_of_two_drivers_at_once_and_prints_their_peaks() -> None:
    done = run("embed.py", cwd=EMBEDDER)
    assert done.returncode == 0, done.stderr  # what is logged on a loaded machine is no failure
    found = re.findall(r"^(mock|raw_exec) +success +CPU +(\d+) % +memory +(\d+) MiB$", done.stdout, re.M)
    assert [driver for driver, _, _ in found].count("mock") == 10
    assert [driver for driver, _, _ in found].count("raw_exec") == 10
    assert all(int(memory) > 0 for _, _, memory in found)
    assert sum(int(cpu) > 0 for _, cpu, _ in found) >= 19


def test_the_examples_import_only_what_is_public() -> None:
    public = re.compile(r"cameleer(\.drivers\.(procfs|cgroup|supervisor)(\.\w+)?|\.testing)?$")
    for path in sorted(EXAMPLES.rglob("*.py")):
        for module in re.findall(r"^(?:from|import) (cameleer[.\w]*)", path.read_text(), re.M):
            assert public.match(module) or module.startswith("cameleer_pyfunc"), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", [DRIVER / "cameleer_pyfunc.py", EMBEDDER / "embed.py"], ids=lambda path: path.name)
def test_mypy_accepts_the_examples(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    options = ["--strict", "--config-file=", f"--cache-dir={tmp_path}"]
    done = run("-m", "mypy", *options, path, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
