"""What the clients of Kafka and PostgreSQL get wrong, as small as it gets. A test that fails is good news.

What it means for an operator is in docs/reliability.md.
"""

import asyncio
import gc
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from tests.stack.services import Services

FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0"
ENDED = b"E" + (4 + len(FIELDS)).to_bytes(4, "big") + FIELDS
"""What a server sends before it ends a session."""


async def test_a_copy_on_a_session_that_the_server_has_just_ended_leaves_an_exception_that_nobody_retrieves(
    stack: Services,
) -> None:
    reports: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    connection = await asyncpg.connect(stack.postgres)
    await connection.execute("CREATE TEMPORARY TABLE numbers (n int)")
    await connection.copy_records_to_table("numbers", records=[(1,)])
    connection._protocol.data_received(ENDED)

    with pytest.raises(asyncpg.InternalClientError, match="cannot switch to state"):
        await connection.copy_records_to_table("numbers", records=[(2,)])
    connection.terminate()
    del connection
    async with asyncio.timeout(5):
        while not reports:
            await asyncio.sleep(0)
            gc.collect()

    assert [report["message"] for report in reports] == ["Future exception was never retrieved"]
    assert isinstance(reports[0]["exception"], asyncpg.ConnectionDoesNotExistError)


async def test_a_producers_stop_that_is_cut_short_leaves_its_sender_running(stack: Services) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka)
    await producer.start()
    sender = producer._sender.sender_task
    stopping = asyncio.create_task(producer.stop())
    await asyncio.sleep(0)

    stopping.cancel()
    await asyncio.gather(stopping, return_exceptions=True)
    await producer.stop()

    assert not sender.done()
    sender.cancel()
    await asyncio.gather(sender, producer.client.close())
