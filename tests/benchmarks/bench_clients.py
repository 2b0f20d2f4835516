"""Clients against brokers: messages/s from publisher to DataFrame, publish round trips, connect time."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mqttquic_lab as mq
from mqttquic_lab.net.certificates import CertificateAuthority
from tests.benchmarks.clients import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZES = (64, 256, 1024)
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


@dataclass(frozen=True)
class Contender:
    """A client against a broker over a transport; the first of a table is what the ratios refer to."""

    name: str
    client: str
    target: Target


@contextlib.contextmanager
def mosquitto(folder: Path) -> Iterator[Target | None]:
    """Run Debian's mosquitto with TLS, TCP_NODELAY and no queue limits; None where it is not installed."""
    if MOSQUITTO is None:
        yield None
        return
    authority = CertificateAuthority.create()
    ca_file = folder / "mosquitto-ca.pem"
    authority.write_ca(ca_file)
    identity = authority.issue(["localhost", "127.0.0.1"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    certificate, key = identity.pem_files(folder)
    configuration = folder / "mosquitto.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\ncertfile {certificate}\nkeyfile {key}\nallow_anonymous true\n"
        "set_tcp_nodelay true\nmax_queued_messages 0\nmax_inflight_messages 0\nuser root\nlog_type none\n"
    )
    process = subprocess.Popen(
        [MOSQUITTO, "-c", str(configuration)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, "mosquitto did not start"
        yield Target(f"mqtts://127.0.0.1:{port}", str(ca_file))
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def contenders() -> Iterator[list[Contender]]:
    """Start both brokers; yields who is compared, the reference (paho over TLS to the embedded broker) first."""
    limits = {"max_queued": 10_000_000, "max_queued_bytes": 1 << 31}
    with (
        tempfile.TemporaryDirectory() as name,
        mq.start_broker(process=True, **limits) as broker,
        mq.start_broker(process=True, tuning="loopback", **limits) as fast_broker,
        mosquitto(Path(name)) as other,
    ):
        ca_file = str(broker.ca_file)
        tls = Target(broker.urls["mqtts"], ca_file)
        found = [
            Contender("paho, TLS, embedded broker", "paho", tls),
            Contender("lab, QUIC, embedded broker", "lab", Target(broker.urls["quic"], ca_file)),
            Contender(
                "lab, QUIC (loopback tuning)",
                "lab",
                Target(fast_broker.urls["quic"], str(fast_broker.ca_file), "loopback"),
            ),
            Contender("lab, TLS, embedded broker", "lab", tls),
            Contender("gmqtt, TLS, embedded broker", "gmqtt", tls),
        ]
        if other is not None:
            found += [
                Contender("paho, TLS, mosquitto", "paho", other),
                Contender("gmqtt, TLS, mosquitto", "gmqtt", other),
                Contender("lab, TLS, mosquitto", "lab", other),
            ]
        yield found


def _start(job: str, contender: Contender, **options: Any) -> subprocess.Popen[str]:
    target = contender.target
    command = [sys.executable, "-m", "tests.benchmarks.worker", job, contender.client, target.url, target.ca_file]
    return subprocess.Popen([*command, target.tuning, json.dumps(options)], stdout=subprocess.PIPE, text=True)


def _result(process: subprocess.Popen[str], timeout: float) -> Any:
    output, _ = process.communicate(timeout=timeout)
    if process.returncode:
        raise RuntimeError(f"a benchmark worker ended with exit code {process.returncode}")
    return json.loads(output.splitlines()[-1])


def throughput(contender: Contender, count: int, qos: int, size: int, timeout: float = 120) -> dict[str, float]:
    """Return messages/s from the first publish to the finished DataFrame, and the share that arrived."""
    receiver = _start("receive", contender, count=count, qos=qos, timeout=timeout)
    assert receiver.stdout is not None
    try:
        assert receiver.stdout.readline().strip() == "ready"
        sent = _result(_start("send", contender, count=count, qos=qos, size=size), timeout)
        received = _result(receiver, timeout)
    finally:
        receiver.kill()
        receiver.wait()
    return {"per_s": received["rows"] / (received["done"] - sent["start"]), "arrived": received["rows"] / count}


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def run(scale: float = 1.0, repeats: int = 3) -> dict[str, Any]:
    """Measure everything; rounds go over all contenders in turn, so that a slow minute meets each of them."""
    figures: dict[str, Any] = {"throughput": {}, "round_trip": {}, "connect": {}}
    with contenders() as all_of_them:
        for qos in (0, 1):
            for size in SIZES:
                count = int((40_000 if qos == 0 else 15_000) * scale)
                rounds: dict[str, list[dict[str, float]]] = {c.name: [] for c in all_of_them}
                for _ in range(repeats):
                    for contender in all_of_them:
                        rounds[contender.name].append(throughput(contender, count, qos, size))
                figures["throughput"][f"QoS {qos}, {size} B"] = {
                    name: {
                        "per_s": statistics.median(r["per_s"] for r in results),
                        "arrived": min(r["arrived"] for r in results),
                    }
                    for name, results in rounds.items()
                }
        for contender in all_of_them:
            times = _result(_start("round_trips", contender, count=int(2000 * scale), size=64), 120)
            figures["round_trip"][contender.name] = {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99)}
            times = _result(_start("connects", contender, count=max(10, int(100 * scale))), 120)
            figures["connect"][contender.name] = {"p50": percentile(times, 0.5), "p99": percentile(times, 0.99)}
    return figures


def tables(figures: dict[str, Any]) -> str:
    """Return the figures as text; each ratio is to the first row of its table."""
    lines = []
    for title, rows in figures["throughput"].items():
        lines.append(f"\nPublisher to DataFrame, {title}")
        lines.append(f"  {'':34}{'messages/s':>12}{'ratio':>8}{'arrived':>10}")
        reference = next(iter(rows.values()))["per_s"]
        for name, row in rows.items():
            lines.append(f"  {name:34}{row['per_s']:12,.0f}{row['per_s'] / reference:8.2f}{row['arrived']:10.1%}")
    for key, title in (("round_trip", "Publish round trip, QoS 1, 64 B (gmqtt: to its own delivery)"),
                       ("connect", "Connect, first packet to CONNACK")):  # fmt: skip
        lines.append(f"\n{title}\n  {'':34}{'p50 ms':>10}{'p99 ms':>10}{'ratio':>8}")
        reference = next(iter(figures[key].values()))["p50"]
        for name, row in figures[key].items():
            lines.append(f"  {name:34}{row['p50'] * 1e3:10.3f}{row['p99'] * 1e3:10.3f}{row['p50'] / reference:8.2f}")
    return "\n".join(lines)
