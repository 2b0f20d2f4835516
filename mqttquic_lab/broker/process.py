"""The same broker in a process of its own, so that it does not share an interpreter lock with its clients.

Parent and child talk through pipes, one JSON object per line: settings go in through the child's stdin, what it
knows comes out through its stdout whenever it has changed. When the parent goes away, in whatever manner, the stdin
pipe closes and the child ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Self

import mqttquic_lab
from mqttquic_lab import errors
from mqttquic_lab.broker.acl import parse_acl
from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.broker.quic_options import refuse_own_congestion
from mqttquic_lab.broker.status import BrokerStats, ClientInfo
from mqttquic_lab.broker.waiting import Waiting
from mqttquic_lab.errors import DisconnectedError, LabError, OperationTimeoutError, UsageError
from mqttquic_lab.net.listening import Listening

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqttquic_lab.trace import Trace

START_TIMEOUT = 30.0
"""Seconds a child may take until it listens; importing aioquic on a slow machine takes a few."""
STOP_TIMEOUT = 5.0
"""Seconds a child may take to end before it is killed."""
STDERR_LINES = 50


class BrokerProcess(Listening):
    """A :class:`mqttquic_lab.broker.server.BrokerServer` in a subprocess, with the same surface.

    :meth:`clients` and :meth:`stats` answer from what the child told last; it tells within about 50 ms of a change.
    :meth:`wait_for` looks at the same.

    Parameters
    ----------
    config : BrokerConfig, optional
        Settings; ``authenticate`` cannot be carried over to another process, ``users`` can.

    Raises
    ------
    UsageError
        The settings hold a function.
    """

    NOT_LISTENING = "this broker does not listen: start() it, with at least one transport switched on"

    def __init__(self, config: BrokerConfig | None = None) -> None:
        self.config = config if config is not None else BrokerConfig()
        if self.config.authenticate is not None:
            raise UsageError(
                "authenticate= is a function and cannot be moved to another process: use users={name: password}, or "
                "run the broker in this process"
            )
        if self.config.trace:
            raise UsageError(
                "trace=True: a broker in another process cannot be looked at that closely; run it in this one"
            )
        if callable(self.config.acl):
            raise UsageError(
                "acl= is a function and cannot be moved to another process: give rules, or run the broker in this one"
            )
        if not _is_data(self.config.auth_methods):
            raise UsageError(
                "auth_methods= holds an object, which cannot be moved to another process: name methods there are "
                '(["SCRAM-SHA-256"] with users=), or run the broker in this process'
            )
        refuse_own_congestion(self.config)
        self._process: subprocess.Popen[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop
        self._started: asyncio.Future[None]
        self._ended: asyncio.Future[None]
        self._urls: dict[str, str] = {}
        self._ca_file: Path | None = None
        self._clients: list[ClientInfo] = []
        self._stats = BrokerStats()
        self._stderr: deque[str] = deque(maxlen=STDERR_LINES)
        self._waiting = Waiting(self)
        self._closing = False

    def __repr__(self) -> str:
        process = self._process
        state = "new" if process is None else "closed" if self._closing else f"process {process.pid}"
        return f"<BrokerProcess {', '.join(self._urls.values()) or 'nowhere'}, {state}>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *details: object) -> None:
        await self.close()

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the child and wait until it listens.

        Raises
        ------
        PortInUseError, UsageError
            As :meth:`BrokerServer.start` raises them.
        OperationTimeoutError
            It did not come up within 30 s.
        DisconnectedError
            It ended at once; the message holds what it wrote to stderr.
        """
        if self._process is not None:
            raise UsageError("this broker was started before: make a new one")
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.create_future()
        self._ended = self._loop.create_future()
        try:
            process = self._process = await asyncio.to_thread(_spawn)
            weakref.finalize(self, _stop, process)
            assert process.stdout is not None
            assert process.stderr is not None
            me = weakref.ref(self)
            for stream, method in ((process.stdout, "_on_line"), (process.stderr, "_on_stderr")):
                threading.Thread(
                    target=_read, args=(stream, self._loop, me, method), name="broker-process", daemon=True
                ).start()
            settings = {f.name: getattr(self.config, f.name) for f in dataclasses.fields(self.config)}
            del settings["authenticate"]
            for name in ("users", "auth_methods"):
                settings[name] = _as_data(getattr(self.config, name))
            rules = parse_acl(self.config.acl)
            settings["acl"] = [dataclasses.asdict(rule) for rule in rules] if isinstance(rules, tuple) else None
            await asyncio.to_thread(_tell, process, settings)
            async with asyncio.timeout(START_TIMEOUT):
                await asyncio.shield(self._started)
        except TimeoutError:
            await self.close()
            raise OperationTimeoutError(f"the broker process did not listen within {START_TIMEOUT:g} s") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close the broker as :meth:`BrokerServer.close` does, and end the process. Safe to repeat."""
        self._closing = True
        process = self._process
        if process is not None and process.returncode is None:
            await asyncio.to_thread(_stop, process)
        self._waiting.close()

    # --- the same surface as BrokerServer -----------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Process id of the child."""
        return self._process.pid if self._process is not None else None

    @property
    def ca_file(self) -> Path:
        """PEM file with the certificate to trust for this broker; gone after :meth:`close`.

        Raises
        ------
        UsageError
            The broker listens neither on QUIC nor on TLS.
        """
        if self._ca_file is None:
            raise UsageError("this broker has no certificate: it listens neither on QUIC nor on TLS")
        return self._ca_file

    @property
    def trace(self) -> Trace:
        """Not to be had.

        Raises
        ------
        UsageError
            Always: the trace is in the other process.
        """
        raise UsageError("a broker in another process has no trace here: run it in this one")

    def clients(self) -> list[ClientInfo]:
        """Return the connected clients, in the order in which they connected."""
        return list(self._clients)

    def stats(self) -> BrokerStats:
        """Return all counters, and what is held now."""
        return dataclasses.replace(self._stats)

    async def wait_for(self, condition: Callable[[], object], timeout: float | None = 10.0) -> None:
        """Wait until `condition()` is true; see :meth:`BrokerServer.wait_for`."""
        await self._waiting.wait_for(condition, timeout)

    async def next_change(self) -> None:
        """Wait until the child tells something; see :meth:`BrokerServer.next_change`."""
        await self._waiting.next_change()

    # --- what the child says ------------------------------------------------------------------------------------

    def _on_line(self, line: bytes) -> None:
        if not line:
            self._on_end()
            return
        told = json.loads(line)
        event = told["event"]
        if event == "started":
            self._urls = told["urls"]
            self._ca_file = Path(told["ca_file"]) if told["ca_file"] else None
            if not self._started.done():
                self._started.set_result(None)
        elif event == "failed":
            kind = getattr(errors, told["type"], LabError)
            if not self._started.done():
                self._started.set_exception(kind(told["message"]))
        elif event == "state":
            self._stats = BrokerStats(**told["stats"])
            self._clients = [_client_info(client) for client in told["clients"]]
        self._waiting.check()

    def _on_stderr(self, line: bytes) -> None:
        if line:
            self._stderr.append(line.decode("utf-8", "replace").rstrip())

    def _on_end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
        said = "; it wrote: " + "\n".join(self._stderr) if self._stderr else ""
        if not self._started.done():
            self._started.set_exception(DisconnectedError(f"the broker process ended before it listened{said}"))
        self._clients = []
        self._waiting.close(f"the broker process ended{said if not self._closing else ''}")


