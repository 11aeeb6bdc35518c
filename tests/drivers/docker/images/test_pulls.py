"""Images are looked for and pulled, from a real registry by a real engine."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from engine import IMAGE, Engine, needs_engine, running
from fake_engine import answer
from fake_engine import serving as serving_answers
from registry import PASSWORD, USER, Registry, held_up, large_image, needs_registry, serving, user_config

from cameleer.config import TaskConfig
from cameleer.drivers.docker.client.endpoint import Endpoint, find
from cameleer.drivers.docker.client.http import Client
from cameleer.drivers.docker.images import credentials
from cameleer.drivers.docker.images.image import ImageName
from cameleer.drivers.docker.images.pulls import Progress, Pulls, failure
from cameleer.drivers.docker.settings import DockerConfig, DockerTaskConfig
from cameleer.drivers.docker.settings import Registry as Login
from cameleer.errors import ConfigError, DriverError, PluginShutdown, RecoverableError, StartError, StartRecoverable

SECRET = "hunter2-secret"
MIB = 1 << 20
PATIENCE_S = 15.0
UNUSED_PORT = 9

# -- without an engine ---------------------------------------------------------------------------------------------


def test_progress_sums_up_the_layers() -> None:
    progress = Progress()
    assert progress.text() == ""
    for line in (
        {"status": "Pulling from team/app", "id": "v1"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "a"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "b"},
        {"status": "Already exists", "progressDetail": {}, "id": "c"},
        {"status": "Waiting", "id": "b"},
        {"status": "Downloading", "progressDetail": {"current": 2_300_000, "total": 70_000_000}, "id": "a"},
        {"status": "Downloading", "progressDetail": {"current": 1, "total": 10_000_000}, "id": "b"},
        {"status": "Download complete", "id": "b"},
        {"status": "Extracting", "progressDetail": {"current": 5, "total": 10_000_000}, "id": "b"},
        {"status": "Pull complete", "id": "b"},
        {"status": "Digest: sha256:0"},
        {"status": 5, "id": []},
    ):
        progress.heard(line)
    assert progress.text() == ": 2 of 3 layers, 12.3 MB of 80.0 MB"
    assert progress.annotations() == {
        "layers": "3",
        "layers_done": "2",
        "bytes": "12300000",
        "bytes_known": "80000000",
    }


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("manifest for a:b not found: manifest unknown: manifest unknown", StartError),
        ("pull access denied for a, repository does not exist or may require 'docker login'", StartError),
        ('Head "http://h/v2/a/manifests/b": no basic auth credentials', StartError),
        ("Get http://h/v2/: unauthorized: authentication required", StartError),
        ("no matching manifest for linux/arm64/v8 in the manifest list entries", StartError),
        ("filesystem layer verification failed for digest sha256:0", StartError),
        ("x509: certificate signed by unknown authority", StartError),
        ("http: server gave HTTP response to HTTPS client", StartError),
        ('Get "http://h/v2/": dial tcp 127.0.0.1:9: connect: connection refused', StartRecoverable),
        ('Get "https://h/v2/": dial tcp: lookup h: no such host', StartRecoverable),
        ("net/http: TLS handshake timeout", StartRecoverable),
        ("toomanyrequests: You have reached your pull rate limit.", StartRecoverable),
        ("received unexpected HTTP status: 503 Service Unavailable", StartRecoverable),
        ("unexpected EOF", StartRecoverable),
        ("failed to register layer: write /large: no space left on device", StartRecoverable),
    ],
)
def test_an_error_says_whether_trying_again_may_help(text: str, kind: type[DriverError]) -> None:
    error = failure("pull a:b", text, ImageName.parse("a:b"), credentials.Credentials(source="driver_config.auth"))
    assert type(error) is kind
    assert str(error).startswith(f"pull a:b: {text}")


def test_a_full_disk_is_named() -> None:
    error = failure("pull a", "no space left on device", ImageName.parse("a"), credentials.Credentials())
    assert "(the engine's disk is full)" in str(error)


@pytest.mark.parametrize(
    ("image", "text", "kind"),
    [
        ("r.corp/certificate-api:1", 'Get "https://r.corp/v2/certificate-api/manifests/1": EOF', StartRecoverable),
        ("r.corp/certificate-api:1", "received unexpected HTTP status: 503 Service Unavailable", StartRecoverable),
        ("team/timeout-proxy", "pull access denied for team/timeout-proxy, repository does not exist", StartError),
        ("team/timeout", "manifest for team/timeout:latest not found: manifest unknown", StartError),
        ("timeout", "pull access denied for timeout, repository does not exist or may require", StartError),
        ("timeout", "manifest for docker.io/library/timeout:latest not found: manifest unknown", StartError),
        ("timeout.corp:5000/a", 'Head "https://timeout.corp:5000/v2/a/manifests/latest": unauthorized', StartError),
        ("certificate.corp/a", "dial tcp: lookup certificate.corp on 10.0.0.1:53: misbehaving", StartRecoverable),
        ("team/a:unsupported", "manifest for team/a:unsupported: unexpected EOF", StartRecoverable),
        ("team/a:timeout", f"team/a:timeout@sha256:{'0' * 64} not found", StartError),
        ("team/denied", 'Get "https://auth/token?scope=repository%3Ateam%2Fdenied%3Apull": EOF', StartRecoverable),
        ("denied", "pull access denied for denied, try docker login", StartError),
        ("certificate", "x509: certificate signed by unknown authority", StartError),
        ("timeout", "net/http: TLS handshake timeout", StartRecoverable),
        ("team/a", "unknown: team/a-certificate is another's: certificate is bad", StartError),
    ],
)
def test_the_images_name_says_nothing_about_its_failure(image: str, text: str, kind: type[DriverError]) -> None:
    name = ImageName.parse(image)
    what = f"pull {name.familiar}"
    for error in (
        failure(what, text, name, credentials.Credentials()),
        failure("", f"{what}: {text}", name, credentials.Credentials()),
    ):
        assert type(error) is kind
        assert str(error).startswith(f"{what}: {text}")


@pytest.mark.parametrize("name", ["team/certificate", "certificate", "denied.corp/unauthorized/x509", "team/a:denied"])
@pytest.mark.parametrize("status", ["200 OK", "500 Internal Server Error"])
async def test_a_pull_that_was_cut_short_may_be_tried_again_and_no_secret_is_told(
    name: str, status: str, tmp_path: Path
) -> None:
    """The engine's error comes in the stream, or instead of it."""
    image = ImageName.parse(name)
    text = (
        f'Get "https://reg/v2/{image.path}/manifests/1?X-Amz-Signature={SECRET}": EOF '
        f'{{\\"auths\\":{{\\"r\\":{{\\"password\\":\\"{SECRET}\\"}}}}}}'
    )
    async with serving_answers(tmp_path) as fake:
        key = "error" if status.startswith("200") else "message"
        fake.then(answer({"message": "No such image"}, "404 Not Found"), answer({key: text}, status))
        client = Client(Endpoint(url=fake.address))
        pulls = Pulls(client, DockerConfig())
        try:
            with pytest.raises(StartRecoverable, match="EOF") as caught:
                await pulls.ensure(task(name))
        finally:
            await pulls.close()
            await client.close()
    assert str(caught.value).startswith(f"pull {image.familiar}: Get ")
    assert SECRET not in str(caught.value)


