"""What the engine is asked for, and that containers really have it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from engine import IMAGE, Engine, needs_engine, running
from hypothesis import given
from hypothesis import strategies as st

from cameleer.config import UNLIMITED, Device, Dns, Mount, NetworkIsolation, Port, Resources, Stdio, TaskConfig
from cameleer.drivers.cgroup import limits
from cameleer.drivers.docker.creation.create import Creation, arguments, check_warnings, container_name
from cameleer.drivers.docker.settings import DockerConfig, DockerTaskConfig
from cameleer.errors import ConfigError, NotSupported
from cameleer.node import NodeInfo

if TYPE_CHECKING:
    from cameleer.drivers.docker.engine import EngineInfo

MIB = 1 << 20
NODE = NodeInfo(node_id="n1", host_id="h1")
KEPT = [
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP",
    "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
]  # fmt: skip
LONGER_THAN_A_TEST = ("sleep", "300")


def creation(
    driver: DockerConfig | None = None, node: NodeInfo = NODE, info: EngineInfo | None = None, **fields: Any
) -> Creation:
    task = TaskConfig(**fields)
    return arguments(
        task, task.settings(DockerTaskConfig), driver or DockerConfig(), image="sha256:1", node=node, info=info
    )


def body(driver: DockerConfig | None = None, **fields: Any) -> dict[str, Any]:
    return creation(driver, **fields).body


def host(driver: DockerConfig | None = None, **fields: Any) -> dict[str, Any]:
    found = body(driver, **fields)["HostConfig"]
    assert isinstance(found, dict)
    return found


def with_settings(**settings: Any) -> dict[str, Any]:
    return host(DockerConfig(allow_caps=["all"]), driver_config=settings)


def engine_info(**fields: Any) -> EngineInfo:
    known: dict[str, Any] = {
        "version": "20.10", "api_version": "1.41", "cgroup_driver": "cgroupfs", "cgroup_version": 1,
        "storage": "overlay2", "runtimes": ("runc",), "architecture": "x86_64", "default_log_driver": "json-file",
        "windows": False,
    }  # fmt: skip
    from cameleer.drivers.docker.engine import EngineInfo

    return EngineInfo(**{**known, **fields})


# -- command, streams, identity ------------------------------------------------------------------------------------


def test_a_task_that_asks_for_nothing_leaves_all_to_the_image_and_the_engine() -> None:
    assert body(id="t", name="web") == {
        "Image": "sha256:1",
        "Env": [],
        "StopTimeout": 5,
        "Tty": False,
        "OpenStdin": False,
        "StdinOnce": False,
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "Labels": {
            "cameleer.task_id": "t",
            "cameleer.task_name": "web",
            "cameleer.job_id": "",
            "cameleer.job": "",
            "cameleer.group": "",
            "cameleer.alloc_id": "",
            "cameleer.namespace": "",
            "cameleer.node_id": "n1",
            "cameleer.host_id": "h1",
        },
        "HostConfig": {
            "AutoRemove": False,
            "RestartPolicy": {"Name": "no"},
            "SecurityOpt": ["no-new-privileges"],
            "CapAdd": KEPT,
            "CapDrop": ["ALL"],
        },
    }


def test_command_arguments_and_entrypoint_are_passed_word_by_word() -> None:
    found = body(command="sh", args=["-c", "echo $HOME *"], driver_config={"entrypoint": ["/bin/env", "-i"]})
    assert found["Cmd"] == ["sh", "-c", "echo $HOME *"]
    assert found["Entrypoint"] == ["/bin/env", "-i"]
    assert body(args=["-v"])["Cmd"] == ["-v"]


def test_user_directory_environment_and_end_are_the_tasks() -> None:
    found = body(user="1000:1000", cwd="/srv", env={"A": "1=2", "B": ""}, kill_signal=15, kill_timeout_s=2.1)
    assert (found["User"], found["WorkingDir"], found["Env"]) == ("1000:1000", "/srv", ["A=1=2", "B="])
    assert (found["StopSignal"], found["StopTimeout"]) == ("15", 3)


def test_what_devices_bring_into_the_environment_is_there_and_the_tasks_own_counts() -> None:
    assert body(device_env={"GPU": "0", "A": "theirs"}, env={"A": "ours"})["Env"] == ["GPU=0", "A=ours"]


def test_stdin_is_open_once_where_there_is_one() -> None:
    found = body(stdin=Stdio.inherit())
    assert found["OpenStdin"]
    assert found["StdinOnce"]
    assert found["AttachStdin"]
    assert not found["Tty"]


def test_a_terminal_is_one_of_its_own() -> None:
    assert body(terminal="pty")["Tty"] is True
    with pytest.raises(ConfigError, match="TaskConfig.terminal is 'inherit': a container is a session of its own"):
        body(terminal="inherit")


def test_labels_say_whose_a_container_is() -> None:
    found = body(
        id="t", name="n", job_id="j", job_name="job", group="g", alloc_id="a", namespace="ns",
        driver_config={"labels": {"team": "x"}, "keep": True},
    )["Labels"]  # fmt: skip
    assert found == {
        "team": "x",
        "cameleer.task_id": "t",
        "cameleer.task_name": "n",
        "cameleer.job_id": "j",
        "cameleer.job": "job",
        "cameleer.group": "g",
        "cameleer.alloc_id": "a",
        "cameleer.namespace": "ns",
        "cameleer.node_id": "n1",
        "cameleer.host_id": "h1",
        "cameleer.keep": "true",
    }


@given(st.text(min_size=1, max_size=80), st.text(max_size=80))
def test_a_containers_name_is_always_one_that_the_engine_takes(task_id: str, name: str) -> None:
    try:
        task = TaskConfig(id=task_id, name=name)
    except ConfigError:
        return
    found = container_name(task, NODE)
    assert found.isascii()
    assert len(found) <= 63
    assert found[0].isalnum()
    assert all(each.isalnum() or each in "_.-" for each in found)


def test_containers_of_two_tasks_or_of_two_hosts_have_different_names() -> None:
    tasks = [TaskConfig(id="a/b", name="web"), TaskConfig(id="a_b", name="web"), TaskConfig(id="A_B", name="web")]
    nodes = [NODE, NodeInfo(host_id="h2")]
    names = [container_name(task, node) for task in tasks for node in nodes]
    assert len(set(names)) == len(names)
    assert names[0].startswith("web-")
    assert container_name(TaskConfig(id="a/b", name="web"), NODE) == names[0]


# -- resources -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (Resources(memory_bytes=64 * MIB), {"Memory": 64 * MIB, "MemorySwap": 64 * MIB}),
        (Resources(memory_bytes=64 * MIB, swap_bytes=MIB), {"Memory": 64 * MIB, "MemorySwap": 65 * MIB}),
        (
            Resources(memory_bytes=64 * MIB, memory_max_bytes=128 * MIB),
            {"Memory": 128 * MIB, "MemorySwap": 128 * MIB, "MemoryReservation": 64 * MIB},
        ),
        (Resources(memory_bytes=64 * MIB, memory_max_bytes=UNLIMITED), {"MemoryReservation": 64 * MIB}),
        (Resources(cpu_mhz=500), {"CpuShares": 500}),
        (Resources(cpu_quota_cores=0.5), {"CpuQuota": 50_000, "CpuPeriod": 100_000}),
        (Resources(cpu_quota_cores=0.002), {"CpuQuota": 2_000, "CpuPeriod": 1_000_000}),
        (Resources(cpuset_cpus="0-1,4"), {"CpusetCpus": "0-1,4"}),
        (Resources(pids=10, io_weight=500), {"PidsLimit": 10, "BlkioWeight": 500}),
        (Resources(oom_score_adj=-5), {"OomScoreAdj": -5}),
    ],
)
def test_each_limit_has_its_place(asked: Resources, found: dict[str, int]) -> None:
    nothing = host()
    assert {name: value for name, value in host(resources=asked).items() if name not in nothing} == found


def test_the_drivers_share_of_the_cpu_is_for_tasks_that_ask_for_none() -> None:
    driver = DockerConfig(default_cpu_mhz=200)
    assert host(driver)["CpuShares"] == 200
    assert host(driver, resources=Resources(cpu_mhz=300))["CpuShares"] == 300
    assert "CpuShares" not in host()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Resources(cpu_mhz=1), "Resources.cpu_mhz is 1: it must be at least 2 MHz"),
        (Resources(memory_bytes=MIB), "Resources.memory_bytes is 1048576: it must be at least 6291456 bytes"),
        (Resources(swap_bytes=MIB), "Resources.swap_bytes is 1048576 without a memory limit"),
        (Resources(cpu_quota_cores=1e12), "Resources.cpu_quota_cores is 1000000000000.0: it must be at most 1000000"),
        (Resources(pids=1 << 70), "Resources.pids is 1180591620717411303424: it must be at most"),
    ],
)
def test_a_limit_that_no_engine_holds_is_named(asked: Resources, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        host(resources=asked)


def test_a_share_of_the_driver_that_is_too_small_is_named() -> None:
    with pytest.raises(ConfigError, match="drivers.docker.default_cpu_mhz is 1: it must be at least 2 MHz"):
        host(DockerConfig(default_cpu_mhz=1))


def test_a_limit_that_the_engine_left_out_is_an_error_and_one_not_asked_for_is_not() -> None:
    weight = "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded."
    swap = "Your kernel does not support swap limit capabilities. Memory limited without swap."
    task = TaskConfig(resources=Resources(io_weight=500, memory_bytes=64 * MIB))
    with pytest.raises(NotSupported, match=r"Resources.io_weight 500 cannot be held: the engine says: Your kernel"):
        check_warnings(task, [weight])
    check_warnings(task, [swap, "IPv4 forwarding is disabled. Networking will not work."])


def test_limits_of_processes_are_soft_and_hard() -> None:
    found = with_settings(ulimits={"nofile": "1024:2048", "core": "0", "memlock": "unlimited", "nproc": "5:unlimited"})
    assert found["Ulimits"] == [
        {"Name": "nofile", "Soft": 1024, "Hard": 2048},
        {"Name": "core", "Soft": 0, "Hard": 0},
        {"Name": "memlock", "Soft": -1, "Hard": -1},
        {"Name": "nproc", "Soft": 5, "Hard": -1},
    ]


# -- files ---------------------------------------------------------------------------------------------------------


def test_mounts_are_bound_as_they_are_asked_for() -> None:
    found = host(
        mounts=[
            Mount(source="/srv/a", target="/a"),
            Mount(source="/srv/b", target="/b/", read_only=True, propagation="host-to-task"),
        ]
    )
    assert found["Mounts"] == [
        {"Type": "bind", "Source": "/srv/a", "Target": "/a", "ReadOnly": False},
        {
            "Type": "bind",
            "Source": "/srv/b",
            "Target": "/b",
            "ReadOnly": True,
            "BindOptions": {"Propagation": "rslave"},
        },
    ]


def test_volumes_are_paths_names_or_anonymous() -> None:
    found = body(
        task_dir="/srv/task",
        driver_config={"volumes": ["/etc/x:/x:ro", "data:/data", "./local/conf:/conf:ro,Z", "/cache"]},
    )
    assert found["HostConfig"]["Binds"] == ["/etc/x:/x:ro", "data:/data", "/srv/task/local/conf:/conf:ro,Z"]
    assert found["Volumes"] == {"/cache": {}}


def test_the_root_can_be_read_only_with_folders_in_memory() -> None:
    found = with_settings(read_only=True, tmpfs={"/tmp": "size=64m,mode=1777", "/run/": ""}, shm_size=MIB)
    assert found["ReadonlyRootfs"] is True
    assert found["Tmpfs"] == {"/tmp": "size=64m,mode=1777", "/run": ""}
    assert found["ShmSize"] == MIB


def test_where_host_paths_are_forbidden_the_tasks_own_folders_are_not(tmp_path: Path) -> None:
    driver = DockerConfig(volumes=False)
    own = tmp_path / "alloc"
    (own / "data").mkdir(parents=True)
    (own / "way-out").symlink_to("/etc")
    named = {"volumes": ["name:/data", f"{own}/data:/own"]}
    assert host(driver, alloc_dir=str(own), driver_config=named)["Binds"] == ["name:/data", f"{own}/data:/own"]
    for source in ("/etc", f"{own}/../x", f"{own}/way-out", f"{own}-other"):
        with pytest.raises(ConfigError, match="drivers.docker.volumes is false"):
            host(driver, alloc_dir=str(own), driver_config={"volumes": [f"{source}:/x"]})
        with pytest.raises(ConfigError, match=r"TaskConfig.mounts\[0\].source is .*drivers.docker.volumes is false"):
            host(driver, alloc_dir=str(own), mounts=[Mount(source=source, target="/x")])


# -- network -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("isolation", "mode"),
    [
        (None, None),
        (NetworkIsolation(mode="task"), None),
        (NetworkIsolation(mode="host"), "host"),
        (NetworkIsolation(mode="none"), "none"),
        (NetworkIsolation(mode="group", labels={"docker_sandbox_container_id": "0123abc"}), "container:0123abc"),
    ],
)
def test_the_networks_mode_follows_from_the_isolation(isolation: NetworkIsolation | None, mode: str | None) -> None:
    assert host(network_isolation=isolation).get("NetworkMode") == mode
    settings = {"network_mode": "bridge"}
    assert host(network_isolation=isolation, driver_config=settings)["NetworkMode"] == "bridge"


def test_ports_lead_from_the_host_to_the_container() -> None:
    found = body(
        ports=[
            Port(host_port=8080, container_port=80),
            Port(host_port=8081, container_port=80, host_ip="127.0.0.1"),
            Port(host_port=53, protocol="udp"),
            Port(host_port=0, container_port=443),
        ]
    )
    assert found["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}, "443/tcp": {}}
    assert found["HostConfig"]["PortBindings"] == {
        "80/tcp": [{"HostIp": "", "HostPort": "8080"}, {"HostIp": "127.0.0.1", "HostPort": "8081"}],
        "53/udp": [{"HostIp": "", "HostPort": "53"}],
        "443/tcp": [{"HostIp": "", "HostPort": ""}],
    }


def test_on_the_hosts_network_a_port_is_where_it_is() -> None:
    assert "PortBindings" not in host(
        ports=[Port(host_port=80, host_ip="10.0.0.1")], driver_config={"network_mode": "host"}
    )


def test_names_and_name_servers_are_passed_on() -> None:
    found = body(
        dns=Dns(servers=["10.0.0.1", "::1"], searches=["a.example"], options=["ndots:2"]),
        driver_config={"hostname": "web-1.example", "extra_hosts": ["db:10.0.0.2", "six:::1", "up:host-gateway"]},
    )
    assert found["Hostname"] == "web-1.example"
    assert found["HostConfig"]["Dns"] == ["10.0.0.1", "::1"]
    assert found["HostConfig"]["DnsSearch"] == ["a.example"]
    assert found["HostConfig"]["DnsOptions"] == ["ndots:2"]
    assert found["HostConfig"]["ExtraHosts"] == ["db:10.0.0.2", "six:::1", "up:host-gateway"]


# -- privileges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "added", "dropped"),
    [
        ({}, KEPT, ["ALL"]),
        ({"cap_drop": ["all"]}, [], ["ALL"]),
        ({"cap_drop": ["ALL"], "cap_add": ["CAP_CHOWN", "net_raw"]}, ["CHOWN", "NET_RAW"], ["ALL"]),
        ({"cap_drop": ["mknod"]}, [each for each in KEPT if each != "MKNOD"], ["ALL"]),
        ({"cap_add": ["net_raw"]}, sorted([*KEPT, "NET_RAW"]), ["ALL"]),
        ({"cap_add": ["all"], "cap_drop": ["sys_admin"]}, ["ALL"], ["SYS_ADMIN"]),
    ],
)
def test_capabilities_are_a_short_list_less_and_more(settings: Any, added: list[str], dropped: list[str]) -> None:
    found = with_settings(**settings)
    assert (found["CapAdd"], found["CapDrop"]) == (added, dropped)


def test_capabilities_beyond_the_short_list_are_the_drivers_to_allow() -> None:
    assert "NET_RAW" in host(DockerConfig(allow_caps=["net_raw"]), driver_config={"cap_add": ["net_raw"]})["CapAdd"]
    assert host(driver_config={"cap_drop": ["all"], "cap_add": ["chown"]})["CapAdd"] == ["CHOWN"]
    for asked in ("sys_admin", "all"):
        with pytest.raises(ConfigError, match=rf"cap_add has \['{asked.upper()}'\]: drivers.docker.allow_caps"):
            host(DockerConfig(allow_caps=["net_raw"]), driver_config={"cap_add": [asked]})


def test_a_task_is_privileged_only_where_the_driver_allows_it() -> None:
    settings = {"privileged": True, "no_new_privileges": False}
    found = host(DockerConfig(allow_privileged=True), driver_config=settings)
    assert found["Privileged"] is True
    assert "CapDrop" not in found
    assert "SecurityOpt" not in found
    with pytest.raises(ConfigError, match="driver_config.privileged is True: drivers.docker.allow_privileged is false"):
        host(driver_config=settings)


def test_options_devices_and_namespaces_are_passed_on() -> None:
    found = host(
        devices=[Device(source="/dev/fuse", target="", permissions="rw")],
        driver_config={
            "security_opt": ["seccomp=unconfined", "apparmor:mine"],
            "pid_mode": "host",
            "ipc_mode": "container:other",
            "init": True,
            "runtime": "runc",
            "sysctls": {"net.core.somaxconn": "1024"},
            "storage_opt": {"size": "1g"},
            "log_driver": "local",
            "log_options": {"max-size": "1m"},
        },
    )
    assert found["Devices"] == [{"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rw"}]
    assert found["SecurityOpt"] == ["no-new-privileges", "seccomp=unconfined", "apparmor=mine"]
    assert (found["PidMode"], found["IpcMode"], found["Init"]) == ("host", "container:other", True)
    assert found["Runtime"] == "runc"
    assert found["Sysctls"] == {"net.core.somaxconn": "1024"}
    assert found["StorageOpt"] == {"size": "1g"}
    assert found["LogConfig"] == {"Type": "local", "Config": {"max-size": "1m"}}


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"leave_rest": True}, "TaskConfig.leave_rest is True"),
        ({"cwd": "srv"}, "TaskConfig.cwd is 'srv': it must be a whole path, of the container"),
        ({"args": ["\udc80"]}, r"the container's Cmd\[0\] is not text of UTF-8"),
        (
            {"mounts": [Mount(source="a", target="/a")]},
            r"TaskConfig.mounts\[0\].source is 'a': it must be a whole path",
        ),
        ({"mounts": [Mount(source="/a", target="a")]}, r"TaskConfig.mounts\[0\].target is 'a': where it is mounted"),
        ({"mounts": [Mount(source="/a", target="/x/..")]}, "nothing can be mounted over the container's root"),
        (
            {"mounts": [Mount(source="/a", target="/a"), Mount(source="/b", target="//a/")]},
            r"TaskConfig.mounts\[1\].target is '//a/': TaskConfig.mounts\[0\].target is mounted there already",
        ),
        ({"devices": [Device(source="fuse", target="/dev/fuse")]}, r"TaskConfig.devices\[0\].source is 'fuse'"),
        ({"ports": [Port(host_port=0)]}, r"TaskConfig.ports\[0\].container_port is None: it must be 1 to 65535"),
        ({"ports": [Port(host_port=80, host_ip="eth0")]}, r"TaskConfig.ports\[0\].host_ip is 'eth0': it must be an IP"),
        (
            {"ports": [Port(host_port=80), Port(host_port=80, container_port=81)]},
            r"TaskConfig.ports\[1\].host_port is 80: it is led elsewhere already",
        ),
        (
            {"ports": [Port(host_port=80)], "network_isolation": NetworkIsolation(mode="none")},
            r"TaskConfig.ports\[0\] leads 80 to 80: no port can be led elsewhere in the network 'none'",
        ),
        (
            {"ports": [Port(host_port=80, container_port=81)], "driver_config": {"network_mode": "host"}},
            r"TaskConfig.ports\[0\] leads 80 to 81: no port can be led elsewhere in the network 'host'",
        ),
        ({"dns": Dns(servers=["dns.example"])}, r"TaskConfig.dns.servers\[0\] is 'dns.example': it must be an IP"),
        (
            {"network_isolation": NetworkIsolation(mode="group", path="/run/netns/x")},
            "TaskConfig.network_isolation is .*/run/netns/x.*cannot join a path",
        ),
        (
            {"driver_config": {"network_mode": "container:a", "hostname": "b"}},
            "driver_config.hostname is 'b': in the network 'container:a' that is the other container's",
        ),
    ],
)
def test_what_a_container_cannot_hold_is_named(fields: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        body(**fields)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"volume": []}, "driver_config has the unknown key 'volume': did you mean 'volumes'"),
        ({"volumes": "a:b"}, "driver_config.volumes is 'a:b': it must be a list"),
        ({"volumes": [{}]}, r"driver_config.volumes\[0\] is a map: it must be text"),
        ({"volumes": ["a:b:c:d"]}, r"driver_config.volumes\[0\] is 'a:b:c:d': write SOURCE:TARGET"),
        ({"volumes": ["x"]}, r"driver_config.volumes\[0\] is 'x': where it is mounted must be a whole path"),
        ({"volumes": ["/a:b"]}, r"driver_config.volumes\[0\] is 'b': where it is mounted must be a whole path"),
        ({"volumes": ["a$b:/b"]}, "'a\\$b' is neither a path nor a volume's name"),
        ({"volumes": ["./a:/b"]}, "'./a' must be a whole path, as the task has no task_dir"),
        ({"volumes": ["/a:/b:rx"]}, "'rx' is no option; use ro, rw, z"),
        ({"volumes": ["/a:/b:ro,rw"]}, "'ro' and 'rw' are given together"),
        ({"tmpfs": {"tmp": ""}}, "driver_config.tmpfs is 'tmp': where it is mounted must be a whole path"),
        ({"tmpfs": {"/tmp": "size=big"}}, "driver_config.tmpfs.'/tmp'. is 'size=big': size must be a number of bytes"),
        ({"tmpfs": {"/tmp": "fast"}}, "'fast' is no option"),
        ({"ulimits": {"nofiles": "1"}}, "driver_config.ulimits.nofiles is no limit of processes: use one of core, cpu"),
        ({"ulimits": {"nofile": "many"}}, "driver_config.ulimits.nofile is 'many': write SOFT or SOFT:HARD"),
        ({"ulimits": {"nofile": "2:1"}}, "driver_config.ulimits.nofile is '2:1': the soft limit must not be above"),
        ({"ulimits": {"nofile": "unlimited:1"}}, "the soft limit must not be above the hard one"),
        ({"cap_add": ["net_row"]}, r"driver_config.cap_add\[0\] is 'net_row': there is no such capability"),
        ({"cap_drop": ["all"], "cap_add": ["all"]}, "driver_config.cap_drop and cap_add both have 'all'"),
        ({"security_opt": ["no-new-privileges"]}, "say it with driver_config.no_new_privileges"),
        ({"security_opt": ["systempaths=unconfined"]}, r"driver_config.security_opt\[0\] is 'systempaths=unconfined'"),
        ({"security_opt": ["seccomp=/etc/x.json"]}, "a seccomp profile is 'unconfined', 'builtin' or"),
        ({"network_mode": "container:"}, "driver_config.network_mode is 'container:': use bridge, host, none"),
        ({"network_mode": "ns:/run/netns/x"}, "driver_config.network_mode is 'ns:/run/netns/x'"),
        ({"extra_hosts": ["db"]}, r"driver_config.extra_hosts\[0\] is '': it must be an IP address"),
        ({"extra_hosts": [":1.2.3.4"]}, r"driver_config.extra_hosts\[0\] is ':1.2.3.4': write NAME:ADDRESS"),
        ({"hostname": "-a"}, "driver_config.hostname is '-a': it must be a name of a machine"),
        ({"labels": {"cameleer.task_id": "x"}}, "driver_config.labels has the key 'cameleer.task_id'"),
        ({"pid_mode": "private"}, "driver_config.pid_mode is 'private': use 'host' or 'container:NAME'"),
        ({"ipc_mode": "container:../x"}, "driver_config.ipc_mode is 'container:../x'"),
        ({"shm_size": -1}, "driver_config.shm_size is -1"),
        ({"sysctls": {"a b": "1"}}, "driver_config.sysctls has the key 'a b'"),
        ({"pull_policy": "often"}, "driver_config.pull_policy is 'often': it must be one of"),
    ],
)
def test_a_setting_that_is_wrong_is_named_with_its_path(settings: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_settings(**settings)


@pytest.mark.parametrize("name", ["none", "syslog", "gelf", "fluentd", "awslogs", "splunk", "etwlogs", "gcplogs", "x"])
def test_a_log_driver_that_cannot_be_read_back_is_refused_where_output_is_wanted(name: str) -> None:
    settings = {"log_driver": name}
    assert host(driver_config=settings)["LogConfig"] == {"Type": name, "Config": {}}
    for stdout, stderr in ((Stdio.file("/tmp/x"), Stdio()), (Stdio(), Stdio.file("/tmp/x"))):
        with pytest.raises(ConfigError, match=f"driver_config.log_driver is '{name}': output could not be read back"):
            body(driver_config=settings, stdout=stdout, stderr=stderr)


def test_what_is_known_of_the_engine_is_looked_at_too() -> None:
    wanted: dict[str, Any] = {"stdout": Stdio.file("/tmp/x")}
    creation(info=engine_info(), **wanted)
    with pytest.raises(ConfigError, match="driver_config.log_driver is not set, and the engine's own is 'syslog'"):
        creation(info=engine_info(default_log_driver="syslog"), **wanted)
    with pytest.raises(ConfigError, match="driver_config.runtime is 'kata': the engine has runc"):
        creation(info=engine_info(), driver_config={"runtime": "kata"})


def test_a_secret_is_in_no_message() -> None:
    with pytest.raises(ConfigError) as caught:
        body(env={"PASSWORD": "hunter2\udc80"})
    assert "hunter2" not in str(caught.value)


TEXT = st.text(max_size=12) | st.sampled_from(
    ["", "/", "a:b", "/a:/b:ro", "all", "host", "container:x", "1:2", "size=1m"]
)
TASKS = st.fixed_dictionaries(
    {},
    optional={
        "id": TEXT,
        "name": TEXT,
        "command": TEXT,
        "args": st.lists(TEXT, max_size=3),
        "env": st.dictionaries(TEXT, TEXT, max_size=3),
        "cwd": TEXT,
        "user": TEXT,
        "alloc_dir": TEXT,
        "task_dir": TEXT,
        "mounts": st.lists(st.builds(lambda s, t: ("mount", s, t), TEXT, TEXT), max_size=2),
        "ports": st.lists(st.builds(Port, host_port=st.integers(0, 65535), host_ip=TEXT), max_size=3),
        "dns": st.builds(Dns, servers=st.lists(TEXT, max_size=2), searches=st.lists(TEXT, max_size=2)),
        "network_isolation": st.builds(NetworkIsolation, mode=st.sampled_from(["host", "group", "task", "none"])),
        "resources": st.builds(
            Resources,
            cpu_mhz=st.none() | st.integers(1, 1 << 70),
            cpu_quota_cores=st.none() | st.floats(min_value=1e-9, allow_nan=False, allow_infinity=False),
            memory_bytes=st.none() | st.integers(1, 1 << 70),
            memory_max_bytes=st.none() | st.just(UNLIMITED),
            swap_bytes=st.none() | st.integers(0, 1 << 70),
            pids=st.none() | st.integers(1, 1 << 70),
        ),
        "kill_timeout_s": st.floats(min_value=0, allow_nan=False, allow_infinity=False),
    },
)
SETTINGS = st.dictionaries(
    st.sampled_from(DockerTaskConfig.__struct_fields__),
    TEXT | st.lists(TEXT, max_size=3) | st.dictionaries(TEXT, TEXT, max_size=3) | st.booleans() | st.integers(),
    max_size=4,
)


@given(TASKS, SETTINGS, st.booleans())
def test_nothing_but_config_errors_comes_of_any_task(fields: dict[str, Any], settings: Any, volumes: bool) -> None:
    try:
        mounts = [Mount(source=source, target=target) for _, source, target in fields.pop("mounts", ())]
        made = creation(DockerConfig(volumes=volumes), mounts=mounts, driver_config=settings, **fields)
    except ConfigError:
        return
    text = json.dumps(made.body, ensure_ascii=False).encode()
    assert all(abs(each) < 1 << 63 for each in numbers(json.loads(text)))


def numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict):
        for each in value.values():
            yield from numbers(each)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each)
    elif isinstance(value, int):
        yield value


# -- real containers -----------------------------------------------------------------------------------------------


class Real:
    """Containers of one test, on the session's engine; removed after it."""

    def __init__(self, engine: Engine) -> None:
        import docker

        self.engine = engine
        self.client = docker.APIClient(engine.address, version="auto")
        self.made: list[str] = []
        self.warnings: list[str] = []

    def start(self, driver: DockerConfig | None = None, **fields: Any) -> str:
        """Create and start one as it is asked for; its id."""
        if "command" not in fields:
            fields |= {"command": LONGER_THAN_A_TEST[0], "args": LONGER_THAN_A_TEST[1:]}
        settings = {"network_mode": "none", **fields.pop("driver_config", {})}
        task = TaskConfig(**fields, driver_config=settings)
        image = self.engine.out("inspect", "--format={{.Id}}", IMAGE)
        asked = arguments(task, task.settings(DockerTaskConfig), driver or DockerConfig(), image=image, node=NODE)
        made = self.client.create_container_from_config(asked.body, asked.name)  # type: ignore[no-untyped-call]
        self.made.append(str(made["Id"]))
        self.warnings = list(made["Warnings"] or [])
        self.client.start(made["Id"])
        return self.made[-1]

    def inside(self, container: str, script: str) -> str:
        return self.engine.out("exec", container, "sh", "-c", script)

    def log(self, container: str) -> str:
        """All that it wrote to stdout, after its end."""
        self.client.wait(container)
        return str(self.client.logs(container, stderr=False).decode())

    def file(self, container: str, controller: str, name: str) -> str:
        """A file of the container's group."""
        pid = self.client.inspect_container(container)["State"]["Pid"]
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            if controller in names.split(","):
                return Path(f"/sys/fs/cgroup/{controller}{path}/{name}").read_text().strip()
            if not names and (found := Path(f"/sys/fs/cgroup{path}/{name}")).exists():
                return found.read_text().strip()
        raise AssertionError(f"no {name} of {controller}")

    def close(self) -> None:
        for each in self.made:
            self.client.remove_container(each, force=True, v=True)
        self.client.close()


