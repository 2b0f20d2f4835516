"""Server identities for tests: one good, and one for each way in which a certificate can be wrong."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqttquic_lab.net.certificates import CertificateAuthority, Trust

if TYPE_CHECKING:
    from mqttquic_lab.net.certificates import ServerIdentity

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Identities:
    """All issued by one authority, :attr:`authority`, except :attr:`untrusted`."""

    authority: CertificateAuthority
    good: ServerIdentity
    """Valid for localhost, 127.0.0.1 and ::1."""
    with_intermediate: ServerIdentity
    """Good, issued by an intermediate authority that is presented along."""
    expired: ServerIdentity
    not_yet_valid: ServerIdentity
    wrong_name: ServerIdentity
    """Valid for broker.example only."""
    untrusted: ServerIdentity
    """Good names, issued by an authority that nobody trusts."""

    @property
    def trust(self) -> Trust:
        """What a client needs in order to accept :attr:`good`."""
        return Trust(ca_data=self.authority.pem)


def make_identities(authority: CertificateAuthority) -> Identities:
    """Issue one identity of each kind (about a millisecond each)."""
    now = dt.datetime.now(dt.UTC)
    day = dt.timedelta(days=1)
    return Identities(
        authority=authority,
        good=authority.issue(LOOPBACK_NAMES),
        with_intermediate=authority.intermediate().issue(LOOPBACK_NAMES),
        expired=authority.issue(LOOPBACK_NAMES, not_before=now - 2 * day, not_after=now - day),
        not_yet_valid=authority.issue(LOOPBACK_NAMES, not_before=now + day, not_after=now + 2 * day),
        wrong_name=authority.issue(["broker.example"]),
        untrusted=CertificateAuthority.create("some other CA").issue(LOOPBACK_NAMES),
    )
