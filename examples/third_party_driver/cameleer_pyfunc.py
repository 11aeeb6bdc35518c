"""A Python function as a task: ``driver_config={"function": "module:name"}``, run in an interpreter of its own."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from cameleer import BlockingDriver, BlockingTask, Counters, CpuUsage, Exit, MemoryUsage, StartError, TaskConfig, Tick
from cameleer.drivers.procfs.parse import parse_stat
from cameleer.drivers.procfs.units import NS_PER_TICK, PAGE_BYTES

NULL = subprocess.DEVNULL
RUN = "import pkgutil, sys; pkgutil.resolve_name(sys.argv[1])(*sys.argv[2:])"


class Options(msgspec.Struct, forbid_unknown_fields=True):
    function: str  # "module:name"


class PyFuncTask(BlockingTask):
    process: subprocess.Popen[bytes]
    default_kill_signal = signal.SIGTERM  # an interpreter that is starting may lose a SIGINT

    def poll(self) -> Exit | None:
        end = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # kept, so read() still works
        if end is None:
            return None
        killed = end.si_code != os.CLD_EXITED
        return Exit(exit_code=end.si_status + 128 * killed, signal=end.si_status if killed else None)

    def signal(self, signum: int) -> None:
        os.killpg(self.process.pid, signum)

    def read(self, tick: Tick) -> Counters:
        stat = parse_stat(Path(f"/proc/{self.process.pid}/stat").read_bytes())
        user, system = stat.user_ticks * NS_PER_TICK, stat.system_ticks * NS_PER_TICK
        cpu = CpuUsage(total_ns=user + system, user_ns=user, system_ns=system)
        memory = MemoryUsage(rss_bytes=stat.rss_pages * PAGE_BYTES, measure="rss_sum")
        return Counters(at_ns=time.monotonic_ns(), taken_at_ns=time.time_ns(), cpu=cpu, memory=memory)

    def destroy(self, force: bool = False) -> None:
        if self.process.returncode is None:
            self.signal(signal.SIGKILL)
            self.process.wait()


class PyFunc(BlockingDriver):
    name = "pyfunc"
    task_type = PyFuncTask
    task_schema = Options

    def start(self, task: TaskConfig) -> PyFuncTask:
        function = task.settings(Options).function
        if ":" not in function:
            raise StartError(f"driver_config.function is {function!r}: it must be 'module:name'")
        running = PyFuncTask(task)
        argv = [sys.executable, "-c", RUN, function, *task.args]
        running.process = subprocess.Popen(
            argv, env=task.env, cwd=task.cwd, stdin=NULL, stdout=NULL, stderr=NULL, start_new_session=True
        )
        return running
