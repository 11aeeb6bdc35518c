import hashlib
import json
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cameleer.drivers.docker.client.endpoint import Endpoint, Tls, find
from cameleer.drivers.docker.settings import DockerConfig
from cameleer.errors import ConfigError

NOTHING = DockerConfig()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".docker").mkdir()
    return tmp_path


def context(home: Path, name: str, docker: object, **files: str) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    meta = home / ".docker/contexts/meta" / digest
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": docker}}))
    certificates(home / ".docker/contexts/tls" / digest / "docker", *files)


def certificates(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.pem").write_text("")
    return folder


def current(home: Path, name: object) -> None:
    (home / ".docker/config.json").write_text(json.dumps({"currentContext": name}))


# -- who says where it is ------------------------------------------------------------------------------------------


def test_the_usual_socket_without_any_word(home: Path) -> None:
    found = find(NOTHING, {"HOME": str(home)})
    assert found == Endpoint(url="unix:///var/run/docker.sock", tls=None, source="default")
    assert found.is_unix
    assert found.path == "/var/run/docker.sock"
    assert found.ssl_context() is None


def test_the_drivers_configuration_comes_first(home: Path) -> None:
    env = {"HOME": str(home), "DOCKER_HOST": "tcp://other:1", "DOCKER_CONTEXT": "nosuch"}
    found = find(DockerConfig(endpoint="unix:///run/mine.sock"), env)
    assert (found.url, found.source) == ("unix:///run/mine.sock", "driver config")


def test_docker_host_comes_before_contexts(home: Path) -> None:
    current(home, "remote")
    found = find(NOTHING, {"HOME": str(home), "DOCKER_HOST": "tcp://h:2375", "DOCKER_CONTEXT": "remote"})
    assert (found.url, found.tls, found.source) == ("tcp://h:2375", None, "DOCKER_HOST")


def test_docker_context_comes_before_the_current_one(home: Path) -> None:
    context(home, "a", {"Host": "unix:///run/a.sock"})
    context(home, "b", {"Host": "unix:///run/b.sock"})
    current(home, "a")
    assert find(NOTHING, {"HOME": str(home)}).url == "unix:///run/a.sock"
    assert find(NOTHING, {"HOME": str(home)}).source == "docker context a"
    assert find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "b"}).url == "unix:///run/b.sock"
    assert find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "default"}).source == "default"


def test_docker_config_says_where_the_contexts_are(home: Path) -> None:
    context(home, "a", {"Host": "unix:///run/a.sock"})
    current(home, "a")
    assert find(NOTHING, {"HOME": "/nonexistent", "DOCKER_CONFIG": f"{home}/.docker"}).url == "unix:///run/a.sock"


def test_a_context_with_certificates(home: Path) -> None:
    context(home, "far", {"Host": "tcp://far", "SkipTLSVerify": False}, ca="", cert="", key="")
    found = find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "far"})
    assert found.url == "tcp://far:2376"
    assert found.tls is not None
    assert found.tls.verify
    assert found.tls.ca.endswith("/docker/ca.pem")
    assert found.tls.key.endswith("/docker/key.pem")


def test_a_context_without_certificates_is_not_encrypted_unless_it_skips_the_check(home: Path) -> None:
    context(home, "plain", {"Host": "tcp://far:1"})
    context(home, "lax", {"Host": "tcp://far:1", "SkipTLSVerify": True})
    assert find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "plain"}).tls is None
    assert find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "lax"}).tls == Tls(verify=False)


def test_a_context_that_is_as_the_docker_command_makes_it(home: Path) -> None:
    import shutil
    import subprocess

    if not shutil.which("docker"):
        pytest.skip("the docker command is not installed")
    env = {"HOME": str(home), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    subprocess.run(
        ["docker", "context", "create", "far", "--docker", "host=tcp://10.0.0.1:2375"],
        env=env,
        check=True,
        capture_output=True,
    )
    subprocess.run(["docker", "context", "use", "far"], env=env, check=True, capture_output=True)
    found = find(NOTHING, env)
    assert (found.url, found.source) == ("tcp://10.0.0.1:2375", "docker context far")


# -- addresses -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("unix:///run/docker.sock", "unix:///run/docker.sock"),
        ("http+unix:///run/docker.sock", "unix:///run/docker.sock"),
        ("unix://", "unix:///var/run/docker.sock"),
        ("tcp://h:2375", "tcp://h:2375"),
        ("tcp://h", "tcp://h:2375"),
        ("tcp://h:2375/", "tcp://h:2375"),
        ("h:2375", "tcp://h:2375"),
        ("http://h:1", "tcp://h:1"),
        ("tcp://[::1]:2375", "tcp://[::1]:2375"),
        ("tcp://[::1]", "tcp://[::1]:2375"),
        (" tcp://h:1 ", "tcp://h:1"),
        ("tcp://h:1/behind/a/proxy", "tcp://h:1/behind/a/proxy"),
    ],
)
def test_addresses_that_the_docker_command_takes(text: str, url: str) -> None:
    assert find(NOTHING, {"DOCKER_HOST": text}).url == url


