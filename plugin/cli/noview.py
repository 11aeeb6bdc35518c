"""No live view: what all views have in common, without what only drawing needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cameleer.cli.view import View
    from cameleer.task import Task


class NoView:
    """Shows nothing.

    :ivar drawn: it draws on a terminal, which must be given back before anything else is written there.
    """

    drawn = False

    def task_fields(self) -> Mapping[str, Any]:
        """Fields of the task's config that a view decides: its streams and its terminal."""
        return {}

    def starting(self) -> None:
        """The task is about to start, and may write before :meth:`begin`."""

    def begin(self, task: Task, command: Sequence[str]) -> View | None:
        """The task runs: begin to draw. Readings are to be added to what this returns."""
        return None

    def signal(self, signum: int) -> None:
        """A signal about the terminal came: continued, resized, or stop."""

    async def close(self) -> None:
        """Stop drawing and leave the terminal as it was; twice without error."""
