"""The producers of docs/upstream.md: each event lands on the partition of its key and is applied."""

import os
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from consumer.kafka.placement import home_of
from tests.e2e.conftest import PARTITIONS, Group
from tests.e2e.test_documents import ROOT, run
from tests.stack.broker import read_all
from tests.upstream.conftest import DOCS, as_typed, blocks

DOCUMENT = (DOCS / "upstream.md").read_text()
CONVERSATIONS = 20
SHELL = ["bash", "-euo", "pipefail", "-c"]
PYTHON = [sys.executable, "-c"]
KCAT, KCAT_BINARY = blocks("upstream.md", "sh")
AIOKAFKA, CONFLUENT = blocks("upstream.md", "python")


async def publish(group: Group, interpreter: list[str], block: str, directory: Path) -> None:
    await run([*interpreter, as_typed(block, group)], {**os.environ, "PYTHONPATH": str(ROOT)}, directory)


@pytest.mark.parametrize(
    ("interpreter", "block"),
    [
        pytest.param(SHELL, KCAT, id="kcat", marks=pytest.mark.needs("kcat")),
        pytest.param(SHELL, KCAT_BINARY, id="kcat-binary", marks=pytest.mark.needs("kcat")),
        pytest.param(PYTHON, AIOKAFKA, id="aiokafka"),
        pytest.param(PYTHON, CONFLUENT, id="confluent-kafka"),
    ],
)
@pytest.mark.parametrize("key", ["thread-", "ж漢é🎉-"], ids=["ascii", "utf-8"])
async def test_each_event_lands_on_the_partition_of_its_key_and_is_applied(
    group: Group, interpreter: list[str], block: str, key: str, tmp_path: Path
) -> None:
    replica = await group.replica()

    await publish(group, interpreter, block.replace("thread-", key), tmp_path)
    await group.until_applied(CONVERSATIONS)

    records = await read_all(group.kafka, group.topic)
    assert {record.key for record in records} == {f"{key}{number + 1}".encode() for number in range(CONVERSATIONS)}
    assert [record.partition for record in records] == [home_of(record.key or b"", PARTITIONS) for record in records]
    assert await replica.count("conversation_misplaced_records_total") == 0
    assert await replica.count("conversation_events_total", outcome="applied") == CONVERSATIONS
    assert await group.one("SELECT count(*) FROM conversation") == CONVERSATIONS


async def test_the_default_of_librdkafka_is_counted_as_misplaced_and_applied_all_the_same(
    group: Group, tmp_path: Path
) -> None:
    replica = await group.replica()

    await publish(group, PYTHON, CONFLUENT.replace('"partitioner": "murmur2_random", ', ""), tmp_path)
    await group.until_applied(CONVERSATIONS)

    assert await replica.count("conversation_misplaced_records_total") > 0
    assert await replica.count("conversation_events_total", outcome="applied") == CONVERSATIONS


@pytest.mark.parametrize("package", ["aiokafka", "confluent-kafka"])
def test_the_document_names_the_version_that_is_tried(package: str) -> None:
    assert re.search(rf"^\| Python: {package} .*\| {re.escape(version(package))} \|$", DOCUMENT, re.MULTILINE)


async def test_published_again_an_event_has_no_second_effect(group: Group, tmp_path: Path) -> None:
    replica = await group.replica()

    for _ in range(2):
        await publish(group, PYTHON, AIOKAFKA, tmp_path)
    await group.until_applied(2 * CONVERSATIONS)

    assert await replica.count("conversation_events_total", outcome="duplicate") == CONVERSATIONS
    assert await group.history() == CONVERSATIONS
