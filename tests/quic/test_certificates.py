"""The throw-away authority, what a client trusts, and certificate facts."""

from __future__ import annotations

import datetime as dt
import shutil
import ssl
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.certificates import CertificateAuthority, Trust, certificate_info, certificate_refused, chain_info

if TYPE_CHECKING:
    from tests.helpers.certs import Identities

OPENSSL = shutil.which("openssl")


def test_authority_is_a_proper_ca(authority: CertificateAuthority) -> None:
    certificate = authority.certificate
    extensions = certificate.extensions
    basic = extensions.get_extension_for_class(x509.BasicConstraints)
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert basic.critical
    assert basic.value.ca
    assert usage.critical
    assert usage.value.key_cert_sign
    assert not usage.value.digital_signature
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= dt.timedelta(days=31)


def test_leaf_has_the_extensions_of_a_server(identities: Identities) -> None:
    extensions = identities.good.certificate.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    issuer = identities.authority.certificate.extensions
    assert (
        extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        == issuer.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    )


@pytest.mark.skipif(OPENSSL is None, reason="openssl is not installed")
@pytest.mark.parametrize("kind", ["good", "with_intermediate", "expired", "untrusted"])
def test_openssl_agrees(identities: Identities, kind: str, tmp_path: Path) -> None:
    """-x509_strict checks RFC 5280's rules, as Python 3.13's default context does."""
    identity = getattr(identities, kind)
    certificate_file, key_file = identity.pem_files(tmp_path)
    ca_file = identities.authority.write_ca(tmp_path / "ca.pem")
    command = [str(OPENSSL), "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost"]
    files = ["-CAfile", str(ca_file), "-untrusted", str(certificate_file), str(certificate_file)]
    done = subprocess.run(
        [*command, *files],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    if kind in {"good", "with_intermediate"}:
        assert done.returncode == 0, done.stdout + done.stderr
    else:
        assert done.returncode != 0
        assert ("expired" if kind == "expired" else "issuer") in done.stderr
    key = subprocess.run(
        [str(OPENSSL), "pkey", "-in", str(key_file), "-noout", "-text"], capture_output=True, timeout=20, check=True
    )
    assert b"prime256v1" in key.stdout


def test_issue_refuses_what_makes_no_certificate(authority: CertificateAuthority) -> None:
    now = dt.datetime.now(dt.UTC)
    with pytest.raises(UsageError, match="takes a list"):
        authority.issue("localhost")
    with pytest.raises(UsageError, match="takes a list"):
        authority.issue([])
    with pytest.raises(UsageError, match="before it begins"):
        authority.issue(["h"], not_before=now, not_after=now - dt.timedelta(days=1))


def test_naive_times_are_utc(authority: CertificateAuthority) -> None:
    identity = authority.issue(["h"], not_before=dt.datetime(2020, 1, 1), not_after=dt.datetime(2020, 1, 2))
    assert identity.certificate.not_valid_after_utc == dt.datetime(2020, 1, 2, tzinfo=dt.UTC)


def test_long_and_international_names(authority: CertificateAuthority) -> None:
    long = "a" * 60 + "." + "b" * 60 + ".example"
    assert certificate_info(authority.issue([long]).certificate).names == (long,)
    assert certificate_info(authority.issue(["bücher.example"]).certificate).names == ("xn--bcher-kva.example",)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX modes")
def test_file_modes(identities: Identities, tmp_path: Path) -> None:
    (tmp_path / "server.key").write_text("an older one, readable by all")
    (tmp_path / "server.key").chmod(0o644)
    certificate_file, key_file = identities.good.pem_files(tmp_path)
    ca_file = identities.authority.write_ca(tmp_path / "ca.pem")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (certificate_file, key_file, ca_file)}
    assert modes == {"server.pem": 0o600, "server.key": 0o600, "ca.pem": 0o644}
    assert b"PRIVATE" not in ca_file.read_bytes() + certificate_file.read_bytes()


