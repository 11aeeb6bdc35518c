"""``cameleer gc``: what hosts that are gone left behind, and its removal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cameleer.cli.console import say, show_log
from cameleer.cli.options import PLUGIN_GROUP, Command, Group, Option, names, parser_of, plain
from cameleer.cli.units import several
from cameleer.errors import ConfigError, DriverError

if TYPE_CHECKING:
    from argparse import Namespace

COMMAND = Command(
    name="gc",
    help="list what ended hosts left behind, and remove it",
    synopsis="[OPTION]…",
    description="""\
List what is left over of tasks whose host is gone: its label or path is ours, its supervisor has ended, and no kept
handle claims it. With --yes it is removed. What belongs to a host that lives is never touched.""",
    epilog="""\
It looks at the state folder of a long-running host (/run/cameleer, or $XDG_RUNTIME_DIR/cameleer) and at the private
folders of hosts that were killed.

exit status: 0 everything asked for was done; 1 something could not be removed.

examples:
  cameleer gc
  cameleer gc --yes""",
    groups=(
        Group(
            "options",
            (
                Option("--yes", "", "remove it; else it is only listed"),
                Option("--state-dir", "DIR", "look at this state folder too", repeat=True, complete="directory"),
            ),
        ),
        PLUGIN_GROUP,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Run ``cameleer gc``."""
    import asyncio

    options = parser_of(COMMAND).parse_args(plain(argv))
    show_log()
    return asyncio.run(_collect(options))


async def _collect(options: Namespace) -> int:
    from cameleer.state import abandoned_private_dirs, default_state_dir

    asked = [Path(each) for each in options.state_dir or []]
    found = failed = 0
    for path in [default_state_dir(), *asked]:
        if not path.is_dir():
            if path in asked:
                raise ConfigError(f"--state-dir {path}: there is no such folder")
            continue
        more, worse = await _look(path, options)
        found, failed = found + more, failed + worse
    for path in abandoned_private_dirs():
        more, worse = await _look(path, options)
        found, failed = found + more + 1, failed + worse
        failed += _folder(path, remove=options.yes and not worse)
    if not found:
        print("nothing is left over")
    elif not options.yes:
        print(f"{several(found, 'thing is', 'things are')} left over; cameleer gc --yes removes {_them(found)}")
    return 1 if failed else 0


def _them(count: int) -> str:
    return "it" if count == 1 else "them"


async def _look(path: Path, options: Namespace) -> tuple[int, int]:
    """List or remove what one state folder's tasks left; how many there were, and how many would not go."""
    from cameleer.host import Host

    settings = {"plugins": {"hooks": [], "disabled": names(options.no_plugins)}}
    failed = 0
    try:
        async with Host(settings, state_dir=path, on_exit="detach") as host:
            leftovers = await host.leftovers()
            for driver, leftover in leftovers:
                text = f"{driver}: {leftover.description}"
                if not options.yes:
                    print(text)
                    continue
                try:
                    await host.remove_leftover(driver, leftover)
                    print(f"removed {text}")
                except DriverError as exc:
                    failed += 1
                    say(f"cannot remove {text}: {exc}")
    except ConfigError as exc:  # another host holds this folder: it looks after its own
        say(str(exc))
        return 0, 0
    return len(leftovers), failed


def _folder(path: Path, *, remove: bool) -> int:
    """List or remove the folder of a host that was killed; 1 if it would not go."""
    import shutil

    if not remove:
        print(f"state folder {path}")
        return 0
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        say(f"cannot remove {path}: {exc.strerror}")
        return 1
    print(f"removed state folder {path}")
    return 0
