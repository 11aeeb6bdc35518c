"""What can go wrong, named by what the caller can do about it.

A task that fails gives an ``ExitResult``; a driver that fails raises one of these. ``RecoverableError`` means that
trying again may help, ``UnrecoverableError`` that it cannot. A foreign exception is translated where it arrives, with
``raise … from``; one that slips through counts as recoverable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cameleer.status import ExitResult


class DriverError(Exception):
    """Base of every error that cameleer or a driver raises on purpose."""


class RecoverableError(DriverError):
    """Trying again may help: a refused connection, a read cut short."""


class UnrecoverableError(DriverError):
    """Trying again cannot help: the cgroup is gone, no such image."""


class PluginShutdown(RecoverableError):
    """The driver is being closed or restarted; it may be back soon."""


class StartRecoverable(RecoverableError):
    """A task could not be started now: a registry is down, a call passed its deadline."""


class DeadlineExceeded(RecoverableError):
    """A driver's call did not return within its deadline and was abandoned."""


class StatsNotImplemented(UnrecoverableError):
    """The driver's tasks offer neither ``read`` nor ``stats``."""


class TaskNotFound(UnrecoverableError):
    """No such task: it is gone for good, not merely out of reach."""


class ConfigError(UnrecoverableError, ValueError):
    """A setting is wrong; the message names the field, its value and what would be right."""


class NotSupported(UnrecoverableError):
    """The driver does not offer this."""


class StartError(UnrecoverableError):
    """The task cannot be started: no such command, not executable, no such user."""


class CommandNotFound(StartError):
    """The command does not exist; a shell says 127."""


class CommandNotExecutable(StartError):
    """The command exists and cannot be executed; a shell says 126."""


class PluginError(UnrecoverableError):
    """A plugin was refused; the message names the plugin, its distribution and the reason."""


class TaskFailed(Exception):
    """Raised by ``ExitResult.check()`` for every status but success; ``result`` says what happened."""

    def __init__(self, result: ExitResult) -> None:
        super().__init__(result)
        self.result = result

    def __str__(self) -> str:
        return self.result.error or "the task failed"
