"""``cameleer drivers``: which drivers there are, how they are, what they can do, and where they come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cameleer.cli.console import say, show_log
from cameleer.cli.options import PLUGIN_GROUP, Command, Group, Option, names, parser_of, plain

if TYPE_CHECKING:
    from argparse import Namespace

    from cameleer.driver import Capabilities
    from cameleer.opened import DriverInfo
    from cameleer.plugins import RefusedPlugin

COMMAND = Command(
    name="drivers",
    help="list drivers and refused plugins",
    synopsis="[OPTION]…",
    description="""\
List the drivers: health, what they can do, where they come from; and the plugins that were refused, and why.""",
    epilog="""\
With --json: a list of objects with name, health, health_description, capabilities, distribution, version; refused
plugins are told on stderr.

examples:
  cameleer drivers
  cameleer drivers --json --config /etc/cameleer.toml""",
    groups=(
        Group(
            "options",
            (
                Option("--json", "", "print JSON"),
                Option("--config", "FILE", "TOML configuration of the host", complete="file"),
                Option(
                    "--plugin",
                    "FILE|MODULE",
                    "load drivers and hook plugins from a Python file or module",
                    repeat=True,
                    complete="file",
                ),
            ),
        ),
        PLUGIN_GROUP,
    ),
)


def main(argv: Sequence[str]) -> int:
    """Run ``cameleer drivers``."""
    import asyncio

    options = parser_of(COMMAND).parse_args(plain(argv))
    found, refused = asyncio.run(_ask(options))
    if options.json:
        from cameleer.cli.output import as_json

        print(as_json([record(info) for info in found]).decode(), flush=True)
        for each in refused:
            say(str(each))
    else:
        print("\n".join(table(found, refused)), flush=True)
    return 0


async def _ask(options: Namespace) -> tuple[list[DriverInfo], tuple[RefusedPlugin, ...]]:
    from cameleer.cli.run import loaded_plugins
    from cameleer.host import Host
    from cameleer.log import log

    show_log()
    log.setLevel("CRITICAL")  # what it would say of refused plugins is what this command is for
    settings: dict[str, Any] = {}
    if options.config:
        from cameleer.settings import load

        settings = dict(load(options.config))
    disabled = names(options.no_plugins)
    if disabled:
        settings["plugins"] = {**settings.get("plugins", {}), "disabled": disabled}
    async with Host(settings, plugins=loaded_plugins(options.plugin)) as host:
        found = await host.drivers()
        return found, host.refused


def record(info: DriverInfo) -> Mapping[str, Any]:
    """One driver as a JSON object."""
    capabilities: dict[str, Any] = {
        name: getattr(info.capabilities, name) for name in info.capabilities.__struct_fields__
    }
    capabilities["honours"] = sorted(info.capabilities.honours)
    return {
        "name": info.name,
        "health": info.health,
        "health_description": info.health_description,
        "capabilities": capabilities,
        "distribution": info.distribution or None,
        "version": info.version or None,
    }


def table(found: Sequence[DriverInfo], refused: Sequence[RefusedPlugin]) -> list[str]:
    """The drivers as text, a line or two each."""
    rows = [("NAME", "HEALTH", "FROM", "CAN")]
    for info in found:
        origin = f"{info.distribution} {info.version}".strip() or "(handed over)"
        rows.append((info.name, info.health, origin, ", ".join(abilities(info.capabilities)) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    text = []
    for position, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        text.append("  ".join([*cells, row[3]]).rstrip())
        if position and found[position - 1].health != "healthy":
            text.append(f"{'':{widths[0]}}  {found[position - 1].health_description}")
    for each in refused:
        text.append(f"refused: {each}")
    return text


def abilities(capabilities: Capabilities) -> list[str]:
    """What a driver can do, in words."""
    text = [name for name in ("stats", "exec", "recover", "attach", "network") if getattr(capabilities, name)]
    if capabilities.fs_isolation != "none":
        text.append(f"isolation by {capabilities.fs_isolation}")
    if capabilities.honours:
        text.append(f"honours {' '.join(sorted(capabilities.honours))}")
    return text
