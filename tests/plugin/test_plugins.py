"""Loading plugins: what is refused is named with its reason, and everything else loads."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from fakes import FakeDriver, a_driver

from cameleer.config import TaskConfig
from cameleer.errors import PluginError
from cameleer.host import Host
from cameleer.node import NodeInfo
from cameleer.plugins import load_file_or_module

DRIVER = """
from cameleer import Driver, RunningTask
class Job(RunningTask):
    async def wait(self): ...
    async def signal(self, signum): ...
class Mine(Driver):
    name = {name!r}
    task_type = Job
    async def start(self, task): return Job(task)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Install a distribution: modules by name, and its entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution: str, modules: dict[str, str], entry_points: str) -> None:
        for name, text in modules.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        info = tmp_path / f"{distribution}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))

    yield install
    for name in [name for name in sys.modules if name.startswith("acme_")]:
        del sys.modules[name]


def a_host(*plugins: object, **section: object) -> Host:
    return Host({"plugins": section} if section else None, plugins=plugins, node=NodeInfo())


async def test_a_driver_that_cannot_be_imported_is_refused_by_name_and_distribution(installed) -> None:  # type: ignore[no-untyped-def]
    installed(
        "acme-drivers",
        {"acme_bad": "import nothing_of_this_name", "acme_good": DRIVER.format(name="acme_good")},
        """
        [cameleer.drivers]
        acme_bad = acme_bad:Mine
        acme_good = acme_good:Mine
        """,
    )
    async with a_host() as host:
        names = [info.name for info in await host.drivers()]
        assert "acme_good" in names
        assert "acme_bad" not in names
        (refused,) = host.refused
        assert (refused.name, refused.distribution, refused.version) == ("acme_bad", "acme-drivers", "1.5")
        assert "nothing_of_this_name" in refused.reason
        with pytest.raises(PluginError, match="acme_bad.*acme-drivers 1.5.*nothing_of_this_name"):
            await host.start(TaskConfig(command="x"), "acme_bad")


async def test_a_driver_with_the_name_of_a_built_in_one_is_refused_and_never_imported(installed) -> None:  # type: ignore[no-untyped-def]
    installed(
        "acme-drivers",
        {"acme_shadow": "raise SystemExit('imported')"},
        """
        [cameleer.drivers]
        mock = acme_shadow:Mine
        """,
    )
    async with a_host() as host:
        assert "mock" in [info.name for info in await host.drivers()]
        assert [(each.name, "taken" in each.reason) for each in host.refused] == [("mock", True)]


async def test_of_two_classes_with_one_name_the_second_is_refused() -> None:
    async with a_host(a_driver(), a_driver()) as host:
        assert ["taken" in each.reason for each in host.refused] == [True]
        await host.start(TaskConfig(command="x"), "fake")


async def test_hook_plugins_with_faults_are_refused_one_by_one(installed) -> None:  # type: ignore[no-untyped-def]
    head = "from cameleer import hookimpl\n"
    installed(
        "acme-hooks",
        {
            "acme_crash": "1 / 0",
            "acme_misspelt": head + "@hookimpl\ndef exitd(request): ...\n",
            "acme_signature": head + "@hookimpl\ndef exited(request, nonsense): ...\n",
            "acme_wrapper": head + "@hookimpl(wrapper=True)\ndef exited(request):\n    return (yield)\n",
            "acme_constructor": head + "class Hook:\n    def __init__(self, host): raise ValueError('no disk')\n",
            "acme_fine": head + "seen = []\n@hookimpl\ndef poststart(request): seen.append(request.task.id)\n",
        },
        """
        [cameleer.hooks]
        acme_crash = acme_crash
        acme_misspelt = acme_misspelt
        acme_signature = acme_signature
        acme_wrapper = acme_wrapper
        acme_constructor = acme_constructor:Hook
        acme_fine = acme_fine
        """,
    )
    async with a_host(a_driver()) as host:
        reasons = {each.name: each.reason for each in host.refused}
        assert reasons.keys() == {
            "acme_crash", "acme_misspelt", "acme_signature", "acme_wrapper", "acme_constructor",
        }  # fmt: skip
        assert "ZeroDivisionError" in reasons["acme_crash"]
        assert "did you mean 'exited'?" in reasons["acme_misspelt"]
        assert "nonsense" in reasons["acme_signature"]
        assert "wrapper" in reasons["acme_wrapper"]
        assert "no disk" in reasons["acme_constructor"]
        await host.start(TaskConfig(id="t1", command="x"), "fake")
        import acme_fine  # type: ignore[import-not-found]

        assert acme_fine.seen == ["t1"]