@pytest.fixture
def real(engine: Engine) -> Iterator[Real]:
    containers = Real(engine)
    yield containers
    containers.close()


def status(real: Real, container: str, field: str) -> str:
    lines = real.inside(container, "cat /proc/1/status").splitlines()
    return next(line.split(":", 1)[1].strip() for line in lines if line.startswith(f"{field}:"))


@pytest.mark.root
@needs_engine
def test_a_real_container_has_the_limits_that_exec_would_set(real: Real) -> None:
    asked = Resources(
        cpu_mhz=500, cpu_quota_cores=0.5, cpuset_cpus="0", memory_bytes=64 * MIB, memory_max_bytes=128 * MIB,
        swap_bytes=32 * MIB, pids=50, oom_score_adj=321,
    )  # fmt: skip
    container = real.start(resources=asked)
    check_warnings(TaskConfig(resources=asked), real.warnings)
    version: Literal[1, 2] = 2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1
    plan = limits.settings(asked, version)
    assert {each.file: real.file(container, each.controller, each.file) for each in plan} == {
        each.file: each.value for each in plan
    }
    assert real.inside(container, "cat /proc/1/oom_score_adj") == "321"


@pytest.mark.root
@needs_engine
def test_a_real_container_has_the_weight_of_its_disks_or_the_engine_says_that_it_has_not(real: Real) -> None:
    asked = TaskConfig(resources=Resources(io_weight=500))
    container = real.start(resources=asked.resources)
    if real.warnings:
        with pytest.raises(NotSupported, match="Resources.io_weight 500 cannot be held"):
            check_warnings(asked, real.warnings)
    else:
        assert real.client.inspect_container(container)["HostConfig"]["BlkioWeight"] == 500


