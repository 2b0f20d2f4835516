"""Fixtures that every tier shares. Keep this file small; helpers live in tests/helpers."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import settings

from mqttquic_lab.net.certificates import CertificateAuthority
from tests.helpers.certs import Identities, make_identities

pytest_plugins = ("tests.interop.matrix",)

# No test fails for being slow. (With CI set, hypothesis has a profile of its own: no deadline, the same examples.)
settings.register_profile("patient", deadline=None)
if "CI" not in os.environ:
    settings.load_profile("patient")


@pytest.fixture(scope="session")
def authority() -> CertificateAuthority:
    """A throw-away authority for the whole run."""
    return CertificateAuthority.create("mqttquic-lab test CA")


@pytest.fixture(scope="session")
def identities(authority: CertificateAuthority) -> Identities:
    """Server identities issued by :func:`authority`: good, expired, not_yet_valid, wrong_name, untrusted."""
    return make_identities(authority)


@pytest.fixture
def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens now, neither TCP nor UDP."""
    for _ in range(20):
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    pytest.fail("no port is free for both TCP and UDP")
