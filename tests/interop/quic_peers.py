"""Third-party programs at the other end of a QUIC connection: mqttv5's broker; mosquitto behind the quiche relay."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.helpers.peers import Program, require_relay, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from mqttquic_lab.net.certificates import ServerIdentity


@dataclass(frozen=True)
class QuicPeer:
    """A running broker of somebody else's."""

    port: int
    """UDP port on 127.0.0.1."""
    program: Program
    """What its QUIC end runs in."""

    @property
    def url(self) -> str:
        return f"quic://localhost:{self.port}"


@contextlib.asynccontextmanager
async def mosquitto(folder: Path, port: int) -> AsyncIterator[Program]:
    """Run Debian's broker on a TCP port of 127.0.0.1."""
    configuration = folder / "mosquitto.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\nlog_dest stderr\nlog_type information\n"
    )
    # On stderr, because it does not flush what it prints on stdout.
    async with running("mosquitto", "-c", str(configuration), merge_errors=True) as program:
        await program.until(" running")
        yield program


@contextlib.asynccontextmanager
async def relay_to_tcp(tcp_port: int, identity: ServerIdentity, folder: Path) -> AsyncIterator[QuicPeer]:
    """Listen on QUIC with quiche, and carry every stream to a TCP port."""
    certificate, key = identity.pem_files(folder)
    arguments = (require_relay(), "listen", "127.0.0.1", str(tcp_port), str(certificate), str(key))
    async with running("node", *arguments, merge_errors=True) as program:
        yield QuicPeer(int(await program.line()), program)


@contextlib.asynccontextmanager
async def relay_to_quic(quic_port: int, ca_file: Path) -> AsyncIterator[int]:
    """Listen on TCP, and carry every connection to a QUIC port with quiche; yields the TCP port."""
    arguments = (require_relay(), "connect", "127.0.0.1", str(quic_port), str(ca_file))
    async with running("node", *arguments, merge_errors=True) as program:
        yield int(await program.line())


@contextlib.asynccontextmanager
async def mqttv5_broker(identity: ServerIdentity, folder: Path, *options: str) -> AsyncIterator[QuicPeer]:
    """Run mqttv5's broker on QUIC."""
    certificate, key = identity.pem_files(folder)
    arguments = ["broker", "--allow-anonymous", "--non-interactive", "--storage-backend", "memory", "--no-sys-topics"]
    arguments += ["--tls-cert", str(certificate), "--tls-key", str(key)]
    for transport in ("", "tls-", "quic-"):
        arguments += [f"--{transport}host", "127.0.0.1:0"]
    # Which port it got is said in its log only.
    environment = {"RUST_LOG": "mqtt5::broker::server=debug", "NO_COLOR": "1"}
    async with running("mqttv5", *arguments, *options, environment=environment, merge_errors=True) as program:
        line = await program.until("QUIC accept loop starting")
        yield QuicPeer(int(line.rpartition(":")[2].rstrip(")")), program)
