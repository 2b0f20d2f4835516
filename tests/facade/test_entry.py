"""The verbs a person begins with, and what they say when something is wrong."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mqttquic_lab as mq
from mqttquic_lab.runtime import ThreadRuntime
from tests.facade.conftest import PATIENCE, ids, until

# connect


@pytest.mark.parametrize(
    ("target", "options", "error", "says"),
    [
        ("quick://host", {}, mq.UsageError, "did you mean quic://"),
        ("quic://host", {"keepalife": 3}, mq.UnknownOptionError, "did you mean 'keepalive'"),
        ("quic://host", {"runtimes": 3}, mq.UnknownOptionError, "did you mean 'runtime'"),
        ("quic://host", {"keepalive": -1}, mq.UsageError, "keepalive"),
        (7, {}, mq.UsageError, "start_broker"),
    ],
)
def test_bad_arguments(target: Any, options: dict[str, Any], error: type[Exception], says: str) -> None:
    for verb in (mq.connect, mq.probe):
        with pytest.raises(error, match=says):
            verb(target, **options)
    with pytest.raises(error, match=says):
        asyncio.run(mq.aio.connect(target, **options))


def test_a_closed_port_is_said_at_once(free_port: int) -> None:
    with pytest.raises(mq.UnreachableError, match="nothing listens"):
        mq.connect(f"quic://127.0.0.1:{free_port}", timeout=60)
    with pytest.raises(mq.ConnectError):
        asyncio.run(mq.aio.connect(f"mqtt://127.0.0.1:{free_port}"))


def test_an_untrusted_authority(broker: mq.Broker) -> None:
    with pytest.raises(mq.CertificateError, match="ca_file"):
        mq.connect(broker.url)
    with mq.connect(broker):
        pass  # by its handle it is trusted


def test_the_awaitable_way_cancelled(broker: mq.Broker) -> None:
    async def story() -> None:
        opening = asyncio.create_task(mq.aio.connect(broker, client_id="cancelled"))
        await asyncio.sleep(0.001)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening

    asyncio.run(story())
    until(broker, lambda: "cancelled" not in ids(broker))


def test_an_interrupted_connect_leaves_nothing_open(broker: mq.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ThreadRuntime("interrupted")
    run = runtime.run

    def interrupted(coro: Any, timeout: float | None = None) -> Any:
        run(coro, timeout)
        raise KeyboardInterrupt  # in the worst moment: the session is there, and nobody has it

    monkeypatch.setattr(runtime, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mq.connect(broker, runtime=runtime, client_id="interrupted")
    until(broker, lambda: "interrupted" not in ids(broker))
    runtime.stop()


def test_help_shows_the_options() -> None:
    for verb in (mq.connect, mq.aio.connect, mq.from_env):
        parameters = inspect.signature(verb).parameters
        assert parameters["client_id"].default == ""
        assert parameters["keepalive"].kind is inspect.Parameter.KEYWORD_ONLY
        assert "options" not in parameters
    assert "tcp_port" in inspect.signature(mq.start_broker).parameters
    for maker, missing in ((mq.connect, ""), (mq.start_broker, "max_|slow_|_maximum|_timeout|response_")):
        told = set(re.findall(r"\w+", maker.__doc__ or ""))
        options = [name for name in inspect.signature(maker).parameters if not missing or not re.search(missing, name)]
        assert [name for name in options if name not in told] == []


# from_env


def test_from_env(broker: mq.Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MQTTQUIC_URL", raising=False)
    with pytest.raises(mq.UsageError, match="MQTTQUIC_URL is not set"):
        mq.from_env()
    monkeypatch.setenv("MQTTQUIC_URL", broker.urls["mqtts"])
    monkeypatch.setenv("MQTTQUIC_USERNAME", "me")
    monkeypatch.setenv("MQTTQUIC_PASSWORD", "hunter2")
    monkeypatch.setenv("MQTTQUIC_CA_FILE", str(broker.ca_file))
    with mq.from_env(client_id="env") as session:
        assert session.url == broker.urls["mqtts"]
        assert [client.username for client in broker.clients() if client.client_id == "env"] == ["me"]
        assert "hunter2" not in repr(session) + str(session.handshake.to_dict())

    async def story() -> str:
        async with await mq.aio.from_env(username="you") as session:
            return session.state

    assert asyncio.run(story()) == "connected"


# probe


def test_probe(broker: mq.Broker, free_port: int) -> None:
    good = mq.probe(broker)
    assert good.error is None
    assert good.verification == "verified"
    assert "QUIC" in good.text()
    untrusted = mq.probe(broker.url)
    assert untrusted.verification == "failed"
    assert untrusted.certificates
    closed = mq.probe(f"127.0.0.1:{free_port}", timeout=60)
    assert "nothing listens" in closed.error
    assert asyncio.run(mq.aio.probe(broker)).error is None


# start_broker


def test_a_broker_and_who_is_connected(broker: mq.Broker) -> None:
    assert set(broker.urls) == {"quic", "mqtts", "mqtt"}
    assert broker.url == broker.urls["quic"]
    host, port = broker.address("mqtts")
    assert broker.urls["mqtts"] == f"mqtts://{host}:{port}"
    with pytest.raises(mq.UsageError, match="no 'ws' listener"):
        broker.address("ws")
    assert broker.ca_file.read_text().startswith("-----BEGIN CERTIFICATE")
    with mq.connect(broker, client_id="shown") as session:
        session.subscribe("a/#")
        (client,) = [client for client in broker.clients() if client.client_id == "shown"]
        assert (client.transport, client.version, client.subscriptions) == ("quic", "5.0", ("a/#",))
        assert broker.stats.clients >= 1
        assert "shown" in set(broker.frame()["client_id"])
        assert "shown" in broker._repr_html_()
        assert broker.url in repr(broker)
        with pytest.raises(mq.ConnectRefusedError):
            mq.connect(broker, auth=_NoMethod())
        assert "1 CONNECT refused" in repr(broker)
        assert "1 CONNECT refused" in broker._repr_html_()
        assert any(info.client_id == "shown" for info in asyncio.run(broker.aio.clients()))


def test_a_broker_closes_and_says_so() -> None:
    broker = mq.start_broker(quic_port=0, tls=False, tcp=False)
    session = mq.connect(broker, reconnect=False)
    assert broker.state == "listening"
    broker.close()
    broker.close()
    assert broker.state == "closed"
    assert "closed" in repr(broker)
    assert "closed" in broker._repr_html_()
    reason = session.wait_closed(timeout=PATIENCE)
    assert isinstance(reason, mq.DisconnectedError)
    assert "shutting down" in str(reason)
    with pytest.raises(mq.ConnectError):
        mq.connect(broker, ca_file=None, verify=False, timeout=5)
    session.close()


def test_a_broker_on_plain_tcp_only() -> None:
    with mq.start_broker(quic=False, tls=False, tcp_port=0) as broker, mq.connect(broker) as session:
        assert session.transport == "tcp"
        assert "plain TCP only" in broker._repr_html_()


def test_a_forgotten_broker_closes_itself() -> None:
    broker = mq.start_broker(quic=False, tls=False, tcp_port=0)
    url = broker.url
    session: mq.Session | None = mq.connect(broker)
    del broker
    gc.collect()
    assert session is not None
    assert session.ping() > 0  # its session keeps it
    core = session._target._core  # type: ignore[attr-defined]
    del session
    gc.collect()
    waited = ThreadRuntime.running("mqttquic-lab broker loop")
    assert waited is not None

    async def closed() -> None:
        while core._state != "closed":
            await asyncio.sleep(0.01)

    waited.run(closed(), PATIENCE)
    with pytest.raises(mq.ConnectError):
        mq.connect(url, timeout=5)


def test_brokers_have_a_thread_of_their_own(broker: mq.Broker, session: mq.Session) -> None:
    assert broker._runtime.thread is not session._runtime.thread


def test_a_broker_in_a_process_of_its_own() -> None:
    with mq.start_broker(process=True, quic_port=0, tls_port=0, tcp_port=0) as broker, mq.connect(broker) as session:
        feed = session.subscribe("a", 1)
        session.publish("a", b"x", qos=1)
        feed.wait(1)
        until(broker, lambda: broker._core.stats().messages_in == 1)
        assert broker.clients()[0].transport == "quic"


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"tcp_prt": 1}, mq.UnknownOptionError, "did you mean 'tcp_port'"),
        ({"proces": True}, mq.UnknownOptionError, "did you mean 'process'"),
        ({"max_inflight": 0}, mq.UsageError, "max_inflight"),
        ({"timeout": 0}, mq.UsageError, "timeout"),
    ],
)
def test_bad_broker_settings(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mq.start_broker(**options)
    with pytest.raises(error, match=says):
        asyncio.run(mq.aio.start_broker(**options))


def test_a_port_that_is_taken(broker: mq.Broker) -> None:
    with pytest.raises(mq.PortInUseError):
        mq.start_broker(tcp_port=broker.address("mqtt")[1], quic=False, tls=False)


def test_an_awaitable_broker() -> None:
    async def story() -> int:
        async with (
            await mq.aio.start_broker(quic_port=0, tls=False, tcp=False) as broker,
            await mq.aio.connect(broker) as session,
        ):
            await session.aio.publish("a", b"x", 1)
            return len(await broker.aio.clients())

    assert asyncio.run(story()) == 1


# The package


def test_lazy_names() -> None:
    assert set(mq.__all__) <= set(dir(mq))
    for name in mq.__all__:
        assert getattr(mq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'conect'"):
        _ = mq.conect


def test_version_is_that_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert mq.__version__ == project["project"]["version"]


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own, with every warning an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )


def test_plain_mqtt_needs_neither_aioquic_nor_pandas() -> None:
    code = (
        "import sys, mqttquic_lab as mq\n"
        "with mq.start_broker(quic=False, tls=False, tcp_port=0) as broker, mq.connect(broker) as session:\n"
        "    feed = session.subscribe('a', 1); session.publish('a', b'x', qos=1); feed.wait(1)\n"
        "heavy = {'pandas', 'aioquic', 'ipywidgets', 'IPython', 'anywidget', 'nest_asyncio'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = run(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_the_end_of_the_process_says_goodbye(broker: mq.Broker) -> None:
    with mq.connect(broker) as watcher:
        wills = watcher.subscribe("will")
        code = (
            "import mqttquic_lab as mq\n"
            f"session = mq.connect({broker.url!r}, ca_file={str(broker.ca_file)!r}, will=mq.Will('will', b'died'))\n"
            "session.publish('a', 'x', qos=1)\n"
            "own = mq.start_broker(quic_port=0, tls_port=0, tcp_port=0); other = mq.connect(own)\n"
            "other.on_message = print\n"
        )
        done = run(code)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        until(broker, lambda: len(ids(broker)) == 1)
        watcher.ping()
        assert wills.total == 0  # it said DISCONNECT


NOTEBOOK = """
import asyncio, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)  # nest_asyncio's
import mqttquic_lab as mq

