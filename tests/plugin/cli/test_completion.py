from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cameleer.cli.completion import SHELLS, commands, script

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_accepted_by_its_shell(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = tmp_path / "script"
    path.write_text(script(shell))
    checked = subprocess.run([shell, "-n", str(path)], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_knows_every_command_and_option(shell: str) -> None:
    text = script(shell)
    for command in commands():
        assert command.name in text
        for option in command.options:
            assert (f"-l {option.flag[2:]}" if shell == "fish" else option.flag) in text


def complete(line: str, folder: Path) -> list[str]:
    """What bash offers at the end of a line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    asking = f"""
        source {folder}/script
        cameleer() {{ printf 'mock\\nraw_exec\\n'; }}
        COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _cameleer; printf '%s\\n' "${{COMPREPLY[@]}}" """
    (folder / "script").write_text(script("bash"))
    return subprocess.run(["bash", "-c", asking], capture_output=True, text=True, check=True, cwd=folder).stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_values_and_the_users_own_command(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.toml").touch()
    assert complete("cameleer wa", tmp_path) == ["watch"]
    assert complete("cameleer --no-plugins ru", tmp_path) == ["run"]
    assert complete("cameleer run --mem", tmp_path) == ["--memory"]
    assert complete("cameleer run --driver r", tmp_path) == ["raw_exec"]
    assert complete("cameleer run --cwd f", tmp_path) == ["folder"]
    assert sorted(complete("cameleer run --config f", tmp_path)) == ["file.toml", "folder"]
    assert sorted(complete("cameleer run -v f", tmp_path)) == ["file.toml", "folder"]
    assert complete("cameleer run -v ./folder:/x --vol", tmp_path) == ["--volume"]
    assert "sort" in complete("cameleer run -p 80:80 --memory 1g sor", tmp_path)
    assert complete("cameleer run sort --mem", tmp_path) == []
    assert "file.toml" in complete("cameleer run -- cat f", tmp_path)
    assert complete("cameleer completion b", tmp_path) == ["bash"]


def test_the_command_prints_the_script(cameleer: Run) -> None:
    done = cameleer("completion", "fish")
    assert (done.returncode, done.stdout) == (0, script("fish"))


def test_the_scripts_ask_for_the_drivers_that_are_installed(cameleer: Run) -> None:
    assert {"mock", "raw_exec"} <= set(cameleer("completion", "drivers").stdout.split())


def test_an_unknown_shell_is_wrong_usage(cameleer: Run) -> None:
    done = cameleer("completion", "csh")
    assert done.returncode == 2
    assert "csh" in done.stderr
