from __future__ import annotations

import os
from pathlib import Path

import pytest

from cameleer import NodeInfo
from cameleer.node import detect, total_mhz

CPUINFO = "processor\t: 0\nmodel name\t: Some CPU\ncpu MHz\t\t: 2596.128\n\nprocessor\t: 1\ncpu MHz\t\t: 800.0\n"


def machine(tmp_path: Path, files: dict[str, str], online: str | None = "0-1") -> str:
    if online is not None:
        (tmp_path / "online").write_text(online + "\n")
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(tmp_path)


@pytest.fixture
def no_cpuinfo(tmp_path: Path) -> str:
    return str(tmp_path / "no-cpuinfo")


def test_the_base_frequency_counts_for_each_core(tmp_path: Path, no_cpuinfo: str) -> None:
    root = machine(
        tmp_path,
        {
            "cpu0/cpufreq/base_frequency": "2400999",
            "cpu0/cpufreq/cpuinfo_max_freq": "5000000",
            "cpu1/cpufreq/base_frequency": "1800000",
        },
    )
    assert total_mhz(root, no_cpuinfo) == 2400 + 1800


def test_the_nominal_frequency_stands_for_a_base_that_is_not_told(tmp_path: Path, no_cpuinfo: str) -> None:
    root = machine(
        tmp_path,
        {"cpu0/acpi_cppc/nominal_freq": "2450", "cpu0/cpufreq/cpuinfo_max_freq": "3500000"},
        online="0",
    )
    assert total_mhz(root, no_cpuinfo) == 2450


def test_else_the_highest_frequency_counts(tmp_path: Path, no_cpuinfo: str) -> None:
    root = machine(tmp_path, {f"cpu{cpu}/cpufreq/cpuinfo_max_freq": "1500000" for cpu in (0, 1)})
    assert total_mhz(root, no_cpuinfo) == 3000


def test_a_virtual_machine_tells_the_speed_of_now(tmp_path: Path) -> None:
    root = machine(tmp_path, {"cpuinfo": CPUINFO})
    assert total_mhz(root, f"{root}/cpuinfo") == pytest.approx(2 * 2596.128)


def test_cores_that_are_offline_do_not_count(tmp_path: Path, no_cpuinfo: str) -> None:
    root = machine(
        tmp_path, {f"cpu{cpu}/cpufreq/base_frequency": f"{1000 + cpu}000" for cpu in range(10)}, online="0-1,8"
    )
    assert total_mhz(root, no_cpuinfo) == 1000 + 1001 + 1008


def test_a_speed_that_nobody_tells_is_unknown(tmp_path: Path, no_cpuinfo: str) -> None:
    assert total_mhz(machine(tmp_path, {}), no_cpuinfo) is None
    assert total_mhz(machine(tmp_path, {"cpu0/cpufreq/base_frequency": "nonsense"}), no_cpuinfo) is None


def test_the_kernels_figures_may_be_missing_altogether(tmp_path: Path) -> None:
    root = machine(tmp_path, {"cpuinfo": CPUINFO}, online=None)
    assert total_mhz(f"{root}/nothing", f"{root}/cpuinfo") == pytest.approx((os.cpu_count() or 1) * 2596.128)


def test_this_machine_is_detected() -> None:
    node = detect()
    assert node.cores == os.cpu_count()
    assert node.page_size_bytes == os.sysconf("SC_PAGE_SIZE")
    assert node.clock_ticks_hz == os.sysconf("SC_CLK_TCK")
    assert node.node_name == os.uname().nodename
    assert node.total_mhz is None or 100 * node.cores < node.total_mhz < 20_000 * node.cores


def test_what_the_orchestrator_knows_is_kept(tmp_path: Path) -> None:
    node = detect(node_id="n", node_name="here", host_id="h", state_dir=tmp_path, recoverable=True)
    assert (node.node_id, node.node_name, node.host_id) == ("n", "here", "h")
    assert (node.state_dir, node.recoverable) == (tmp_path, True)


def test_a_host_id_is_made_up_where_none_is_given() -> None:
    assert detect().host_id != detect().host_id


def test_one_percent_of_one_core_in_mhz() -> None:
    assert NodeInfo(total_mhz=8000.0, cores=4).mhz_per_percent == 20.0
    assert NodeInfo(total_mhz=None, cores=4).mhz_per_percent is None
