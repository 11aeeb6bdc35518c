"""Options as data: one table per command feeds the parser, its help, and the completion scripts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

from cameleer.errors import ConfigError

USAGE = 2
"""Exit status of a wrong command line."""


class UsageError(Exception):
    """The command line is wrong; told on stderr with exit status 2."""


class Option(NamedTuple):
    """One option.

    :ivar metavar: name of its value in the help; empty for one without a value.
    :ivar kind: makes the value of its text; raises ConfigError.
    :ivar repeat: may be given more than once.
    :ivar complete: what a shell offers for its value.
    :ivar short: its short form: ``-v``.
    """

    flag: str
    metavar: str
    help: str
    kind: Callable[[str], Any] = str
    repeat: bool = False
    complete: Literal["nothing", "file", "directory", "user", "driver"] = "nothing"
    short: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What it is written as."""
        return (self.short, self.flag) if self.short else (self.flag,)

    @property
    def name(self) -> str:
        """Its attribute in the parsed options."""
        return self.flag.lstrip("-").replace("-", "_")


class Group(NamedTuple):
    """Options under one heading of the help."""

    title: str
    options: tuple[Option, ...]


class Command(NamedTuple):
    """What is known of a command without running it.

    :ivar synopsis: its arguments, as the usage line shows them.
    :ivar takes_command: everything from the first word that is no option belongs to a command of the user's.
    """

    name: str
    help: str
    synopsis: str
    description: str
    epilog: str
    groups: tuple[Group, ...]
    takes_command: bool = False

    @property
    def options(self) -> list[Option]:
        """All of them."""
        return [option for group in self.groups for option in group.options]


NO_PLUGINS = Option(
    "--no-plugins",
    "[=NAME,…]",
    "load no plugin but the built-in ones; with names: all but these",
)
"""Also understood before the command's name. Its value is given with ``=`` only."""

PLUGIN_GROUP = Group("plugins", (NO_PLUGINS,))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parser_of(command: Command) -> argparse.ArgumentParser:
    """Build the parser of a command."""
    parser = _Parser(
        prog=f"cameleer {command.name}",
        usage=f"cameleer {command.name} {command.synopsis}".rstrip(),
        description=command.description,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    for group in command.groups:
        section = parser.add_argument_group(group.title)
        for option in group.options:
            _add(section, option)
        if group is command.groups[-1]:
            section.add_argument("-h", "--help", action="help", help="show this help and exit")
    return parser


def _add(section: argparse._ArgumentGroup, option: Option) -> None:
    text = option.help.replace("%", "%%")
    if option is NO_PLUGINS:
        section.add_argument(option.flag, nargs="?", const="", metavar="NAME,…", help=text)
    elif not option.metavar:
        section.add_argument(option.flag, action="store_true", help=text)
    else:
        section.add_argument(
            *option.words,
            metavar=option.metavar,
            type=_kind(option.kind),
            action="append" if option.repeat else "store",
            help=text,
        )


def _kind(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return kind(text)
        except ConfigError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return convert


def split(command: Command, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part a command's own options from the user's command, which begins at the first word that is no option.

    argparse's ``REMAINDER`` does this differently from one Python to the next, and takes ``--`` for its own.
    """
    valued = [option for option in command.options if option.metavar and option is not NO_PLUGINS]
    takes_value = {word for option in valued for word in option.words}
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            return list(words[:position]), list(words[position + 1 :])
        if not word.startswith("-") or word == "-":
            break
        position += 2 if word in takes_value else 1
    return list(words[:position]), list(words[position:])


def plain(words: Sequence[str]) -> list[str]:
    """Give ``--no-plugins`` its value with ``=``, so that it never takes the next word for one."""
    return [f"{word}=" if word == NO_PLUGINS.flag else word for word in words]


def names(text: str | None) -> bool | list[str]:
    """What ``--no-plugins`` asks for, in the words of the configuration: ``plugins.disabled``."""
    if text is None:
        return []
    found = [name.strip() for name in text.split(",") if name.strip()]
    return found or True