def _client_info(told: dict[str, Any]) -> ClientInfo:
    told["address"] = tuple(told["address"])
    told["subscriptions"] = tuple(told["subscriptions"])
    return ClientInfo(**told)


def _is_data(value: Any) -> bool:
    """Whether a setting is plain data, which JSON carries."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_data(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (str, int, float, bool))


def _as_data(value: Any) -> Any:
    """Return such a setting as JSON takes it."""
    if isinstance(value, Mapping):
        return {key: _as_data(each) for key, each in value.items()}
    return [_as_data(each) for each in value] if isinstance(value, (list, tuple)) else value


def _spawn() -> subprocess.Popen[bytes]:
    """Start the child in a session of its own: Ctrl-C at the terminal is the parent's affair."""
    package_folder = str(Path(mqttquic_lab.__file__).parent.parent)
    paths = [package_folder, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    options: dict[str, Any] = {}
    if sys.platform == "win32":
        options["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    else:
        options["start_new_session"] = True
    return subprocess.Popen(
        # -P: a file json.py in the working directory must not get into the way.
        [sys.executable, "-P", "-m", "mqttquic_lab.broker.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)},
        **options,
    )


def _tell(process: subprocess.Popen[bytes], message: dict[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it has ended; its stdout says so as well
        process.stdin.write(json.dumps(message).encode() + b"\n")
        process.stdin.flush()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Let the child see the end of its stdin, which ends it; kill it if that takes too long."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _read(stream: IO[bytes], loop: asyncio.AbstractEventLoop, owner: weakref.ref[BrokerProcess], method: str) -> None:
    """Pass lines of a pipe to the loop; runs in a thread because pipes cannot be awaited everywhere."""

    def pass_on(line: bytes) -> None:
        broker = owner()
        if broker is not None:
            getattr(broker, method)(line)

    with stream, contextlib.suppress(RuntimeError):  # the loop was closed before the child: nobody listens any more
        for line in stream:
            loop.call_soon_threadsafe(pass_on, line)
        loop.call_soon_threadsafe(pass_on, b"")
