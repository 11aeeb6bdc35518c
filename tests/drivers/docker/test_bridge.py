"""Containers on a bridge: ports, addresses, and what their network counts. The engine has a network of its own."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Iterator

import pytest
from containers import hosting, shell, traces, until
from engine import Engine, needs_engine, running

from cameleer.config import NetworkIsolation, Port
from cameleer.errors import DriverError
from cameleer.host import Host

pytestmark = [pytest.mark.root, needs_engine]

SOON_S = 60.0
PORT = 18080
SERVE = "trap exit TERM; while :; do echo hello | nc -l -p 80; done & wait"
FOREVER = "trap exit TERM; while :; do sleep 0.1; done"
BRIDGE = {"network_mode": "bridge"}


@pytest.fixture(scope="module")
def bridged() -> Iterator[Engine]:
    with running(bridge=True) as engine:
        yield engine


@pytest.fixture
async def host(bridged: Engine) -> AsyncIterator[Host]:
    async with hosting(bridged) as opened:
        yield opened
    assert traces(bridged, opened.node.host_id) == []


def asked(engine: Engine, address: str, port: int) -> bytes:
    """What a server answers, asked from within the engine's network."""
    command = engine.inside("busybox", "nc", "-w", "2", address, str(port))
    return subprocess.run(command, input=b"", capture_output=True, check=False, timeout=10).stdout


async def test_a_port_leads_to_the_container_and_its_address_is_told(bridged: Engine, host: Host) -> None:
    ports = [Port(host_port=PORT, container_port=80), Port(host_port=0, container_port=81)]
    task = await host.start(shell(SERVE, driver_config=BRIDGE, ports=ports), "docker")
    network = task.network
    assert network is not None
    container = (await task.inspect())["container_id"]
    found = json.loads(bridged.out("inspect", "--format={{json .NetworkSettings}}", container))
    assert network.address == found["IPAddress"]
    assert network.port_map["80/tcp"] == PORT
    assert network.port_map["81/tcp"] == int(found["Ports"]["81/tcp"][0]["HostPort"])
    await until(lambda: asked(bridged, network.address, 80) == b"hello\n", "the container does not serve")
    await until(lambda: asked(bridged, "127.0.0.1", PORT) == b"hello\n", "the port leads nowhere")


async def test_a_port_in_use_is_an_error_that_leaves_nothing(bridged: Engine, host: Host) -> None:
    ports = [Port(host_port=PORT + 1, container_port=80)]
    task = await host.start(shell(FOREVER, driver_config=BRIDGE, ports=ports), "docker")
    before = traces(bridged, host.node.host_id)
    with pytest.raises(DriverError, match="already allocated"):
        await host.start(shell(FOREVER, driver_config=BRIDGE, ports=ports), "docker")
    assert traces(bridged, host.node.host_id) == before
    await task.destroy(force=True)
    assert (await host.run(shell("true", driver_config=BRIDGE, ports=ports), "docker")).exit_code == 0


@pytest.mark.parametrize("stats", ["local", "remote"])
async def test_traffic_is_counted_in_both_directions(bridged: Engine, stats: str) -> None:
    async with hosting(bridged, stats=stats) as host:
        task = await host.start(shell(SERVE, driver_config=BRIDGE), "docker")
        network = task.network
        assert network is not None
        await until(lambda: asked(bridged, network.address, 80) == b"hello\n", "the container does not serve")
        readings = task.readings(0.2)
        first = (await anext(readings)).network
        assert first is not None
        for _ in range(3):
            await until(lambda: asked(bridged, network.address, 80) == b"hello\n", "the container does not serve")
        async with asyncio.timeout(SOON_S):
            while True:
                now = (await task.sample(0.05) if stats == "local" else await anext(readings)).network
                assert now is not None
                if (now.rx_bytes or 0) > (first.rx_bytes or 0) and (now.tx_bytes or 0) > (first.tx_bytes or 0):
                    break
        assert now.rx_packets
        assert now.tx_packets


async def test_on_the_hosts_network_nothing_is_counted_and_no_address_is_told(host: Host) -> None:
    task = await host.start(shell(FOREVER, driver_config={"network_mode": "host"}), "docker")
    assert task.network is None
    network = (await task.sample(0.05)).network
    assert network is None or network.rx_bytes is None


async def test_a_container_shares_the_network_of_another(bridged: Engine, host: Host) -> None:
    sandbox = await host.start(shell(FOREVER, driver_config=BRIDGE), "docker")
    container = (await sandbox.inspect())["container_id"]
    isolation = NetworkIsolation(mode="group", labels={"docker_sandbox_container_id": container})
    task = await host.start(shell(SERVE, driver_config={"network_mode": ""}, network_isolation=isolation), "docker")
    assert sandbox.network is not None
    address = sandbox.network.address
    await until(lambda: asked(bridged, address, 80) == b"hello\n", "the second container does not serve")
    await task.stop(0)