@pytest.mark.parametrize("way", ["setting", "environment"])
async def test_blocked_names_are_never_imported(installed, way: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    installed(
        "acme-more",
        {"acme_side": "raise SystemExit('imported')"},
        """
        [cameleer.hooks]
        acme_side = acme_side
        [cameleer.drivers]
        acme_side_driver = acme_side:Mine
        """,
    )
    if way == "environment":
        monkeypatch.setenv("CAMELEER_NO_PLUGINS", "acme_side, acme_side_driver")
        host = a_host()
    else:
        host = a_host(disabled=["acme_side", "acme_side_driver"])
    async with host:
        assert "acme_side_driver" not in [info.name for info in await host.drivers()]
        assert not host.refused


async def test_without_third_party_plugins_only_built_in_ones_are_imported(installed) -> None:  # type: ignore[no-untyped-def]
    installed("acme-more", {"acme_side": "raise SystemExit('imported')"}, "[cameleer.hooks]\nacme_side = acme_side\n")
    async with a_host(disabled=True) as host:
        assert host.hooks.manager.has_plugin("stats_hook")
        assert not host.hooks.manager.has_plugin("acme_side")


class Plain(FakeDriver):
    def start(self, task: TaskConfig):  # type: ignore[no-untyped-def, override]
        ...


class Nameless(FakeDriver):
    name = "two words"


class Taskless(FakeDriver):
    task_type = int  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("cls", "reason"),
    [(Plain, "start must be written with async def"), (Nameless, "two words"), (Taskless, "task_type")],
)
async def test_a_driver_class_that_cannot_work_is_refused(cls: type, reason: str) -> None:
    async with a_host(cls) as host:
        assert reason in host.refused[0].reason


async def test_an_unknown_driver_is_an_error_that_names_the_nearest() -> None:
    async with a_host() as host:
        with pytest.raises(PluginError, match="'raw_exce'.*did you mean 'raw_exec'"):
            await host.start(TaskConfig(command="x"), "raw_exce")


async def test_a_file_gives_drivers_and_hooks(tmp_path: Path) -> None:
    path = tmp_path / "my-plugin.py"
    path.write_text(
        DRIVER.format(name="from_file")
        + "from cameleer import hookimpl\nseen = []\n@hookimpl\ndef poststart(request): seen.append(request.task.id)\n"
        + "class Hook:\n    def __init__(self, host): self.host = host\n    @hookimpl\n    def shutdown(self): ...\n"
    )
    plugins = load_file_or_module(str(path))
    assert len(plugins) == 3
    async with a_host(*plugins) as host:
        assert not host.refused
        assert "from_file" in [info.name for info in await host.drivers()]


@pytest.mark.parametrize(
    ("text", "message"), [("x = 1", "neither a driver"), ("1 / 0", "ZeroDivisionError"), (None, "cannot load")]
)
def test_a_file_without_plugins_is_an_error(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "plugin.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(PluginError, match=message):
        load_file_or_module(str(path))


def test_running_with_raw_exec_imports_no_other_driver() -> None:
    script = """
        import asyncio, sys
        from cameleer.host import Host
        from cameleer.config import TaskConfig
        async def main():
            async with Host({"plugins": {"hooks": []}}) as host:
                await host.run(TaskConfig(command="true", env={"PATH": "/usr/bin:/bin"}))
        asyncio.run(main())
        print([name for name in sys.modules if name.startswith("cameleer.drivers.")])
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "cameleer.drivers.raw_exec" in done.stdout
    assert "mock" not in done.stdout
