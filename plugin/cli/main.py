"""The command ``cameleer``: picks the sub-command, and tells every failure in one line."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from cameleer.openfiles import raise_limit

FAILED = 125
"""Exit status when cameleer itself failed."""

BUILT_IN = {
    "run": "run a command, show what it used",
    "watch": "measure processes that are already running",
    "drivers": "list drivers and refused plugins",
    "gc": "list what ended hosts left behind, and remove it",
    "completion": "print a completion script for a shell",
}

_HELP = """\
usage: cameleer [--no-plugins[=NAME,…]] COMMAND [ARGUMENT]…

Run commands, and say truly what they used: CPU, memory, IO, the whole tree of processes.

commands:
{commands}

options:
  --no-plugins[=NAME,…]  load no plugin but the built-in ones; with names: all but these
  --version              show the version and exit
  -h, --help             show this help and exit; `cameleer COMMAND --help` has the command's

environment:
  CAMELEER_NO_PLUGINS    as --no-plugins: `all`, or names with commas between
  CAMELEER_TRACE         1: log every call of a driver or hook with its duration, and show tracebacks
  NO_COLOR               no colours in the live view

examples:
  cameleer run make -j4                    what `time make -j4` says, and the whole truth
  cameleer run --live --memory 2g -- ./job with a view of CPU and memory below its output
  cameleer watch 4711                      what an already running process and its children use
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; nothing is raised.

    :param argv: the words after the program's name; None: those of this process, which is then ours alone: it may have
        as many files open as it may at all, and garbage is not collected while modules are imported, nor at the very
        end, which is a sixth of the cost of a short run.
    """
    if argv is not None:
        return _run(list(argv))
    gc.disable()
    raise_limit()
    code = _run(sys.argv[1:])
    gc.freeze()
    return code


def _run(words: list[str]) -> int:
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever reads our own output has seen enough
        _forget_stdout()
        return 141
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else 0
    except BaseException as exc:
        return _tell(exc)


def _dispatch(words: list[str]) -> int:
    disabled: list[str] = []
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word in ("-h", "--help"):
            return _help(disabled)
        if word == "--version":
            from importlib.metadata import version

            print(f"cameleer {version('cameleer')}")
            return 0
        if word != "--no-plugins" and not word.startswith("--no-plugins="):
            from cameleer.cli.options import UsageError

            raise UsageError(f"there is no option {word} before the command; see cameleer --help")
        disabled.append(word)
    if not words:
        _help(disabled, to_stderr=True)
        return 2
    name, rest = words[0], disabled + words[1:]
    if name == "help":
        return _dispatch([*rest[:1], "--help"])
    if name == "run":
        from cameleer.cli.run import main as run

        return run(rest)
    if name in BUILT_IN:
        from importlib import import_module

        return int(import_module(f"cameleer.cli.{name}").main(rest))
    from cameleer.cli.extra import main as extra

    return extra(name, rest)


def _help(disabled: list[str], *, to_stderr: bool = False) -> int:
    commands = dict(BUILT_IN)
    if not to_stderr:
        from cameleer.cli.extra import helps

        commands.update(helps(disabled))
    width = max(map(len, commands))
    text = _HELP.format(commands="\n".join(f"  {name:{width}}  {text}" for name, text in commands.items()))
    print(text, end="", file=sys.stderr if to_stderr else sys.stdout, flush=True)
    return 0


def _tell(exc: BaseException) -> int:
    """Say in one line each what went wrong, and which exit status that is."""
    from cameleer.cli.console import say, tracing
    from cameleer.cli.options import USAGE, UsageError
    from cameleer.errors import ConfigError, DriverError

    if tracing():
        import traceback

        traceback.print_exception(exc)
    if isinstance(exc, BaseExceptionGroup):
        return max([_tell(each) for each in exc.exceptions], default=FAILED)
    if isinstance(exc, (UsageError, ConfigError)):
        say(str(exc))
        return USAGE
    if isinstance(exc, DriverError):
        say(str(exc) or type(exc).__name__)
    elif isinstance(exc, OSError) and exc.strerror:
        say(f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror)
    else:
        text = " ".join(str(exc).split())
        say(f"internal error: {type(exc).__name__}: {text} (CAMELEER_TRACE=1 shows where)")
    return FAILED


def _forget_stdout() -> None:
    """Keep the interpreter from flushing into a closed pipe at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
