"""Settings: what is wrong is named, what is secret stays so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from consumer.commands.config import in_force
from consumer.durations import duration, format_duration, point_in_time, timestamp
from consumer.errors import ConfigurationError
from consumer.setting_errors import expected
from consumer.settings import SECRETS as ENDINGS_OF_SECRETS
from consumer.settings import Settings, load, variables


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, *_ in variables():
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONSUMER_KAFKA__BOOTSTRAP", "localhost:9092"),
        ("CONSUMER_TOPICS", "a"),
        ("CONSUMER_DATABASE__WRITERS", "many"),
        ("CONSUMER_DATABASE__WRITERS", "0"),
        ("CONSUMER_POLICY__PENDING_TTL", "soon"),
        ("CONSUMER_POLICY__PENDING_TTL", "-5"),
        ("CONSUMER_HTTP__PORT", "70000"),
        ("CONSUMER_HTTP__ADMIN_PORT", "8080"),
        ("CONSUMER_KAFKA__TOPICS", ""),
        ("CONSUMER_SECRETS_DIR", "/does/not/exist"),
        ("CONSUMER_DATABASE__URL", ""),
        ("CONSUMER_DATABASE__URL", "mysql://db/conversation"),
        ("CONSUMER_DATABASE__URL", "postgresql://db:port/conversation"),
        ("CONSUMER_KAFKA__BOOTSTRAP_SERVERS", "localhost:abc"),
        ("CONSUMER_KAFKA__SSL_CA_FILE", "/does/not/exist"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=name):
        load()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("CONSUMER_DATABASE__WRITERS", "many", "a whole number, 1 to 64"),
        ("CONSUMER_DATABASE__WRITERS", "0", "a whole number, 1 to 64"),
        ("CONSUMER_WORKER__MAX_BATCH", "", "a whole number, at least 1"),
        ("CONSUMER_HTTP__ADMIN_PORT", "x", "a whole number, 0 to 65535"),
        ("CONSUMER_WORKER__DRAIN_SECONDS", "20s", "a number of seconds such as 2.5, above 0"),
        ("CONSUMER_DATABASE__LOCK_TIMEOUT_SECONDS", "inf", "a number of seconds such as 2.5, above 0"),
        ("CONSUMER_KAFKA__REQUEST_TIMEOUT_SECONDS", "nan", "a number of seconds such as 2.5, above 0"),
        ("CONSUMER_TRACING__ENABLED", "maybe", "true or false"),
        ("CONSUMER_LOG__FORMAT", "xml", "auto, json or console"),
        ("CONSUMER_POLICY__PENDING_TTL", "soon", "a duration such as 48h, 15m or 90s, above 0s, at most 36500d"),
        ("CONSUMER_POLICY__PENDING_TTL", "9999999d", "a duration such as 48h, 15m or 90s, above 0s, at most 36500d"),
        (
            "CONSUMER_POLICY__PENDING_TTL",
            "99999999999d",
            "a duration such as 48h, 15m or 90s, above 0s, at most 36500d",
        ),
        ("CONSUMER_WORKER__LINGER", "2s", "a duration such as 48h, 15m or 90s, 0s to 1s"),
        ("CONSUMER_KAFKA__TOPICS", ",", "names, separated by commas"),
        ("CONSUMER_KAFKA__GROUP_ID", "", "text that is not empty"),
        ("CONSUMER_KAFKA__BOOTSTRAP_SERVERS", "localhost", "HOST:PORT, several separated by commas"),
        ("CONSUMER_KAFKA__BOOTSTRAP_SERVERS", "a:9092,kafka..b:9092", "HOST:PORT, several separated by commas"),
        ("CONSUMER_KAFKA__BOOTSTRAP_SERVERS", f"{'x' * 64}.b:9092", "HOST:PORT, several separated by commas"),
        ("CONSUMER_KAFKA__BOOTSTRAP_SERVERS", "a:9092,127.0.0.1:65536", "HOST:PORT, several separated by commas"),
        ("CONSUMER_KAFKA__SASL_TOKEN_PROVIDER", "token", "MODULE:FUNCTION"),
        ("CONSUMER_KAFKA__SSL_CA_FILE", "/does/not/exist", "the path of a file that is there"),
        ("CONSUMER_SECRETS_DIR", "/does/not/exist", "a directory that is there"),
    ],
)
def test_a_wrong_setting_is_named_with_what_was_given_and_what_to_write(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError) as caught:
        load()

    assert str(caught.value) == f"{name}={value}: should be {expected}"


@pytest.mark.parametrize("variable", [variable for variable, *_ in variables()])
def test_what_to_write_is_known_of_every_setting(variable: str) -> None:
    group, name = next((group, name) for found, group, name, _ in variables() if found == variable)
    field = type(Settings.model_fields[group].default).model_fields[name]

    assert variable.endswith(ENDINGS_OF_SECRETS) or expected(field)


def test_a_secret_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    secret = tmp_path / "CONSUMER_KAFKA__SASL_PASSWORD"
    secret.symlink_to("/proc/self/mem")  # unreadable at its start, for root as well
    monkeypatch.setenv("CONSUMER_SECRETS_DIR", str(tmp_path))

    with pytest.raises(ConfigurationError, match=f"CONSUMER_SECRETS_DIR: {secret} cannot be read by this user"):
        load()


@pytest.mark.parametrize("name", ["CONSUMER_KAFKA__SASL_PASSWORD", "truststore.p12"])
def test_a_file_of_secrets_that_is_no_text_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xff\xfe")
    monkeypatch.setenv("CONSUMER_SECRETS_DIR", str(tmp_path))

    with pytest.raises(ConfigurationError, match=f"{name} should be text in UTF-8, or lie elsewhere"):
        load()


def test_a_group_of_settings_is_none_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMER_KAFKA", "localhost:9092")

    with pytest.raises(ConfigurationError) as caught:
        load()

    assert str(caught.value) == "unknown setting CONSUMER_KAFKA: did you mean CONSUMER_KAFKA__TOPICS?"


def test_a_stalled_owner_must_be_ended_before_its_successor_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMER_DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_SECONDS", "10")

    with pytest.raises(ConfigurationError, match="CONSUMER_KAFKA__SESSION_TIMEOUT_SECONDS"):
        load()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONSUMER_KAFKA__TOPICS", "conversation.events,conversation.dead-letter"),
        ("CONSUMER_KAFKA__TOPICS", "events,events"),
        ("CONSUMER_KAFKA__DEAD_LETTER_TOPIC", "conversation.events"),
        ("CONSUMER_KAFKA__TRANSITION_TOPIC", "conversation.events"),
        ("CONSUMER_KAFKA__TRANSITION_TOPIC", "conversation.dead-letter"),
    ],
)
def test_no_topic_has_two_uses(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match=f"{name}.* name one topic twice"):
        load()


def test_sasl_needs_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMER_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")

    with pytest.raises(ConfigurationError, match="SASL_USERNAME"):
        load()


DURATIONS = [
    *[("90s", 90), ("15m", 900), ("1h30m", 5400), ("PT2S", 2)],
    *[("30d", 2_592_000), ("1d12h", 129_600), ("P1DT1S", 86_401)],
]


@pytest.mark.parametrize(("value", "seconds"), DURATIONS)
def test_durations_are_written_as_people_do(monkeypatch: pytest.MonkeyPatch, value: str, seconds: int) -> None:
    monkeypatch.setenv("CONSUMER_POLICY__IDLE_AFTER", value)

    assert load().policy.policy.idle_after == timedelta(seconds=seconds)


@pytest.mark.parametrize(("value", "seconds"), DURATIONS)
def test_an_option_understands_the_durations_of_the_settings(value: str, seconds: int) -> None:
    assert duration(value) == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["30", " 30", "1.5"])
def test_the_unit_of_a_duration_is_never_guessed(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CONSUMER_POLICY__IDLE_AFTER", value)
    number = value.strip()

    with pytest.raises(ConfigurationError, match=f"'{value}' has no unit: write {number}d, {number}h"):
        duration(value)
    with pytest.raises(ConfigurationError, match=f"CONSUMER_POLICY__IDLE_AFTER={value}: has no unit: write {number}d"):
        load()


@pytest.mark.parametrize(("value", "seconds"), [("0", 0), ("20ms", 0.02), ("0.02s", 0.02), ("1s", 1), ("PT0.5S", 0.5)])
def test_a_linger_may_be_none(monkeypatch: pytest.MonkeyPatch, value: str, seconds: float) -> None:
    monkeypatch.setenv("CONSUMER_WORKER__LINGER", value)

    assert load().worker.linger == timedelta(seconds=seconds)


@pytest.mark.parametrize("value", ["-1s", "2s", "20 ms", "x"])
def test_a_linger_is_a_second_at_most(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CONSUMER_WORKER__LINGER", value)

    with pytest.raises(ConfigurationError, match="CONSUMER_WORKER__LINGER"):
        load()


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0s"), (0.02, "20ms"), (1, "1s")])
def test_less_than_a_second_is_shown_in_milliseconds(seconds: float, shown: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == shown


@given(st.one_of(st.integers(1, 400 * 86_400), st.integers(1, 59_999).map(lambda milliseconds: milliseconds / 1000)))
def test_a_duration_is_shown_as_it_may_be_written(seconds: float) -> None:
    assert duration(format_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


@pytest.mark.parametrize(("hours", "shown"), [(0.25, "15m"), (24, "24h"), (48, "48h"), (338, "14d2h"), (720, "30d")])
def test_days_are_shown_from_three_on(hours: float, shown: str) -> None:
    assert format_duration(timedelta(hours=hours)) == shown


@pytest.mark.parametrize("value", ["", "soon", "d", "12h1d", "-1d", "0d", "1.5d", "P", "999999999999d", "nan"])
def test_what_is_no_duration_is_named(value: str) -> None:
    with pytest.raises(ConfigurationError, match=f"'{value}' is no duration: write it as 30d"):
        duration(value)


@pytest.mark.parametrize(
    "text",
    ["2026-03-01T12:00:00Z", "2026-03-01t12:00:00z", "2026-03-01 12:00", "2026-03-01T14:00:00.000+02:00"],
)
def test_a_time_is_utc_unless_it_says_otherwise(text: str) -> None:
    at = datetime(2026, 3, 1, 12, tzinfo=UTC)

    assert (timestamp(text), point_in_time(text, at + timedelta(days=1))) == (at, at)


def test_a_point_in_time_may_be_how_long_ago_and_a_timestamp_may_not() -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)

    assert point_in_time("2h", now) == now - timedelta(hours=2)
    with pytest.raises(ConfigurationError, match="'2h' is no time"):
        timestamp("2h")


def test_topics_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSUMER_KAFKA__TOPICS", "one, two")

    assert load().kafka.topics == ("one", "two")


def test_a_secret_may_be_a_file_and_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "CONSUMER_DATABASE__URL").write_text("postgresql://app:hunter2@db/conversation")
    monkeypatch.setenv("CONSUMER_SECRETS_DIR", str(tmp_path))

    settings = load()

    assert settings.database.url.get_secret_value() == "postgresql://app:hunter2@db/conversation"
    assert "hunter2" not in repr(settings)


def test_an_unknown_secret_file_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "CONSUMER_DATABASE__URI").write_text("postgresql://db")
    monkeypatch.setenv("CONSUMER_SECRETS_DIR", str(tmp_path))

    with pytest.raises(ConfigurationError, match="CONSUMER_DATABASE__URI"):
        load()


SECRETS = {
    "CONSUMER_DATABASE__URL": "postgresql://app:canary-1@db/conversation?sslpassword=canary-2",
    "CONSUMER_KAFKA__SASL_PASSWORD": "canary-3",
    "CONSUMER_KAFKA__SSL_KEY_PASSWORD": "canary-4",
}


def test_no_secret_is_shown_by_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)

    settings = load()

    shown = [repr(settings), str(settings), f"{settings.kafka}", f"{settings.database!r}", settings.model_dump_json()]
    assert "canary" not in "\n".join([*shown, *(value.value for value in in_force())])


def test_the_secrets_are_those_settings_that_are_never_shown() -> None:
    assert {name for name, _, _, default in variables() if name in SECRETS or isinstance(default, SecretStr)} == {
        name for name, *_ in variables() if name.endswith(ENDINGS_OF_SECRETS)
    }


@pytest.mark.parametrize("password", ["[canary", "canary]", "can[canary]ary", "[canary]"])
def test_no_part_of_a_password_is_repeated_where_the_url_cannot_be_taken_apart(
    monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("CONSUMER_DATABASE__URL", f"postgresql://app:{password}@db/conversation")

    with pytest.raises(ConfigurationError, match="CONSUMER_DATABASE__URL: should be postgresql://USER") as caught:
        load()

    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("name", SECRETS)
def test_a_wrong_secret_is_not_repeated(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "mysql://me:canary-5@db" if name.endswith("URL") else "canary-5")
    monkeypatch.setenv("CONSUMER_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")

    with pytest.raises(ConfigurationError) as caught:
        load()

    assert "canary" not in str(caught.value)
