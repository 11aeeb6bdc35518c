from __future__ import annotations

import dataclasses
import os
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer import UNLIMITED, ConfigError, Device, Mount, Resources, Stdio, TaskConfig
from cameleer.config import Dns, NetworkIsolation, Port
from cameleer.state import decode_handle, encode_handle
from cameleer.task import TaskHandle

SECRET = "hunter2-do-not-show"

WRONG_TASKS = [
    ("id", "two\nlines"),
    ("id", "x" * 513),
    ("id", 7),
    ("name", "tab\there"),
    ("job_id", None),
    ("job_name", b"bytes"),
    ("group", "\0"),
    ("namespace", "\x1b[31m"),
    ("alloc_id", 1.5),
    ("node_id", "\n"),
    ("node_name", 5),
    ("command", "nul\0"),
    ("command", 5),
    ("args", "-j4"),
    ("args", b"-j4"),
    ("args", 4),
    ("args", None),
    ("cwd", "nul\0"),
    ("user", 0),
    ("image", 3),
    ("cgroup_path", "a\0b"),
    ("alloc_dir", 3),
    ("task_dir", 3),
    ("terminal", "tty"),
    ("terminal", ["pty"]),
    ("stdin", "/dev/null"),
    ("stdout", None),
    ("stderr", 2),
    ("resources", {"pids": 4}),
    ("mounts", "/a:/b"),
    ("devices", 3),
    ("ports", {"http": 80}),
    ("dns", "1.1.1.1"),
    ("network_isolation", "host"),
    ("meta", "owner=me"),
    ("timeout_s", 0),
    ("timeout_s", -1.0),
    ("timeout_s", float("inf")),
    ("timeout_s", float("nan")),
    ("timeout_s", "10"),
    ("timeout_s", True),
    ("kill_timeout_s", -0.1),
    ("kill_timeout_s", None),
    ("kill_timeout_s", float("inf")),
    ("kill_signal", 0),
    ("kill_signal", 65),
    ("kill_signal", 9.0),
    ("kill_signal", "SIGTERM"),
    ("leave_rest", "yes"),
]

WRONG_RESOURCES = [
    ("cpu_mhz", 0),
    ("cpu_mhz", 1.5),
    ("cpu_quota_cores", 0.0),
    ("cpu_quota_cores", float("nan")),
    ("cpu_quota_cores", "1"),
    ("cpuset_cpus", ""),
    ("cpuset_cpus", "3-1"),
    ("cpuset_cpus", "a"),
    ("cpuset_cpus", "0-1-2"),
    ("cpuset_cpus", 1),
    ("memory_bytes", 0),
    ("memory_bytes", -1),
    ("memory_bytes", 1e9),
    ("memory_bytes", "1G"),
    ("memory_max_bytes", 0),
    ("memory_max_bytes", -2),
    ("swap_bytes", -1),
    ("pids", 0),
    ("pids", True),
    ("io_weight", 9),
    ("io_weight", 1001),
    ("oom_score_adj", -1001),
    ("oom_score_adj", 1001),
]


@pytest.mark.parametrize(("name", "value"), WRONG_TASKS, ids=repr)
def test_a_wrong_task_is_refused_with_field_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskConfig(**{"command": "true", name: value})
    assert f"TaskConfig.{name} is {value!r}" in str(caught.value)


