"""A certificate authority that outlives its broker: in a file, so that clients which trust it once go on to."""

from __future__ import annotations

import datetime as dt
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.certificates import CertificateAuthority

VALIDITY: Final = dt.timedelta(days=3650)


def kept_authority(path: str | os.PathLike[str], common_name: str) -> CertificateAuthority:
    """Return the authority in a file, made now if the file is not there.

    Parameters
    ----------
    path : path
        PEM file with the authority's certificate and its private key, not encrypted: readable by its owner only.
    common_name : str
        What a new authority calls itself.

    Raises
    ------
    UsageError
        The file cannot be read or written, holds something else, others may read it, or the authority has expired.
    """
    file = Path(path)
    try:
        if not file.exists():
            authority = CertificateAuthority.create(common_name, validity=VALIDITY)
            _write_new(file, authority.pem + authority.key_pem())
            return authority
        mode = file.stat().st_mode
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"the certificate authority's file cannot be used: {error}") from None
    if os.name == "posix" and mode & 0o077:
        raise UsageError(f"{file} holds a private key, and others may read it: chmod 600 {file}")
    try:
        certificate = x509.load_pem_x509_certificate(content)
        key = serialization.load_pem_private_key(content, password=None)
    except (ValueError, TypeError):
        raise UsageError(f"{file} is no certificate authority of ours: name another file, or a new one") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise UsageError(f"{file} is no certificate authority of ours: name another file, or a new one")
    if certificate.not_valid_after_utc <= dt.datetime.now(dt.UTC):
        raise UsageError(f"the certificate authority in {file} has expired: remove the file, a new one will be made")
    return CertificateAuthority(certificate, key)


def _write_new(file: Path, content: bytes) -> None:
    """Write a file for its owner only, whole or not at all."""
    draft = file.with_name(f"{file.name}.{os.getpid()}.new")
    try:
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        draft.replace(file)
    finally:
        with suppress(FileNotFoundError):
            draft.unlink()
