from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.cli.completion import commands
from cameleer.cli.options import Command, UsageError, names, parser_of, plain, split
from cameleer.cli.run import COMMAND as RUN
from cameleer.cli.run import driver_config

FLAGS = [option.flag for option in RUN.options if not option.metavar]
VALUED = [word for option in RUN.options if option.metavar and option.flag != "--no-plugins" for word in option.words]
SHORT = [option.short for option in RUN.options if option.short]
OWN = st.one_of(
    st.sampled_from(FLAGS).map(lambda flag: [flag]),
    st.tuples(st.sampled_from(VALUED), st.text()).map(list),
    st.tuples(st.sampled_from(VALUED), st.text()).map(lambda pair: ["=".join(pair)]),
    st.tuples(st.sampled_from(SHORT), st.text(min_size=1)).map(lambda pair: ["".join(pair)]),
)
COMMAND_WORDS = st.tuples(
    st.text(min_size=1).filter(lambda word: not word.startswith("-")), st.lists(st.text(max_size=5))
).map(lambda pair: [pair[0], *pair[1]])


@given(st.lists(OWN), COMMAND_WORDS)
def test_the_first_word_that_is_no_option_begins_the_command(own: list[list[str]], command: list[str]) -> None:
    words = [word for option in own for word in option]
    assert split(RUN, [*words, *command]) == (words, command)


@given(st.lists(OWN), st.lists(st.text()))
def test_all_that_follows_two_dashes_is_the_command(own: list[list[str]], command: list[str]) -> None:
    words = [word for option in own for word in option]
    assert split(RUN, [*words, "--", *command]) == (words, command)


def test_the_commands_own_options_are_left_to_it() -> None:
    assert split(RUN, ["sh", "-c", "exit", "--", "--help"]) == ([], ["sh", "-c", "exit", "--", "--help"])


def test_no_plugins_never_takes_the_next_word_for_its_value() -> None:
    own, command = split(RUN, ["--no-plugins", "make"])
    assert command == ["make"]
    assert parser_of(RUN).parse_args(plain(own)).no_plugins == ""


def test_what_no_plugins_means() -> None:
    assert names(None) == []
    assert names("") is True
    assert names("a, b,") == ["a", "b"]


def test_short_options_take_their_value_apart_or_attached() -> None:
    for words in (["-p", "80:80", "-v", "/a:/b"], ["-p80:80", "-v/a:/b"], ["-p=80:80", "-v=/a:/b"]):
        own, command = split(RUN, [*words, "make", "-p", "-v"])
        assert command == ["make", "-p", "-v"]
        options = parser_of(RUN).parse_args(plain(own))
        assert (options.publish[0].host_port, options.volume[0].target) == (80, "/b")


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(UsageError, match="--mem"):
        parser_of(RUN).parse_args(["--mem", "1g"])


def test_settings_of_the_driver_are_paths_lists_and_json() -> None:
    assert driver_config(["a=1", "b.c=x=y", "l=1", "l=2", 'm=["x", "y"]', 'n={"k": "v"}', "e="]) == {
        "a": "1",
        "b": {"c": "x=y"},
        "l": ["1", "2"],
        "m": ["x", "y"],
        "n": {"k": "v"},
        "e": "",
    }


@pytest.mark.parametrize("word", ["a", "=1", "a..b=1", "m=[1"])
def test_a_setting_without_key_or_value_is_wrong_usage(word: str) -> None:
    with pytest.raises(UsageError, match="--set"):
        driver_config([word])


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_the_help_of_every_command_has_its_options_and_examples(command: Command) -> None:
    text = parser_of(command).format_help()
    assert "examples:" in text
    assert all(option.flag in text for option in command.options)


def test_the_reference_page_has_every_command_and_every_option() -> None:
    page = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()
    for command in commands():
        assert f"## cameleer {command.name}" in page
        section = page.split(f"## cameleer {command.name}")[1].split("\n## ")[0]
        for option in command.options:
            assert f"`{option.flag}" in section, (command.name, option.flag)
            assert f"`{option.short}`" in section or not option.short
    known = {option.flag for command in commands() for option in command.options} | {"--version", "--help"}
    assert set(re.findall(r"^\| `(--[a-z-]+)", page, re.MULTILINE)) <= known


def test_run_knows_every_option_it_promises() -> None:
    promised = [
        "--driver",
        "--plugin",
        "--interval",
        "--timeout",
        "--memory",
        "--cpu-mhz",
        "--cpus",
        "--pids",
        "--user",
        "--cwd",
        "--image",
        "--volume",
        "--publish",
        "--network",
        "--pull",
        "--keep",
        "--env",
        "--clean-env",
        "--set",
        "--live",
        "--quiet",
        "--stats-out",
        "--json",
        "--config",
    ]
    assert set(promised) <= {option.flag for option in RUN.options}


def test_no_module_of_the_command_line_imports_a_driver() -> None:
    from cameleer.cli import run

    for path in Path(inspect.getfile(run)).parent.glob("*.py"):
        assert "cameleer.drivers" not in path.read_text(), path
