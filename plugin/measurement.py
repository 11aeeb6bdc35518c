"""One task measured at one interval: what the sweep needs of it, and how its counters become readings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cameleer.driver import RunningTask
from cameleer.errors import RecoverableError
from cameleer.log import Repeated
from cameleer.rates import derive, measured_fields
from cameleer.usage import Counters

if TYPE_CHECKING:
    import weakref

    from cameleer.life import Life
    from cameleer.readings import Readings
    from cameleer.scheduler import Slice
    from cameleer.sweep import Group
    from cameleer.task import TaskInfo
    from cameleer.usage import TaskResourceUsage

    Pair = tuple[TaskInfo, TaskResourceUsage]

G = TypeVar("G", bound=msgspec.Struct)

DRIVER_FAULTS = (Exception, SystemExit, asyncio.CancelledError)
"""What a driver's code may raise at us."""

_field_names: dict[frozenset[str], frozenset[str]] = {}  # equal ones are one object


class Measurement:
    """One task, measured at one interval for the hook plugins, for readers, or for both.

    Ten thousand of these do not fit into a processor's cache: what the sweep needs of a task is here and not behind
    another object, and what is the same for many tasks is one object.

    :ivar previous: the last counters: what the next rates are taken from.
    :ivar place: slice and group in which it is swept; None while it is not.
    :ivar not_before_ns: sweeps before this moment pass it by: it was just read.
    :ivar work: the asyncio task that follows its stream, or tries again after a failure.
    """

    __slots__ = (
        "account",
        "failing",
        "group_key",
        "heard_at",
        "info",
        "interval_s",
        "life",
        "limits",
        "measured",
        "node",
        "not_before_ns",
        "per_process",
        "place",
        "previous",
        "publish",
        "read",
        "readers",
        "stale",
        "work",
    )

    def __init__(self, life: Life, running: RunningTask, interval_s: float, per_process: bool) -> None:
        self.life = life
        self.interval_s = interval_s
        self.per_process = per_process
        self.group_key = (life.driver.name, per_process)
        self.read = running.read
        self.limits, self.node, self.account = life.limits, life.node, life.account.add
        self.measured, self.info = life.measured, life.info
        self.previous: Counters | None = None
        self.publish = False
        self.readers: tuple[weakref.ref[Readings], ...] = ()
        self.place: tuple[Slice, Group] | None = None
        self.not_before_ns = 0
        self.work: asyncio.Task[None] | None = None
        self.failing = Repeated()
        self.heard_at = 0.0
        self.stale = False

    def deliver(self, counters: Counters, batch: list[Pair]) -> None:
        """Turn counters into a reading and hand it to whoever wants it.

        :param batch: takes it for the hook plugins, if the task is published.
        """
        previous = self.previous
        if previous is None:
            self._begin(counters)
        elif counters.at_ns <= previous.at_ns:  # handed over again: an old value is no new reading
            return
        usage = derive(previous, counters, self.limits, self.node, self.measured)
        self.previous = counters
        self.account(usage)
        if self.publish:
            batch.append((self.info, usage))
        if self.readers:
            for reference in self.readers:
                reader = reference()
                if reader is not None:
                    reader.put(usage)

    def _begin(self, counters: Counters) -> None:
        life = self.life
        checked(counters, life.driver.name)
        if not life.measured:
            names = measured_fields(counters, life.limits, life.node)
            life.measured = _field_names.setdefault(names, names)
        self.measured = life.measured

    def finish(self, error: Exception | None = None) -> None:
        """Tell its readers that no more comes."""
        for reference in self.readers:
            reader = reference()
            if reader is not None:
                reader.finish(error)


def checked(counters: object, driver: str) -> Counters:
    """Refuse what is no counters.

    :raises RecoverableError: names the driver and shows what it gave.
    """
    if type(counters) is not Counters:
        raise RecoverableError(f"the driver {driver} gave {counters!r} in place of Counters")
    return counters


def only_streams(running: RunningTask) -> bool:
    """Whether a task can only be measured by its stream."""
    return type(running).read is RunningTask.read and type(running).stats is not RunningTask.stats


def is_our_own(error: BaseException) -> bool:
    """Whether this is a cancellation of the running asyncio task, not one that a driver raised by itself."""
    current = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and current is not None and current.cancelling() > 0


def completed(last: Counters, previous: Counters | None) -> Counters:
    """The totals of an end; what they do not say is as it was read before, under its own age."""
    if previous is None:
        return last
    memory, memory_at_ns = last.memory, last.memory_at_ns
    if memory.measure != previous.memory.measure:
        memory, memory_at_ns = previous.memory, previous.memory_at_ns or previous.at_ns
    return Counters(
        at_ns=last.at_ns,
        taken_at_ns=last.taken_at_ns,
        memory_at_ns=memory_at_ns,
        extended_at_ns=previous.extended_at_ns or previous.at_ns,
        missing=last.missing or previous.missing,
        cpu=_filled(last.cpu, previous.cpu),
        memory=memory,
        io=_filled(last.io, previous.io),
        network=_filled(last.network, previous.network),
        processes=_filled(last.processes, previous.processes),
        pressure=_filled(last.pressure, previous.pressure),
    )


def _filled(new: G, old: G) -> G:
    """A group, with the fields that it lacks taken from an older one."""
    lacking = {
        name: value
        for name in new.__struct_fields__
        if getattr(new, name) is None and (value := getattr(old, name)) is not None
    }
    return msgspec.structs.replace(new, **lacking) if lacking else new
