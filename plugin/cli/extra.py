"""Sub-commands that hook plugins add. The plugins are loaded only for a name that is not built in, and for the help."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cameleer.cli.console import show_log
from cameleer.cli.options import UsageError, names

_LEAST = 4


class Extra(NamedTuple):
    """One such sub-command, as ``cli_commands`` returns it."""

    name: str
    help: str
    configure: Callable[[argparse.ArgumentParser], object]
    run: Callable[[argparse.Namespace], int]


def main(name: str, words: Sequence[str]) -> int:
    """Run the sub-command of a plugin.

    :raises UsageError: nobody offers it.
    """
    disabled, rest = _part(words)
    found = load(disabled)
    if name not in found:
        import difflib

        from cameleer.cli.main import BUILT_IN

        known = [*BUILT_IN, *found]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(known)}"
        raise UsageError(f"there is no command {name!r}: {hint}; a program is run with: cameleer run {name}")
    extra = found[name]
    gc.enable()  # main has disabled it for the imports
    parser = argparse.ArgumentParser(prog=f"cameleer {name}", description=extra.help, allow_abbrev=False)
    extra.configure(parser)
    return extra.run(parser.parse_args(rest)) or 0


def helps(words: Sequence[str]) -> dict[str, str]:
    """Name and help of every sub-command that plugins add; a plugin that fails is told and left out."""
    return {name: extra.help for name, extra in load(_part(words)[0]).items()}


def _part(words: Sequence[str]) -> tuple[bool | list[str], list[str]]:
    """Part ``--no-plugins`` from the sub-command's own words; it comes first."""
    disabled: bool | list[str] = []
    rest = list(words)
    while rest and (rest[0] == "--no-plugins" or rest[0].startswith("--no-plugins=")):
        disabled = names(rest.pop(0).partition("=")[2])
    return disabled, rest


def load(disabled: bool | list[str]) -> dict[str, Extra]:
    """Ask every hook plugin for its sub-commands."""
    import asyncio

    show_log()
    return asyncio.run(_load(disabled))


async def _load(disabled: bool | list[str]) -> dict[str, Extra]:
    from cameleer.cli.console import say
    from cameleer.cli.main import BUILT_IN
    from cameleer.host import Host

    found: dict[str, Extra] = {}
    async with Host({"plugins": {"disabled": disabled}}) as host:
        for each in host.hook_results("cli_commands"):
            if not isinstance(each, Sequence) or len(each) != _LEAST or not isinstance(each[0], str):
                say(f"a plugin offers {each!r} as a command: it must be (name, help, configure, run)")
                continue
            extra = Extra(*each)
            if extra.name in BUILT_IN or extra.name in found:
                say(f"a plugin offers the command {extra.name!r}, and that name is taken")
            else:
                found[extra.name] = extra
    return found
