"""PgBouncer in front of a PostgreSQL server, where it is installed."""

from pathlib import Path
from urllib.parse import urlsplit

from tests.stack.process import Server, answers, free_port, unprivileged_uid
from tests.stack.programs import find

CONFIGURATION = """\
[databases]
* = host={host} port={server_port} user={user} {password}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {pool_mode}
{options}
"""


class PgBouncer:
    """A pooler on a free port of the loopback interface, for any database of a server."""

    def __init__(self, server_url: str, pool_mode: str, options: str = "") -> None:
        program, address = find("pgbouncer"), urlsplit(server_url)
        assert program is not None
        self._server = Server("pgbouncer", unprivileged_uid())
        self.port = free_port()
        configuration: Path = self._server.directory / "pgbouncer.ini"
        configuration.write_text(
            CONFIGURATION.format(
                host=address.hostname,
                server_port=address.port,
                user=address.username,
                password=f"password={address.password}" if address.password else "",
                port=self.port,
                pool_mode=pool_mode,
                options=options,
            )
        )
        self._server.start([program, str(configuration)], lambda: answers(self.port))

    def url(self, database_url: str) -> str:
        """The same database, through this pooler."""
        address = urlsplit(database_url)
        return address._replace(netloc=f"{address.username}@127.0.0.1:{self.port}").geturl()

    def stop(self) -> None:
        self._server.stop()