def decoded(found: credentials.Credentials | None) -> Any:
    assert found is not None
    return json.loads(base64.urlsafe_b64decode(found.header)) if found.header else None


def test_a_tasks_credentials_come_before_the_drivers() -> None:
    image = ImageName.parse("my.reg:80/a")
    ours = DockerConfig(registries={"https://my.reg:80/v1/": Login(username="driver", password=SECRET)})
    theirs = DockerTaskConfig(auth=Login(username="task", password=SECRET))
    found = credentials.given(image, theirs, ours)
    assert decoded(found) == {"username": "task", "password": SECRET, "serveraddress": "my.reg:80"}
    assert decoded(credentials.given(image, DockerTaskConfig(), ours))["username"] == "driver"
    assert credentials.given(ImageName.parse("other.reg/a"), DockerTaskConfig(), ours) is None


@pytest.mark.parametrize("name", ["docker.io", "index.docker.io", "https://index.docker.io/v1/"])
def test_the_usual_registry_has_several_names(name: str) -> None:
    ours = DockerConfig(registries={name: Login(username="u", password=SECRET)})
    found = decoded(credentials.given(ImageName.parse("busybox"), DockerTaskConfig(), ours))
    assert found["serveraddress"] == "https://index.docker.io/v1/"


def test_half_of_a_login_is_an_error() -> None:
    with pytest.raises(ConfigError, match="driver_config.auth.username is missing") as caught:
        credentials.given(ImageName.parse("a"), DockerTaskConfig(auth=Login(password=SECRET)), DockerConfig())
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="drivers.docker.registries.docker.io.password is missing"):
        credentials.given(
            ImageName.parse("a"), DockerTaskConfig(), DockerConfig(registries={"docker.io": Login(username="u")})
        )


