"""The command line itself: what it imports, its version, completion, pipes, settings."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SETTINGS_FREE = {name: value for name, value in os.environ.items() if not name.startswith("CONSUMER_")}
NOWHERE = {
    "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1",
    "CONSUMER_DATABASE__URL": "postgresql://127.0.0.1:1/none",
}
HEAVY = {"aiohttp", "aiokafka", "alembic", "asyncpg", "pydantic", "sqlalchemy", "structlog", "prometheus_client"}


def consumer(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "consumer", *arguments],
        env={**SETTINGS_FREE, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def imported_by(*arguments: str) -> set[str]:
    """The top-level packages that a command imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "consumer", *arguments],
        env=SETTINGS_FREE,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = (line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time"))
    return {name.split(".")[0] for name in lines}


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_and_version_import_no_driver_and_no_model(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments) & HEAVY == set()


@pytest.mark.parametrize("arguments", [("config",), ("healthcheck", "--help")])
def test_what_needs_the_settings_alone_imports_no_driver(arguments: tuple[str, ...]) -> None:
    assert imported_by(*arguments) & HEAVY == {"pydantic"}


def test_a_replica_does_not_import_alembic() -> None:
    assert "alembic" not in imported_by("run", "--help")


def test_every_command_of_the_help_can_be_asked_for_help() -> None:
    from consumer.commands.root import COMMANDS  # noqa: PLC0415

    shown = consumer("--help").stdout
    for name in COMMANDS:
        assert name in shown
        assert consumer(name, "--help").returncode == 0, name


@pytest.mark.parametrize("arguments", [(), ("publish",), ("conversation",), ("conversation", "rebuild")], ids=" ".join)
def test_help_may_be_asked_for_in_short(arguments: tuple[str, ...]) -> None:
    in_short, at_length = consumer(*arguments, "-h"), consumer(*arguments, "--help")

    assert (in_short.returncode, in_short.stdout) == (0, at_length.stdout)


def test_the_version_is_printed() -> None:
    done = consumer("--version")

    assert (done.returncode, done.stdout.strip()) == (0, version("conversation-consumer"))


def test_completion_knows_the_commands() -> None:
    completing = {
        "_CONVERSATION_CONSUMER_COMPLETE": "complete_bash",
        "COMP_WORDS": "conversation-consumer do",
        "COMP_CWORD": "1",
    }
    executable = Path(sys.executable).with_name("conversation-consumer")

    done = subprocess.run(
        [executable], env={**SETTINGS_FREE, **completing}, capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.split() == ["doctor"]


@pytest.mark.parametrize("arguments", ["config", "config --json", "migrate sql", "--help"])
def test_a_pipe_that_is_closed_early_ends_a_command_quietly(arguments: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m consumer {arguments} | head -n 1"],
        env=SETTINGS_FREE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("config >&-", 0), ("config 2>&-", 0), ("jump 2>&-", 2), ("publish - <&-", 1), ("config >/dev/full", 1)],
)
def test_a_standard_stream_that_takes_or_gives_nothing_is_no_bug(arguments: str, code: int) -> None:
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m consumer {arguments}"],
        env={**SETTINGS_FREE, "CONSUMER_KAFKA__BOOTSTRAP_SERVERS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert ("nothing more can be written" in done.stderr) == ("full" in arguments)


def test_a_character_that_the_output_lacks_is_an_escape() -> None:
    done = consumer("doctor", PYTHONIOENCODING="ascii", **NOWHERE)

    assert (done.returncode, done.stderr) == (1, "")
    assert "\\u2717 Kafka answers: no" in done.stdout


@pytest.mark.parametrize("settings", [{}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}], ids=["a pipe", "NO_COLOR"])
def test_a_log_for_people_has_colours_only_where_they_are_seen(settings: dict[str, str]) -> None:
    done = consumer("run", CONSUMER_LOG__FORMAT="console", **NOWHERE, **settings)

    logged = done.stderr.splitlines()[0]
    assert "[error    ] Unable connect to" in logged
    assert "\x1b" not in logged


class TestConfig:
    def test_it_shows_the_values_in_force_and_where_each_comes_from(self, tmp_path: Path) -> None:
        (tmp_path / "CONSUMER_KAFKA__SASL_PASSWORD").write_text("hunter2")
        done = consumer(
            "config",
            "--json",
            CONSUMER_DATABASE__URL="postgresql://app:hunter3@db/conversation",
            CONSUMER_SECRETS_DIR=str(tmp_path),
        )

        found = {value["variable"]: value for value in json.loads(done.stdout)}
        assert found["CONSUMER_DATABASE__URL"]["value"] == "postgresql://app:***@db/conversation"
        assert found["CONSUMER_DATABASE__URL"]["source"] == "environment"
        assert found["CONSUMER_KAFKA__SASL_PASSWORD"]["value"] == "***"
        assert found["CONSUMER_KAFKA__SASL_PASSWORD"]["source"] == "file in CONSUMER_SECRETS_DIR"
        assert found["CONSUMER_HTTP__PORT"]["value"] == "8080"
        assert found["CONSUMER_HTTP__PORT"]["source"] == "default"
        assert "hunter" not in done.stdout + done.stderr

    def test_every_wrong_setting_is_named_at_once(self) -> None:
        done = consumer(
            "config",
            CONSUMER_DATABASE__WRITERS="many",
            CONSUMER_LOG__LEVEL="loud",
            CONSUMER_KAFKA__BOOTSTRAP_SERVER="localhost:9092",
            CONSUMER_DATABASE__URL="mysql://app:hunter2@db",
        )

        assert done.returncode == 2
        assert "CONSUMER_DATABASE__WRITERS=many: should be a whole number, 1 to 64" in done.stderr
        assert "CONSUMER_LOG__LEVEL=loud: should be debug, info, warning or error" in done.stderr
        assert "did you mean CONSUMER_KAFKA__BOOTSTRAP_SERVERS?" in done.stderr
        assert "CONSUMER_DATABASE__URL: should be postgresql://" in done.stderr
        assert "hunter2" not in done.stderr

    def test_a_level_may_be_written_in_capitals(self) -> None:
        assert consumer("config", CONSUMER_LOG__LEVEL="DEBUG").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("jump",),
        ("publish",),
        ("publish", "/does/not/exist"),
        ("topics", "--partitions", "many"),
        ("offsets", "set", "topic", "0", "here"),
        ("dead-letters", "show", "here"),
        ("dead-letters", "list", "--since", "yesterday"),
        ("conversation", "show"),
        ("top",),
        ("prune", "--older-than", "soon"),
        ("prune", "--older-than", "30"),
    ],
    ids=" ".join,
)
def test_a_usage_error_is_one_message_and_exit_code_2(arguments: tuple[str, ...]) -> None:
    done = consumer(*arguments)

    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr
