"""The command line, as a program of its own against a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import mqttquic_lab as mq
from mqttquic_lab import cli
from tests.helpers.jupyter import answers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-m", "mqttquic_lab"]


@pytest.fixture(scope="module")
def broker() -> Iterator[mq.Broker]:
    with mq.start_broker(quic_port=0, tls_port=0, tcp_port=0) as started:
        yield started


def run(*arguments: str, stdin: str | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, **environment},
    )


def test_demo_succeeds_and_shows_what_arrived_over_quic() -> None:
    done = run("demo", "--messages", "12")
    assert done.returncode == 0, done.stderr
    for expected in ("QUICv1", "ALPN protocol: mqtt", "Verification: OK", "lab/machine/", "over quic, 0 errors"):
        assert expected in done.stdout
    assert done.stderr == ""


def test_demo_fails_when_too_little_arrives() -> None:
    done = run("demo", "--messages", "1000000", "--timeout", "0.5")
    assert done.returncode == 1
    assert "wanted 1000000 messages over QUIC" in done.stderr


@pytest.mark.parametrize("scheme", ["quic", "mqtts", "mqtt"])
def test_pub_reaches_sub(broker: mq.Broker, scheme: str) -> None:
    url, ca_file = broker.urls[scheme], str(broker.ca_file)
    # Retained, so that it does not matter which of the two comes first.
    sent = run("pub", url, f"cli/{scheme}", "-", "--qos", "1", "--retain", "--ca-file", ca_file, stdin="hällo\x1b[31m")
    assert sent.returncode == 0, sent.stderr
    got = run("sub", url, f"cli/{scheme}", "--count", "1", "--wait", "20", "--ca-file", ca_file)
    assert got.returncode == 0, got.stderr
    assert got.stdout == f"cli/{scheme} hällo\\x1b[31m\n"


def test_sub_fails_when_the_wait_ends_first(broker: mq.Broker) -> None:
    done = run("sub", broker.url, "cli/never", "--count", "1", "--wait", "0.3", "--ca-file", str(broker.ca_file))
    assert (done.returncode, done.stdout) == (1, "")


def test_password_comes_from_the_environment() -> None:
    with mq.start_broker(quic_port=0, tls=False, tcp=False, users={"ada": "engine"}) as guarded:
        arguments = ("pub", guarded.url, "cli/secret", "x", "--ca-file", str(guarded.ca_file), "--username", "ada")
        assert run(*arguments, MQTTQUIC_PASSWORD="engine").returncode == 0
        refused = run(*arguments, MQTTQUIC_PASSWORD="wrong-engine")
        assert refused.returncode == 1
        assert "wrong-engine" not in refused.stderr + refused.stdout


def test_probe_prints_what_it_saw(broker: mq.Broker) -> None:
    target = broker.url.removeprefix("quic://")
    done = run("probe", target, "--ca-file", str(broker.ca_file))
    assert done.returncode == 0, done.stderr
    for expected in ("Certificate chain", "Peer signature type: ", "Peer Temp Key: X25519", "MQTT 5.0"):
        assert expected in done.stdout
    report = json.loads(run("probe", target, "--ca-file", str(broker.ca_file), "--json").stdout)
    assert (report["alpn"], report["verification"]) == ("mqtt", "verified")


def test_probe_of_an_untrusted_server_says_so_and_fails(broker: mq.Broker) -> None:
    done = run("probe", broker.url)
    assert done.returncode == 1
    assert "Verification: OK" not in done.stdout
    assert "mqttquic-lab embedded broker CA" in done.stdout


def test_probe_of_a_closed_port_ends_at_once(free_port: int) -> None:
    done = run("probe", f"127.0.0.1:{free_port}", "--timeout", "30")
    assert done.returncode == 1
    assert "nothing listens on UDP port" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pub", "quick://localhost", "a"), "quic"),
        (("pub", "mqtt://localhost", "a/+"), "wildcard"),
        (("sub", "quic://localhost:70000", "a"), "port"),
    ],
)
def test_bad_input_is_one_line_with_the_fix(arguments: tuple[str, ...], words: str, broker: mq.Broker) -> None:
    arguments = tuple(broker.urls["mqtt"] if a == "mqtt://localhost" else a for a in arguments)
    done = run(*arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("mqttquic-lab: ")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_broker_runs_until_it_is_told_to_stop(tmp_path: Path) -> None:
    ca_file, users, acl = tmp_path / "ca.pem", tmp_path / "users.json", tmp_path / "acl.json"
    users.write_text('{"ada": "engine"}')
    acl.write_text('[["*", "publish", "of/%u"]]')
    ports = ("--quic-port", "0", "--tls-port", "0", "--tcp-port", "0", "--users", str(users), "--acl", str(acl))
    process = subprocess.Popen(
        [*COMMAND, "broker", *ports, "--ca-out", str(ca_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or "Ctrl-C" not in lines[-1]:
            lines.append(process.stdout.readline())
            assert lines[-1], process.communicate()[1]
        url = lines[0].strip()
        with mq.connect(url, ca_file=str(ca_file), username="ada", password="engine") as session:
            assert session.handshake.transport == "quic"
            with pytest.raises(mq.PublishError, match="not allowed"):
                session.publish("of/bob", "", qos=1)
        login = ("--scram", "--username", "ada", "--ca-file", str(ca_file))
        assert run("pub", url, "of/ada", "x", "-q", "1", *login, MQTTQUIC_PASSWORD="engine").returncode == 0
        assert "0x87" in run("pub", url, "of/ada", "x", *login, MQTTQUIC_PASSWORD="x").stderr
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (0, "")


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_a_file_of_users_that_is_none(tmp_path: Path, content: str | None) -> None:
    users = tmp_path / "users.json"
    if content is not None:
        users.write_text(content)
    done = run("broker", "--users", str(users))
    assert done.returncode == 1
    assert "users.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_notebooks_of_an_installed_package_are_copied_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "prefix" / "share" / "mqttquic_lab" / "notebooks"
    installed.mkdir(parents=True)
    (installed / cli.QUICKSTART).write_text("as shipped")
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "mqttquic_lab" / "cli.py"))
    monkeypatch.setattr("sysconfig.get_path", lambda _name: str(tmp_path / "prefix"))
    monkeypatch.chdir(tmp_path)
    folder = cli.notebook_folder()
    assert (folder / cli.QUICKSTART).read_text() == "as shipped"
    (folder / cli.QUICKSTART).write_text("with notes")
    assert (cli.notebook_folder() / cli.QUICKSTART).read_text() == "with notes"


def test_notebook_command_serves_the_quickstart(free_port: int, tmp_path: Path) -> None:
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    process = subprocess.Popen(
        [*COMMAND, "notebook", "--no-browser", "--port", str(free_port)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        seen = ""
        for line in process.stdout:
            seen += line
            if "copy and paste" in line:
                break
        assert f":{free_port}/lab/tree/01_quickstart.ipynb" in seen, seen
        assert answers(f"http://localhost:{free_port}/api", process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=20)


def test_output_cut_off_by_its_reader_is_no_error(broker: mq.Broker) -> None:
    process = subprocess.Popen(
        [*COMMAND, "probe", broker.url, "--ca-file", str(broker.ca_file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait(30)
    assert errors == b""


def test_gateway_carries_pub_and_sub_to_a_broker(broker: mq.Broker, tmp_path: Path) -> None:
    ca_out = tmp_path / "ca.pem"
    arguments = ["gateway", "--upstream", broker.urls["mqtts"], "--ca-file", str(broker.ca_file), "--quic-port", "0"]
    gateway = subprocess.Popen(
        [*COMMAND, *arguments, "--ca-out", str(ca_out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert gateway.stdout is not None
        url = gateway.stdout.readline().strip()
        assert url.startswith("quic://127.0.0.1:")
        while "Ctrl-C" not in gateway.stdout.readline():
            pass
        sent = run("pub", url, "cli/gateway", "through", "--qos", "2", "--retain", "--ca-file", str(ca_out))
        assert sent.returncode == 0, sent.stderr
        got = run("sub", url, "cli/gateway", "--count", "1", "--wait", "20", "--ca-file", str(ca_out))
        assert (got.returncode, got.stdout) == (0, "cli/gateway through\n"), got.stderr
    finally:
        gateway.send_signal(signal.SIGTERM)
        _, errors = gateway.communicate(timeout=20)
    assert (gateway.returncode, errors) == (0, "")


def test_gateway_refuses_credentials_in_the_url_without_repeating_them() -> None:
    done = run("gateway", "--upstream", "mqtt://ann:geheim@localhost")
    assert done.returncode == 1
    assert "CONNECT" in done.stderr
    assert "geheim" not in done.stderr
