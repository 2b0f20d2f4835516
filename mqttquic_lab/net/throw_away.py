"""What a server of ours on the loopback shows its clients: a certificate of an authority that lives as long as it."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from mqttquic_lab.net.certificates import CertificateAuthority

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqttquic_lab.net.certificates import ServerIdentity

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names that every such certificate has."""

_UNSPECIFIED = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not listened on


class ThrowAwayIdentity:
    """A server's certificate, and the authority that issued it in a file for its clients.

    The authority's key never leaves memory, and is forgotten at once. The file is removed by :meth:`close`, or with
    this object.

    Parameters
    ----------
    subject : str
        What the authority calls itself.
    host : str
        Where the server listens; goes into the certificate unless it means every interface.
    names : iterable of str
        Further names and addresses for the certificate.
    """

    def __init__(self, subject: str, host: str, names: Iterable[str] = ()) -> None:
        authority = CertificateAuthority.create(subject)
        own = () if host in _UNSPECIFIED else (host,)
        self.identity: ServerIdentity = authority.issue(list(dict.fromkeys((*LOCAL_NAMES, *own, *names))))
        folder = tempfile.mkdtemp(prefix="mqttquic-lab-")  # mode 0700
        self.ca_file = authority.write_ca(Path(folder) / "ca.pem")
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the file. Safe to repeat."""
        self._cleanup()
