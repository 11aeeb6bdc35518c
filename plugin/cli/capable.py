"""Which driver can do what another cannot: looked up only for an error message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cameleer.driver import DriverBase

_SETTING = "driver_config."


def acts_upon(driver: type[DriverBase], field: str) -> bool:
    """Whether a driver honours a field of the task's, or has a setting: ``driver_config.keep``."""
    if field.startswith(_SETTING):
        return field.removeprefix(_SETTING) in driver.task_schema.__struct_fields__
    return field in driver.capabilities.honours


def who_can(field: str, known: Sequence[str], disabled: bool | list[str]) -> str:
    """Name the installed drivers that honour a field of the task's; else say which would, and that none is here.

    :param field: of ``TaskConfig`` or ``Resources``, or ``driver_config.NAME``.
    :param known: drivers that do when they are installed.
    """
    from cameleer.driver import DriverBase
    from cameleer.plugins import Plugins
    from cameleer.settings import Settings

    able: list[str] = []
    missing: list[str] = []
    for name, found in Plugins(Settings.of({"plugins": {"disabled": disabled}})).drivers().items():
        try:
            cls = found.cls if found.entry is None else found.entry.load()
        except Exception:  # whatever a stranger's import raises: that driver is no help here
            if name in known:
                missing.append(name)
            continue
        if isinstance(cls, type) and issubclass(cls, DriverBase) and acts_upon(cls, field):
            able.append(name)
    if able:
        return f"use --driver {' or '.join(sorted(able))}"
    if missing:
        return f"install {' or '.join(f'cameleer[{name}]' for name in sorted(missing))}"
    does = "a driver that does, none is" if not known else f"{' and '.join(known)} would, but neither is"
    if len(known) == 1:
        does = f"{known[0]} would, but it is not"
    return f"{does} installed here"
