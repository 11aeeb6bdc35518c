"""What root in a root of its own can do to the host through what is left over from its own start."""

from __future__ import annotations

import asyncio
import errno
import os
import platform
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confined import executing, needs_groups, needs_root, output_of, running, shell

from cameleer.config import Stdio, TaskConfig
from cameleer.drivers.exec.root import PATHS
from cameleer.drivers.supervisor import readonly, syscalls
from cameleer.errors import StartError

pytestmark = [pytest.mark.root, needs_root, needs_groups]

CHROOT = {"chroot": True}
CHANGE = "import os; os.chmod('/proc/self/exe', 0o4777)"


@pytest.fixture
def interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of this interpreter, which the driver starts its processes from."""
    copy = tmp_path / Path(sys.executable).resolve().name
    shutil.copy(Path(sys.executable).resolve(), copy)
    copy.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(copy))
    return copy


def interpreted(command: str, *args: str, own: Path, out: Path) -> TaskConfig:
    """A task in a root where the interpreter finds its library."""
    shown = {path: path for path in (*PATHS, sys.base_prefix)}
    settings = {"chroot": True, "chroot_paths": shown}
    stream = Stdio.file(out)
    return TaskConfig(
        command=command, args=[*args], driver_config=settings, task_dir=str(own), stdout=stream, stderr=stream
    )


async def change_interpreter(state: Path, tmp_path: Path, way: str) -> str:
    """Have a task turn the program that it was forked from against its owner; what it said."""
    own, out = tmp_path / "own", tmp_path / "out"
    own.mkdir()
    code = own / "change.py"
    code.write_text(f"#!/proc/self/exe\n{CHANGE}\n")
    code.chmod(0o755)
    (own / "local").mkdir()
    (own / "local" / "link").symlink_to("/proc/self/exe")
    async with executing(state) as driver:
        if way == "a further command":
            config = interpreted("/bin/sleep", "60", own=own, out=out)
            async with running(driver, config) as task, await task.exec(["/proc/self/exe", "-c", CHANGE]) as session:
                return b"".join([data async for _, data in session.output()]).decode()
        words = {
            "directly": ("/proc/self/exe", "-c", CHANGE),
            "a link": ("/local/link", "-c", CHANGE),
            "a script": ("/change.py",),
        }[way]
        async with running(driver, interpreted(*words, own=own, out=out)) as task:
            await task.wait()
        return out.read_text()


@pytest.mark.parametrize("way", ["directly", "a link", "a script", "a further command"])
async def test_the_hosts_interpreter_cannot_be_changed_from_inside(way: str, interpreter: Path, tmp_path: Path) -> None:
    before = interpreter.stat()
    said = await change_interpreter(tmp_path / "state", tmp_path, way)
    after = interpreter.stat()
    assert (oct(after.st_mode), after.st_ctime_ns) == (oct(before.st_mode), before.st_ctime_ns)
    assert "Read-only file system" in said


async def test_nor_is_it_where_the_kernel_cannot_copy_mounts(
    interpreter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(target: bytes) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target)

    monkeypatch.setattr(syscalls, "copy_tree", refuse)
    before = interpreter.stat()
    await change_interpreter(tmp_path / "state", tmp_path, "directly")
    after = interpreter.stat()
    assert (oct(after.st_mode), after.st_ctime_ns) == (oct(before.st_mode), before.st_ctime_ns)


async def test_nor_is_it_after_a_task_without_a_root_of_its_own(interpreter: Path, tmp_path: Path) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    own.mkdir()
    async with executing(tmp_path / "state") as driver, running(driver, shell("exec sleep 60")) as first:
        before = interpreter.stat()
        async with running(driver, interpreted("/proc/self/exe", "-c", CHANGE, own=own, out=out)) as task:
            await task.wait()
        assert interpreter.stat().st_mode == before.st_mode
        async with running(driver, shell("exit 4")) as last:
            assert (await last.wait()).exit_code == 4
        await first.stop(30, signal.SIGTERM)
        assert (await first.wait()).signal is not None


async def test_a_task_that_is_forked_from_a_file_that_it_could_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = sys.executable
    monkeypatch.setattr(readonly, "program", lambda _: (os.open(path, os.O_PATH | os.O_CLOEXEC), path))
    async with executing(tmp_path) as driver:
        with pytest.raises(StartError, match="could change"):
            await driver.start(shell("true", driver_config=CHROOT))


SPY = """
import os
print("ready", flush=True)
seen = set()
while not os.path.exists("/local/enough"):
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) != os.getpid():
            try:
                names = [f"/proc/{pid}/fd/{name}" for name in os.listdir(f"/proc/{pid}/fd")]
                seen |= {os.readlink(name).partition("[")[0] for name in names}
            except OSError:
                pass
