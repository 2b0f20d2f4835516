"""The broker in a process of its own: the same surface, and it never outlives its parent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.process import BrokerProcess
from mqttquic_lab.broker.server import BrokerServer
from mqttquic_lab.errors import DisconnectedError, PortInUseError, UsageError
from mqttquic_lab.mqtt import Disconnect
from mqttquic_lab.net.address import parse_url
from mqttquic_lab.net.certificates import Trust
from mqttquic_lab.net.open import open_connection
from tests.broker.peer import Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

FREE: dict[str, Any] = {"quic_port": 0, "tls_port": 0, "tcp_port": 0}


@pytest.fixture
async def broker() -> AsyncIterator[BrokerProcess]:
    async with BrokerProcess(BrokerConfig(**FREE, users={"ann": "geheim"})) as process:
        yield process


def is_alive(pid: int) -> bool:
    """Whether a process runs; in a container without an init process orphans stay as zombies."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return state.strip() != "" and not state.startswith("Z")


async def test_clients_and_counters_are_told(broker: BrokerProcess) -> None:
    peers = []
    for scheme in ("quic", "mqtts", "mqtt"):
        connection = await open_connection(parse_url(broker.urls[scheme]), trust=Trust(ca_file=broker.ca_file))
        peers.append(Peer(connection))
        assert (await peers[-1].connect(scheme, username="ann", password=b"geheim")).reason_code == 0
    await peers[0].subscribe("a")
    await peers[1].publish("a", b"x")
    assert (await peers[0].message()).payload == b"x"
    await broker.wait_for(lambda: broker.stats().messages_out == 1 and len(broker.clients()) == 3)
    assert [client.transport for client in broker.clients()] == ["quic", "tls", "tcp"]
    assert broker.clients()[0].subscriptions == ("a",)
    assert isinstance(broker.clients()[0].address, tuple)
    await peers[0].leave()
    await broker.wait_for(lambda: len(broker.clients()) == 2)
    for peer in peers:
        await peer.connection.close()


async def test_it_ends_with_close(broker: BrokerProcess) -> None:
    pid, folder = broker.pid, broker.ca_file.parent
    assert pid is not None
    assert is_alive(pid)
    await broker.close()
    assert not is_alive(pid)
    assert not folder.exists()
    await broker.close()
    with pytest.raises(DisconnectedError):
        await broker.wait_for(lambda: False)


async def test_passwords_are_not_on_the_command_line(broker: BrokerProcess) -> None:
    done = await asyncio.create_subprocess_exec(
        "ps", "-o", "args=", "-p", str(broker.pid), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await done.communicate()
    assert b"broker.child" in out
    assert b"geheim" not in out


async def test_an_error_at_the_start_is_the_childs(free_port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        process = BrokerProcess(BrokerConfig(quic=False, tls=False, tcp_port=free_port))
        with pytest.raises(PortInUseError, match=str(free_port)):
            await process.start()


async def test_its_death_is_noticed(broker: BrokerProcess) -> None:
    assert broker.pid is not None
    waiting = asyncio.create_task(broker.wait_for(lambda: False))
    await asyncio.sleep(0)
    os.kill(broker.pid, signal.SIGKILL)
    with pytest.raises(DisconnectedError, match="ended"):
        await waiting
    assert broker.clients() == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_ctrl_c_is_the_parents_affair(broker: BrokerProcess) -> None:
    assert broker.pid is not None
    assert os.getsid(broker.pid) == broker.pid
    os.kill(broker.pid, signal.SIGINT)
    connection = await open_connection(parse_url(broker.urls["mqtt"]), trust=Trust(ca_file=broker.ca_file))
    peer = Peer(connection)
    await peer.connect("x", username="ann", password=b"geheim")
    assert await peer.sync() == []
    await connection.close()


async def test_it_dies_with_its_parent_and_leaves_no_word() -> None:
    """The parent is killed: no handler of it can run."""
    code = (
        "import asyncio, sys\n"
        "from mqttquic_lab.broker import BrokerConfig, BrokerProcess\n"
        "async def main():\n"
        "    broker = BrokerProcess(BrokerConfig(quic_port=0, tls_port=0, tcp_port=0))\n"
        "    await broker.start()\n"
        "    print(broker.pid, broker.urls['mqtt'], broker.ca_file, flush=True)\n"
        "    await asyncio.sleep(1000)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    async with asyncio.timeout(30):
        pid, url, ca_file = (await parent.stdout.readline()).decode().split()
    peer = Peer(await open_connection(parse_url(url), trust=Trust(ca_file=ca_file)))
    await peer.connect("x")
    parent.kill()
    _, err = await parent.communicate()
    assert err == b""
    (last,) = await peer.closed()
    assert isinstance(last, Disconnect)  # the child ended in order: it saw the end of its stdin
    async with asyncio.timeout(10):
        while is_alive(int(pid)):  # nobody tells of the end of a grandchild
            await asyncio.sleep(0.01)
    assert not Path(ca_file).exists()


async def test_a_parent_that_forgets_it_gets_no_warning() -> None:
    code = (
        "import asyncio\n"
        "from mqttquic_lab.broker import BrokerConfig, BrokerProcess\n"
        "async def main():\n"
        "    await BrokerProcess(BrokerConfig(quic=False, tls=False, tcp_port=0)).start()\n"
        "asyncio.run(main())\n"
    )
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "always::ResourceWarning", "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""


def test_a_function_cannot_move() -> None:
    with pytest.raises(UsageError, match="users="):
        BrokerProcess(BrokerConfig(authenticate=lambda *_: True))


def test_same_surface() -> None:
    """Whoever has a broker need not know which of the two it is."""
    inside = {
        "accept",
        "changed",
        "call_soon",
        "spawn",
        "open_session",
        "session_begins",
        "hang_up",
        "connection_ended",
        "end_stream_session",
        "publish",
        "retained_for",
        "transports",
    }
    public = {name for name in vars(BrokerServer) if not name.startswith("_")} - inside
    assert public <= {name for name in dir(BrokerProcess) if not name.startswith("_")}
