"""What people look at: the status page, as JSON and as a browser gets it."""

import asyncio
import json
import urllib.request
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest

from consumer.lifecycle.model import Author
from tests.builders import HOUR, close, message
from tests.e2e.conftest import PARTITIONS, Group, until
from tests.stack.programs import find
from tests.stack.replica import Replica

NOW = datetime.now(UTC)


class Page(HTMLParser):
    """The cells of each table by its id, and the text of the readiness line."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.readiness = ""
        self._table: list[list[str]] = []
        self._where = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._where = tag
        if tag == "table":
            self._table = self.tables.setdefault(dict(attrs)["id"] or "", [])
        elif tag == "tr":
            self._table.append([])

    def handle_data(self, data: str) -> None:
        if self._where in ("td", "th"):
            self._table[-1].append(data)
        elif self._where == "p":
            self.readiness += data

    def handle_endtag(self, tag: str) -> None:
        self._where = ""


async def page(replica: Replica) -> Page:
    request = urllib.request.Request(f"http://127.0.0.1:{replica.port}/status", headers={"Accept": "text/html"})

    def get() -> str:
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.headers.get_content_type() == "text/html"
            return str(answer.read().decode())

    return Page(await asyncio.to_thread(get))


async def test_a_replica_says_how_it_is_doing(group: Group) -> None:
    replica = await group.replica()
    await group.publish(message(at=NOW - HOUR), message(Author.AGENT, NOW), close(at=NOW))
    await group.publish_raw([(b"c-1", b"poison secret-body")])
    await group.until_applied(4)
    await until(lambda: seen(replica, 4), "the events are counted")

    status, body = await replica.get("/status")
    facts = json.loads(body)
    shown = await page(replica)

    assert (status, facts["ready"], facts["not_ready"]) == (200, True, [])
    assert len(facts["partitions"]) == PARTITIONS
    assert {partition["lag_records"] for partition in facts["partitions"]} == {0}
    assert (facts["events"], facts["conflict_rate"], facts["mean_retries"]) == (4, 0, 0)
    assert await replica.count("conversation_ready") == 1
    assert await replica.count("conversation_stopped_partitions") == 0
    assert facts["dead_letters"] == {"invalid_json": 1}
    assert facts["last_dead_letter_reasons"][0].endswith("invalid_json")
    assert shown.readiness == "ready"
    assert ["events", "4"] in shown.tables["figures"]
    assert ["conflict rate", "0.00%"] in shown.tables["figures"]
    assert len(shown.tables["partitions"]) == 1 + PARTITIONS
    assert ["invalid_json", "1"] in shown.tables["dead-letters"]
    assert "c-1" not in body
    assert "secret-body" not in body


async def seen(replica: Replica, count: int) -> bool:
    return await replica.count("conversation_events_total") == count


async def test_a_replica_that_is_not_ready_says_why(group: Group) -> None:
    replica = await group.replica()
    await until(lambda: started(group), "all partitions started")
    await replica.stop()
    await group.rows("UPDATE kafka_offset SET next_offset = 1000 WHERE partition = 0 RETURNING 1")

    replica = await group.unready_replica()

    async def says_why() -> bool:
        status, body = await replica.get("/status")
        return status == 200 and "is outside the log" in body

    await until(says_why, "the status says why")
    assert await replica.count("conversation_ready") == 0
    assert await replica.count("conversation_stopped_partitions") == 1
    assert "offsets set" in (await page(replica)).readiness


async def started(group: Group) -> bool:
    return len(await group.stored()) == PARTITIONS


@pytest.mark.needs("chromium")
async def test_a_browser_shows_the_page(group: Group, tmp_path: Path) -> None:
    replica = await group.replica()
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]

    process = await asyncio.create_subprocess_exec(
        *(str(find("chromium")), *quiet, "--dump-dom", f"http://127.0.0.1:{replica.port}/status"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=tmp_path,
    )
    out, _ = await asyncio.wait_for(process.communicate(), 60)

    shown = Page(out.decode())
    assert shown.readiness == "ready"
    assert ["conflict rate", "0.00%"] in shown.tables["figures"]