async def cell(url, ca_file):
    with mq.connect(url, ca_file=ca_file, runtime="notebook") as session:
        assert session._runtime.loop is asyncio.get_running_loop()
        feed = session.subscribe("nb", 1)
        session.publish("nb", b"1", 1)
        assert feed.wait(1) == 1
        await session.aio.publish("nb", b"2", 2)
        assert feed.wait(2) == 2
        assert [message.payload for _, message in zip(range(2), feed)] == [b"1", b"2"]
        assert session.publish_many((("nb", n) for n in range(1500)), qos=1).count == 1500
        assert session.handshake.round_trips == 2
        try:
            feed.wait(5000, timeout=0.05)
        except mq.OperationTimeoutError:
            print("timed out")
    assert session.state == "closed"

asyncio.run(cell(*ARGUMENTS))
"""


def test_the_notebooks_own_loop(broker: mq.Broker) -> None:
    done = run(f"ARGUMENTS = {(broker.url, str(broker.ca_file))!r}\n{NOTEBOOK}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "timed out\n", "")


class _NoMethod:
    """A way of authenticating that no broker has."""

    name = "NOBODY'S"

    def start(self) -> _NoMethod:
        return self

    def step(self, data: bytes | None) -> bytes | None:
        return None

    def finish(self, data: bytes | None) -> None:
        return None
