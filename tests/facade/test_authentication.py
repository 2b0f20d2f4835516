"""Users, rules and SCRAM as a person types them, with the broker in this process and in one of its own."""

from __future__ import annotations

import asyncio

import pytest

import mqttquic_lab as mq

SCRAM = "SCRAM-SHA-256"


@pytest.mark.parametrize("process", [False, True])
def test_scram_and_rules(process: bool) -> None:
    rules = [("ann", "all", "a/#"), ["*", "publish", "of/%u"], mq.AclRule("subscribe", "$SYS/#")]
    with mq.start_broker(
        process=process, quic_port=0, tls=False, tcp_port=0, users={"ann": "s3cret"}, auth_methods=[SCRAM], acl=rules
    ) as broker:
        with mq.connect(broker, username="ann", password="s3cret", auth=SCRAM) as session:
            session.reauthenticate()
            asyncio.run(session.aio.reauthenticate())
            feed = session.subscribe(["a/#", "$SYS/broker/version"])
            session.publish("a/b", "mine", qos=1)
            feed.wait(2)
            assert sorted(feed.df["topic"]) == ["$SYS/broker/version", "a/b"]
            with pytest.raises(mq.PublishError, match="publishing to b is not allowed") as refused:
                session.publish("b", "not mine", qos=1)
            assert refused.value.reason_code == 0x87
            with pytest.raises(mq.SubscribeError, match="subscribing to # is not allowed"):
                session.subscribe("#")
            assert (
                "s3cret" not in repr(session) + repr(broker) + session._repr_html_() + session.handshake._repr_html_()
            )
        with pytest.raises(mq.ConnectRefusedError, match="0x87"):
            mq.connect(broker, username="ann", password="wrong", auth=SCRAM)
        with mq.connect(broker, username="ann", password="s3cret") as plain, pytest.raises(mq.UsageError):
            plain.reauthenticate()


def test_the_brokers_trace() -> None:
    with mq.start_broker(quic=False, tls=False, tcp_port=0, trace=True) as broker:
        with mq.connect(broker) as session:
            session.ping()
        assert [event.data["type"] for event in broker.trace][:4] == ["CONNECT", "CONNACK", "PINGREQ", "PINGRESP"]