def test_ssl_context_leaves_no_key_behind(
    identities: Identities, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that ssl loads holds an encrypted key, is private, and is gone afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seen: list[tuple[bytes, int]] = []
    load = ssl.SSLContext.load_cert_chain

    def spy(context: ssl.SSLContext, certfile: str, *args: object, **kwargs: object) -> None:
        seen.append((Path(certfile).read_bytes(), stat.S_IMODE(Path(certfile).stat().st_mode)))
        load(context, certfile, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", spy)
    context = identities.good.ssl_context()
    assert isinstance(context, ssl.SSLContext)
    ((content, mode),) = seen
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in content
    if sys.platform != "win32":
        assert mode == 0o600
    assert list(tmp_path.iterdir()) == []


def test_secrets_are_not_in_reprs(identities: Identities) -> None:
    for thing in (identities.good, identities.authority, identities.trust):
        assert "private" not in repr(thing).lower()
        assert "BEGIN" not in repr(thing)


def test_certificate_info(identities: Identities) -> None:
    leaf, intermediate = chain_info((identities.with_intermediate.certificate, *identities.with_intermediate.chain))
    assert leaf.subject == "CN=localhost"
    assert leaf.issuer == intermediate.subject == "CN=mqttquic-lab intermediate CA"
    assert leaf.names == ("localhost", "127.0.0.1", "::1")
    assert leaf.key_type == "EC secp256r1"
    assert leaf.signature_algorithm == "ecdsa-with-SHA256"
    assert (leaf.is_ca, intermediate.is_ca) == (False, True)
    assert leaf.not_before.tzinfo is dt.UTC
    certificate = x509.load_pem_x509_certificate(leaf.pem.encode())
    assert certificate == identities.with_intermediate.certificate
    assert leaf.fingerprint_sha256 == certificate.fingerprint(hashes.SHA256()).hex()
    assert int(leaf.serial_number, 16) == certificate.serial_number


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_certificate_info_of_other_keys(kind: str) -> None:
    key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
    key = rsa.generate_private_key(65537, 2048) if kind == "rsa" else ed25519.Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "<b>x</b>,\n")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(key, hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None)
    )
    info = certificate_info(certificate)
    expected = ("RSA 2048", "sha256WithRSAEncryption") if kind == "rsa" else ("Ed25519", "Ed25519")
    assert (info.key_type, info.signature_algorithm) == expected
    assert info.names == ()
    assert not info.is_ca


def test_certificate_info_survives_extensions_that_cannot_be_parsed(authority: CertificateAuthority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.UnrecognizedExtension(x509.OID_SUBJECT_ALTERNATIVE_NAME, b"\x30\x84\xff"), critical=True)
        .sign(key, hashes.SHA256())
    )
    info = certificate_info(certificate)
    assert (info.subject, info.names, info.is_ca) == ("", (), False)


def test_trust_reads_files_and_data(identities: Identities, tmp_path: Path) -> None:
    ca_file = identities.authority.write_ca(tmp_path / "ca.pem")
    other = CertificateAuthority.create("other")
    trust = Trust(ca_file=ca_file, ca_data=other.pem.decode())
    pem = trust.anchors_pem()
    assert pem is not None
    assert x509.load_pem_x509_certificates(pem) == [identities.authority.certificate, other.certificate]
    assert str(ca_file) in trust.describe()
    assert Trust().anchors_pem() is None
    assert Trust().describe() == "the system's authorities"


def test_trust_refuses_what_holds_no_certificate(identities: Identities, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Trust(ca_file=tmp_path / "nosuch.pem").anchors_pem()
    with pytest.raises(UsageError, match="cannot be read"):
        Trust(ca_file=tmp_path).anchors_pem()
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing")
    with pytest.raises(UsageError, match=r"empty\.pem.* holds no certificate"):
        Trust(ca_file=empty).anchors_pem()
    key = identities.good.private_key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(UsageError, match="ca_data holds no certificate") as caught:
        Trust(ca_data=key).anchors_pem()
    assert key.decode().splitlines()[1] not in str(caught.value)
    with pytest.raises(UsageError, match="ca_data holds no certificate"):
        Trust(ca_data="zertifikät").anchors_pem()


@pytest.mark.parametrize("problem", ["expired", "not-yet-valid", "name", "untrusted", "other"])
def test_refusals_say_what_to_do_with_and_without_a_chain(identities: Identities, problem: str) -> None:
    for chain in ((), chain_info([identities.wrong_name.certificate])):
        error = certificate_refused(
            problem, where="h:1", name="localhost", authorities="ca_data", chain=chain, detail="why"
        )
        assert error.problem == problem
        assert error.chain == chain
        assert str(error).startswith("the certificate of h:1 ")
        assert "why" in str(error)
    if problem == "name":
        assert "broker.example" in str(error)
