"""SCRAM-SHA-256: the published exchange, both ends against each other, and what neither may take."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqttquic_lab.errors import AuthenticationError, UsageError
from mqttquic_lab.mqtt import scram
from mqttquic_lab.mqtt.authentication import Applicant, Challenge, ClientMethod, Failure, ServerMethod, Success
from mqttquic_lab.mqtt.scram import ScramClient, ScramCredentials, ScramServer, saslprep

WHO = Applicant("x", None, None, "tcp", ("127.0.0.1", 1))

# RFC 7677 section 3
SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
CLIENT_FIRST = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
CLIENT_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> ScramServer:
    """The nonces of RFC 7677, in the order in which they are made."""
    nonces = iter(["rOprNGfwEbeRWgbNEkqO", "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"])
    monkeypatch.setattr(scram, "_new_nonce", lambda: next(nonces))
    return ScramServer({"user": ScramCredentials.of("pencil", salt=SALT)})


def test_the_exchange_of_the_rfc(published: ScramServer) -> None:
    client, server = ScramClient("user", "pencil").start(), published.start(WHO)
    assert client.step(None) == CLIENT_FIRST
    assert server.step(CLIENT_FIRST) == Challenge(SERVER_FIRST)
    assert client.step(SERVER_FIRST) == CLIENT_FINAL
    assert server.step(CLIENT_FINAL) == Success(SERVER_FINAL, "user")
    client.finish(SERVER_FINAL)


def exchange(client: ScramClient, server: ScramServer) -> Any:
    one, other = client.start(), server.start(WHO)
    first = other.step(one.step(None))
    assert isinstance(first, Challenge)
    last = other.step(one.step(first.data))
    if isinstance(last, Success):
        one.finish(last.data)
    return last


@pytest.mark.parametrize(
    ("username", "password"), [("ann", "s3cret"), ("a=b,c", "x"), ("I\u00adX", "\u2168"), ("jürgen", "pässwörd")]
)
def test_both_ends_agree(username: str, password: str) -> None:
    last = exchange(ScramClient(username, password), ScramServer({saslprep(username): password}))
    assert isinstance(last, Success)
    assert last.username == saslprep(username)


def test_wrong_password_and_unknown_user_look_the_same() -> None:
    server = ScramServer({"ann": "right"})
    refused = [exchange(ScramClient(name, "wrong"), server) for name in ("ann", "bob")]
    assert refused[0] == refused[1]
    assert isinstance(refused[0], Failure)
    assert refused[0].reason_code == 0x87

    def asked(name: str) -> tuple[int, ...]:
        step = server.start(WHO).step(b"n,,n=" + name.encode() + b",r=abc")
        assert isinstance(step, Challenge)
        assert step.data is not None
        salt = dict(part.split(b"=", 1) for part in step.data.split(b","))[b"s"]
        return len(salt), hash(salt)

    assert asked("bob") == asked("bob")
    assert asked("bob")[0] == asked("ann")[0]


def test_users_may_change_while_it_serves() -> None:
    users: dict[str, str | ScramCredentials] = {"ann": "old"}
    server = ScramServer(users)
    users["ann"], users["bob"] = "new", ScramCredentials.of("b")
    assert isinstance(exchange(ScramClient("ann", "new"), server), Success)
    assert isinstance(exchange(ScramClient("ann", "old"), server), Failure)
    assert isinstance(exchange(ScramClient("bob", "b"), server), Success)


@pytest.mark.parametrize(
    "first",
    [
        None, b"", b"hello", b"n,,", b"p=tls-unique,,n=a,r=x", b"n,,m=ext,n=a,r=x", b"n,a=eve,n=ann,r=x", b"n,,r=x",
        b"n,,n=ann", b"n,,n=a=41,r=x", b"n,,n=ann,r=\x7f", b"\xff", b"n,,n=ann,r=" + b"x" * 5000, b"q,,n=a,r=x",
        b"n,,n=\x00,r=x",
    ],
)  # fmt: skip
def test_first_messages_that_are_none(first: bytes | None) -> None:
    assert isinstance(ScramServer({"ann": "x"}).start(WHO).step(first), Failure)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"c=biws", b"c=eSws"), (b"c=biws", b"c=!"), (b",r=", b",r=x"),
        (b",p=", b",p=AAAA"), (b",p=", b",q="), (b",p=", b",p=A"),
    ],
)  # fmt: skip
def test_last_messages_that_were_changed(old: bytes, new: bytes) -> None:
    client, server = ScramClient("ann", "x").start(), ScramServer({"ann": "x"}).start(WHO)
    first = server.step(client.step(None))
    assert isinstance(first, Challenge)
    final = client.step(first.data)
    assert old in final
    assert isinstance(server.step(final.replace(old, new, 1)), Failure)
    assert isinstance(server.step(final), Failure)  # one try each


@pytest.mark.parametrize(
    "answer",
    [
        b"r=other,s=AAAA,i=4096", b"r={n},s=AAAA,i=4096", b"r={n}x,s=,i=4096", b"r={n}x,s=AAAA,i=4095",
        b"r={n}x,s=AAAA,i=2000000", b"r={n}x,s=AAAA,i=\xd9\xa3", b"r={n}x,s=AAAA", b"", b"e=other-error",
    ],
)  # fmt: skip
def test_a_server_that_is_none(answer: bytes) -> None:
    client = ScramClient("ann", "x").start()
    nonce = client.step(None).rpartition(b"r=")[2]
    with pytest.raises(AuthenticationError):
        client.step(answer.replace(b"{n}", nonce))


def test_a_server_that_does_not_know_the_password_is_found_out() -> None:
    client, server = ScramClient("ann", "x").start(), ScramServer({"ann": "x"}).start(WHO)
    first = server.step(client.step(None))
    assert isinstance(first, Challenge)
    client.step(first.data)
    for data in (None, b"", b"v=", b"v=AAAA", b"x"):
        with pytest.raises(AuthenticationError):
            client.finish(data)
    with pytest.raises(AuthenticationError, match="without asking"):
        ScramClient("ann", "x").start().finish(b"v=AAAA")


@given(st.lists(st.one_of(st.none(), st.binary(max_size=80), st.text(max_size=80).map(str.encode)), max_size=3))
def test_whatever_comes_is_refused_and_raises_nothing(messages: list[bytes | None]) -> None:
    exchange = SERVER.start(WHO)
    for message in messages:
        assert isinstance(exchange.step(message), (Failure, Challenge))


SERVER = ScramServer({"ann": "x"})


@pytest.mark.parametrize("bad", ["\u0007", "\u0627\u0031", "\ue000"])
def test_saslprep_forbids(bad: str) -> None:
    with pytest.raises(UsageError, match=r"SASLprep|directions"):
        saslprep(bad)


@pytest.mark.parametrize(
    ("text", "prepared"), [("I\u00adX", "IX"), ("user", "user"), ("USER", "USER"), ("\u00aa", "a"), ("\u2168", "IX")]
)
def test_saslprep_of_the_rfc(text: str, prepared: str) -> None:
    assert saslprep(text) == prepared


def test_secrets_are_in_no_repr() -> None:
    client, server = ScramClient("ann", "s3cret"), ScramServer({"ann": "s3cret"})
    credentials = ScramCredentials.of("s3cret")
    shown = repr([client, server, credentials, Challenge(b"s3cret"), Success(b"s3cret"), WHO])
    assert "s3cret" not in shown
    assert "stored_key" not in shown
    assert isinstance(client, ClientMethod)
    assert isinstance(server, ServerMethod)


def test_credentials_of_too_few_rounds() -> None:
    with pytest.raises(UsageError, match="4096"):
        ScramCredentials.of("x", iterations=100)
    with pytest.raises(UsageError, match="salt"):
        ScramCredentials.of("x", salt=b"")
    with pytest.raises(UsageError, match="user name"):
        ScramClient("", "x")
