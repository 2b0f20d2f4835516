"""What the blocking and the awaitable ways of opening something have in common."""

from __future__ import annotations

import inspect
import os
import threading
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.errors import UnknownOptionError, UsageError
from mqttquic_lab.gateway.config import GatewayConfig
from mqttquic_lab.runtime import Runtime, ThreadRuntime, get_runtime
from mqttquic_lab.session import SessionOptions
from mqttquic_lab.session.target import Target, resolve_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mqttquic_lab.broker import BrokerProcess, BrokerServer
    from mqttquic_lab.gateway import GatewayServer

BROKER_THREAD = "mqttquic-lab broker loop"
"""Thread of the embedded brokers: not that of the sessions, so that the two ends do not wait for one another."""

ENVIRONMENT = {
    "MQTTQUIC_USERNAME": "username",
    "MQTTQUIC_PASSWORD": "password",
    "MQTTQUIC_CA_FILE": "ca_file",
}
"""Environment variable -> option of ``connect``."""

M = TypeVar("M")

_lock = threading.Lock()


class Catch(Generic[M]):
    """Holds what was made on a loop until its caller has it, so that an interrupted caller leaves nothing open."""

    def __init__(self, home: Runtime) -> None:
        self._home = home
        self._made: Any = None

    def made(self, thing: M) -> M:
        """Note what was made, on the loop; returns it."""
        self._made = thing
        return thing

    def drop(self) -> None:
        """Close what was made, if anything was, without waiting."""
        if self._made is not None:
            self._home.spawn(self._made.close())


class SessionPlan(NamedTuple):
    """A session about to be opened; everything that can be checked is."""

    home: Runtime
    options: SessionOptions
    target: Target


def plan_session(verb: str, target: Any, runtime: Any, options: Mapping[str, Any]) -> SessionPlan:
    """Check what `verb` was called with.

    Raises
    ------
    UsageError, UnknownOptionError
        Something cannot be used.
    """
    known = {f.name for f in fields(SessionOptions)}
    for name in options:
        if name not in known:
            raise UnknownOptionError(verb, name, {*known, "runtime"})
    settings = SessionOptions(**options)
    where = resolve_target(target, settings)
    return SessionPlan(get_runtime(runtime), settings, where)


def plan_broker(options: Mapping[str, Any], extra: set[str]) -> BrokerConfig:
    """Check the settings of a broker; `extra` are names of further keywords, for a misspelt one."""
    known = {f.name for f in fields(BrokerConfig)}
    for name in options:
        if name not in known:
            raise UnknownOptionError("start_broker", name, known | extra)
    return BrokerConfig(**options)


def make_broker(config: BrokerConfig, process: bool) -> BrokerServer | BrokerProcess:
    """Return a broker that is not started yet."""
    from mqttquic_lab.broker import BrokerProcess, BrokerServer

    return BrokerProcess(config) if process else BrokerServer(config)


def plan_gateway(upstream: Any, options: Mapping[str, Any], extra: set[str]) -> GatewayConfig:
    """Check the settings of a gateway; `extra` are names of further keywords, for a misspelt one."""
    known = {f.name for f in fields(GatewayConfig) if f.init}
    for name in options:
        if name not in known:
            raise UnknownOptionError("start_gateway", name, known | extra)
    return GatewayConfig(upstream, **options)


def make_gateway(config: GatewayConfig) -> GatewayServer:
    """Return a gateway that is not started yet."""
    from mqttquic_lab.gateway import GatewayServer

    return GatewayServer(config)


def broker_runtime() -> Runtime:
    """Return where brokers and gateways live: on a thread of their own."""
    with _lock:
        return ThreadRuntime.running(BROKER_THREAD) or ThreadRuntime(BROKER_THREAD)


def environment(options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return URL and options from the environment; `options` win.

    Raises
    ------
    UsageError
        ``MQTTQUIC_URL`` is not set.
    """
    url = os.environ.get("MQTTQUIC_URL")
    if not url:
        raise UsageError("MQTTQUIC_URL is not set: set it to a URL such as quic://broker.example:14567")
    told = {option: os.environ[name] for name, option in ENVIRONMENT.items() if os.environ.get(name)}
    return url, {**told, **options}


def shows_options(options: type[Any]) -> Callable[[Callable[..., M]], Callable[..., M]]:
    """Let ``help()`` and tab completion see the fields of `options` in place of ``**options``."""

    def decorate(function: Callable[..., M]) -> Callable[..., M]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        names = {p.name for p in own}
        more = [p for p in inspect.signature(options).parameters.values() if p.name not in names]
        shown = signature.replace(parameters=own + [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in more])
        function.__signature__ = shown  # type: ignore[attr-defined]
        return function

    return decorate