@pytest.mark.parametrize(("name", "value"), WRONG_RESOURCES, ids=repr)
def test_wrong_resources_are_refused_with_field_and_value(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        Resources(**{name: value})
    assert f"Resources.{name} is {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TaskConfig(args=["ok", 5]), "TaskConfig.args[1] is 5"),  # type: ignore[list-item]
        (lambda: TaskConfig(args=["ok", "a\0b"]), "TaskConfig.args[1] is 'a\\x00b'"),
        (lambda: TaskConfig(mounts=["/a:/b"]), "TaskConfig.mounts[0] is '/a:/b'"),  # type: ignore[list-item]
        (lambda: TaskConfig(meta={"a": 1}), "TaskConfig.meta['a'] is 1"),  # type: ignore[dict-item]
        (lambda: Resources(memory_bytes=2, memory_max_bytes=1), "Resources.memory_max_bytes is 1"),
        (lambda: Device(source="/dev/a", target="/dev/a", permissions="rx"), "Device.permissions is 'rx'"),
        (lambda: Device(source="/dev/a", target="/dev/a", permissions=""), "Device.permissions is ''"),
        (lambda: Mount(source="a\0", target="b"), "Mount.source is 'a\\x00'"),
        (lambda: Mount(source="a", target="b", propagation="x"), "Mount.propagation is 'x'"),  # type: ignore[arg-type]
        (lambda: Port(host_port=65536), "Port.host_port is 65536"),
        (lambda: Port(host_port=1, container_port=-1), "Port.container_port is -1"),
        (lambda: Port(host_port=1, protocol="icmp"), "Port.protocol is 'icmp'"),  # type: ignore[arg-type]
        (lambda: NetworkIsolation(mode="bridge"), "NetworkIsolation.mode is 'bridge'"),  # type: ignore[arg-type]
        (lambda: Stdio("file"), "kind 'file' with path None"),
        (lambda: Stdio("discard", path="/x"), "kind 'discard' with path '/x'"),
        (lambda: Stdio("fd"), "kind 'fd' with descriptor None"),
        (lambda: Stdio.fd(-1), "Stdio.descriptor is -1"),
        (lambda: Stdio("pipe"), "Stdio.kind is 'pipe'"),  # type: ignore[arg-type]
    ],
)
def test_wrong_parts_are_refused_with_field_and_value(make: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize("field", ["env", "device_env"])
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"A=B": "x"}, "'A=B'"),
        ({"": "x"}, "''"),
        ({"A\0": "x"}, "'A\\x00'"),
        ({5: "x"}, "5"),
        ({"A": f"{SECRET}\0"}, "'A'"),
        ({"A": [SECRET]}, "'A'"),
        (f"A={SECRET}", "is str"),
        ([f"A={SECRET}"], "is list"),
    ],
)
def test_a_wrong_environment_names_the_variable_and_hides_its_value(field: str, env: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskConfig(**{field: env})
    assert f"TaskConfig.{field}" in str(caught.value)
    assert words in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_task_does_not_show_its_secrets() -> None:
    task = TaskConfig(command="true", env={"TOKEN": SECRET}, device_env={"A": SECRET}, driver_config={"auth": SECRET})
    assert SECRET not in repr(task)
    assert SECRET not in repr(TaskHandle(driver="x", config=task, driver_state=SECRET.encode()))


def test_an_error_is_a_value_error_too() -> None:
    with pytest.raises(ValueError, match="pids"):
        Resources(pids=0)


def test_an_id_is_made_up_where_none_is_given() -> None:
    ids = {TaskConfig(command="true").id for _ in range(100)}
    assert len(ids) == 100
    assert TaskConfig(id="mine").id == "mine"


@pytest.mark.parametrize(
    ("command", "name"),
    [("/usr/bin/make", "make"), ("make", "make"), ("", "task"), ("/a\nb", "a?b"), ("x" * 600, "x" * 512)],
)
def test_a_task_without_a_name_is_called_as_its_command(command: str, name: str) -> None:
    assert TaskConfig(command=command).name == name


def test_a_task_does_not_change_when_what_it_was_made_of_does() -> None:
    args, env = ["a"], {"A": "1"}
    task = TaskConfig(command="true", args=args, env=env)
    args.append("b")
    env["B"] = "2"
    assert (task.args, task.env) == (("a",), {"A": "1"})


def test_a_task_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TaskConfig().command = "false"  # type: ignore[misc]
    assert dataclasses.replace(TaskConfig(id="a", command="true"), command="false").id == "a"


@pytest.mark.parametrize(
    ("resources", "limit"),
    [
        (Resources(), None),
        (Resources(memory_bytes=5), 5),
        (Resources(memory_bytes=5, memory_max_bytes=7), 7),
        (Resources(memory_max_bytes=7), 7),
        (Resources(memory_bytes=5, memory_max_bytes=UNLIMITED), None),
    ],
)
def test_the_hard_memory_limit(resources: Resources, limit: int | None) -> None:
    assert resources.memory_limit_bytes == limit


@pytest.mark.parametrize("cpus", ["0", "0-3", "0-1,4", "0,2,4-5"])
def test_cpus_are_listed_as_the_kernel_does(cpus: str) -> None:
    assert Resources(cpuset_cpus=cpus).cpuset_cpus == cpus


def test_standard_streams_are_what_their_constructors_say(tmp_path: Path) -> None:
    assert Stdio() == Stdio.discard()
    assert Stdio.file(tmp_path / "out") == Stdio("file", path=str(tmp_path / "out"))
    assert Stdio.fifo("in").path == "in"
    assert Stdio.fd(3).descriptor == 3
    assert Stdio.inherit().kind == "inherit"


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
tasks = st.builds(
    TaskConfig,
    command=words,
    args=st.lists(words, max_size=4),
    env=st.dictionaries(st.text(alphabet="ABC_", min_size=1), words, max_size=4),
    cwd=st.none() | words,
    stdin=st.sampled_from([Stdio(), Stdio.inherit(), Stdio.file("/a"), Stdio.fifo("/b"), Stdio.fd(4)]),
    mounts=st.lists(st.builds(Mount, source=words, target=words), max_size=2),
    ports=st.lists(st.builds(Port, host_port=st.integers(0, 65535)), max_size=2),
    dns=st.none() | st.builds(Dns, servers=st.lists(words, max_size=2)),
    network_isolation=st.none() | st.builds(NetworkIsolation, mode=st.sampled_from(["host", "group"])),
    resources=st.builds(Resources, pids=st.none() | st.integers(1, 99), cpu_quota_cores=st.none() | st.floats(0.1, 9)),
    timeout_s=st.none() | st.floats(0.1, 1e6),
    driver_config=st.dictionaries(words, words | st.integers(0, 9) | st.booleans(), max_size=3),
)


@given(config=tasks, state=st.binary(max_size=20))
def test_a_handle_survives_being_written_down(config: TaskConfig, state: bytes) -> None:
    handle = TaskHandle(driver="x", config=config, started_at_ns=5, driver_state=state)
    read = decode_handle(encode_handle(handle))
    assert encode_handle(read) == encode_handle(handle)
    assert (read.config.args, read.config.env, read.driver_state) == (config.args, config.env, state)


def test_a_handle_of_a_newer_version_is_read() -> None:
    handle = TaskHandle(driver="x", config=TaskConfig(id="a", command="true"))
    plain = msgspec.json.decode(encode_handle(handle))
    plain.update(version=2, later="unknown here")
    plain["config"].update(later={"unknown": "here"})
    assert decode_handle(msgspec.json.encode(plain)).config.id == "a"


def test_a_task_goes_to_another_process() -> None:
    task = TaskConfig(command="true", env={"A": "1"}, resources=Resources(pids=4))
    assert pickle.loads(pickle.dumps(task)) == task


def test_no_two_ids_are_equal_after_a_fork() -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, TaskConfig().id.encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        theirs = pipe.read()
    os.waitpid(pid, 0)
    assert theirs
    assert theirs != TaskConfig().id


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    shell: str = "/bin/sh"
    api_token: str = ""
    retries: int = 3


def test_a_driver_reads_its_settings_as_its_own_type() -> None:
    assert TaskConfig(driver_config={"retries": "5"}).settings(Options) == Options(retries=5)
    assert TaskConfig().settings(Options) == Options()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"retires": 5}, "driver_config has the unknown key 'retires': did you mean 'retries'?"),
        ({"retries": "many"}, "driver_config.retries is 'many'"),
    ],
)
def test_wrong_settings_are_named(settings: Any, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TaskConfig(driver_config=settings).settings(Options)
    assert words in str(caught.value)


def test_wrong_settings_do_not_show_secrets() -> None:
    with pytest.raises(ConfigError, match=r"driver_config\.api_token") as caught:
        TaskConfig(driver_config={"api_token": [SECRET]}).settings(Options)
    assert SECRET not in str(caught.value)
