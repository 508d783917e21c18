"""The endpoint of docs/webhook.md as typed: signed deliveries become events, once each; 200 means: Kafka has them."""

import asyncio
import hashlib
import hmac
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Group, until
from tests.e2e.test_documents import ROOT
from tests.stack.broker import delete, read_all
from tests.stack.process import free_port
from tests.upstream.conftest import as_typed, blocks

(BLOCK,) = blocks("webhook.md", "python")
SECRETS = {"APP_SECRET": "app", "VERIFY_TOKEN": "token", "THREAD_SECRET": "thread"}
CUSTOMER = "491751234567"


def delivery(*messages: dict[str, Any], account: str = "1060001") -> bytes:
    """What the provider sends, with fields that the endpoint has no use for."""
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": "15550001111", "phone_number_id": account},
        "contacts": [{"profile": {"name": "Ada"}, "wa_id": CUSTOMER}],
        **({"messages": messages} if messages else {"statuses": [{"id": "wamid.0", "status": "read"}]}),
    }
    changes = [{"field": "messages", "value": value}]
    return json.dumps({"object": "whatsapp_business_account", "entry": [{"id": "42", "changes": changes}]}).encode()


def text(wamid: str, sender: str = CUSTOMER) -> dict[str, Any]:
    now = str(int(datetime.now(UTC).timestamp()))
    return {"from": sender, "id": wamid, "timestamp": now, "type": "text", "text": {"body": "secret-text"}}


def button(wamid: str) -> dict[str, Any]:
    reply = {"type": "button_reply", "button_reply": {"id": "close", "title": "Bye"}}
    return {**text(wamid), "type": "interactive", "interactive": reply}


def signed(body: bytes, secret: str = "app") -> dict[str, str]:
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


class Endpoint:
    """The endpoint in a process of its own."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def get(self, **query: str) -> tuple[int, str]:
        """(status, text); 0 where nobody answers."""
        try:
            async with self._session.get(self._url, params=query) as answer:
                return answer.status, await answer.text()
        except aiohttp.ClientConnectionError:
            return 0, ""

    async def post(self, body: bytes, headers: dict[str, str] | None = None) -> int:
        async with self._session.post(self._url, data=body, headers=headers or signed(body)) as answer:
            return answer.status


@asynccontextmanager
async def served(group: Group, directory: Path, block: str = BLOCK) -> AsyncIterator[Endpoint]:
    port = free_port()
    program = as_typed(block, group).replace("port=8000", f'host="127.0.0.1", port={port}')
    path = directory / f"webhook-{port}.log"
    with path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            env={**os.environ, **SECRETS, "PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        async with aiohttp.ClientSession() as session:
            endpoint = Endpoint(f"http://127.0.0.1:{port}/webhook", session)

            async def answers() -> bool:
                assert process.returncode is None, await asyncio.to_thread(path.read_text)
                return (await endpoint.get())[0] != 0

            await until(answers, "the endpoint answers")
            yield endpoint
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
async def endpoint(group: Group, tmp_path: Path) -> AsyncIterator[Endpoint]:
    async with served(group, tmp_path) as served_endpoint:
        yield served_endpoint


async def test_a_delivery_that_comes_twice_has_one_effect(group: Group, endpoint: Endpoint, tmp_path: Path) -> None:
    replica = await group.replica()
    body = delivery(text("wamid.1"), text("wamid.2"), text("wamid.3", "4917600000"))

    async with served(group, tmp_path) as another_pod:
        answers = [await endpoint.post(body), await endpoint.post(body), await another_pod.post(body)]
    await group.until_applied(9)

    assert answers == [200, 200, 200]
    assert await group.history() == 3
    assert await replica.count("conversation_events_total", outcome="duplicate") == 6
    assert await group.rows("SELECT status, user_messages FROM conversation ORDER BY user_messages") == [
        ("pending", 1),
        ("pending", 2),
    ]
    assert await group.rows("SELECT DISTINCT source FROM conversation_event") == [("whatsapp:1060001",)]


async def test_the_same_customer_has_a_conversation_with_each_account(group: Group, endpoint: Endpoint) -> None:
    await group.replica()

    await endpoint.post(delivery(text("wamid.1")))
    await endpoint.post(delivery(text("wamid.1"), account="1060002"))
    await group.until_applied(2)

    assert await group.one("SELECT count(*) FROM conversation") == 2


async def test_the_close_button_is_the_customers_goodbye(group: Group, endpoint: Endpoint) -> None:
    await group.replica()

    await endpoint.post(delivery(text("wamid.1"), button("wamid.2")))
    await group.until_applied(2)

    assert await group.rows("SELECT status, closed_by FROM conversation") == [("user_closed", "user")]


async def test_neither_text_nor_phone_number_nor_name_goes_on(group: Group, endpoint: Endpoint) -> None:
    await endpoint.post(delivery(text("wamid.1")))

    (record,) = await read_all(group.kafka, group.topic)
    for secret in (b"secret-text", CUSTOMER.encode(), b"15550001111", b"Ada"):
        assert secret not in (record.key or b"") + (record.value or b"")


@pytest.mark.parametrize(
    "headers",
    [
        signed(delivery(text("wamid.1")), secret="another"),
        signed(b"another body"),
        {"X-Hub-Signature-256": "ж"},
        {"X": ""},
    ],
    ids=["another secret", "another body", "no hash", "none"],
)
async def test_a_delivery_with_a_wrong_signature_is_refused(
    group: Group, endpoint: Endpoint, headers: dict[str, str]
) -> None:
    assert await endpoint.post(delivery(text("wamid.1")), headers) == 403
    assert await read_all(group.kafka, group.topic) == []


async def test_without_an_acknowledgement_the_answer_is_no_200_and_the_next_delivery_counts(
    group: Group, endpoint: Endpoint, tmp_path: Path
) -> None:
    body = delivery(text("wamid.1"))
    refusing, absent = f"{group.topic}-refusing", f"{group.topic}-absent"
    await group.create_topic(refusing, configs={"max.message.bytes": "10"})
    impatient = BLOCK.replace("timeout(10)", "timeout(1)")

    answers = []
    for topic in (refusing, absent):
        async with served(group, tmp_path, impatient.replace("conversation.events", topic)) as failing:
            answers.append(await failing.post(body))
    answers.append(await endpoint.post(body))
    await delete(group.kafka.bootstrap_servers, refusing)

    assert answers == [503, 503, 200]
    assert len(await read_all(group.kafka, group.topic)) == 1


async def test_receipts_are_taken_and_no_events(group: Group, endpoint: Endpoint) -> None:
    assert await endpoint.post(delivery()) == 200
    assert await read_all(group.kafka, group.topic) == []


async def test_a_delivery_of_another_shape_is_no_200_and_publishes_nothing(group: Group, endpoint: Endpoint) -> None:
    odd = text("wamid.2") | {"timestamp": "yesterday"}

    assert await endpoint.post(delivery(text("wamid.1"), odd)) == 500
    assert await endpoint.post(b"[]") == 500
    assert await read_all(group.kafka, group.topic) == []


async def test_the_provider_may_subscribe_with_the_token(endpoint: Endpoint) -> None:
    subscription = {"hub.mode": "subscribe", "hub.challenge": "1158201444"}

    assert await endpoint.get(**subscription, **{"hub.verify_token": "token"}) == (200, "1158201444")
    assert (await endpoint.get(**subscription, **{"hub.verify_token": "ж"}))[0] == 403
    assert (await endpoint.get())[0] == 403
