"""Certificate authorities in files."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import pytest

from mqttquic_lab.errors import UsageError
from mqttquic_lab.net.certificates import CertificateAuthority
from mqttquic_lab.net.kept_authority import VALIDITY, kept_authority

if TYPE_CHECKING:
    from pathlib import Path


def test_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    file = tmp_path / "lab.ca.pem"
    first, second = kept_authority(file, "lab"), kept_authority(file, "another name")
    assert first.certificate == second.certificate
    assert first.key_pem() == second.key_pem()
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["lab.ca.pem"]
    lasts = first.certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
    assert abs(lasts - VALIDITY) < dt.timedelta(minutes=1)
    assert first.pem in file.read_bytes()
    assert "PRIVATE" not in repr(second)


def test_others_may_not_read_it(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    kept_authority(file, "lab")
    file.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        kept_authority(file, "lab")


@pytest.mark.parametrize("kept", ["nothing", "words", "certificate only", "key only", "another's key"])
def test_files_that_are_something_else(tmp_path: Path, kept: str) -> None:
    one, other = CertificateAuthority.create(), CertificateAuthority.create()
    file = tmp_path / "ca.pem"
    file.touch(0o600)
    file.write_bytes(
        {
            "nothing": b"",
            "words": b"not a certificate\n",
            "certificate only": one.pem,
            "key only": one.key_pem(),
            "another's key": one.pem + other.key_pem(),
        }[kept]
    )
    before = file.read_bytes()
    with pytest.raises(UsageError, match="no certificate authority of ours"):
        kept_authority(file, "lab")
    assert file.read_bytes() == before


def test_an_expired_one(tmp_path: Path) -> None:
    old = CertificateAuthority.create(validity=dt.timedelta(seconds=-1))
    file = tmp_path / "ca.pem"
    file.touch(0o600)
    file.write_bytes(old.pem + old.key_pem())
    with pytest.raises(UsageError, match="expired"):
        kept_authority(file, "lab")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be used"):
        kept_authority(tmp_path / "nowhere" / "ca.pem", "lab")
    file = tmp_path / "folder"
    file.mkdir()
    with pytest.raises(UsageError, match="cannot be used"):
        kept_authority(file, "lab")