def test_the_users_docker_configuration_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert credentials.of_user("my.reg").header == ""
    user_config(tmp_path, "my.reg", SECRET)
    found = credentials.of_user("my.reg")
    assert decoded(found) == {"username": USER, "password": SECRET, "serveraddress": "my.reg"}
    assert SECRET not in repr(found)
    assert credentials.of_user("other.reg").header == ""


def helper(folder: Path, script: str) -> None:
    (folder / "bin").mkdir()
    program = folder / "bin/docker-credential-fake"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    (folder / "config.json").write_text(json.dumps({"credHelpers": {"my.reg": "fake"}}))


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    return tmp_path


def test_a_credential_helper_is_asked(users_folder: Path) -> None:
    answer = json.dumps({"ServerURL": "my.reg", "Username": "u", "Secret": SECRET})
    helper(users_folder, f"read server; [ $1 = get ] && [ $server = my.reg ] && echo '{answer}'")
    assert decoded(credentials.of_user("my.reg")) == {
        "username": "u",
        "password": SECRET,
        "serveraddress": "my.reg",
    }


@pytest.mark.filterwarnings("ignore:docker-credential-fake")
@pytest.mark.parametrize(
    ("script", "reason"),
    [(f"echo {SECRET}; exit 1", "StoreError"), (f"echo '{SECRET}'", "JSONDecodeError"), (None, "is not installed")],
)
def test_a_helper_that_fails_is_as_none_and_what_it_says_is_not_repeated(
    script: str | None, reason: str, users_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    helper(users_folder, script or "")
    if script is None:
        (users_folder / "bin/docker-credential-fake").unlink()
    found = credentials.of_user("my.reg")
    assert found.header == ""
    assert reason in found.source
    assert reason in caplog.text
    assert SECRET not in caplog.text + repr(found)


def test_a_configuration_that_is_none_is_as_none(users_folder: Path) -> None:
    (users_folder / "config.json").write_text('{"auths": {"my.reg": 5}}')
    assert "InvalidConfigFile" in credentials.of_user("my.reg").source


# -- with an engine and a registry ---------------------------------------------------------------------------------


class Heard(list[tuple[str, str, Mapping[str, str]]]):
    """What was told of pulls."""

    def __call__(self, task: TaskConfig, text: str, annotations: Mapping[str, str]) -> None:
        self.append((task.id, text, annotations))

    def texts(self, task_id: str) -> list[str]:
        return [text for task, text, _ in self if task == task_id]


@asynccontextmanager
async def pulling(engine: Engine, heard: Heard | None = None, **settings: Any) -> AsyncIterator[Pulls]:
    config = DockerConfig(endpoint=engine.address, **settings)
    client = Client(find(config))
    pulls = Pulls(client, config, heard if heard is not None else Heard())
    try:
        async with asyncio.timeout(PATIENCE_S * 4):
            yield pulls
    finally:
        await pulls.close()
        await client.close()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with serving(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that asks who we are."""
    with serving(tmp_path_factory.mktemp("guarded"), auth=True) as started:
        yield started


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No docker configuration of the user's, but for tests that write one."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


def task(image: str, **settings: Any) -> TaskConfig:
    return TaskConfig(image=image, driver_config=settings)


def id_of(engine: Engine, image: str) -> str:
    return engine.out("inspect", "--format={{.Id}}", image)


@contextmanager
def pushed(engine: Engine, registry: Registry, name: str, tmp_path: Path, size: int = 0) -> Iterator[str]:
    """An image in the registry, of which the engine has nothing; removed from the engine afterwards."""
    large_image(engine, "large:test", tmp_path, size or 1000)
    whole = registry.push(engine, "large:test", name, keep=False)
    try:
        yield whole
    finally:
        engine.cli("rmi", "--force", whole, check=False)


real = [pytest.mark.root, needs_engine, needs_registry]


def marked(test: Any) -> Any:
    for mark in real:
        test = mark(test)
    return test


@marked
async def test_an_image_that_is_there_is_not_pulled(engine: Engine) -> None:
    async with pulling(engine) as pulls:
        found = await pulls.ensure(task(IMAGE))
        assert found == id_of(engine, IMAGE)
        assert await pulls.ensure(task(f"docker.io/library/{IMAGE}")) == found
        assert await pulls.ensure(task(found)) == found


@marked
async def test_an_image_that_is_missing_is_pulled_once(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    heard = Heard()
    with pushed(engine, registry, "once:v1", tmp_path) as name:
        async with pulling(engine, heard) as pulls:
            wanted = task(name)
            found = await pulls.ensure(wanted)
            assert found == id_of(engine, name)
            before = registry.requests("/v2/once/")
            assert await pulls.ensure(task(name)) == found
            assert registry.requests("/v2/once/") == before
    texts = heard.texts(wanted.id)
    assert texts[0] == f"pulling {name}"
    assert texts[-1].startswith(f"pulled {name}: 1 of 1 layers")
    assert heard[-1][2]["image"] == name


@marked
async def test_a_tag_that_moved_is_pulled_where_the_policy_is_always(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    with pushed(engine, registry, "moved:v1", tmp_path) as name:
        async with pulling(engine) as pulls:
            first = await pulls.ensure(task(name))
            digest = engine.out("inspect", "--format={{index .RepoDigests 0}}", name)
            engine.cli("rmi", name)
            with pushed(engine, registry, "moved:v1", tmp_path):
                second = await pulls.ensure(task(name))
                assert second != first
                assert await pulls.ensure(task(digest)) == first  # by its digest, which moves nothing
                assert await pulls.ensure(task(f"{name}@{digest.partition('@')[2]}")) == first
                engine.cli("tag", first, name)
                assert await pulls.ensure(task(name)) == first
                assert await pulls.ensure(task(name, pull_policy="always")) == second
        engine.cli("rmi", "--force", digest, first, check=False)


@marked
async def test_an_image_that_may_not_be_pulled_is_an_error(engine: Engine, registry: Registry) -> None:
    before = registry.requests("")
    async with pulling(engine, pull_policy="never") as pulls:
        with pytest.raises(StartError, match="the engine has no image .*/a:b, and the pull policy is 'never'"):
            await pulls.ensure(task(f"{registry.address}/a:b"))
        with pytest.raises(StartError, match="and an id cannot be pulled"):
            await pulls.ensure(task(f"sha256:{'0' * 64}"))
        with pytest.raises(ConfigError, match="TaskConfig.image is None: a container needs an image"):
            await pulls.ensure(TaskConfig())
        with pytest.raises(ConfigError, match="TaskConfig.image is 'A B'"):
            await pulls.ensure(task("A B"))
    assert registry.requests("") == before


@marked
async def test_an_image_that_does_not_exist_is_no_use_to_try_again(engine: Engine, registry: Registry) -> None:
    async with pulling(engine) as pulls:
        with pytest.raises(StartError, match=f"pull {registry.address}/none: .*manifest unknown"):
            await pulls.ensure(task(f"{registry.address}/none"))


@marked
async def test_ten_callers_share_one_pull(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    heard = Heard()
    with pushed(engine, registry, "shared:v1", tmp_path, 4 * MIB) as name:
        before = registry.requests('"GET /v2/shared/')
        async with pulling(engine, heard) as pulls:
            tasks = [task(name) for _ in range(10)]
            found = await asyncio.gather(*(pulls.ensure(each) for each in tasks))
        assert set(found) == {id_of(engine, name)}
        # the manifest, the image's configuration and its one layer
        assert registry.requests('"GET /v2/shared/') - before == 3
        assert all(heard.texts(each.id)[-1].startswith(f"pulled {name}") for each in tasks)


@marked
async def test_a_caller_that_leaves_harms_no_other(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    with pushed(engine, registry, "left:v1", tmp_path, 4 * MIB) as name:
        async with held_up(registry, MIB) as way, pulling(engine) as pulls:
            through = name.replace(registry.address, way.address)
            first, second = (asyncio.create_task(pulls.ensure(task(through))) for _ in range(2))
            await way.full.wait()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert way.held > 0
            way.let_go()
            assert await second == id_of(engine, through)
            engine.cli("rmi", through)


@marked
async def test_the_last_caller_to_leave_ends_the_pull_at_once(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    with pushed(engine, registry, "hung:v1", tmp_path, 4 * MIB) as name:
        async with held_up(registry, MIB) as way, pulling(engine) as pulls:
            through = name.replace(registry.address, way.address)
            callers = [asyncio.create_task(pulls.ensure(task(through))) for _ in range(2)]
            await way.full.wait()
            before = len(engine.log())
            began = time.monotonic()
            for each in callers:
                each.cancel()
            await asyncio.wait(callers)
            assert all(each.cancelled() for each in callers)
            assert time.monotonic() - began < 1
            while "context canceled" not in engine.log()[before:]:  # the engine gave it up too
                await asyncio.sleep(0.01)
            way.let_go()
            assert await pulls.ensure(task(through)) == id_of(engine, through)  # and can begin anew
            engine.cli("rmi", through)


@marked
async def test_a_pull_that_takes_too_long_may_be_tried_again(
    engine: Engine, registry: Registry, tmp_path: Path
) -> None:
    with pushed(engine, registry, "slow:v1", tmp_path, 4 * MIB) as name:
        async with held_up(registry, MIB) as way, pulling(engine, pull_timeout="500ms") as pulls:
            through = name.replace(registry.address, way.address)
            with pytest.raises(StartRecoverable, match=rf"pull {through}: not done within 500ms"):
                await pulls.ensure(task(through))


@marked
async def test_a_pull_ends_when_the_driver_closes(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    with pushed(engine, registry, "closed:v1", tmp_path, 4 * MIB) as name:
        async with held_up(registry, MIB) as way, pulling(engine) as pulls:
            through = name.replace(registry.address, way.address)
            caller = asyncio.create_task(pulls.ensure(task(through)))
            await way.full.wait()
            await pulls.close()
            with pytest.raises(PluginShutdown):
                await caller


@marked
async def test_a_registry_that_is_down_may_be_up_later(engine: Engine, tmp_path: Path) -> None:
    with serving(tmp_path / "own") as own, pushed(engine, own, "down:v1", tmp_path) as name:
        async with pulling(engine) as pulls:
            own.stop()
            with pytest.raises(StartRecoverable, match="connection refused"):
                await pulls.ensure(task(name))
            own.start()
            assert await pulls.ensure(task(name)) == id_of(engine, name)


@marked
async def test_progress_is_told_about_once_a_second(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    heard = Heard()
    with pushed(engine, registry, "told:v1", tmp_path, 30 * MIB) as name:
        async with pulling(engine, heard) as pulls:
            wanted = task(name)
            began = time.monotonic()
            await pulls.ensure(wanted)
            assert len(heard.texts(wanted.id)) <= 2 + (time.monotonic() - began)


# -- credentials ---------------------------------------------------------------------------------------------------


@pytest.fixture
def private(engine: Engine, guarded: Registry, tmp_path: Path) -> Iterator[str]:
    """An image that only we may have."""
    with pushed(engine, guarded, "private:v1", tmp_path) as name:
        (tmp_path / "config.json").unlink(missing_ok=True)
        yield name


@marked
async def test_the_drivers_credentials_open_a_registry(engine: Engine, guarded: Registry, private: str) -> None:
    right = {guarded.address: Login(username=USER, password=PASSWORD)}
    async with pulling(engine, registries=right) as pulls:
        assert await pulls.ensure(task(private)) == id_of(engine, private)


@marked
async def test_a_tasks_credentials_win(engine: Engine, guarded: Registry, private: str) -> None:
    wrong = {guarded.address: Login(username=USER, password=SECRET)}
    async with pulling(engine, registries=wrong) as pulls:
        found = await pulls.ensure(task(private, auth={"username": USER, "password": PASSWORD}))
        assert found == id_of(engine, private)


@marked
async def test_the_users_credentials_are_the_last(
    engine: Engine, guarded: Registry, private: str, tmp_path: Path
) -> None:
    user_config(tmp_path, guarded.address)
    async with pulling(engine) as pulls:
        assert await pulls.ensure(task(private)) == id_of(engine, private)


@marked
async def test_a_registry_that_refuses_us_is_no_use_to_try_again_and_no_secret_is_told(
    engine: Engine, guarded: Registry, private: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    heard = Heard()
    wrong = {guarded.address: Login(username=USER, password=SECRET)}
    async with pulling(engine, heard, registries=wrong) as pulls:
        with pytest.raises(StartError, match="drivers.docker.registries.127.0.0.1") as caught:
            await pulls.ensure(task(private))
        shown = [str(caught.value), repr(caught.value), caplog.text, repr(list(heard)), repr(vars(pulls))]
        header = base64.urlsafe_b64encode(SECRET.encode()).decode().rstrip("=")[4:12]
        for text in shown:
            assert SECRET not in text
            assert header not in text
    async with pulling(engine) as pulls:
        with pytest.raises(StartError, match=r"\(credentials: none\)"):
            await pulls.ensure(task(private))


@marked
async def test_two_logins_are_two_pulls(engine: Engine, guarded: Registry, private: str) -> None:
    """Who may not have an image does not get it because somebody else asks at the same time."""
    async with pulling(engine) as pulls:
        good, bad = await asyncio.gather(
            pulls.ensure(task(private, pull_policy="always", auth={"username": USER, "password": PASSWORD})),
            pulls.ensure(task(private, pull_policy="always", auth={"username": USER, "password": SECRET})),
            return_exceptions=True,
        )
    assert good == id_of(engine, private)
    assert isinstance(bad, StartError)


@marked
async def test_a_helper_that_hangs_is_an_error_in_time(engine: Engine, users_folder: Path) -> None:
    helper(users_folder, f"echo $$ > {users_folder}/pid; exec sleep 60")
    async with pulling(engine, call_timeout="1s") as pulls:
        with pytest.raises(StartRecoverable, match="credential helper .* did not answer for my.reg within 1 s"):
            await pulls.ensure(task("my.reg/a"))
    with suppress(ProcessLookupError):
        os.kill(int((users_folder / "pid").read_text()), 9)


# -- an engine that is harmed --------------------------------------------------------------------------------------


@marked
async def test_a_registry_killed_in_the_middle_may_be_up_later(registry: Registry, tmp_path: Path) -> None:
    with running("--max-download-attempts=1") as own, pushed(own, registry, "cut:v1", tmp_path, 4 * MIB) as name:
        async with held_up(registry, MIB) as way, pulling(own) as pulls:
            through = name.replace(registry.address, way.address)
            caller = asyncio.create_task(pulls.ensure(task(through)))
            await way.full.wait()
            way.cut()
            with pytest.raises(StartRecoverable, match=f"pull {through}: "):
                await caller


@marked
async def test_an_engine_killed_in_the_middle_may_be_up_later(registry: Registry, tmp_path: Path) -> None:
    with running() as own, pushed(own, registry, "gone:v1", tmp_path, 4 * MIB) as name:
        async with held_up(registry, MIB) as way, pulling(own) as pulls:
            through = name.replace(registry.address, way.address)
            caller = asyncio.create_task(pulls.ensure(task(through)))
            await way.full.wait()
            own.kill()
            with pytest.raises(RecoverableError):
                await caller
            with pytest.raises(RecoverableError):
                await pulls.ensure(task(through))
            way.let_go()
            own.start()
            assert await pulls.ensure(task(through)) == id_of(own, through)


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "--make-private", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@marked
async def test_a_full_disk_is_an_error_that_may_pass(engine: Engine, registry: Registry, tmp_path: Path) -> None:
    with (
        pushed(engine, registry, "large:v1", tmp_path, 40 * MIB) as name,
        small_disk(tmp_path / "disk", 32 * MIB) as disk,
        running(f"--data-root={disk}/data", "--max-download-attempts=1") as own,
    ):
        async with pulling(own) as pulls:
            with pytest.raises(StartRecoverable, match=r"no space left on device.*\(the engine's disk is full\)"):
                await pulls.ensure(task(name))
            assert await pulls.ensure(task(IMAGE)) == id_of(own, IMAGE)  # which goes on with what it has
