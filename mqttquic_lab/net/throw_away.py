"""What a server of ours shows its clients: a certificate of an authority of its own."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from mqttquic_lab.net.certificates import CertificateAuthority
from mqttquic_lab.net.kept_authority import kept_authority

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from mqttquic_lab.net.certificates import ServerIdentity

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
"""Names that every such certificate has."""

_UNSPECIFIED = frozenset({"0.0.0.0", "::", ""})  # noqa: S104 - compared, not listened on


class ThrowAwayIdentity:
    """A server's certificate, and the authority that issued it in a file for its clients.

    Without `kept`, the authority's key never leaves memory and is forgotten at once, and the file for clients is
    removed by :meth:`close`, or with this object.

    Parameters
    ----------
    subject : str
        What the authority calls itself.
    host : str
        Where the server listens; goes into the certificate unless it means every interface.
    names : iterable of str
        Further names and addresses for the certificate.
    kept : path, optional
        File of an authority that outlives this; see :func:`~mqttquic_lab.net.kept_authority.kept_authority`. The
        authority's certificate alone, for clients, stands beside it, its name ending in ``.crt``, and stays there.

    Raises
    ------
    UsageError
        That file cannot be used.
    """

    def __init__(
        self, subject: str, host: str, names: Iterable[str] = (), *, kept: str | os.PathLike[str] | None = None
    ) -> None:
        authority = CertificateAuthority.create(subject) if kept is None else kept_authority(kept, subject)
        own = () if host in _UNSPECIFIED else (host,)
        self._cleanup: weakref.finalize[..., ThrowAwayIdentity] | None = None
        self.identity: ServerIdentity = authority.issue(list(dict.fromkeys((*LOCAL_NAMES, *own, *names))))
        if kept is not None:
            self.ca_file = authority.write_ca(Path(kept).with_suffix(".crt"))
            return
        folder = tempfile.mkdtemp(prefix="mqttquic-lab-")  # mode 0700
        self.ca_file = authority.write_ca(Path(folder) / "ca.pem")
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)

    def close(self) -> None:
        """Remove the file that nobody needs any more. Safe to repeat."""
        if self._cleanup is not None:
            self._cleanup()