def test_the_parts_of_an_address() -> None:
    found = find(NOTHING, {"DOCKER_HOST": "tcp://[fe80::1]:7/proxy/"})
    assert (found.host, found.port, found.prefix, found.path, found.is_unix) == ("fe80::1", 7, "/proxy", None, False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ssh://me@host", "ssh:// is not supported, because it needs a program that tunnels"),
        ("npipe:////./pipe/docker", "cannot be connected to from here"),
        ("fd://", "cannot be connected to from here"),
        ("gopher://x", "no address of an engine; write unix:///path/of/the.sock or tcp://host:port"),
        ("/var/run/docker.sock", "no address of an engine; write unix://"),
        ("unix://docker.sock", "not absolute"),
        ("unix:///" + "a" * 107, "107 bytes at most"),
        ("tcp://", "names no host"),
        ("tcp://h:0", "0 is no port"),
        ("tcp://h:99999", "out of range"),
        ("tcp://h:x", "write unix://"),
        ("tcp://h:1?a=b", "neither a user nor a query"),
        ("tcp://a b:1", "names no host"),
        ("tcp://[::1:1", "write unix://"),
    ],
)
def test_a_wrong_address_is_named_with_its_source(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(NOTHING, {"DOCKER_HOST": text})
    assert str(caught.value).startswith(f"DOCKER_HOST is {text!r}")
    assert reason in str(caught.value)
    with pytest.raises(ConfigError, match=r"drivers\.docker\.endpoint is "):
        find(DockerConfig(endpoint=text), {})


def test_a_password_in_an_address_is_not_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        find(NOTHING, {"DOCKER_HOST": "tcp://me:hunter2@h:1"})
    assert "hunter2" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_config_error(text: str) -> None:
    try:
        found = find(DockerConfig(endpoint=text), {"HOME": "/nonexistent"})
    except ConfigError:
        return
    assert found.is_unix or found.host
    assert found.is_unix or 0 < found.port < 65536


# -- TLS -----------------------------------------------------------------------------------------------------------


def test_certificates_of_the_environment(tmp_path: Path) -> None:
    folder = certificates(tmp_path / "certs", "ca", "cert", "key")
    env = {"DOCKER_HOST": "tcp://h", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)}
    found = find(NOTHING, env)
    assert found.url == "tcp://h:2376"
    assert found.tls == Tls(ca=f"{folder}/ca.pem", cert=f"{folder}/cert.pem", key=f"{folder}/key.pem", verify=True)
    lax = find(NOTHING, {**env, "DOCKER_TLS_VERIFY": ""})
    assert lax.tls is not None
    assert not lax.tls.verify


def test_certificates_are_looked_for_beside_the_docker_configuration(home: Path) -> None:
    certificates(home / ".docker", "ca")
    found = find(NOTHING, {"HOME": str(home), "DOCKER_HOST": "tcp://h:1", "DOCKER_TLS_VERIFY": "1"})
    assert found.tls == Tls(ca=f"{home}/.docker/ca.pem")


