"""Run tests on a real cgroup v2, inside user-mode Linux, with this Python and this environment::

    python tests/support/uml.py [--tasks|--user|--containers] [pytest's arguments]

Without arguments of pytest's: the tests of groups; with ``--tasks`` those of tasks in groups; with ``--user`` these as
an unprivileged user to whom a part of the tree was delegated; with ``--containers`` those of a Docker engine in there.

User-mode Linux is a kernel that runs as an ordinary process and sees this machine's files; Debian's package is
``user-mode-linux``. Its exit status is pytest's, and its output too. System calls cost a hundred times more there than
here, so the selections are kept short. Whatever hangs is killed after a while.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXEC, RAW_EXEC = "tests/drivers/exec", "tests/drivers/test_raw_exec"
SELECTIONS = {
    "": ("tests/drivers/cgroup",),
    "--tasks": (
        f"{EXEC}/test_exec_conformance.py::TestExec",
        f"{EXEC}/test_limits.py",
        f"{EXEC}/test_isolation.py",
        f"{EXEC}/test_recovery.py",
        f"{RAW_EXEC}_groups.py",
    ),
    "--user": (
        f"{EXEC}/test_exec_conformance.py::TestExec",
        f"{EXEC}/test_limits.py",
        f"{RAW_EXEC}_conformance.py::TestRawExecInGroups",
        f"{RAW_EXEC}_groups.py",
        "tests/plugin/cli/test_delegated.py",
    ),
    "--containers": (
        "tests/drivers/docker/stats/test_local.py",
        "tests/drivers/docker/stats/test_parent.py",
        "tests/drivers/docker/stats/test_remote_of_real_engine.py::test_both_paths_give_the_same_numbers_under_load",
    ),
}
MEMORY = "512M"
LIMIT_S = 420.0
LONG_LIMIT_S = 900.0
"""Of tasks: on two processors of their own they take about a third of it."""
NOBODY = 65534
NOT_RUN = 3
"""Exit status when pytest did not get to its end."""

INIT = """\
#!/bin/sh
# pid 1 of the guest
export PATH={path} HOME=/run TMPDIR=/run LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 CAMELEER_TEST_UML=1
export PYTHONPATH={python_path}
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=1777 tmpfs /run
if grep -q ' /dev devtmpfs ' /proc/mounts; then # else the host's own folder is seen, which stays as it is
    mkdir -p /dev/pts /dev/shm
    ln -sfn /proc/self/fd /dev/fd
    ln -sfn fd/0 /dev/stdin
    ln -sfn fd/1 /dev/stdout
    ln -sfn fd/2 /dev/stderr
fi
mount -t devpts -o ptmxmode=0666 devpts /dev/pts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
for controller in cpu memory pids io cpuset; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control || echo "no controller $controller"
done 2>/dev/null
ip link set lo up 2>/dev/null
echo "Linux $(uname -r), cgroup v2: $(cat /sys/fs/cgroup/cgroup.subtree_control)"
{prepare}
cd {root}
setsid timeout --kill-after=5 {limit_s:.0f} {command} </dev/null
echo $? >{status}
sync
halt -f 2>/dev/null || echo o >/proc/sysrq-trigger
"""


def kernel() -> str | None:
    """The program; None: not installed."""
    return shutil.which("linux.uml") or shutil.which("linux")


DELEGATE = """\
part=/sys/fs/cgroup/delegated
mkdir -p $part/{leaf}
echo "+cpu +memory +pids +io" >$part/cgroup.subtree_control
chown {user} $part $part/{leaf} $part/cgroup.procs $part/{leaf}/cgroup.procs $part/cgroup.subtree_control
echo $$ >$part/{leaf}/cgroup.procs
"""
"""Hand a part of the tree to a user, and be in it: where ``drivers.cgroup.mode`` would move us, so that it need not."""


def run(arguments: list[str], limit_s: float = LIMIT_S, user: int | None = None) -> int:
    """Boot, run pytest with these arguments, and pass its output on.

    :param user: run it as this user, to whom a part of the tree is delegated.
    :returns: pytest's exit status, NOT_RUN where it has none.
    """
    program = kernel()
    if program is None:
        print("user-mode Linux is not installed: apt-get install user-mode-linux", file=sys.stderr)
        return NOT_RUN
    with tempfile.TemporaryDirectory(prefix="uml.") as folder:
        status = Path(folder, "status")
        init = Path(folder, "init")
        pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", *arguments]
        if user is not None:
            pytest = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", "--inh-caps=-all", *pytest]
        init.write_text(
            INIT.format(
                path=shlex.quote(f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"),
                python_path=shlex.quote(os.environ.get("PYTHONPATH", "")),
                root=shlex.quote(str(ROOT)),
                command=shlex.join(pytest),
                limit_s=limit_s,  # in there too: whoever started this may be killed
                status=shlex.quote(str(status)),
                prepare="" if user is None else DELEGATE.format(user=user, leaf="cameleer.host"),
            )
        )
        init.chmod(0o755)
        boot = [
            program,
            f"mem={MEMORY}",
            "root=/dev/root",
            "rootfstype=hostfs",
            "rootflags=/",
            "rw",
            f"init={init}",
            f"uml_dir={folder}",
            "con=null",
            "con0=null,fd:1",
            "loglevel=1",  # its messages would run into pytest's
        ]
        guest = subprocess.Popen(
            boot, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            in_time = _pass_on(guest, limit_s)
        finally:
            _end(guest)
        if not in_time:
            print(f"killed after {limit_s:g} s", flush=True)
        return int(status.read_text()) if status.exists() and in_time else NOT_RUN


def _pass_on(guest: subprocess.Popen[bytes], limit_s: float) -> bool:
    """Copy the guest's console to our output until it ends; whether it did in time."""
    assert guest.stdout is not None
    deadline = time.monotonic() + limit_s
    while (left := deadline - time.monotonic()) > 0:
        if select.select([guest.stdout], [], [], left)[0]:
            data = os.read(guest.stdout.fileno(), 65536)
            if not data:
                return True
            sys.stdout.write(data.decode("utf-8", "replace").replace("\r", ""))
            sys.stdout.flush()
    return False


def _end(guest: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the guest: the kernel, and the processes that its own run as. Waits until they have gone."""
    deadline = time.monotonic() + 10
    while (left := _of_session(guest.pid)) and time.monotonic() < deadline:
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        guest.poll()
        time.sleep(0.01)
    guest.wait()
    if guest.stdout is not None:
        guest.stdout.close()


def _of_session(session: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.getsid(int(name)) == session:
                found.append(int(name))
        except ProcessLookupError:
            continue
    return found


def _stop(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)  # by way of what ends the guest


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGHUP, _stop)
    suite = sys.argv.pop(1) if sys.argv[1:] and sys.argv[1] in SELECTIONS else ""
    chosen = sys.argv[1:] or ["-ra", *SELECTIONS[suite]]
    sys.exit(run(chosen, LONG_LIMIT_S if suite else LIMIT_S, NOBODY if suite == "--user" else None))
