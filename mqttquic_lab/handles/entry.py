"""``mq.connect``, ``mq.start_broker`` and the other verbs that a person begins with, blocking."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.gateway.config import GatewayConfig
from mqttquic_lab.handles.broker import Broker
from mqttquic_lab.handles.calling import Caller
from mqttquic_lab.handles.gateway import Gateway
from mqttquic_lab.handles.handshake import Handshake
from mqttquic_lab.handles.opening import (
    Catch,
    broker_runtime,
    environment,
    make_broker,
    make_gateway,
    plan_broker,
    plan_gateway,
    plan_session,
    shows_options,
)
from mqttquic_lab.handles.session import Session
from mqttquic_lab.session import AsyncSession, SessionOptions
from mqttquic_lab.session.advice import called_from_here
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.probe import look_at

if TYPE_CHECKING:
    from mqttquic_lab.broker import BrokerProcess, BrokerServer
    from mqttquic_lab.gateway import GatewayServer
    from mqttquic_lab.records.handshake import HandshakeReport
    from mqttquic_lab.runtime import Runtime


@shows_options(SessionOptions)
def connect(target: Any, *, runtime: Literal["thread", "notebook"] | Runtime = "thread", **options: Any) -> Session:
    """Connect to a broker.

    Parameters
    ----------
    target : str or Broker
        ``quic://host[:14567]``, ``mqtts://host[:8883]`` (TLS), ``mqtt://host[:1883]`` (plain TCP), or what
        :func:`start_broker` returned.
    runtime : {"thread", "notebook"} or Runtime
        Where the session lives: on a thread of its own, so that a busy cell stalls nothing, or on the notebook's own
        loop.
    **options
        ``streams=`` says how QUIC's streams are used: ``"single"``, ``"per-topic"``, ``"per-publish"``, or ``"flows"``
        (``MQTT-next``, where the broker speaks it: what is under way on a stream is recovered after a reconnect).

        client_id, username, password, auth, keepalive, clean_start, session_expiry_interval, receive_maximum,
        maximum_packet_size, topic_alias_maximum, alias_topics, will, user_properties, properties, version (``"5.0"`` or
        ``"3.1.1"``), ca_file, ssl_context, verify, server_name, timeout, fallback, quic_timeout, reconnect,
        offline_queue, tuning, alpn, local_address, streams, topic_streams, profile, tickets, early_data,
        publish_early, quic_version, cipher_suites, groups, congestion, idle_timeout, quic_keepalive, datagrams,
        trace_detail, trace_capacity; see :class:`mqttquic_lab.session.SessionOptions`.

    Returns
    -------
    Session
        Connected: the broker has accepted.

    Raises
    ------
    UsageError, UnknownOptionError
        Something cannot be used; nothing was sent.
    UnreachableError, ConnectTimeoutError, CertificateError, AlpnError, HandshakeError
        No connection came about.
    ConnectRefusedError
        The broker answered CONNECT with a failure.
    """
    home, settings, where = plan_session("connect", target, runtime, options)
    catch: Catch[AsyncSession] = Catch(home)

    async def connect() -> AsyncSession:
        return catch.made(await AsyncSession.open_with(where, settings))

    try:
        with called_from_here():
            core = Caller(home).call(settings.timeout, connect)
    except BaseException:
        catch.drop()
        raise
    return Session(core, home, target)


@shows_options(SessionOptions)
def from_env(*, runtime: Literal["thread", "notebook"] | Runtime = "thread", **options: Any) -> Session:
    """Connect to the broker that the environment names.

    ``MQTTQUIC_URL``, and if set ``MQTTQUIC_USERNAME``, ``MQTTQUIC_PASSWORD`` and ``MQTTQUIC_CA_FILE``: nothing secret
    needs to stand in a notebook.

    Parameters
    ----------
    runtime, **options
        As for :func:`connect`; they win over the environment.

    Raises
    ------
    UsageError
        ``MQTTQUIC_URL`` is not set.
    """
    url, told = environment(options)
    return connect(url, runtime=runtime, **told)


@shows_options(SessionOptions)
def probe(
    target: Any,
    *,
    timeout: float | str | None = 5.0,
    runtime: Literal["thread", "notebook"] | Runtime = "thread",
    **options: Any,
) -> Handshake:
    """Say what a server's handshake really looks like; a failure is reported, not raised.

    Parameters
    ----------
    target : str or Broker
        ``host[:port]`` (QUIC), a URL, or a broker of one's own.
    timeout : float, str or None
        Seconds until the server must have answered. A refused certificate is looked at a second time, with as many
        again.
    runtime, **options
        As for :func:`connect`.

    Returns
    -------
    Handshake
        Its ``error`` is None if everything worked, else a sentence.

    Raises
    ------
    UsageError, UnknownOptionError
        Something cannot be used; nothing was sent.
    """
    home, settings, where = plan_session("probe", target, runtime, {"timeout": timeout, **options})

    async def probe() -> HandshakeReport:
        return await look_at(where, settings)

    return Handshake(home.run(probe()))


@shows_options(BrokerConfig)
def start_broker(
    *,
    process: bool = False,
    timeout: float | str | None = 30.0,
    **options: Any,
) -> Broker:
    """Start a broker of one's own: MQTT 5.0 and 3.1.1 over QUIC, TLS and TCP on loopback.

    It takes the usual ports (14567, 8883, 1883) where they are free and other free ones elsewhere, and makes a
    certificate authority that lives as long as it does.

    Parameters
    ----------
    process : bool
        Run it in a process of its own, so that the two ends do not share one interpreter lock. Otherwise it runs on a
        thread of its own, apart from the sessions: whoever waits for a broker must not be what keeps it from answering.
    timeout : float, str or None
        Seconds until it must listen.
    **options
        host, quic, tls, tcp, quic_port, tls_port, tcp_port, server_names, authority, profile, deliveries, overlapping;
        users, authenticate, auth_methods and acl for who may do what; store and store_sync for a file in which sessions
        and messages outlive the broker; sys_interval, trace and trace_capacity for what it tells; for QUIC tuning,
        retry, early_data, early_data_window, quic_version, cipher_suites, groups, congestion, idle_timeout,
        preferred_address, disable_active_migration, datagrams, datagram_deliveries; and bounds. See
        :class:`mqttquic_lab.broker.BrokerConfig`.

    Raises
    ------
    UsageError, UnknownOptionError
        Something cannot be used.
    PortInUseError
        A port that was asked for is taken.
    StoreError
        The file given as `store` cannot be used: another broker has it, it is damaged, or it is something else.
    """
    config = plan_broker(options, {"process", "timeout"})
    seconds = check_timeout(timeout)
    home = broker_runtime()
    catch: Catch[BrokerServer | BrokerProcess] = Catch(home)

    async def start_broker() -> BrokerServer | BrokerProcess:
        core = make_broker(config, process)
        await core.start()
        return catch.made(core)

    try:
        core = Caller(home).call(seconds, start_broker)
    except BaseException:
        catch.drop()
        raise
    return Broker(core, home)


@shows_options(GatewayConfig)
def start_gateway(upstream: Any, *, timeout: float | str | None = 30.0, **options: Any) -> Gateway:
    """Put a QUIC listener in front of a broker that has none, such as a plain mosquitto.

    Each bidirectional stream of a client is a TCP or TLS connection of its own to that broker, and what is written on
    one comes out of the other byte for byte; so do their ends and aborts. A client of one stream sees the broker as it
    is. One that opens further streams may CONNECT on each; data streams without a CONNECT of their own are refused
    (application code 0xB5), because a broker behind TCP cannot know to whom they belong.

    Parameters
    ----------
    upstream : str or Broker
        The broker: ``mqtt://host[:1883]`` (TCP), ``mqtts://host[:8883]`` (TLS), or what :func:`start_broker` returned.
        User name and password go to :func:`connect`, as with any broker. It may start later than the gateway.
    timeout : float, str or None
        Seconds until the gateway must listen.
    **options
        ca_file, verify, server_name, minimum_tls for an ``mqtts://`` broker; host, quic, tls, quic_port, tls_port,
        server_names, tuning, retry, idle_timeout for the listeners; and bounds. See
        :class:`mqttquic_lab.gateway.GatewayConfig`.

    Raises
    ------
    UsageError, UnknownOptionError
        Something cannot be used.
    PortInUseError
        A port that was asked for is taken.
    """
    config = plan_gateway(upstream, options, {"timeout"})
    seconds = check_timeout(timeout)
    home = broker_runtime()
    catch: Catch[GatewayServer] = Catch(home)

    async def start_gateway() -> GatewayServer:
        core = make_gateway(config)
        await core.start()
        return catch.made(core)

    try:
        core = Caller(home).call(seconds, start_gateway)
    except BaseException:
        catch.drop()
        raise
    return Gateway(core, home)
