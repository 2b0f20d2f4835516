"""The QUIC interop runner's scenarios, MQTT edition: each one carries messages at QoS 1 and 2 through a bad relay.

In every one all acknowledged messages are delivered, none of them twice at QoS 2; and what the scenario is about really
happened. Each reads like a row.
"""

from __future__ import annotations

import pytest

from tests.helpers.lossy import Ills
from tests.scenarios import happening as it
from tests.scenarios.matrix import ROWS, Row
from tests.scenarios.scenario import Scenario, run

LARGE_CHAIN = tuple(f"host-{n:03}.a-rather-long-name-for-a-broker.example" for n in range(150))
"""Names that make the certificate larger than a server may send to an address it does not know."""

SCENARIOS = (
    Scenario(name="handshake", what="nothing", happened=it.plain_handshake),
    Scenario(
        name="longrtt", what="300 ms round trip", relay={"delay": 0.15}, window=200, happened=it.took_long_round_trips
    ),
    Scenario(
        name="chacha20", what="one cipher suite offered",
        connect={"cipher_suites": "CHACHA20_POLY1305_SHA256"}, happened=it.chacha20_protects,
    ),
    Scenario(
        name="multiplexing",
        what="a stream for each of 16 topics, 16 explicit streams",
        connect={"streams": "per-topic"},
        topics=16, streams=16, each=50, window=16,
        during=it.streams_are_counted, happened=it.many_streams_at_once,
    ),
    Scenario(
        name="retry", what="the broker wants the address validated",
        broker={"retry": True}, happened=it.address_was_validated,
    ),
    Scenario(name="resumption", what="a second connection", before=it.gets_a_ticket, happened=it.was_resumed),
    Scenario(
        name="zerortt",
        what="CONNECT and ten PUBLISH packets before the handshake",
        broker={"early_data": True},
        connect={"early_data": "publish", "publish_early": it.EARLY},
        before=it.gets_a_ticket_and_a_witness,
        during=it.early_messages_arrive,
        happened=it.went_in_the_first_flight,
    ),
    Scenario(
        name="blackhole", what="nothing passes for 1.5 s", during=it.goes_dark, happened=it.was_dark,
    ),
    Scenario(
        name="keyupdate", what="the client updates its keys, twice",
        during=it.keys_are_updated, happened=it.keys_were_updated,
    ),
    Scenario(
        name="amplificationlimit",
        what="8 KiB certificate; the client's datagrams 2 to 7 are lost",
        relay={"lost_to_server": range(2, 8), "delay": 0.015},
        broker={"server_names": LARGE_CHAIN},
        happened=it.server_kept_to_three_times,
    ),
    Scenario(
        name="handshakeloss",
        what="8 connections, 30 % of their first 6 datagrams each way are lost",
        ills=Ills(drop=0.3), relay={"only_first": 6, "seed": 3}, sessions=8, each=40, happened=it.lost_handshakes,
    ),
    Scenario(
        name="transferloss",
        what="5 % of datagrams lost, 3 % reordered",
        ills=Ills(drop=0.05, reorder=0.03), relay={"delay": 0.005}, happened=it.lost_datagrams,
    ),
    Scenario(
        name="handshakecorruption",
        what="8 connections, 30 % of their first 6 datagrams each way are corrupted",
        ills=Ills(corrupt=0.3), relay={"only_first": 6, "seed": 5}, sessions=8, each=40,
        happened=it.corrupted_handshakes,
    ),
    Scenario(
        name="transfercorruption",
        what="5 % of datagrams corrupted",
        ills=Ills(corrupt=0.05), relay={"delay": 0.005}, happened=it.corrupted_datagrams,
    ),
    Scenario(name="ipv6", what="::1", broker={"host": "::1"}, happened=it.went_over_ipv6),
    Scenario(
        name="v2", what="v1 first, v2 asked for", connect={"quic_version": "v1-to-v2"}, happened=it.version_2_is_spoken
    ),
    Scenario(
        name="rebind-port", what="a NAT gives a new port, twice", during=it.nat_rebinds_port, happened=it.was_rebound
    ),
    Scenario(
        name="rebind-addr", what="a NAT gives a new address", during=it.nat_rebinds_address, happened=it.was_rebound
    ),
    Scenario(
        name="connectionmigration",
        what="the client moves to another address",
        during=it.client_migrates, happened=it.was_migrated,
    ),
)  # fmt: skip


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
async def test_scenario(scenario: Scenario, pytestconfig: pytest.Config) -> None:
    this, happened = await run(scenario)
    pytestconfig.stash.setdefault(ROWS, []).append(Row.of(this, happened))
