"""Every code block of the documentation: taken from a file that is tested, or run here."""

from __future__ import annotations

import ast
import asyncio
import os
import re
import subprocess
import sys
import tomllib
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cameleer import Driver, FinalStatus, Host, TaskConfig
from cameleer.usage import RunUsage, TaskResourceUsage

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "examples" / "third_party_driver"
OURS = ("write-a-driver.md", "embed.md", "hooks.md", "figures.md")

_BLOCK = re.compile(r"^(?:<!-- from: (?P<origin>\S+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    origin: str | None

    @property
    def is_program(self) -> bool:
        """Whether it runs by itself; else it is a fragment, inside ``async with Host() as host``."""
        return "asyncio.run(" in self.text


def blocks(page: str) -> Iterator[Block]:
    text = (DOCS / page).read_text()
    for match in _BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("text"))
        yield Block(page, line, match["language"], match["text"], match["origin"])


ALL = [block for page in OURS for block in blocks(page)]


def ids(found: list[Block]) -> list[str]:
    return [f"{block.page}:{block.line}" for block in found]


COPIES = [block for block in ALL if block.origin is not None]
PROGRAMS = [block for block in ALL if block.language == "python" and block.origin is None and block.is_program]
PAGES_WITH_FRAGMENTS = ("embed.md", "write-a-driver.md")


@pytest.mark.parametrize("block", COPIES, ids=ids(COPIES))
def test_a_block_that_names_a_file_is_in_it_letter_by_letter(block: Block) -> None:
    assert block.origin is not None
    assert block.text in (ROOT / block.origin).read_text()


@pytest.mark.parametrize("block", PROGRAMS, ids=ids(PROGRAMS))
def test_a_program_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(block.text)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(EXAMPLE), *filter(None, sys.path)])}
    done = subprocess.run([sys.executable, script], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr  # what is logged on a loaded machine is no failure
    assert done.stdout.strip()


@pytest.mark.parametrize("page", PAGES_WITH_FRAGMENTS)
async def test_fragments_run_one_after_the_other_inside_an_open_host(page: str) -> None:
    fragments = [
        block for block in blocks(page) if block.language == "python" and block.origin is None and not block.is_program
    ]
    before = sys.getswitchinterval()
    try:
        async with Host() as host:
            names: dict[str, Any] = {"host": host, "TaskConfig": TaskConfig, "__name__": "fragments"}
            for block in fragments:
                code = compile(
                    "\n" * block.line + block.text, str(DOCS / page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
                )
                running = types.FunctionType(code, names)()
                if asyncio.iscoroutine(running):
                    async with asyncio.timeout(30):
                        await running
    finally:
        sys.setswitchinterval(before)
    if page == "write-a-driver.md":
        await _works(names["Timer"])


async def _works(driver: type[Driver]) -> None:
    """The page's driver in asyncio form starts, measures and stops."""
    async with Host(plugins=[driver]) as host:
        task = await host.start(TaskConfig(), driver=driver.name)
        assert (await task.sample(0.05)).cpu.total_ns == 0
        await task.stop()
        assert (await task.wait()).status is FinalStatus.KILLED


@pytest.mark.parametrize(
    "block", [b for b in ALL if b.language == "toml"], ids=ids([b for b in ALL if b.language == "toml"])
)
def test_a_configuration_is_read(block: Block) -> None:
    found = tomllib.loads(block.text)
    if "telemetry" in found:
        Host(found)


def test_every_page_is_free_of_untested_blocks() -> None:
    untested = [
        f"{block.page}:{block.line}"
        for block in ALL
        if block.language not in ("python", "toml") and block.language not in ("sh", "text")
    ]
    assert untested == []


def _documented(heading: str) -> set[str]:
    """Names in the first column of the tables under a heading of the page of figures."""
    section = (DOCS / "figures.md").read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return {
        name
        for line in section.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`([^`]+)`", line.split("|")[1])
    }


def _fields(kind: type) -> Mapping[str, object]:
    found: dict[str, object] = {}
    for name in kind.__struct_fields__:  # type: ignore[attr-defined]
        default = getattr(TaskResourceUsage(at_ns=0, taken_at_ns=0), name, None)
        if isinstance(default, msgspec.Struct):
            found |= {f"{name}.{field}": None for field in default.__struct_fields__}
        else:
            found[name] = None
    return found


def test_the_page_of_figures_has_a_row_for_each_field_of_a_reading() -> None:
    assert _documented("A reading") == set(_fields(TaskResourceUsage))


def test_the_page_of_figures_has_a_row_for_each_field_of_a_runs_summary() -> None:
    assert _documented("The summary of a run") == set(RunUsage.__dataclass_fields__)


def test_links_between_pages_lead_somewhere() -> None:
    for page in OURS:
        for target in re.findall(r"\]\(([^)#]+)", (DOCS / page).read_text()):
            if not target.startswith("http"):
                assert (DOCS / target).exists(), f"{page} links to {target}"
