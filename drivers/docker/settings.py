"""Settings of ``docker`` and of its tasks."""

from __future__ import annotations

from typing import Literal

import msgspec


class Registry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who we are to a registry; never shown.

    :ivar username: account.
    :ivar password: its password or token.
    """

    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"Registry(username={self.username!r}, password=…)"


class DockerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the driver.

    :ivar endpoint: address of the engine: ``unix:///run/docker.sock``, ``tcp://host:2376``; empty: ``DOCKER_HOST``,
        else the current docker context, else the usual socket.
    :ivar tls_ca: file of the certificate authority that signed the engine's certificate.
    :ivar tls_cert: our certificate's file.
    :ivar tls_key: its key's file.
    :ivar tls_verify: check the engine's certificate.
    :ivar call_timeout: how long a short call to the engine may take.
    :ivar pull_timeout: how long a pull may take.
    :ivar output_patience: how long the end of a task waits for a reader that takes none of its last output.
    :ivar pull_policy: where a task says nothing: ``missing``, ``always`` or ``never``.
    :ivar registries: credentials by a registry's domain (``docker.io``, ``host:5000``); without one, those of the
        user's docker configuration.
    :ivar cgroup_parent: group below which those of the containers are made.
    :ivar stats: where readings come from: ``auto``: the control groups where the engine is on this machine, else the
        engine; ``local``; ``remote``.
    :ivar stats_mode: of the engine's statistics: ``one-shot``: a request for each reading; ``stream``: a connection for
        each container; ``auto``: one-shot as long as it keeps the interval.
    :ivar stats_requests: at most so many one-shot requests at a time.
    :ivar default_cpu_mhz: share of a task that asks for none; 0: the engine's default.
    :ivar allow_privileged: tasks may ask to be privileged.
    :ivar allow_caps: capabilities that tasks may add to the short list that is kept: names, or ``all``.
    :ivar volumes: tasks may mount paths of the host.
    """

    endpoint: str = ""
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    tls_verify: bool = True
    call_timeout: str = "10s"
    pull_timeout: str = "5m"
    output_patience: str = "10s"
    pull_policy: Literal["missing", "always", "never"] = "missing"
    registries: dict[str, Registry] = {}
    cgroup_parent: str = "cameleer"
    stats: Literal["auto", "local", "remote"] = "auto"
    stats_mode: Literal["auto", "one-shot", "stream"] = "auto"
    stats_requests: int = 16
    default_cpu_mhz: int = 0
    allow_privileged: bool = False
    allow_caps: list[str] = []
    volumes: bool = True


class DockerTaskConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``driver_config`` of a task. The image, command, user, mounts, ports and limits are ``TaskConfig``'s own.

    :ivar entrypoint: replaces the image's; ``[""]`` removes it.
    :ivar pull_policy: ``missing``, ``always`` or ``never``; empty: the driver's.
    :ivar auth: credentials for this image's registry.
    :ivar network_mode: ``bridge``, ``host``, ``none``, ``container:NAME`` or a network's name; empty: what
        ``TaskConfig.network_isolation`` says, else the engine's default.
    :ivar volumes: ``SOURCE:TARGET[:OPTIONS]``, a source without a slash is a named volume; ``TARGET`` alone an
        anonymous one.
    :ivar tmpfs: folder in the container to its options: ``size=64m,mode=1777``.
    :ivar read_only: the image's files cannot be written.
    :ivar ulimits: limit to ``SOFT[:HARD]``: ``nofile = "1024:2048"``.
    :ivar cap_drop: capabilities that it does not have; none given: a short list is kept.
    :ivar cap_add: capabilities that it has besides.
    :ivar no_new_privileges: set-id programs give it no more rights.
    :ivar security_opt: further options: ``seccomp=unconfined``, ``apparmor=NAME``.
    :ivar privileged: everything is allowed, where the driver's configuration permits that.
    :ivar hostname: the container's name for itself.
    :ivar extra_hosts: ``NAME:ADDRESS``.
    :ivar labels: further labels.
    :ivar log_driver: ``json-file``, ``local`` or ``journald``; empty: the engine's default.
    :ivar log_options: its options.
    :ivar shm_size: bytes of /dev/shm; 0: the engine's default.
    :ivar init: a small init is pid 1.
    :ivar pid_mode: ``host`` or ``container:NAME``.
    :ivar ipc_mode: likewise, and ``private``, ``shareable``, ``none``.
    :ivar runtime: name of the runtime; empty: the engine's default.
    :ivar sysctls: kernel parameters of its namespaces.
    :ivar storage_opt: options of its file system: ``size = "1g"``.
    :ivar keep: the container stays when the task is destroyed, and after its host died.
    """

    entrypoint: list[str] = []
    pull_policy: Literal["", "missing", "always", "never"] = ""
    auth: Registry | None = None
    network_mode: str = ""
    volumes: list[str] = []
    tmpfs: dict[str, str] = {}
    read_only: bool = False
    ulimits: dict[str, str] = {}
    cap_drop: list[str] = []
    cap_add: list[str] = []
    no_new_privileges: bool = True
    security_opt: list[str] = []
    privileged: bool = False
    hostname: str = ""
    extra_hosts: list[str] = []
    labels: dict[str, str] = {}
    log_driver: str = ""
    log_options: dict[str, str] = {}
    shm_size: int = 0
    init: bool = False
    pid_mode: str = ""
    ipc_mode: str = ""
    runtime: str = ""
    sysctls: dict[str, str] = {}
    storage_opt: dict[str, str] = {}
    keep: bool = False
