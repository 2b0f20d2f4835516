"""Migration between two network interfaces, one of which goes down: network namespaces, real routes, real packets."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.helpers.netns import CLIENT, TwoCables, Worker, two_cables
from tests.helpers.numbered import longest_gap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RATE = 400.0
"""Messages per second that the client publishes."""


class Net:
    """A client and a server between which messages go both ways."""

    def __init__(self, cables: TwoCables, server: Worker, client: Worker) -> None:
        self.cables = cables
        self.server = server
        self.client = client

    async def finish(self) -> dict[str, Any]:
        """Stop, check that nothing is lost or doubled, and return what the server knows of the client."""
        acknowledged = {
            "up": (await self.client.ask("stop"))["acknowledged"],
            "down": (await self.server.ask("end"))["acknowledged"],
        }
        for receiver, way in ((self.server, "up"), (self.client, "down")):
            await receiver.ask("received", count=len(acknowledged[way]))
        reports = {"up": await self.server.ask("report"), "down": await self.client.ask("report")}
        for way, numbers in acknowledged.items():
            received = [number for number, _ in reports[way]["arrivals"]]
            assert len(numbers) > 100, way
            assert set(numbers) <= set(received), f"{way}: an acknowledged message did not arrive"
            assert len(received) == len(set(received)), f"{way}: a message arrived twice"
        assert reports["down"]["errors"] == []
        return {"arrivals": reports["up"]["arrivals"], "local": reports["down"]["handshake"], **reports["up"]}


@asynccontextmanager
async def net() -> AsyncIterator[Net]:
    async with two_cables() as cables, cables.worker("server", "2") as server:
        where = (server.hello["url"], server.hello["ca_file"])
        async with cables.worker("client", *where, CLIENT["first"], "2", str(RATE)) as client:
            assert client.hello["local"][0] == CLIENT["first"]
            assert (await server.ask("begin"))["address"] == client.hello["local"]
            await client.ask("reached", count=100)
            yield Net(cables, server, client)


@pytest.mark.parametrize("local", [CLIENT["second"], None], ids=["address given", "routing chooses"])
async def test_an_interface_goes_down_and_the_session_moves_to_the_other(local: str | None) -> None:
    async with net() as this:
        down_at = time.time()
        this.cables.unplug("first")
        result = await this.client.ask("migrate", local=local)
        assert result["new_local"][0] == CLIENT["second"], result
        assert result["congestion_reset"] is True
        await this.client.ask("reached", count=200)
        report = await this.finish()
        assert report["client"]["address"] == result["new_local"] == report["local"]
        assert report["stats"]["migrations"] == 1
        assert report["stats"]["connects_total"] == 2
        gap = longest_gap([at for _, at in report["arrivals"]], after=down_at, before=time.time(), rate=RATE)
        print(f"gap {gap.seconds * 1e3:.0f} ms, {gap.messages} messages; usually {gap.usual * 1e3:.1f} ms")
        assert gap.seconds > gap.usual


async def test_an_interface_is_down_for_a_while_before_anybody_moves() -> None:
    async with net() as this:
        this.cables.unplug("first")
        result = await this.client.ask("migrate", local=CLIENT["first"], timeout=1.0)
        assert result["error"] == "MigrationError"
        assert result["problem"] in ("unreachable", "not validated")
        result = await this.client.ask("migrate", local=CLIENT["second"])
        assert result["new_local"][0] == CLIENT["second"], result
        await this.client.ask("reached", count=200)
        await this.finish()


async def test_the_interface_that_is_not_used_any_more_may_go_down() -> None:
    async with net() as this:
        result = await this.client.ask("migrate", local=CLIENT["second"])
        assert result["new_local"][0] == CLIENT["second"], result
        this.cables.unplug("first")
        await this.client.ask("reached", count=200)
        # And back, which takes the first one up again.
        this.cables.plug("first")
        result = await this.client.ask("migrate", local=CLIENT["first"])
        assert result["new_local"][0] == CLIENT["first"], result
        this.cables.unplug("second")
        await this.client.ask("reached", count=200)
        report = await this.finish()
        assert report["client"]["address"] == result["new_local"]
        assert report["stats"]["migrations"] == 2


async def test_an_interface_that_is_down_is_no_way_out() -> None:
    async with net() as this:
        this.cables.unplug("second")
        result = await this.client.ask("migrate", local=CLIENT["second"], timeout=0.5)
        assert result["error"] == "MigrationError"
        assert result["problem"] in ("unreachable", "not validated")
        await this.client.ask("reached", count=200)
        report = await this.finish()
        assert report["client"]["address"][0] == CLIENT["first"]
        assert report["stats"]["migrations"] == 0
