"""The blocks of the documents run as typed, on real services."""

import asyncio
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumer.decoding import as_record
from tests.builders import message
from tests.e2e.conftest import Group, until
from tests.stack.broker import delete
from tests.stack.database import execute
from tests.stack.replica import Replica
from tests.stack.services import Services

ROOT = Path(__file__).parents[2]
UPSTREAM = ("upstream.md", "webhook.md")
"""Their blocks are run by `tests/upstream`."""
PYTHON = [
    (path, number, block)
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
    if path.name not in UPSTREAM
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL))
]
OPERATIONS = re.findall(
    r"^    (conversation-consumer .*)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
)
SHELL = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
Exports = dict[str, str]


@pytest.fixture
async def exports(stack: Services, tmp_path: Path) -> AsyncIterator[Exports]:
    """What `make services` prints, of servers with nothing on them; topics of the test's own."""
    name = f"docs-{secrets.token_hex(6)}"
    database = name.replace("-", "_")
    await execute(stack.postgres, f"CREATE DATABASE {database}")
    yield {
        **{key: value for key, value in os.environ.items() if not key.startswith("CONSUMER_")},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": stack.kafka,
        "CONSUMER_DATABASE__URL": f"{stack.postgres.rpartition('/')[0]}/{database}",
        "CONSUMER_KAFKA__TOPICS": f"{name}.events",
        "CONSUMER_KAFKA__DEAD_LETTER_TOPIC": f"{name}.dead-letter",
        "CONSUMER_KAFKA__TRANSITION_TOPIC": f"{name}.transition",
        "CONSUMER_KAFKA__GROUP_ID": name,
    }
    await execute(stack.postgres, f"DROP DATABASE {database} WITH (FORCE)")
    await delete(stack.kafka, *(f"{name}.{kind}" for kind in ("events", "dead-letter", "transition")))


async def run(command: list[str], environment: Exports, directory: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), 120)
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, out.decode()
    return out.decode()


async def test_the_readme_leads_to_the_first_event(exports: Exports, tmp_path: Path) -> None:
    prepare, publish = (block.replace(". .venv/bin/activate\n", "") for block in SHELL)
    prepared = await run(["bash", "-ec", prepare], exports, tmp_path)
    settings = {name: value for name, value in exports.items() if name.startswith("CONSUMER_")}
    replica = await Replica(settings, tmp_path / "replica.log").start()
    try:
        await until(replica.ready, "the replica is ready")
        events, rest = publish.split("conversation-consumer conversation", 1)
        published = await run(["bash", "-ec", events], exports, tmp_path)
        await until(lambda: _has_applied(replica), "the event is applied")
        shown = await run(["bash", "-ec", f"conversation-consumer conversation{rest}"], exports, tmp_path)
    finally:
        await replica.stop()

    assert "schema at" in prepared
    assert "1 published, 0 rejected" in published
    assert "- -> pending" in shown
    assert "✗" not in shown


async def test_the_operators_commands_run_as_typed(exports: Exports, tmp_path: Path) -> None:
    """Only what the text leaves open is filled in: the replicas' addresses, the topic, how long `top` lasts."""
    settings = {name: value for name, value in exports.items() if name.startswith("CONSUMER_")}
    processes: list[Replica] = []
    outputs: dict[str, str] = {}
    (tmp_path / "event.json").write_text(json.dumps(as_record(message(at=datetime.now(UTC), conversation_id="ID"))))
    try:
        for line in OPERATIONS:
            typed = line.partition("#")[0].strip()
            name = typed.split()[1]
            if name in ("run", "ticker", "outbox"):
                processes.append(await Replica(settings, tmp_path / f"{name}.log", "consumer", name).start())
                await until(processes[-1].ready, f"{name} is ready")
                continue
            if name == "conversation" and "ID" not in " ".join(outputs):
                await run(["bash", "-ec", "conversation-consumer publish event.json"], exports, tmp_path)
                await until(lambda: _has_applied(processes[0]), "the event is applied")
            outputs[typed] = await run(["bash", "-ec", _filled(typed, exports, processes)], exports, tmp_path)
    finally:
        for process in processes:
            await process.stop()

    assert "schema at" in outputs["conversation-consumer migrate"]
    assert "✗" not in outputs["conversation-consumer doctor"]
    assert "- -> pending" in outputs["conversation-consumer conversation history ID"]
    assert "Opened as pending by the user's message" in outputs["conversation-consumer conversation why ID"]
    assert "1 equal, 0 differs" in outputs["conversation-consumer conversation rebuild --all"]
    assert "conversation_event: 1 row" in outputs["conversation-consumer conversation forget ID"]
    assert "[3]: " in outputs["conversation-consumer offsets set conversation.events 3 end --yes"]
    assert "rows removed" in outputs["conversation-consumer prune --yes"]


def _filled(typed: str, exports: Exports, processes: list[Replica]) -> str:
    """`typed` with this run's addresses; of a dead letter that is not there, the error."""
    command = typed.replace("conversation.events", exports["CONSUMER_KAFKA__TOPICS"])
    for number, process in enumerate(processes, start=1):
        command = command.replace(f"replica-{number}:8080", f"127.0.0.1:{process.port}")
    if " top " in command:
        command += " --rounds 1"
    return command if "dead-letters show" not in command else f"{command} 2>&1 | grep 'no dead letter at 0:42'"


async def _has_applied(replica: Replica) -> bool:
    return await replica.count("conversation_events_total", outcome="applied") == 1


EXPECTED = {
    "README.md": "applied applied\n",
    "event-contract.md": "thread-4711\n",
    "operations.md": "1.0\n",
    "security.md": "",
}


@pytest.mark.parametrize(("path", "number", "block"), PYTHON, ids=lambda part: getattr(part, "name", ""))
async def test_a_python_block_runs_as_typed(group: Group, path: Path, number: int, block: str, tmp_path: Path) -> None:
    environment = {**os.environ, "CONSUMER_DATABASE__URL": group.database, "PYTHONPATH": str(ROOT)}

    assert await run([sys.executable, "-c", block], environment, tmp_path) == EXPECTED[path.name]


def test_each_of_these_documents_has_a_python_block() -> None:
    assert {path.name for path, _, _ in PYTHON} == set(EXPECTED)