def test_tls_of_the_environment_does_not_matter_to_a_socket(tmp_path: Path) -> None:
    env = {"DOCKER_HOST": "unix:///s", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    assert find(NOTHING, env).tls is None


def test_an_authority_that_is_missing_is_named(tmp_path: Path) -> None:
    env = {"DOCKER_HOST": "tcp://h", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    with pytest.raises(ConfigError, match=rf"DOCKER_CERT_PATH is '{tmp_path}': there is no {tmp_path}/ca.pem"):
        find(NOTHING, env)


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    certificates(tmp_path, "ca", "cert")
    env = {"DOCKER_HOST": "tcp://h", "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"has no key\.pem to cert\.pem"):
        find(NOTHING, env)
    with pytest.raises(ConfigError, match="tls_cert and tls_key go together"):
        find(DockerConfig(endpoint="tcp://h", tls_cert=f"{tmp_path}/cert.pem"), {})


def test_tls_of_the_drivers_configuration(tmp_path: Path) -> None:
    certificates(tmp_path, "ca")
    found = find(DockerConfig(endpoint="tcp://h", tls_ca=f"{tmp_path}/ca.pem"), {"DOCKER_TLS_VERIFY": ""})
    assert (found.url, found.tls) == ("tcp://h:2376", Tls(ca=f"{tmp_path}/ca.pem"))
    assert find(DockerConfig(endpoint="tcp://h", tls_verify=False), {}).tls == Tls(verify=False)
    assert find(DockerConfig(endpoint="https://h:1"), {}).tls == Tls()
    assert find(DockerConfig(endpoint="tcp://h"), {"DOCKER_TLS_VERIFY": "1"}).tls is None


def test_tls_settings_that_go_with_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="go with an endpoint"):
        find(DockerConfig(tls_ca="/ca.pem"), {})
    with pytest.raises(ConfigError, match="goes with tcp://"):
        find(DockerConfig(endpoint="unix:///s", tls_verify=False), {})
    with pytest.raises(ConfigError, match=r"drivers\.docker\.tls_ca is '/nonexistent': there is no such file"):
        find(DockerConfig(endpoint="tcp://h", tls_ca="/nonexistent"), {})


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    folder = certificates(tmp_path, "ca", "cert", "key")
    (folder / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=rf"cannot use {folder}/ca.pem for tcp://h:1 \(DOCKER_HOST\)"):
        Endpoint(url="tcp://h:1", tls=Tls(ca=f"{folder}/ca.pem"), source="DOCKER_HOST").ssl_context()
    with pytest.raises(ConfigError, match=rf"cannot use {folder}/cert.pem with {folder}/key.pem"):
        Endpoint(url="tcp://h:1", tls=Tls(cert=f"{folder}/cert.pem", key=f"{folder}/key.pem")).ssl_context()


def test_without_verification_nothing_is_checked() -> None:
    import ssl

    checked = Endpoint(url="tcp://h:1", tls=Tls()).ssl_context()
    assert checked is not None
    assert checked.verify_mode == ssl.CERT_REQUIRED
    assert checked.check_hostname
    unchecked = Endpoint(url="tcp://h:1", tls=Tls(verify=False)).ssl_context()
    assert unchecked is not None
    assert unchecked.verify_mode == ssl.CERT_NONE


# -- what is broken ------------------------------------------------------------------------------------------------


def test_a_context_that_does_not_exist_is_named_with_who_wants_it(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no docker context 'far' \(DOCKER_CONTEXT\): no file .*meta\.json"):
        find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "far"})
    current(home, "gone")
    with pytest.raises(ConfigError, match=r"'gone' \(currentContext in .*/config\.json\)"):
        find(NOTHING, {"HOME": str(home)})


@pytest.mark.parametrize("text", ["{", "[]", '{"currentContext": 5}', "\0"])
def test_a_broken_configuration_is_named(home: Path, text: str) -> None:
    (home / ".docker/config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"\.docker/config\.json"):
        find(NOTHING, {"HOME": str(home)})


@pytest.mark.parametrize("docker", [None, [], {"Host": "gopher://x"}, {"Host": 5}])
def test_a_broken_context_is_named(home: Path, docker: object) -> None:
    context(home, "odd", docker)
    with pytest.raises(ConfigError, match="docker context 'odd'"):
        find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "odd"})


def test_a_context_without_a_host_is_the_usual_socket(home: Path) -> None:
    context(home, "local", {})
    found = find(NOTHING, {"HOME": str(home), "DOCKER_CONTEXT": "local"})
    assert (found.url, found.source) == ("unix:///var/run/docker.sock", "docker context local")


def test_the_longest_path_that_is_taken_can_be_bound(tmp_path: Path) -> None:
    path = "/tmp/" + "s" * (107 - 5)
    assert find(NOTHING, {"DOCKER_HOST": f"unix://{path}"}).path == path
    with socket.socket(socket.AF_UNIX) as client, pytest.raises(OSError, match=r"No such file|refused"):
        client.connect(path)
