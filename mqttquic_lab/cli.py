"""The command ``mqttquic-lab``: the lab from a terminal.

Every command ends by itself or at Ctrl-C, writes results to standard output and complaints to standard error, and
exits with 0 only if what it was asked for really happened. Passwords come from the environment or a prompt, never
from the command line, where every user of the machine could read them.
"""

from __future__ import annotations

import argparse
import getpass
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mqttquic_lab as mq
from mqttquic_lab.errors import LabError, OperationTimeoutError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqttquic_lab.handles import Broker, Feed, Gateway, Session

QUICKSTART = "01_quickstart.ipynb"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (0 done, 1 failed, 2 wrong usage, 130 interrupted)."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.command
    try:
        return command(arguments)
    except LabError as error:
        print(f"mqttquic-lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output left (`| head`): nothing more to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="mqttquic-lab", description="Explore MQTT over QUIC.")
    parser.add_argument("--version", action="version", version=f"mqttquic-lab {mq.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    notebook = commands.add_parser("notebook", help="open JupyterLab on the quick-start notebook")
    notebook.add_argument("--port", type=int, default=None, help="port of the Jupyter server (default: its own)")
    notebook.add_argument("--no-browser", action="store_true", help="print the address instead of opening it")
    notebook.set_defaults(command=_notebook)

    demo = commands.add_parser("demo", help="the quick-start's story in the terminal; ends by itself")
    demo.add_argument("--messages", type=int, default=40, help="messages to wait for (default: 40)")
    demo.add_argument("--timeout", type=float, default=30.0, help="seconds to wait for them (default: 30)")
    demo.set_defaults(command=_demo)

    broker = commands.add_parser("broker", help="run the embedded broker until Ctrl-C")
    broker.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    broker.add_argument("--quic-port", type=int, help="UDP port (default: 14567 if free)")
    broker.add_argument("--tls-port", type=int, help="TCP port with TLS (default: 8883 if free)")
    broker.add_argument("--tcp-port", type=int, help="TCP port without TLS (default: 1883 if free)")
    broker.add_argument("--ca-out", type=Path, help="also write the throw-away CA certificate to this file")
    broker.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help='JSON: {"name": "password"}; others are refused (also by SCRAM-SHA-256)',
    )
    broker.add_argument(
        "--store",
        type=Path,
        metavar="FILE",
        help="keep sessions, QoS 1 and 2 messages, retained messages and wills there (default: in memory)",
    )
    broker.add_argument("--acl", type=Path, metavar="FILE", help='JSON: [["user", "publish|subscribe|all", "filter"]]')
    broker.add_argument(
        "--sys-interval", type=float, default=10.0, help="seconds between figures in $SYS topics; 0: none (default: 10)"
    )
    broker.set_defaults(command=_broker)

    gateway = commands.add_parser("gateway", help="put a QUIC listener in front of a broker until Ctrl-C")
    gateway.add_argument(
        "--upstream", required=True, metavar="URL", help="the broker: mqtt://HOST[:1883] or mqtts://HOST[:8883]"
    )
    gateway.add_argument("--ca-file", help="for mqtts://: trust the certificates in this PEM file, not the system's")
    gateway.add_argument("--insecure", action="store_true", help="for mqtts://: do not verify its certificate")
    gateway.add_argument("--server-name", help="for mqtts://: the name to look for in its certificate")
    gateway.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    gateway.add_argument("--quic-port", type=int, help="UDP port (default: 14567 if free)")
    gateway.add_argument("--tls", action="store_true", help="listen on TLS over TCP as well")
    gateway.add_argument("--tls-port", type=int, help="its TCP port (default: 8883 if free)")
    gateway.add_argument("--ca-out", type=Path, help="also write the throw-away CA certificate to this file")
    gateway.set_defaults(command=_gateway)

    probe = commands.add_parser("probe", help="say what a server's handshake really looks like")
    probe.add_argument("target", metavar="HOST[:PORT]", help="host, host:port or URL (default: quic, 14567)")
    probe.add_argument("--ca-file", help="trust the certificates in this PEM file instead of the system's")
    probe.add_argument("--timeout", type=float, default=5.0, help="seconds to wait for an answer (default: 5)")
    probe.add_argument("--json", action="store_true", help="print the report as JSON")
    probe.set_defaults(command=_probe)

    sub = commands.add_parser("sub", help="print messages as they arrive")
    _session_options(sub)
    sub.add_argument("filters", nargs="+", metavar="FILTER", help="topic filters")
    sub.add_argument("-q", "--qos", type=int, choices=(0, 1, 2), default=0, help="maximum QoS (default: 0)")
    sub.add_argument("-C", "--count", type=int, help="end after this many messages")
    sub.add_argument("-W", "--wait", type=float, help="end after this many seconds; exit code 1 if --count not met")
    sub.set_defaults(command=_sub)

    pub = commands.add_parser("pub", help="publish one message")
    _session_options(pub)
    pub.add_argument("topic", help="topic name")
    pub.add_argument("payload", nargs="?", help="text to send; - reads standard input (default: empty)")
    pub.add_argument("-q", "--qos", type=int, choices=(0, 1, 2), default=0, help="QoS (default: 0)")
    pub.add_argument("-r", "--retain", action="store_true", help="set the retain flag")
    pub.set_defaults(command=_pub)
    return parser


def _session_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", help="quic://HOST[:14567], mqtts://HOST[:8883] or mqtt://HOST[:1883]")
    parser.add_argument("--ca-file", help="trust the certificates in this PEM file instead of the system's")
    parser.add_argument("--insecure", action="store_true", help="do not verify the certificate (lab use only)")
    parser.add_argument("--client-id", default="", help="client identifier (default: the broker assigns one)")
    parser.add_argument("--username", help="user name; the password is read from MQTTQUIC_PASSWORD or a prompt")
    parser.add_argument(
        "--scram", action="store_true", help="log in by SCRAM-SHA-256: the password is not sent (MQTT 5.0)"
    )
    parser.add_argument("--mqtt", choices=("5.0", "3.1.1"), default="5.0", help="protocol version (default: 5.0)")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds to wait for the connection (default: 10)")


def _connect(arguments: argparse.Namespace, *, reconnect: bool = True) -> Session:
    password: str | None = None
    if arguments.username is not None:
        password = os.environ.get("MQTTQUIC_PASSWORD")
        if password is None and sys.stdin.isatty():
            password = getpass.getpass(f"Password of {arguments.username}: ")
    return mq.connect(
        arguments.url,
        ca_file=arguments.ca_file,
        verify=not arguments.insecure,
        client_id=arguments.client_id,
        username=arguments.username,
        password=password,
        auth="SCRAM-SHA-256" if arguments.scram else None,
        version=arguments.mqtt,
        timeout=arguments.timeout,
        reconnect=reconnect,
    )


# --- notebook ---


def notebook_folder() -> Path:
    """Return a folder of the user's with the lesson notebooks in it.

    In a clone that is ``notebooks/`` itself. An installed package keeps its notebooks where only an installer should
    write, so they are copied to ``mqttquic-lab-notebooks`` in the current folder; existing copies stay as they are.
    """
    clone = Path(__file__).parent.parent / "notebooks"
    if (clone / QUICKSTART).exists():
        return clone
    installed = Path(sysconfig.get_path("data")) / "share" / "mqttquic_lab" / "notebooks"
    if not (installed / QUICKSTART).exists():
        raise LabError(f"the lesson notebooks are not in {installed}: reinstall mqttquic-lab, or work from a clone")
    target = Path.cwd() / "mqttquic-lab-notebooks"
    target.mkdir(exist_ok=True)
    for source in sorted(installed.glob("*.ipynb")):
        if not (target / source.name).exists():
            shutil.copy(source, target)
    return target


def _notebook(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("jupyterlab") is None:
        raise LabError("JupyterLab is not installed; do: pip install 'mqttquic-lab[notebook]'")
    folder = notebook_folder()
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={folder}"]
    if arguments.no_browser:
        command += ["--no-browser", f"--LabApp.default_url=/lab/tree/{QUICKSTART}"]
    else:
        command += [str(folder / QUICKSTART)]
    if arguments.port is not None:
        command += [f"--port={arguments.port}"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command += ["--allow-root"]
    try:
        return subprocess.call(command)  # noqa: S603 - our own interpreter and arguments
    except KeyboardInterrupt:
        return 0


# --- demo ---


def _demo(arguments: argparse.Namespace) -> int:
    wanted: int = max(1, arguments.messages)
    with mq.start_broker() as broker, mq.connect(broker) as session:
        print(f"An MQTT broker runs in this process: {', '.join(broker.urls.values())}\n")
        print(session.handshake.text())
        feed = session.subscribe("lab/#", qos=1, decode="text")
        print("\nSubscribed to lab/# over QUIC. Publishing:")
        done = threading.Event()
        telemetry = threading.Thread(
            target=_telemetry, args=(broker, done), name="mqttquic-demo-telemetry", daemon=True
        )
        telemetry.start()
        print("  - this machine's telemetry, over QUIC")
        for name, publish in (("mosquitto_pub", _publish_by_mosquitto), ("paho-mqtt", _publish_by_paho)):
            print(f"  - {publish(broker) or f'not by {name}: it is not installed'}")
        try:
            feed.wait(wanted, timeout=arguments.timeout)
        except OperationTimeoutError as error:
            print(f"mqttquic-lab: {error}", file=sys.stderr)
        done.set()
        telemetry.join(5)
        return _demo_result(session, feed, wanted)


def _demo_result(session: Session, feed: Feed, wanted: int) -> int:
    """Print what arrived; 0 only if enough messages arrived and each came in on a QUIC stream."""
    frame = feed.df
    transport = session.handshake.transport
    on_quic = bool(len(frame)) and transport == "quic" and bool((frame["stream_id"] >= 0).all())
    if len(frame):
        print(f"\nfeed.df, the newest of {len(frame)} rows:")
        print(frame[["time", "topic", "value", "qos", "stream_id", "size", "latency"]].tail(8).to_string(index=False))
        counts = frame["topic"].value_counts()
        print("\nMessages per topic:")
        for topic, count in counts[counts > 0].items():
            print(f"  {count:6d}  {topic}")
        known = frame["latency"].dropna()
        if len(known):
            print(f"\nLatency, sender to DataFrame: median {known.median() * 1e3:.2f} ms over {len(known)} messages")
    print(f"{feed.total} received, {feed.dropped} dropped, over {transport}, {len(session.errors)} errors")
    if not on_quic or len(frame) < wanted:
        print(f"mqttquic-lab: wanted {wanted} messages over QUIC, got {len(frame)} over {transport}", file=sys.stderr)
        return 1
    return 0


def machine_telemetry() -> dict[str, dict[str, Any]]:
    """Return this machine's figures by topic; more of them where psutil is installed."""
    figures: dict[str, dict[str, Any]] = {"lab/machine/process": {"cpu_s": round(time.process_time(), 3)}}
    if hasattr(os, "getloadavg"):
        figures["lab/machine/load"] = dict(zip(("1min", "5min", "15min"), os.getloadavg(), strict=True))
    try:
        import psutil
    except ImportError:
        return figures
    figures["lab/machine/cpu"] = {"percent": psutil.cpu_percent()}
    figures["lab/machine/memory"] = {"percent": psutil.virtual_memory().percent}
    return figures


def _telemetry(broker: Broker, done: threading.Event) -> None:
    try:
        with mq.connect(broker, client_id="telemetry") as session:
            while not done.wait(0.1):
                for topic, figures in machine_telemetry().items():
                    session.publish(topic, figures, qos=1, timestamp=True)
    except LabError as error:
        # The reader of the result sees too few messages; this says why.
        print(f"mqttquic-lab: telemetry stopped: {error}", file=sys.stderr)


def _publish_by_mosquitto(broker: Broker) -> str | None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        return None
    host, port = broker.address("mqtts")
    base = [program, "-h", host, "-p", str(port), "--cafile", str(broker.ca_file), "-q", "1"]
    for number in range(5):
        subprocess.run([*base, "-t", "lab/mosquitto_pub", "-m", f'{{"n": {number}}}'], check=True, timeout=10)  # noqa: S603
    return f"5 messages by mosquitto_pub, over TLS to {host}:{port}"


def _publish_by_paho(broker: Broker) -> str | None:
    try:
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion
    except ImportError:
        return None
    host, port = broker.address("mqtts")
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="paho", protocol=paho.MQTTv5)
    client.tls_set(ca_certs=str(broker.ca_file))
    client.connect(host, port)
    client.loop_start()
    try:
        for number in range(5):
            client.publish("lab/paho", f'{{"n": {number}}}', qos=1).wait_for_publish(10)
    finally:
        client.disconnect()
        client.loop_stop()
    return f"5 messages by paho-mqtt, over TLS to {host}:{port}"


# --- broker, probe, sub, pub ---


def _json_of(path: Path | None, kind: type[Any]) -> Any:
    """Return what a JSON file holds, None if there is none."""
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise LabError(f"{path}: {error}") from None
    if not isinstance(found, kind):
        raise LabError(f"{path} holds no JSON {'object' if kind is dict else 'array'}")
    return found


def _broker(arguments: argparse.Namespace) -> int:
    users = _json_of(arguments.users, dict)
    with mq.start_broker(
        host=arguments.host,
        quic_port=arguments.quic_port,
        tls_port=arguments.tls_port,
        tcp_port=arguments.tcp_port,
        users=users,
        auth_methods=["SCRAM-SHA-256"] if users else (),
        acl=_json_of(arguments.acl, list),
        sys_interval=arguments.sys_interval,
        store=arguments.store,
    ) as broker:
        _serve(broker, arguments.ca_out)
    return 0


def _gateway(arguments: argparse.Namespace) -> int:
    with mq.start_gateway(
        arguments.upstream,
        ca_file=arguments.ca_file,
        verify=not arguments.insecure,
        server_name=arguments.server_name,
        host=arguments.host,
        quic_port=arguments.quic_port,
        tls=arguments.tls or arguments.tls_port is not None,
        tls_port=arguments.tls_port,
    ) as gateway:
        told = 0.0

        def tell_errors() -> None:
            nonlocal told
            for error in gateway.errors:
                if error.time > told:
                    told = error.time
                    print(f"mqttquic-lab: {error.where}: {error.message}", file=sys.stderr, flush=True)

        _serve(gateway, arguments.ca_out, tell_errors)
    return 0


def _serve(server: Broker | Gateway, ca_out: Path | None, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Say where a server listens, and run `meanwhile` now and then until a signal comes."""
    for url in server.urls.values():
        print(url)
    ca_file = server.ca_file
    if ca_out is not None:
        ca_file = Path(shutil.copy(server.ca_file, ca_out))
    print(f"CA certificate: {ca_file}")
    print("Ctrl-C ends it.", flush=True)
    _wait_for_signal(meanwhile)


def _wait_for_signal(meanwhile: Callable[[], None]) -> None:
    """Return at SIGINT or SIGTERM; runs `meanwhile` twice a second."""
    stop = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        while not stop.wait(0.5):  # a bounded wait: on Windows an endless one cannot be interrupted
            meanwhile()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, previous)


def _probe(arguments: argparse.Namespace) -> int:
    handshake = mq.probe(arguments.target, ca_file=arguments.ca_file, timeout=arguments.timeout)
    if arguments.json:
        print(json.dumps(handshake.to_dict(), indent=2))
    else:
        print(handshake.text())
    return 0 if handshake.error is None and handshake.verification != "failed" else 1


def _sub(arguments: argparse.Namespace) -> int:
    seen = 0
    with _connect(arguments) as session:
        feed = session.subscribe([(topic, arguments.qos) for topic in arguments.filters], decode="text")
        ends = None if arguments.wait is None else time.monotonic() + arguments.wait
        while arguments.count is None or seen < arguments.count:
            left = None if ends is None else ends - time.monotonic()
            if left is not None and left <= 0:
                break
            try:
                message = next(feed.messages(timeout=left), None)
            except OperationTimeoutError:
                break
            if message is None:  # the feed has ended
                break
            print(f"{message.topic} {_printable(message.payload)}", flush=True)
            seen += 1
    return 0 if arguments.count is None or seen >= arguments.count else 1


def _printable(payload: bytes) -> str:
    """Return the payload as text that cannot drive the terminal: control characters become escapes."""
    text = payload.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def _pub(arguments: argparse.Namespace) -> int:
    payload: str | bytes | None = arguments.payload
    if payload == "-":
        payload = sys.stdin.buffer.read()
    with _connect(arguments, reconnect=False) as session:  # a message that waits would be lost with the process
        session.publish(arguments.topic, payload, qos=arguments.qos, retain=arguments.retain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
