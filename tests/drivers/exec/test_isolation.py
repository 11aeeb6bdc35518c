"""User, capabilities, namespaces, and a root of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from confined import executing, needs_groups, needs_root, output_of, running, shell

from cameleer.config import Device, Mount, Stdio, TaskConfig
from cameleer.drivers.exec import devices
from cameleer.errors import ConfigError, DriverError

pytestmark = [pytest.mark.root, needs_root, needs_groups]

CHROOT = {"chroot": True}
STATUS = "cat /proc/self/status"
ESCAPE = """
import os
os.chdir("/tmp"); os.mkdir("jail"); os.chroot("jail")
for _ in range(100):
    os.chdir("..")
os.chroot(".")
print(sorted(os.listdir("/")), os.path.exists("%s"))
"""


def status_of(text: str) -> dict[str, list[str]]:
    return {key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines())}


def host_mounts(folder: Path) -> list[str]:
    """Mounts of the host in places where ours are made; others may mount elsewhere meanwhile."""
    points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point == "/proc" or point.startswith(str(folder))]


async def test_a_task_is_its_user_for_good(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        text = await output_of(driver, tmp_path, f"{STATUS}; env", user="nobody")
    found = status_of(text.partition("PATH=")[0])
    assert found["Uid"] == ["65534"] * 4
    assert found["Gid"] == ["65534"] * 4
    assert found["Groups"] == ["65534"]
    assert found["NoNewPrivs"] == ["1"]
    assert {int(found[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert "USER=nobody" in text
    assert "LOGNAME=nobody" in text
    assert "HOME=/nonexistent" in text


async def test_a_user_has_its_supplementary_groups_and_no_other(tmp_path: Path) -> None:
    import grp
    import pwd

    member = next((name for group in grp.getgrall() for name in group.gr_mem), None)
    if member is None:
        pytest.skip("no user on this machine has a supplementary group")
    entry = pwd.getpwnam(member)
    async with executing(tmp_path) as driver:
        text = await output_of(driver, tmp_path, STATUS, user=member)
    assert {int(each) for each in status_of(text)["Groups"]} == set(os.getgrouplist(member, entry.pw_gid))


async def test_capabilities_that_were_dropped_cannot_be_had(tmp_path: Path) -> None:
    settings = {"cap_drop": ["all"], "cap_add": ["net_raw", "CAP_CHOWN"]}
    async with executing(tmp_path) as driver:
        found = status_of(await output_of(driver, tmp_path, STATUS, driver_config=settings))
        with pytest.raises(ConfigError, match="no_such"):
            await driver.start(shell("true", driver_config={"cap_drop": ["no_such"]}))
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[name][0], 16) == 1 << 13 | 1


async def test_a_task_sees_its_own_processes_alone_and_takes_signals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with (
        executing(tmp_path) as driver,
        running(driver, shell("ls -d /proc/[0-9]* | wc -l; echo $$; exec sleep 60", stdout=Stdio.file(out))) as task,
    ):
        while not out.exists() or out.read_text().count("\n") < 2:
            await asyncio.sleep(0.01)
        assert int(out.read_text().split()[0]) <= 4
        assert int(out.read_text().split()[1]) != 1
        while Path(f"/proc/{task.pid}/cmdline").read_bytes() != b"sleep\x0060\0":  # the shell, until it has become it
            await asyncio.sleep(0.01)
        await task.stop(30, signal.SIGTERM)
        end = await task.wait()
        assert end.signal == signal.SIGTERM


async def test_what_a_task_left_is_named_by_the_pids_of_the_host(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, shell("sleep 61 & exit 0")) as task:
        (row,) = (await task.wait()).left_running
        assert Path(f"/proc/{row.pid}/cmdline").read_bytes() == b"sleep\x0061\0"
        assert row.ppid == task.supervisor_pid


async def test_everything_dies_with_the_first_process(tmp_path: Path) -> None:
    before = host_mounts(tmp_path)
    async with (
        executing(tmp_path) as driver,
        running(driver, shell("sleep 60 & exec sleep 60", driver_config=CHROOT)) as task,
    ):
        os.kill(task.supervisor_pid, signal.SIGKILL)
        await task.wait()
        assert host_mounts(tmp_path) == before
    assert host_mounts(tmp_path) == before


async def test_shared_memory_is_the_tasks_own(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        own = await output_of(driver, tmp_path, "readlink /proc/self/ns/ipc")
        hosts = await output_of(driver, tmp_path, "readlink /proc/self/ns/ipc", driver_config={"ipc_mode": "host"})
    assert hosts.strip() == os.readlink("/proc/self/ns/ipc")
    assert own.strip() != hosts.strip()


async def test_a_root_of_its_own_holds_what_was_asked_for_read_only(tmp_path: Path) -> None:
    own, shown = tmp_path / "own", tmp_path / "shown"
    own.mkdir()
    shown.mkdir()
    (shown / "file").write_text("of the host\n")
    mounts = [Mount(source=str(shown), target="/data/shown", read_only=True)]
    script = (
        "pwd; ls /; cat /data/shown/file; for f in /x /usr/x /etc/x /dev/x /data/shown/x; do"
        " touch $f 2>/dev/null && echo wrote $f; done;"
        " echo mine >/local/mine; echo x >/dev/null; echo $NOMAD_ALLOC_DIR $NOMAD_TASK_DIR $NOMAD_SECRETS_DIR;"
        " touch /tmp/x"
    )
    before = host_mounts(tmp_path)
    async with executing(tmp_path / "state") as driver:
        text = await output_of(
            driver, tmp_path, script, driver_config=CHROOT, task_dir=str(own), mounts=mounts, user="nobody"
        )
    lines = text.splitlines()
    assert lines[0] == "/"
    assert {"alloc", "data", "dev", "local", "proc", "secrets", "tmp", "usr"} <= set(lines)
    assert "root" not in lines
    assert "of the host" in lines
    assert not [line for line in lines if line.startswith("wrote")]
    assert lines[-1] == "/alloc /local /secrets"
    assert (own / "local" / "mine").read_text() == "mine\n"
    assert (own / "tmp" / "x").exists()
    assert host_mounts(tmp_path) == before


async def test_root_does_not_escape(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("")
    script = f"""python3 -c '{ESCAPE % marker}'; ls /proc/1/root/ /proc/1/cwd/; echo done
        echo x >/proc/sys/kernel/core_pattern; mknod /tmp/disk b 254 0; mount -t tmpfs x /tmp"""
    async with executing(tmp_path / "state") as driver:
        text = await output_of(driver, tmp_path, script, driver_config=CHROOT)
    lines = text.splitlines()
    assert lines[0].startswith("['alloc', ")
    assert lines[0].endswith("False")
    assert text.count("Permission denied") >= 2
    assert "Read-only file system" in text
    assert "mknod: " in text
    assert "mount: " in text


async def test_a_map_replaces_the_paths_of_the_host(tmp_path: Path) -> None:
    settings = {"chroot": True, "chroot_paths": {"/usr": "/usr", "/bin": "/bin", "/lib": "/lib", "/lib64": "/lib64"}}
    async with executing(tmp_path) as driver:
        text = await output_of(driver, tmp_path, "ls /", driver_config=settings)
    assert "etc" not in text.split()
    assert "usr" in text.split()


async def test_a_link_that_a_task_made_in_its_folder_is_not_followed(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "stolen").symlink_to("/root")
    async with executing(tmp_path / "state") as driver:
        text = await output_of(driver, tmp_path, "ls /", driver_config=CHROOT, task_dir=str(own))
        assert "stolen" not in text.split()
        (own / "local").rmdir()
        (own / "local").symlink_to("/root")
        with pytest.raises(DriverError, match="is no folder"):
            await driver.start(shell("true", driver_config=CHROOT, task_dir=str(own)))


async def test_mounts_without_a_root_of_its_own_are_refused(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver:
        with pytest.raises(ConfigError, match="mounts"):
            await driver.start(shell("true", mounts=[Mount(source="/usr", target="/x")]))


async def test_a_further_command_runs_in_the_same_places(tmp_path: Path) -> None:
    script = "echo $0; id -un; ls -1 /; cat /proc/self/cgroup; cd /proc/self/ns; readlink pid ipc mnt"
    out = tmp_path / "out"
    config = shell(f"{script}; exec sleep 60", "sh", driver_config=CHROOT, user="nobody", stdout=Stdio.file(out))
    async with executing(tmp_path / "state") as driver, running(driver, config) as task:
        while "mnt:[" not in out.read_text():
            await asyncio.sleep(0.01)
        for tty in (False, True):
            async with await task.exec(["/bin/sh", "-c", script, "sh"], tty=tty) as session:
                text = b"".join([data async for _, data in session.output()])
                assert (await session.wait()).exit_code == 0
            assert text.replace(b"\r\n", b"\n").decode() == out.read_text()


async def test_an_unconfined_command_needs_no_root(tmp_path: Path) -> None:
    settings = {"pid_mode": "host", "ipc_mode": "host"}
    async with (
        executing(tmp_path) as driver,
        running(driver, TaskConfig(command="/bin/true", driver_config=settings)) as task,
    ):
        assert (await task.wait()).exit_code == 0


async def test_only_the_devices_that_were_asked_for_can_be_used(tmp_path: Path) -> None:
    script = "ls /dev/asked; head -c 1 /dev/asked | wc -c; mknod /tmp/own c 1 5"
    async with executing(tmp_path) as driver:
        asked = [Device(source="/dev/zero", target="/dev/asked", permissions="r")]
        text = await output_of(driver, tmp_path, script, driver_config=CHROOT, devices=asked)
        assert text.split()[:2] == ["/dev/asked", "1"]
        assert "mknod: " in text
        with pytest.raises(DriverError, match="it is no device"):
            await driver.start(shell("true", driver_config=CHROOT, devices=[Device(source="/etc", target="/dev/x")]))


@pytest.mark.skipif(devices.mount_point() is None, reason="the controller of devices is not mounted")
async def test_the_kernel_refuses_other_devices(tmp_path: Path) -> None:
    async with executing(tmp_path) as driver, running(driver, shell("exec sleep 60", driver_config=CHROOT)) as task:
        assert task.group.paths is not None
        path = devices.folder(driver.groups.cgroups.mode.bases["freezer"], task.group.paths.folders["freezer"])
        assert path is not None
        assert str(task.pid) in Path(path, "cgroup.procs").read_text().split()
        allowed = Path(path, "devices.list").read_text().splitlines()
        assert "c 1:3 rwm" in allowed
        assert not [line for line in allowed if line.startswith("a ")]
    assert not os.path.exists(path)
