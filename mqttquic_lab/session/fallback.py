"""Another way to the broker where QUIC does not get through: TLS over TCP, on request, and never plain TCP.

Only a path or a listener that is not there leads to the fallback. A refused certificate, a refused CONNECT or anything
else that the far end *said* does not: whoever answers QUIC with a false certificate would otherwise be passed over in
silence, and wrong credentials would only be wrong twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from mqttquic_lab.errors import (
    AlpnError,
    ConnectError,
    ConnectTimeoutError,
    HandshakeError,
    UnreachableError,
    UsageError,
)
from mqttquic_lab.net.address import Address, parse_url
from mqttquic_lab.session.options import check_timeout

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from mqttquic_lab.session.options import SessionOptions
    from mqttquic_lab.session.target import Target

FALLS_BACK = (UnreachableError, ConnectTimeoutError, AlpnError, HandshakeError)
"""Errors after which the next way is tried."""

SHARE = 0.5
"""Part of what is left of ``timeout`` that QUIC may use up at most."""

T = TypeVar("T")


def fallback_addresses(target: Any, address: Address, options: SessionOptions) -> list[Address]:
    """Return where the option ``fallback`` leads to, first choice first.

    Parameters
    ----------
    target : str or broker
        What was asked for; a broker knows the port of its own TLS listener.
    address : Address
        Where `target` leads to.
    options : SessionOptions
        Of the session.

    Raises
    ------
    UsageError
        Plain TCP was asked for, or a fallback for something that is not QUIC.
    """
    wanted = options.fallback
    if wanted is False or wanted == ():
        return []
    if address.transport != "quic" and not (wanted is True and address.transport == "tls"):
        raise UsageError(f"fallback= is for quic:// targets, and {address.url} is not one: leave it out")
    if wanted is True:
        if address.transport == "tls":
            return []  # there already
        return [_tls_of(target, address)]
    urls = (wanted,) if isinstance(wanted, str) else wanted
    found = [parse_url(url) for url in urls]
    for one in found:
        if one.transport == "tcp":
            raise UsageError(
                f"fallback to {one.url} is refused: plain TCP would carry in the clear what was meant to be encrypted, "
                "and anybody on the path can bring a fallback about; use mqtts:// (or ask for mqtt:// yourself)"
            )
        if one.transport == "quic":
            raise UsageError(f"fallback={one.url!r} is QUIC again: name an mqtts:// URL, or fallback=True")
    return found


def _tls_of(target: Any, address: Address) -> Address:
    """Return the TLS address of the broker at `address`."""
    urls = getattr(target, "urls", None)
    if not isinstance(urls, dict):
        # The host as it stands in the canonical URL, brackets included.
        return parse_url(f"mqtts://{address.url.partition('://')[2].rpartition(':')[0]}")
    if "mqtts" not in urls:
        raise UsageError("fallback=True wants the broker's TLS listener, and it has none: start it with tls=True")
    return parse_url(urls["mqtts"])


async def first_that_works(
    target: Target, options: SessionOptions, attempt: Callable[[Target, SessionOptions, str | None], Awaitable[T]]
) -> T:
    """Try a target, then its fallbacks, and return what came of the first that worked.

    Parameters
    ----------
    target : Target
        With its fallbacks.
    options : SessionOptions
        ``timeout`` is for all attempts together, of which QUIC gets ``quic_timeout`` but half at most; what is left is
        shared evenly.
    attempt : callable(Target, SessionOptions, str or None)
        Tries one, within the ``timeout`` of the options it is given. The text says why the ways before failed.

    Raises
    ------
    ConnectError
        None worked. The class is that of the last attempt's error; the message names the reason of each.
    """
    if not target.fallbacks:
        return await attempt(target, options, None)
    total = check_timeout(options.timeout)
    now = asyncio.get_running_loop().time
    deadline = None if total is None else now() + total
    failures: list[tuple[str, ConnectError]] = []
    ways = (target, *target.fallbacks)
    for position, way in enumerate(ways):
        left = None if deadline is None else max(deadline - now(), 0.001)
        seconds = _share(way, options, left, len(ways) - position)
        reason = "; ".join(f"{error}" for _, error in failures) or None
        try:
            return await attempt(way, replace(options, timeout=seconds), reason)
        except FALLS_BACK as error:
            failures.append((way.address.url, error))
        except ConnectError as error:
            if position + 1 < len(ways):
                error.add_note("The fallback was not tried: it is for a QUIC that does not get through, not for this.")
            failures.append((way.address.url, error))
            break
    raise _summary(failures)


def _share(way: Target, options: SessionOptions, left: float | None, ways: int) -> float | None:
    """Return the seconds for one attempt of `ways` that are to come."""
    if way.address.transport == "quic" and ways > 1:
        bound = check_timeout(options.quic_timeout)
        if left is None:
            return bound
        return left * SHARE if bound is None else min(bound, left * SHARE)
    return None if left is None else left / ways


def _summary(failures: list[tuple[str, ConnectError]]) -> ConnectError:
    """Return the last error, with the reasons of all."""
    last = failures[-1][1]
    if len(failures) > 1:
        last.args = ("no way led to the broker: " + "; ".join(f"{url}: {error}" for url, error in failures),)
        if last.__cause__ is None:
            last.__cause__ = failures[0][1]
    return last