@pytest.mark.root
@needs_engine
def test_a_real_container_without_swap_bytes_has_no_swap(real: Real) -> None:
    container = real.start(resources=Resources(memory_bytes=64 * MIB))
    found = real.client.inspect_container(container)["HostConfig"]
    assert found["Memory"] == found["MemorySwap"] == 64 * MIB


@pytest.mark.root
@needs_engine
def test_a_real_container_that_asks_for_nothing_has_the_short_list_and_gains_nothing(real: Real) -> None:
    container = real.start()
    assert int(status(real, container, "CapBnd"), 16) == 0xA80405FB & ~(1 << 13)  # the engine's own less net_raw
    assert status(real, container, "NoNewPrivs") == "1"
    bare = real.start(driver_config={"cap_drop": ["all"], "cap_add": ["chown"], "no_new_privileges": False})
    assert int(status(real, bare, "CapBnd"), 16) == 1
    assert status(real, bare, "NoNewPrivs") == "0"


@pytest.mark.root
@needs_engine
def test_a_real_container_is_privileged_where_that_is_allowed(real: Real) -> None:
    everything = (2 << int(Path("/proc/sys/kernel/cap_last_cap").read_text())) - 1
    if int(Path("/proc/self/status").read_text().split("CapBnd:")[1].split()[0], 16) != everything:
        pytest.skip("not all capabilities are ours to give")
    container = real.start(DockerConfig(allow_privileged=True), driver_config={"privileged": True})
    assert int(status(real, container, "CapBnd"), 16) == everything


