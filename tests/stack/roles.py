"""The roles of a database in production, as `deploy/postgres/roles.sql` makes them, under names of a run's own."""

import asyncio
import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.stack.citus import workers_of
from tests.stack.database import execute, new_database
from tests.stack.postgres_server import BINARIES

ALONE = "SET citus.enable_ddl_propagation = off; "
"""Before a statement that is for one node of a Citus cluster."""
SCRIPT = Path(__file__).parents[2] / "deploy" / "postgres" / "roles.sql"
ROLES = ("owner", "app", "reader")


@asynccontextmanager
async def new_roles(server: str) -> AsyncIterator[str]:
    """What the names of three roles begin with. They last as long as the block; their databases must not."""
    prefix = f"test_{secrets.token_hex(6)}"
    try:
        yield prefix
    finally:
        await execute(server, f"DROP ROLE IF EXISTS {', '.join(f'{prefix}_{role}' for role in ROLES)}")


async def set_up_roles(url: str, prefix: str) -> None:
    """Runs the script in a database, as the user of `url`, and gives each role a password.

    Raises `CalledProcessError` after psql has said what is wrong.
    """
    names = [part for role in ROLES for part in ("-v", f"{role}={prefix}_{role}")]
    command = [str(BINARIES / "psql"), "-X", "-q", "-d", url, *names, "-f", str(SCRIPT)]
    await asyncio.to_thread(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    await execute(url, "; ".join(f"ALTER ROLE {prefix}_{role} PASSWORD '{prefix}'" for role in ROLES))


@asynccontextmanager
async def copy_for_app(server: str, template: str) -> AsyncIterator[str]:
    """The app's URL of a copy of `template`, the owner's URL of a database with roles."""
    prefix = _prefix(template)
    async with new_database(server, "test", template) as url:
        name = urlsplit(url).path[1:]
        # Privileges on the database itself are not copied, nor passed on to workers.
        for node in (url, *await workers_of(url)):
            await execute(
                node,
                f"{'' if node == url else ALONE}ALTER DATABASE {name} OWNER TO {prefix}_owner; "
                f"REVOKE ALL ON DATABASE {name} FROM PUBLIC; "
                f"GRANT CONNECT ON DATABASE {name} TO {prefix}_app, {prefix}_reader",
            )
        yield with_role(url, f"{prefix}_app")


def as_owner(url: str) -> str:
    """The same database as the role that may change its tables; `url` is that of any of the three."""
    return with_role(url, f"{_prefix(url)}_owner")


def as_app(url: str) -> str:
    return with_role(url, f"{_prefix(url)}_app")


def as_reader(url: str) -> str:
    return with_role(url, f"{_prefix(url)}_reader")


def with_role(url: str, name: str) -> str:
    address = urlsplit(url)
    host = address.netloc.rpartition("@")[2]
    return address._replace(netloc=f"{name}:{name.rpartition('_')[0]}@{host}").geturl()


def _prefix(url: str) -> str:
    name = urlsplit(url).username
    assert name is not None
    return name.rpartition("_")[0]