print("mnt:" in seen, [each for each in seen if "cgroup" in each])
"""


async def test_a_further_command_cannot_be_robbed_by_the_task_while_it_starts(tmp_path: Path) -> None:
    own, out = tmp_path / "own", tmp_path / "out"
    own.mkdir()
    config = shell('exec python3 -c "$0"', SPY, task_dir=str(own), stdout=Stdio.file(out), driver_config=CHROOT)
    async with executing(tmp_path / "state") as driver, running(driver, config) as task:
        while not out.exists() or not out.read_text():
            await asyncio.sleep(0.01)
        for _ in range(40):
            async with await task.exec(["/bin/true"]) as session:
                await session.wait()
        (own / "local" / "enough").write_text("")
        await task.wait()
    assert out.read_text() == "ready\nFalse []\n"


@pytest.fixture
def null() -> Iterator[Path]:
    """The host's device, which nobody may have changed afterwards, be it to what it was."""
    path = Path("/dev/null")
    before = path.stat()
    yield path
    after = path.stat()
    assert (oct(after.st_mode), after.st_ctime_ns) == (oct(before.st_mode), before.st_ctime_ns)


@pytest.mark.parametrize("name", ["kcore", "keys", "timer_list", "sched_debug"])
async def test_what_is_hidden_in_proc_leads_to_nothing_of_the_hosts(name: str, null: Path, tmp_path: Path) -> None:
    path = f"/proc/{name}"
    if not os.path.exists(path):
        pytest.skip(f"this kernel has no {path}")
    code = f"import os; os.chmod('{path}', 0o{stat.S_IMODE(null.stat().st_mode):o})"
    async with executing(tmp_path) as driver:
        text = await output_of(driver, tmp_path, f'wc -c <{path}; python3 -c "{code}"', driver_config=CHROOT)
    assert text.startswith("0\n")
    assert "Read-only file system" in text


@pytest.mark.parametrize("stdin", ["discard", "descriptor", "file"])
async def test_a_discarded_stream_is_no_device_of_the_hosts(stdin: str, null: Path, tmp_path: Path) -> None:
    mode = stat.S_IMODE(null.stat().st_mode)
    code = f"import os; print(os.read(0, 1), os.write(2, b'x')); os.fchmod(0, 0o{mode:o})"
    script = f'python3 -c "{code}" 2>&1; python3 -c "import os; os.fchmod(2, 0o{mode:o})" || echo no'
    with null.open("rb") as opened:
        given = {"discard": Stdio.discard(), "descriptor": Stdio.fd(opened.fileno()), "file": Stdio.file(null)}[stdin]
        out = tmp_path / "out"
        config = shell(script, stdin=given, stdout=Stdio.file(out), driver_config=CHROOT)
        async with executing(tmp_path / "state") as driver, running(driver, config) as task:
            await task.wait()
    assert "Read-only file system" in out.read_text()
    assert out.read_text().endswith("\nno\n")


KEYS = """
import ctypes, platform
number = {"x86_64": 250, "aarch64": 219}[platform.machine()]
print(ctypes.CDLL(None, use_errno=True).syscall(number, 0, -3, 0), end=" ")
"""
"""Prints the number of the session's keyring."""


def session_keyring() -> int:
    """The tests' own; skips where there is none."""
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("the number of this machine's keyctl is not known to the test")
    done = subprocess.run([sys.executable, "-c", KEYS], capture_output=True, text=True, check=True)
    if int(done.stdout) < 0:
        pytest.skip("this kernel has no keyrings")
    return int(done.stdout)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"driver_config": CHROOT},
        {"user": "nobody", "driver_config": {"ipc_mode": "host", "pid_mode": "host"}},
        {"user": "nobody", "driver_config": CHROOT},
    ],
    ids=["confined", "own root", "another user", "both"],
)
async def test_a_task_has_no_key_of_the_hosts_session(fields: dict[str, Any], tmp_path: Path) -> None:
    hosts = session_keyring()
    out = tmp_path / "out"
    config = shell('python3 -c "$0"; exec sleep 60', KEYS, stdout=Stdio.file(out), **fields)
    async with executing(tmp_path / "state") as driver, running(driver, config) as task:
        while not out.exists() or " " not in out.read_text():
            await asyncio.sleep(0.01)
        async with await task.exec(["/usr/bin/env", "python3", "-c", KEYS]) as session:
            further = int(b"".join([data async for _, data in session.output()]))
    assert int(out.read_text()) > 0
    assert further > 0
    assert len({hosts, int(out.read_text()), further}) == 3


