"""A session of PostgreSQL whose client falls silent within a statement."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

WAITS = "SELECT state = 'active' AND wait_event = 'ClientRead' FROM pg_stat_activity WHERE pid = $1"


@asynccontextmanager
async def silent_within_a_copy(url: str, application: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that waits for the rows of a COPY, as the server sees it too."""
    connection = await asyncpg.connect(url, server_settings={"application_name": application})
    watching = await asyncpg.connect(url)
    silence = asyncio.Event()

    async def rows() -> AsyncIterator[tuple[str]]:
        await silence.wait()
        yield ("never",)

    copying = asyncio.create_task(connection.copy_records_to_table("conversation", records=rows(), columns=["status"]))
    try:
        async with asyncio.timeout(5):
            while not await watching.fetchval(WAITS, connection.get_server_pid()):  # noqa: ASYNC110 - the server says
                await asyncio.sleep(0.01)
        yield connection
    finally:
        connection.terminate()
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)
        await watching.close()
