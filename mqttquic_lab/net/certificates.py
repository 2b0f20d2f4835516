"""Certificates: a throw-away authority for embedded brokers and tests, what a client trusts, and readable facts.

The authority lives in memory (RFC 5280 profiles, ECDSA P-256). Its private keys reach a disk only when
:meth:`ServerIdentity.pem_files` is asked for them, or encrypted under a random pass phrase for the moment that
``ssl.SSLContext.load_cert_chain`` (which reads files only) takes to load them.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import secrets
import ssl
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mqttquic_lab.errors import CertificateError, UsageError
from mqttquic_lab.records.handshake import CertificateInfo

if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_VALIDITY = dt.timedelta(days=30)
"""Of the authority and of what it issues: longer than a kernel lives, too short to be worth keeping."""

_CLOCK_SKEW = dt.timedelta(hours=1)
"""How far before now a certificate begins, for peers (containers, other machines) whose clock is behind."""

_SIGNATURE_NAMES = {
    "1.2.840.113549.1.1.5": "sha1WithRSAEncryption",
    "1.2.840.113549.1.1.10": "rsassaPss",
    "1.2.840.113549.1.1.11": "sha256WithRSAEncryption",
    "1.2.840.113549.1.1.12": "sha384WithRSAEncryption",
    "1.2.840.113549.1.1.13": "sha512WithRSAEncryption",
    "1.2.840.10045.4.1": "ecdsa-with-SHA1",
    "1.2.840.10045.4.3.2": "ecdsa-with-SHA256",
    "1.2.840.10045.4.3.3": "ecdsa-with-SHA384",
    "1.2.840.10045.4.3.4": "ecdsa-with-SHA512",
    "1.3.101.112": "Ed25519",
    "1.3.101.113": "Ed448",
    "2.16.840.1.101.3.4.3.17": "ML-DSA-44",
    "2.16.840.1.101.3.4.3.18": "ML-DSA-65",
    "2.16.840.1.101.3.4.3.19": "ML-DSA-87",
}
"""Object identifiers of certificate signatures -> the names of RFC 8017, 5758, 8410 and 9881."""


# --- what a server shows --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """A certificate, its private key and the certificates to send along.

    Attributes
    ----------
    certificate : cryptography.x509.Certificate
        The server's own (leaf) certificate.
    private_key : ec.EllipticCurvePrivateKey
        Its key; never in ``repr``.
    chain : tuple of cryptography.x509.Certificate
        Intermediate certificates to present after the leaf, without the trust anchor (RFC 8446 section 4.4.2).
    """

    certificate: x509.Certificate
    private_key: ec.EllipticCurvePrivateKey = field(repr=False)
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def chain_pem(self) -> bytes:
        """Leaf and intermediates in PEM form, in the order in which they are presented."""
        return b"".join(_pem(certificate) for certificate in (self.certificate, *self.chain))

    def pem_files(self, directory: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write ``server.pem`` (leaf and chain) and ``server.key`` for another program, readable by the owner only.

        Parameters
        ----------
        directory : path
            An existing folder; files of these names are replaced.

        Returns
        -------
        tuple of Path
            Certificate file, key file.
        """
        certificate_file, key_file = Path(directory) / "server.pem", Path(directory) / "server.key"
        _write(certificate_file, self.chain_pem, 0o600)
        _write(key_file, self._key_pem(serialization.NoEncryption()), 0o600)
        return certificate_file, key_file

    def ssl_context(
        self, alpn: Sequence[str] = ("mqtt",), *, minimum_version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    ) -> ssl.SSLContext:
        """Return a TLS server context with this identity.

        Parameters
        ----------
        alpn : sequence of str
            Protocols to select from (RFC 7301). A client that offers none of them is let in without ALPN, as
            OpenSSL does: most MQTT clients over TLS offer none at all.
        minimum_version : ssl.TLSVersion
            TLS 1.2 by default, for clients older than TLS 1.3.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = minimum_version
        if alpn:
            context.set_alpn_protocols(list(alpn))
        # load_cert_chain reads files only. The key in this one is encrypted, mkstemp makes it 0600, and it is gone
        # before this method returns.
        passphrase = secrets.token_hex(32).encode("ascii")
        handle, name = tempfile.mkstemp(prefix="mqttquic-", suffix=".pem")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(self.chain_pem + self._key_pem(serialization.BestAvailableEncryption(passphrase)))
            context.load_cert_chain(name, password=passphrase)
        finally:
            Path(name).unlink(missing_ok=True)
        return context

    def _key_pem(self, encryption: serialization.KeySerializationEncryption) -> bytes:
        return self.private_key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


class CertificateAuthority:
    """An X.509 certificate authority.

    Make one with :meth:`create`; :func:`~mqttquic_lab.net.kept_authority.kept_authority` keeps it in a file.

    Attributes
    ----------
    certificate : cryptography.x509.Certificate
        The authority's own certificate: what a client has to trust.
    """

    def __init__(
        self,
        certificate: x509.Certificate,
        private_key: ec.EllipticCurvePrivateKey,
        chain: tuple[x509.Certificate, ...] = (),
    ) -> None:
        self.certificate = certificate
        self._private_key = private_key
        self._chain = chain

    @classmethod
    def create(
        cls, common_name: str = "mqttquic-lab throw-away CA", *, validity: dt.timedelta = DEFAULT_VALIDITY
    ) -> CertificateAuthority:
        """Make a self-signed root with a new ECDSA P-256 key, valid from an hour ago for `validity`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(common_name)
        now = _now()
        builder = _authority_builder(name, name, key.public_key(), key.public_key(), path_length=1)
        builder = builder.not_valid_before(now - _CLOCK_SKEW).not_valid_after(now + validity)
        return cls(builder.sign(key, hashes.SHA256()), key)

    def __repr__(self) -> str:
        return f"<CertificateAuthority {self.certificate.subject.rfc4514_string()}>"

    @property
    def pem(self) -> bytes:
        """The authority's certificate in PEM form, as :class:`Trust` takes it for ``ca_data``."""
        return _pem(self.certificate)

    def key_pem(self) -> bytes:
        """Return the authority's private key in PEM form, not encrypted: for a file that only its owner can read."""
        return self._private_key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def intermediate(self, common_name: str = "mqttquic-lab intermediate CA") -> CertificateAuthority:
        """Issue an authority below this one; its servers present its certificate after their own."""
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = self.certificate
        builder = _authority_builder(
            _name(common_name), issuer.subject, key.public_key(), self._private_key.public_key(), path_length=0
        )
        builder = builder.not_valid_before(issuer.not_valid_before_utc).not_valid_after(issuer.not_valid_after_utc)
        certificate = builder.sign(self._private_key, hashes.SHA256())
        return CertificateAuthority(certificate, key, (certificate, *self._chain))

    def issue(
        self,
        names: Sequence[str],
        *,
        not_before: dt.datetime | None = None,
        not_after: dt.datetime | None = None,
    ) -> ServerIdentity:
        """Issue a server certificate with a new ECDSA P-256 key.

        Parameters
        ----------
        names : sequence of str
            DNS names and IP addresses for the subject alternative name (RFC 5280 section 4.2.1.6); the first is also
            the common name.
        not_before, not_after : datetime, optional
            Validity. Default: from an hour ago until this authority ends. A naive datetime is UTC.

        Raises
        ------
        UsageError
            No name, a name that is neither DNS name nor IP address, or an end before the beginning.
        """
        if isinstance(names, str) or not names:
            raise UsageError("issue() takes a list of DNS names and IP addresses, such as ['localhost', '127.0.0.1']")
        begin = _utc(not_before) if not_before else _now() - _CLOCK_SKEW
        end = _utc(not_after) if not_after else self.certificate.not_valid_after_utc
        if end <= begin:
            raise UsageError(f"the certificate would end ({end}) before it begins ({begin})")
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(_name(names[0]), self.certificate.subject, key.public_key(), self._private_key.public_key())
        certificate = (
            builder.not_valid_before(begin)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
            .sign(self._private_key, hashes.SHA256())
        )
        return ServerIdentity(certificate, key, self._chain)

    def write_ca(self, path: str | os.PathLike[str]) -> Path:
        """Write the authority's certificate (public, mode 0644) for other programs to trust; returns the path."""
        target = Path(path)
        _write(target, self.pem, 0o644)
        return target


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    """Return what all our certificates have: names, key, serial number and the two key identifiers."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _authority_builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        _builder(subject, issuer, public_key, issuer_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
    )


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    # RFC 5280 appendix A: ub-common-name is 64.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    try:
        return x509.DNSName(name if name.isascii() else name.encode("idna").decode("ascii"))
    except ValueError:
        raise UsageError(f"{name!r} is neither a DNS name nor an IP address") from None


def _now() -> dt.datetime:
    # X.509 times are whole seconds.
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


def _utc(moment: dt.datetime) -> dt.datetime:
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _write(path: Path, data: bytes, mode: int) -> None:
    """Replace a file by one with exactly this mode, whatever the umask and the mode of its predecessor."""
    path.unlink(missing_ok=True)
    # O_EXCL: a link that somebody puts there meanwhile is an error, not a way to make us write elsewhere.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
    path.chmod(mode)


# --- what a client trusts -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Trust:
    """What a client demands of a server's certificate.

    Attributes
    ----------
    ca_file : path, optional
        PEM file with the authorities to trust *instead of* the system's.
    ca_data : bytes or str, optional
        The same as PEM text; both together are both trusted.
    verify : bool
        False accepts any certificate: encrypted, but whoever is on the path may be the other end.
    server_name : str, optional
        Name to send as SNI and to look for in the certificate, where it is not the host of the URL.
    """

    ca_file: str | os.PathLike[str] | None = None
    ca_data: bytes | str | None = field(default=None, repr=False)
    verify: bool = True
    server_name: str | None = None

    def anchors_pem(self) -> bytes | None:
        """Return the trusted authorities in PEM form, or None if those of the system are meant.

        Raises
        ------
        UsageError
            The file cannot be read, or there is no certificate in it.
        """
        parts: list[bytes] = []
        if self.ca_file is not None:
            try:
                parts.append(Path(self.ca_file).read_bytes())
            except OSError as error:
                raise UsageError(f"ca_file {os.fspath(self.ca_file)!r} cannot be read: {error.strerror}") from error
        if self.ca_data is not None:
            parts.append(self.ca_data.encode() if isinstance(self.ca_data, str) else bytes(self.ca_data))
        for part, origin in zip(parts, self._origins(), strict=True):
            try:
                x509.load_pem_x509_certificates(part)
            except ValueError as error:
                raise UsageError(
                    f"{origin} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----): {error}"
                ) from error
        return b"\n".join(parts) if parts else None

    def describe(self) -> str:
        """Return whose authorities these are, for a sentence: ``"the system's authorities"``."""
        return " and ".join(self._origins()) or "the system's authorities"

    def _origins(self) -> list[str]:
        origins = [f"ca_file {os.fspath(self.ca_file)!r}"] if self.ca_file is not None else []
        return origins + (["ca_data"] if self.ca_data is not None else [])


def certificate_refused(
    problem: str, *, where: str, name: str, authorities: str, chain: Sequence[CertificateInfo] = (), detail: str = ""
) -> CertificateError:
    """Return the error for a certificate that a client refused, saying what is wrong and what to do about it.

    Parameters
    ----------
    problem : str
        ``"untrusted"``, ``"name"``, ``"expired"``, ``"not-yet-valid"`` or ``"other"``.
    where : str
        Host and port, for the message.
    name : str
        Name or address that the certificate had to be for.
    authorities : str
        Whom the client trusts, as :meth:`Trust.describe` says it.
    chain : sequence of CertificateInfo
        What the server presented, leaf first, as far as known.
    detail : str
        The verifier's own words.
    """
    leaf = chain[0] if chain else None
    late = next((c for c in chain if c.not_after < dt.datetime.now(dt.UTC)), leaf)
    if problem == "expired":
        when = f" on {late.not_after:%Y-%m-%d %H:%M} UTC" if late else ""
        text = f"expired{when}: it has to be renewed there (or this machine's clock is wrong)"
    elif problem == "not-yet-valid":
        when = f" from {leaf.not_before:%Y-%m-%d %H:%M} UTC on" if leaf else " later"
        text = f"is valid only{when}: is this machine's clock right?"
    elif problem == "name":
        names = (", ".join(leaf.names) or "no host at all") if leaf else "another host"
        text = f"is not for {name!r} but for {names}: connect by one of those names, or pass it as server_name"
    elif problem == "untrusted":
        issuer = f" {chain[-1].issuer!r}" if chain else " an authority"
        text = (
            f"was issued by{issuer}, which is not among {authorities}: pass its CA certificate as ca_file, or "
            "verify=False if you accept anybody"
        )
    else:
        text = "was refused"
    more = f" ({detail})" if detail else ""
    return CertificateError(f"the certificate of {where} {text}{more}", problem=problem, chain=chain)


# --- what a person looks at -----------------------------------------------------------------------------------------


def certificate_info(certificate: x509.Certificate) -> CertificateInfo:
    """Return the facts of a certificate; parts of a hostile one that cannot be parsed are named so, never raised."""
    return CertificateInfo(
        subject=_distinguished_name(certificate, "subject"),
        issuer=_distinguished_name(certificate, "issuer"),
        serial_number=f"{certificate.serial_number:x}",
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        names=_names(certificate),
        key_type=_key_type(certificate),
        signature_algorithm=_signature_name(certificate),
        is_ca=_is_ca(certificate),
        fingerprint_sha256=certificate.fingerprint(hashes.SHA256()).hex(),
        pem=_pem(certificate).decode("ascii"),
    )


def chain_info(certificates: Sequence[x509.Certificate]) -> tuple[CertificateInfo, ...]:
    """Return :func:`certificate_info` of each certificate of a chain."""
    return tuple(certificate_info(certificate) for certificate in certificates)


def _distinguished_name(certificate: x509.Certificate, which: str) -> str:
    try:
        name: x509.Name = getattr(certificate, which)
        return name.rfc4514_string()
    except (ValueError, TypeError):
        return "(unreadable)"


def _names(certificate: x509.Certificate) -> tuple[str, ...]:
    extension = _extension(certificate, x509.SubjectAlternativeName)
    if extension is None:
        return ()
    kinds = (x509.DNSName, x509.IPAddress)
    return tuple(str(name.value) for name in extension if isinstance(name, kinds))


def _is_ca(certificate: x509.Certificate) -> bool:
    extension = _extension(certificate, x509.BasicConstraints)
    return extension is not None and bool(extension.ca)


def _extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return None


def _key_type(certificate: x509.Certificate) -> str:
    try:
        key = certificate.public_key()
    except Exception:  # noqa: BLE001 - unknown kinds raise several classes, some not in cryptography's documents
        return "unknown"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, ed448.Ed448PublicKey):
        return "Ed448"
    if isinstance(key, dsa.DSAPublicKey):
        return f"DSA {key.key_size}"
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def _signature_name(certificate: x509.Certificate) -> str:
    oid = certificate.signature_algorithm_oid.dotted_string
    return _SIGNATURE_NAMES.get(oid, oid)