async def test_an_unconfined_task_keeps_its_users_keys(tmp_path: Path) -> None:
    hosts = session_keyring()
    settings = {"ipc_mode": "host", "pid_mode": "host"}
    async with executing(tmp_path) as driver:
        assert int(await output_of(driver, tmp_path, 'python3 -c "$0"', KEYS, driver_config=settings)) == hosts


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True)


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A mount of the host's on which others come and go, as on most machines' root."""
    folder = tmp_path / "shared"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", folder)
    try:
        run("mount", "--make-shared", folder)
        yield folder
    finally:
        run("umount", "--recursive", "--lazy", folder)


def seen_by(pid: int, folder: Path) -> bool:
    text = Path(f"/proc/{pid}/mountinfo").read_text()
    return any(line.split(" ")[4] == str(folder) for line in text.splitlines())


@pytest.mark.parametrize("chroot", [False, True])
async def test_a_task_holds_on_to_no_mount_of_the_hosts(chroot: bool, shared: Path, tmp_path: Path) -> None:
    inner, later = shared / "inner", shared / "later"
    inner.mkdir()
    later.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", inner)
    config = shell("exec sleep 60", driver_config={"chroot": chroot})
    async with executing(tmp_path / "state") as driver, running(driver, config) as task:
        everyone = {task.pid, task.supervisor_pid}
        assert seen_by(task.supervisor_pid, inner)
        assert seen_by(task.pid, inner) is not chroot
        run("umount", inner)
        assert not [pid for pid in everyone if seen_by(pid, inner)]
        run("mount", "-t", "tmpfs", "tmpfs", later)
        run("umount", later)
        assert not [pid for pid in everyone if seen_by(pid, later)]


@pytest.mark.parametrize("chroot", [False, True])
async def test_what_a_task_mounts_is_not_seen_by_the_host(chroot: bool, shared: Path, tmp_path: Path) -> None:
    (shared / "inner").mkdir()
    out = tmp_path / "out"
    settings = {"chroot": chroot, "cap_drop": ["syslog"], "cap_add": ["sys_admin"]}
    target = "/tmp" if chroot else str(shared / "inner")
    script = 'mount -t tmpfs tmpfs "$0" && echo mounted; exec sleep 60'
    config = shell(script, target, driver_config=settings, stdout=Stdio.file(out))
    before = Path("/proc/self/mountinfo").read_text().count(str(tmp_path))
    async with executing(tmp_path / "state") as driver, running(driver, config) as task:
        while not out.exists() or "\n" not in out.read_text():
            await asyncio.sleep(0.01)
        assert seen_by(task.pid, Path(target))
        assert Path("/proc/self/mountinfo").read_text().count(str(tmp_path)) == before


PERSONAL = "echo $HOME $USER $LOGNAME"


async def test_another_user_gets_nothing_personal_of_the_callers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"HOME": "/root", "USER": "root", "LOGNAME": "root"}.items():
        monkeypatch.setenv(name, value)
    inherited = dict(os.environ)
    async with executing(tmp_path) as driver:
        text = await output_of(driver, tmp_path, PERSONAL, user="nobody", env=inherited)
        assert text.split() == [pwd.getpwnam("nobody").pw_dir, "nobody", "nobody"]
        text = await output_of(driver, tmp_path, PERSONAL, user="nobody", env={**inherited, "HOME": "/tmp/set"})
        assert text.split() == ["/tmp/set", "nobody", "nobody"]
        text = await output_of(driver, tmp_path, f"{PERSONAL}; id -u", user="54321:54322", env=inherited)
        assert text.split() == ["54321"]
        text = await output_of(driver, tmp_path, PERSONAL, env=inherited)
        assert text.split() == ["/root", "root", "root"]


async def test_a_user_that_nomad_made_up_is_its_number(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    fields = {"user": "nomad-80001", "task_dir": str(own), "driver_config": CHROOT}
    async with executing(tmp_path / "state") as driver:
        text = await output_of(driver, tmp_path, "id -u; id -g; id -G; echo $USER; echo x >/local/mine", **fields)
    assert text.split() == ["80001", "80001", "80001", "nomad-80001"]
    assert (own / "local" / "mine").stat().st_uid == 80001


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_output_does_not_follow_a_link_that_a_task_may_have_made(stream: str, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    async with executing(tmp_path / "state") as driver:
        with pytest.raises(StartError, match=f"{stream}: it is a symbolic link"):
            await driver.start(shell("echo x", **{stream: Stdio.file(link)}))
    assert not target.exists()