@pytest.mark.root
@needs_engine
def test_a_real_container_sees_its_files_as_asked(real: Real, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/x").write_text("from outside")
    container = real.start(
        mounts=[Mount(source=f"{tmp_path}/a", target="/a", read_only=True, propagation="private")],
        driver_config={
            "volumes": [f"{tmp_path}/b:/b", "/anonymous"],
            "read_only": True,
            "tmpfs": {"/mem": "size=1m,mode=0700,uid=65534"},
            "shm_size": 2 * MIB,
        },
    )
    assert real.inside(container, "cat /a/x") == "from outside"
    denied = real.engine.cli("exec", container, "touch", "/a/y", "/z", check=False).stderr.decode()
    assert denied.count("Read-only file system") == 2
    real.inside(container, "echo from inside > /b/y; echo z > /anonymous/z")
    assert (tmp_path / "b/y").read_text() == "from inside\n"
    kinds = dict(line.split()[1:3] for line in real.inside(container, "cat /proc/mounts").splitlines())
    assert kinds["/mem"] == "tmpfs"
    assert real.inside(container, "df -P -k /mem /dev/shm | awk 'NR > 1 {print $2}'").split() == ["1024", "2048"]
    assert real.inside(container, "stat -c '%a %u' /mem") == "700 65534"


@pytest.mark.root
@needs_engine
def test_a_real_container_has_its_command_environment_user_and_directory(real: Real) -> None:
    script = 'id -u; id -g; pwd; env | sort; echo "$1"; ulimit -n; ulimit -H -n; ulimit -c; hostname; cat /etc/hosts'
    container = real.start(
        command="sh",
        args=["-c", script, "sh", "a b * $HOME"],
        env={"A": "1=2", "EMPTY": ""},
        user="nobody",
        cwd="/usr",
        driver_config={
            "ulimits": {"nofile": "100:200", "core": "0"},
            "hostname": "web-1",
            "extra_hosts": ["db.example:10.0.0.2"],
        },
    )
    lines = real.log(container).splitlines()
    at = lines.index("a b * $HOME")
    assert lines[:3] == ["65534", "65534", "/usr"]
    assert {"A=1=2", "EMPTY=", "HOSTNAME=web-1"} <= set(lines[3:at])
    names = {line.partition("=")[0] for line in lines[3:at]}
    assert names == {"A", "EMPTY", "HOSTNAME", "HOME", "PATH", "PWD", "SHLVL"}
    assert lines[at + 1 : at + 5] == ["100", "200", "0", "web-1"]
    assert "10.0.0.2\tdb.example" in lines[at + 5 :]


@pytest.mark.root
@needs_engine
def test_a_real_container_has_its_entrypoint_before_its_command(real: Real) -> None:
    container = real.start(command="-c", args=["echo $0 $1", "a", "b"], driver_config={"entrypoint": ["/bin/sh"]})
    assert real.log(container) == "a b\n"


@pytest.mark.root
@needs_engine
def test_a_real_container_may_use_its_devices_alone(real: Real) -> None:
    container = real.start(devices=[Device(source="/dev/null", target="/dev/mine", permissions="r")])
    wanted = os.stat("/dev/null").st_rdev
    assert real.inside(container, "stat -c '%t %T' /dev/mine") == f"{os.major(wanted):x} {os.minor(wanted):x}"
    assert real.engine.cli("exec", container, "test", "-e", "/dev/fuse", check=False).returncode == 1


@pytest.mark.root
@needs_engine
def test_a_real_container_is_labelled_named_and_ended_as_asked(real: Real) -> None:
    container = real.start(
        id="t/1", name="Wéb", kill_signal=10, kill_timeout_s=1.5, driver_config={"init": True, "log_driver": "local"}
    )
    found = real.client.inspect_container(container)
    assert found["Name"] == f"/{container_name(TaskConfig(id='t/1', name='Wéb'), NODE)}"
    assert found["Config"]["Labels"]["cameleer.task_id"] == "t/1"
    assert (found["Config"]["StopSignal"], found["Config"]["StopTimeout"]) == ("10", 2)
    assert found["HostConfig"]["LogConfig"]["Type"] == "local"
    assert found["HostConfig"]["AutoRemove"] is False
    assert "init" in real.inside(container, "cat /proc/1/comm")


@pytest.mark.root
@needs_engine
def test_a_real_container_shares_the_network_that_it_is_told_to(real: Real) -> None:
    first = real.start()
    joined = real.start(driver_config={"network_mode": f"container:{first}"})
    assert real.inside(joined, "readlink /proc/1/ns/net") == real.inside(first, "readlink /proc/1/ns/net")
    on_host = real.start(network_isolation=NetworkIsolation(mode="host"), driver_config={"network_mode": ""})
    assert real.inside(on_host, "readlink /proc/1/ns/net") == os.readlink("/proc/self/ns/net")
    assert real.inside(first, "readlink /proc/1/ns/net") != os.readlink("/proc/self/ns/net")


@pytest.mark.root
@needs_engine
def test_a_real_containers_parameters_and_terminal_are_set(real: Real) -> None:
    container = real.start(terminal="pty", driver_config={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "77"}})
    assert real.inside(container, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "77"
    assert real.inside(container, "readlink /proc/1/fd/1").startswith("/dev/pts/")


@pytest.mark.root
@needs_engine
def test_a_real_containers_ports_lead_to_it_and_its_names_are_resolved_as_asked() -> None:
    with running(bridge=True) as own:
        real = Real(own)
        try:
            container = real.start(
                command="sh",
                args=["-c", "cat /etc/resolv.conf; echo hello | nc -l -p 80"],
                ports=[Port(host_port=8080, container_port=80, host_ip="127.0.0.1")],
                dns=Dns(servers=["10.0.0.1"], searches=["a.example"], options=["ndots:2"]),
                driver_config={"network_mode": "bridge"},
            )
            assert ports_of(real, container) == [{"HostIp": "127.0.0.1", "HostPort": "8080"}]
            words = own.inside(
                "sh", "-c", "until busybox nc 127.0.0.1 8080 </dev/null | grep hello; do sleep 0.05; done"
            )
            assert subprocess.run(words, capture_output=True, check=True, timeout=30).stdout == b"hello\n"
            lines = real.log(container).splitlines()
            assert {"nameserver 10.0.0.1", "search a.example", "options ndots:2"} <= set(lines)
            chosen = real.start(ports=[Port(host_port=0, container_port=80)], driver_config={"network_mode": "bridge"})
            assert all(int(each["HostPort"]) > 0 for each in ports_of(real, chosen))
        finally:
            real.close()


def ports_of(real: Real, container: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = real.client.inspect_container(container)["NetworkSettings"]["Ports"]["80/tcp"]
    return found
