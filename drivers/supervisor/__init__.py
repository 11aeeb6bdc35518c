"""Processes that outlive the host and are still somebody's: one small supervisor for each task.

For drivers whose tasks are processes::

    class MyTask(SupervisedTask):
        def read(self, tick): ...          # the tree below ``supervisor_pid``

    class MyDriver(Driver):
        async def start(self, task):
            return await self.supervisors.start(task, MyTask)   # supervisors = Supervisors(node)

A *launcher* (``launcher``), started at the first task, forks a *supervisor* (``supervise``) for each. The supervisor
is the subreaper of everything that comes of the task, so nothing escapes it; it starts the command (``command``),
waits for all processes, and keeps the result in the task's record (``record``). It talks to the host over a socket
pair and, where ``NodeInfo.recoverable`` says that the task is to be found again, listens on a socket in the task's
folder, whose record stays until ``destroy``. Where it does not, the task ends with the host's process, also one that
is killed with SIGKILL.

A task can be confined (``confinement``): a group, namespaces, a root of its own, limited capabilities.

These three modules run in processes of their own that import nothing but the C parts of Python's library, since every
supervisor has that memory; they and what they share (``protocol``, ``proc``, ``syscalls``, ``confine``) import each
other by relative names, because there the package has no ``cameleer`` around it.

Limits: the CPU time of children whose parent ignores SIGCHLD is lost to any parent (only a cgroup has it); a process
that became a daemon in a session of its own cannot be told from others once its supervisor was killed with SIGKILL,
unless it still descends from the task's session.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cameleer.drivers.supervisor.supervisors import Supervisors
    from cameleer.drivers.supervisor.task import SupervisedTask

__all__ = ["SupervisedTask", "Supervisors"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    module = "task" if name == "SupervisedTask" else "supervisors"
    return getattr(import_module(f"cameleer.drivers.supervisor.{module}"), name)
