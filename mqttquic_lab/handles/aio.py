"""``mq.aio``: the package's verbs, awaitable from any event loop.

::

    session = await mq.aio.connect("quic://broker.example:14567")
    await session.aio.publish("plant/1/temp", {"c": 21.5}, qos=1)

Sessions live on a runtime of their own here, too: the loop that awaits may stand still, and keep-alives go on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from mqttquic_lab.broker.config import BrokerConfig
from mqttquic_lab.errors import OperationTimeoutError
from mqttquic_lab.gateway.config import GatewayConfig
from mqttquic_lab.handles.broker import Broker
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
from mqttquic_lab.session.advice import called_from_here, carried
from mqttquic_lab.session.options import check_timeout
from mqttquic_lab.session.probe import look_at

if TYPE_CHECKING:
    from mqttquic_lab.broker import BrokerProcess, BrokerServer
    from mqttquic_lab.gateway import GatewayServer
    from mqttquic_lab.runtime import Runtime

__all__ = ["connect", "from_env", "probe", "start_broker", "start_gateway"]


@shows_options(SessionOptions)
async def connect(
    target: Any, *, runtime: Literal["thread", "notebook"] | Runtime = "thread", **options: Any
) -> Session:
    """See :func:`mqttquic_lab.connect`."""
    home, settings, where = plan_session("connect", target, runtime, options)
    catch: Catch[AsyncSession] = Catch(home)

    async def connect() -> AsyncSession:
        return catch.made(await AsyncSession.open_with(where, settings))

    try:
        with called_from_here():
            core = await home.hop(carried(connect))
    except BaseException:
        catch.drop()
        raise
    return Session(core, home, target)


@shows_options(SessionOptions)
async def from_env(*, runtime: Literal["thread", "notebook"] | Runtime = "thread", **options: Any) -> Session:
    """See :func:`mqttquic_lab.from_env`."""
    url, told = environment(options)
    return await connect(url, runtime=runtime, **told)


@shows_options(SessionOptions)
async def probe(
    target: Any,
    *,
    timeout: float | str | None = 5.0,
    runtime: Literal["thread", "notebook"] | Runtime = "thread",
    **options: Any,
) -> Handshake:
    """See :func:`mqttquic_lab.probe`."""
    home, settings, where = plan_session("probe", target, runtime, {"timeout": timeout, **options})
    return Handshake(await home.hop(look_at(where, settings)))


@shows_options(BrokerConfig)
async def start_broker(
    *,
    process: bool = False,
    timeout: float | str | None = 30.0,
    **options: Any,
) -> Broker:
    """See :func:`mqttquic_lab.start_broker`."""
    config = plan_broker(options, {"process", "timeout"})
    home = broker_runtime()
    catch: Catch[BrokerServer | BrokerProcess] = Catch(home)
    seconds = check_timeout(timeout)

    async def start_broker() -> BrokerServer | BrokerProcess:
        core = make_broker(config, process)
        await core.start()
        return catch.made(core)

    try:
        async with asyncio.timeout(seconds):
            core = await home.hop(start_broker())
    except TimeoutError:
        catch.drop()
        raise OperationTimeoutError(f"the broker did not listen within {seconds:g} s") from None
    except BaseException:
        catch.drop()
        raise
    return Broker(core, home)


@shows_options(GatewayConfig)
async def start_gateway(upstream: Any, *, timeout: float | str | None = 30.0, **options: Any) -> Gateway:
    """See :func:`mqttquic_lab.start_gateway`."""
    config = plan_gateway(upstream, options, {"timeout"})
    home = broker_runtime()
    catch: Catch[GatewayServer] = Catch(home)
    seconds = check_timeout(timeout)

    async def start_gateway() -> GatewayServer:
        core = make_gateway(config)
        await core.start()
        return catch.made(core)

    try:
        async with asyncio.timeout(seconds):
            core = await home.hop(start_gateway())
    except TimeoutError:
        catch.drop()
        raise OperationTimeoutError(f"the gateway did not listen within {seconds:g} s") from None
    except BaseException:
        catch.drop()
        raise
    return Gateway(core, home)
