"""What a task asks for, before anything is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from confined import executing, needs_groups, needs_root, shell
from hypothesis import given
from hypothesis import strategies as st

from cameleer.config import Device, Mount, TaskConfig
from cameleer.driver import Fingerprint
from cameleer.drivers.cgroup.mode import CgroupMode, Mode
from cameleer.drivers.exec import capabilities, devices, root
from cameleer.drivers.exec.driver import _fingerprint
from cameleer.drivers.supervisor import account
from cameleer.errors import ConfigError, DriverError, StartError

NAMES = st.lists(st.sampled_from(["chown", "CAP_KILL", "sys_admin", "Net_Raw", "checkpoint_restore"]), unique=True)


@given(drop=NAMES, add=NAMES, own_root=st.booleans())
def test_what_is_added_is_kept_and_what_is_dropped_alone_is_not(
    drop: list[str], add: list[str], own_root: bool
) -> None:
    kept = capabilities.kept(drop, add, own_root=own_root)
    dropped, added = capabilities.mask(drop, "cap_drop"), capabilities.mask(add, "cap_add")
    if kept is None:
        assert not drop
        assert not own_root
    else:
        assert kept & added == added
        assert not kept & dropped & ~added


def test_in_a_root_of_its_own_nothing_is_kept_that_leads_out_of_it() -> None:
    kept = capabilities.kept([], [], own_root=True)
    assert kept is not None
    assert not kept & capabilities.mask(["sys_admin", "mknod", "sys_ptrace", "sys_module", "sys_rawio"], "")


@pytest.mark.parametrize(
    "user", ["no-such-user", "0x1", "root:wheel", "4294967295:0", "", "-1:0", "nomad-0", "nomad-01"]
)
def test_a_user_that_does_not_exist_is_named(user: str) -> None:
    with pytest.raises(StartError, match="there is no user"):
        account.find(user)


def test_a_user_may_be_a_number_that_no_account_has_with_its_group() -> None:
    found = account.find("54321:54322")
    assert (found.uid, found.gid, found.groups, found.login) == (54321, 54322, (54322,), "")


def test_a_user_has_the_groups_of_its_account() -> None:
    found = account.find("root")
    assert (found.uid, found.gid) == (0, 0)
    assert set(found.groups) == set(os.getgrouplist("root", 0))


@pytest.mark.parametrize("target", ["relative", "/", "/a/../b", "/proc", "/dev/x", "/proc/1"])
def test_a_mount_that_cannot_be_is_refused(target: str) -> None:
    with pytest.raises(ConfigError):
        root.binds(TaskConfig(command="x", mounts=[Mount(source="/usr", target=target)]), {})


@pytest.mark.parametrize("target", ["/local", "/alloc/x", "/secrets/", "/tmp", "//tmp/x", "/./local"])
def test_a_path_of_the_host_does_not_take_the_place_of_a_tasks_folder(target: str) -> None:
    with pytest.raises(ConfigError, match="the task's own folder"):
        root.binds(TaskConfig(command="x"), {"/usr": "/usr", "/srv": target})


@pytest.mark.parametrize("target", ["//proc", "//dev/x"])
def test_two_slashes_are_one(target: str) -> None:
    with pytest.raises(ConfigError, match="is the task's own"):
        root.binds(TaskConfig(command="x"), {"/usr": target})


def test_a_mount_of_nothing_is_named() -> None:
    with pytest.raises(StartError, match="no such path"):
        root.binds(TaskConfig(command="x", mounts=[Mount(source="/no/such", target="/x")]), {})


def test_paths_of_the_host_that_are_missing_are_skipped() -> None:
    found = root.binds(TaskConfig(command="x"), {"/usr": "/usr", "/no/such": "/such"})
    assert [each.target for each in found if each.kind == "link"] == ["/usr"]


def test_the_list_of_devices_has_what_was_asked_for() -> None:
    found = devices.rules([Device(source="/dev/zero", target="/dev/zero", permissions="r")])
    assert found[-1] == "c 1:5 r"


def test_the_mount_of_devices_is_found(tmp_path: Path) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(
        "31 23 0:28 / /sys/fs/cgroup rw shared:1 - tmpfs tmpfs rw\n36 31 0:33 / /cg/dev rw - cgroup cgroup rw,devices\n"
    )
    assert devices.mount_point(str(file)) == "/cg/dev"
    assert devices.mount_point(str(tmp_path / "missing")) is None


def test_without_groups_the_driver_is_unhealthy_and_says_what_would_help() -> None:
    found = _fingerprint(CgroupMode(mode=Mode.NONE, reason="no control groups are mounted", remedy="mount …"))
    assert isinstance(found, Fingerprint)
    assert found.health == "unhealthy"
    assert "no control groups are mounted" in found.description
    assert "mount …" in found.description


def test_in_a_delegated_group_that_it_may_not_leave_the_driver_is_unhealthy_and_says_what_would_help(
    tmp_path: Path,
) -> None:
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (tmp_path / "cgroup.subtree_control").write_text("\n")
    mode = CgroupMode(mode=Mode.V2, version=2, bases={"unified": str(tmp_path)}, delegated=True, must_move=True)
    found = _fingerprint(mode)
    assert found.health == "unhealthy"
    assert f"this process is in {tmp_path} itself" in found.description
    assert "leave_group" in found.description
    assert _fingerprint(mode, may_move=True).health == "healthy"
    (tmp_path / "cgroup.procs").write_text("")
    assert _fingerprint(mode).health == "healthy", "it has been moved since"


@needs_groups
@needs_root
@pytest.mark.root
@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"devices": [Device(source="/dev/null", target="/dev/x")]}, "devices"),
        ({"terminal": "inherit", "driver_config": {"pid_mode": "private"}}, "pid_mode"),
        ({"driver_config": {"cap_add": ["nonsense"]}}, "cap_add"),
        ({"driver_config": {"chroot": True}, "mounts": [Mount(source="/usr", target="x")]}, "target"),
        ({"driver_config": {"pid_mode": "alone"}}, "pid_mode"),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_starts(
    tmp_path: Path, fields: dict[str, object], word: str
) -> None:
    async with executing(tmp_path) as driver:
        with pytest.raises(DriverError, match=word):
            await driver.start(shell("true", **fields))
        assert driver.supervisors.launcher_pid is None
