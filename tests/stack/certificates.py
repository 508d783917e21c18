"""Certificates of authorities of the test's own, as PEM files."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import trustme
from cryptography.hazmat.primitives import serialization

YESTERDAY = datetime.now(UTC) - timedelta(days=1)


class Identity(NamedTuple):
    """A certificate with its chain, and its key."""

    certificate: Path
    key: Path

    def encrypted(self, password: str) -> "Identity":
        """The same, its key encrypted."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        path = self.key.with_suffix(".encrypted")
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(password.encode()),
            )
        )
        return Identity(self.certificate, path)

    def keystore(self) -> Path:
        """Both in one file, as Kafka reads them. Java wants the key in PKCS #8."""
        key = serialization.load_pem_private_key(self.key.read_bytes(), None)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self.key.with_suffix(".keystore")
        path.write_bytes(pem + self.certificate.read_bytes())
        return path


class Authority:
    """Issues certificates into files of a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory = directory
        self._name = name
        self._authority = trustme.CA()
        self.certificate = directory / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.certificate))

    def issue(self, *hosts: str, common_name: str | None = None, not_after: datetime | None = None) -> Identity:
        """A certificate of these hosts or addresses; one of a client has a common name, which is who it is."""
        # Java refuses a certificate without an alternative name.
        issued = self._authority.issue_cert(
            *(hosts or ("client.example",)), common_name=common_name, not_after=not_after, key_type=trustme.KeyType.RSA
        )
        stem = f"{self._name}-{common_name or hosts[0]}-{len(list(self._directory.iterdir()))}"
        certificate, key = self._directory / f"{stem}.pem", self._directory / f"{stem}.key"
        for number, blob in enumerate(issued.cert_chain_pems):
            blob.write_to_path(str(certificate), append=number > 0)
        issued.private_key_pem.write_to_path(str(key))
        return Identity(certificate, key)
