"""One frozen `Settings`; the only reader of the environment.

Variables are `CONSUMER_*`, `__` nests: `CONSUMER_KAFKA__BOOTSTRAP_SERVERS`. A file in the directory named by
`CONSUMER_SECRETS_DIR`, called as the variable, serves as well. An unknown name is an error.
"""

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FilePath,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    NestedSecretsSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from consumer.durations import Duration, DurationOrNone
from consumer.errors import ConfigurationError
from consumer.lifecycle.model import Policy
from consumer.setting_errors import OWN, suggestion, wrong
from consumer.setting_types import Function, Names, PostgresqlUrl, Seconds, Servers, in_any_case

PREFIX = "CONSUMER_"
SECRETS_DIR = "CONSUMER_SECRETS_DIR"
SECRETS = ("__URL", "PASSWORD")
"""How the variables end whose values are never shown."""


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DatabaseSettings(_Group):
    url: PostgresqlUrl = Field(
        SecretStr("postgresql://localhost/conversation"),
        description="libpq URL; `sslmode=verify-full&sslrootcert=...` is understood.",
    )
    writers: int = Field(8, ge=1, le=64, description="Concurrent writing transactions; the pool is one larger.")
    connect_timeout_seconds: Seconds = Field(5.0, description="Limit on making a connection.")
    command_timeout_seconds: Seconds = Field(15.0, description="Limit on waiting for an answer, kept by the client.")
    statement_timeout_seconds: Seconds = Field(10.0, description="Limit on a statement, kept by the server.")
    lock_timeout_seconds: Seconds = Field(0.1, description="Limit on waiting for somebody's row lock.")
    idle_in_transaction_timeout_seconds: Seconds = Field(
        5.0, description="When a stalled owner's transaction is ended; below the Kafka session timeout."
    )


class KafkaSettings(_Group):
    bootstrap_servers: Servers = Field("localhost:9092", description="Brokers, `host:port`, comma-separated.")
    group_id: str = Field("conversation-consumer", min_length=1, description="Consumer group.")
    topics: Names = Field(("conversation.events",), description="Input topics, comma-separated.")
    dead_letter_topic: str = Field("conversation.dead-letter", description="Where records that hold no valid event go.")
    transition_topic: str = Field("conversation.transition", description="Where transitions are published.")
    session_timeout_seconds: Seconds = Field(10.0, description="Without heartbeats for this long, a replica is out.")
    rebalance_timeout_seconds: Seconds = Field(30.0, description="How long a rebalance waits for a replica to drain.")
    request_timeout_seconds: Seconds = Field(15.0, description="Limit on a request to a broker.")
    commit_interval_seconds: Seconds = Field(1.0, description="How often offsets are committed to Kafka (advisory).")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to the brokers; PLAINTEXT is for a local broker."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "SCRAM-SHA-512", description="With SASL_*: the mechanism."
    )
    sasl_username: str | None = Field(None, description="With SASL_*: the user.")
    sasl_password: SecretStr | None = Field(None, description="With SASL_*: the password.")
    sasl_token_provider: Function | None = Field(
        None, description="With OAUTHBEARER: `module:function`, which returns a token; asked on each connection."
    )
    ssl_ca_file: FilePath | None = Field(
        None, description="With *SSL: the authority's certificate; default the system's."
    )
    ssl_certificate_file: FilePath | None = Field(None, description="For mTLS: the client's certificate.")
    ssl_key_file: FilePath | None = Field(None, description="For mTLS: the client's key.")
    ssl_key_password: SecretStr | None = Field(None, description="For mTLS: the password of an encrypted key.")

    @model_validator(mode="after")
    def _topics_differ(self) -> "KafkaSettings":
        if len({*self.topics, self.dead_letter_topic, self.transition_topic}) < len(self.topics) + 2:
            names = f"{PREFIX}KAFKA__TOPICS, {PREFIX}KAFKA__DEAD_LETTER_TOPIC and {PREFIX}KAFKA__TRANSITION_TOPIC"
            raise ValueError(f"{names} name one topic twice: what is written there would be read as events")
        return self

    @model_validator(mode="after")
    def _security_is_whole(self) -> "KafkaSettings":
        kafka, protocol = f"{PREFIX}KAFKA__", f"{PREFIX}KAFKA__SECURITY_PROTOCOL={self.security_protocol}"
        is_sasl, is_tls = self.security_protocol.startswith("SASL"), self.security_protocol.endswith("SSL")
        if is_sasl and self.sasl_mechanism == "OAUTHBEARER":
            if not self.sasl_token_provider:
                raise ValueError(f"{kafka}SASL_MECHANISM=OAUTHBEARER needs {kafka}SASL_TOKEN_PROVIDER")
        elif is_sasl and not (self.sasl_username and self.sasl_password):
            raise ValueError(f"{protocol} needs {kafka}SASL_USERNAME and {kafka}SASL_PASSWORD")
        if self.ssl_key_file and not self.ssl_certificate_file:
            raise ValueError(f"{kafka}SSL_KEY_FILE needs {kafka}SSL_CERTIFICATE_FILE")
        if not is_tls and (self.ssl_ca_file or self.ssl_certificate_file):
            raise ValueError(f"{protocol} makes no use of {kafka}SSL_*: should be SSL or SASL_SSL")
        if not is_sasl and (self.sasl_username or self.sasl_token_provider):
            raise ValueError(f"{protocol} makes no use of {kafka}SASL_*: should be SASL_SSL")
        return self


class PolicySettings(_Group):
    """Durations: `30d`, `48h`, `15m`, `90s`, or ISO 8601."""

    pending_ttl: Duration = Field(timedelta(hours=48), description="An unanswered conversation expires after this.")
    progress_ttl: Duration = Field(timedelta(hours=24), description="An answered one expires after this.")
    idle_after: Duration = Field(timedelta(minutes=15), description="An answered one is paused after this.")
    reclassification_window: Duration = Field(
        timedelta(hours=24), description="How long after a closing a higher-ranked one still replaces it."
    )
    follow_up_grace: Duration = Field(
        timedelta(minutes=10), description="An agent's message this soon after a closing opens nothing."
    )
    goodbye_grace: Duration = Field(
        timedelta(seconds=5), description="A goodbye this soon after a closing still competes with it."
    )
    clock_tolerance: Duration = Field(
        timedelta(seconds=5), description="How far ahead of the database's clock an event may be dated."
    )

    @property
    def policy(self) -> Policy:
        return Policy(**{name: getattr(self, name) for name in type(self).model_fields})


class RetrySettings(_Group):
    attempts: int = Field(10, ge=1, description="Attempts of a library call before `ConcurrencyError`.")
    initial_seconds: Seconds = Field(0.005, description="First ceiling of the jittered backoff; it doubles.")
    max_seconds: Seconds = Field(0.5, description="Highest ceiling of the backoff.")
    lock_after: int = Field(3, ge=1, description="Lost races after which rows are locked before they are read.")


class WorkerSettings(_Group):
    max_batch: int = Field(4000, ge=1, description="Most records written in one transaction.")
    linger: DurationOrNone = Field(
        timedelta(0),
        le=timedelta(seconds=1),
        description="How long to gather records after a few: later, and cheaper. `20ms`; at most `1s`.",
    )
    max_buffered: int = Field(12000, ge=1, description="Records buffered per partition before fetching pauses.")
    max_buffered_bytes: int = Field(8 * 2**20, ge=1, description="Bytes buffered per partition before fetching pauses.")
    max_remembered: int = Field(5000, ge=0, description="Conversations per partition that need not be read again.")
    max_record_bytes: int = Field(65536, ge=1, description="A larger record is a dead letter.")
    outage_backoff_max_seconds: Seconds = Field(10.0, description="Longest wait between attempts in an outage.")
    drain_seconds: Seconds = Field(20.0, description="How long SIGTERM waits for batches in flight.")


class TickerSettings(_Group):
    batch: int = Field(1000, ge=1, description="Most due timers taken at once.")
    interval_seconds: Seconds = Field(0.5, description="How often the ticker looks for due timers when there are few.")
    max_unacknowledged: int = Field(
        5000, ge=1, description="Ticks in flight, at most; an equal share for each partition, at least one."
    )
    drain_seconds: Seconds = Field(10.0, description="How long SIGTERM waits for ticks in flight.")


class OutboxSettings(_Group):
    batch: int = Field(2000, ge=1, le=10_000, description="Most transitions published in one turn.")
    turn_seconds: float = Field(
        30.0, ge=1, le=3600, description="How long a turn may wait for Kafka; a frozen relay keeps its turn so long."
    )
    interval_seconds: Seconds = Field(0.2, description="How often a relay looks for transitions when there are few.")
    outage_backoff_max_seconds: Seconds = Field(10.0, description="Longest wait between attempts in an outage.")


class PruneSettings(_Group):
    horizon: Duration = Field(
        timedelta(days=30), description="`prune` keeps history this long; longer than the topics keep their records."
    )


class HttpSettings(_Group):
    host: str = Field("0.0.0.0", description="Address of the pages.")  # noqa: S104
    port: int = Field(8080, ge=0, le=65535, description="Port of the pages; 0 takes a free one.")
    admin_host: str = Field("127.0.0.1", description="With an admin port: its address.")
    admin_port: int | None = Field(
        None, ge=0, le=65535, description="Port of /metrics and /status, which then leave the other one; 0 as above."
    )

    @model_validator(mode="after")
    def _ports_differ(self) -> "HttpSettings":
        if self.admin_port and self.admin_port == self.port:
            raise ValueError(f"{PREFIX}HTTP__ADMIN_PORT must differ from {PREFIX}HTTP__PORT")
        return self


class LogSettings(_Group):
    level: Annotated[Literal["debug", "info", "warning", "error"], in_any_case] = Field(
        "info", description="Least severe level logged."
    )
    format: Literal["auto", "json", "console"] = Field("auto", description="`auto`: console on a terminal, else JSON.")


class TracingSettings(_Group):
    enabled: bool = Field(
        False, description="A span for each batch, by OpenTelemetry; the exporter is set by `OTEL_*` variables."
    )


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", validate_default=True
    )

    database: DatabaseSettings = DatabaseSettings()
    kafka: KafkaSettings = KafkaSettings()
    policy: PolicySettings = PolicySettings()
    retry: RetrySettings = RetrySettings()
    worker: WorkerSettings = WorkerSettings()
    ticker: TickerSettings = TickerSettings()
    outbox: OutboxSettings = OutboxSettings()
    prune: PruneSettings = PruneSettings()
    http: HttpSettings = HttpSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        if not (directory := os.environ.get(SECRETS_DIR)):
            return init_settings, env_settings
        secrets = NestedSecretsSettingsSource(
            file_secret_settings,
            secrets_dir=directory,
            secrets_dir_missing="error",
            secrets_prefix=PREFIX,
            secrets_nested_delimiter="__",
        )
        return init_settings, env_settings, secrets

    @model_validator(mode="after")
    def _timeouts_nest(self) -> "Settings":
        database, kafka = self.database, self.kafka
        if database.statement_timeout_seconds >= database.command_timeout_seconds:
            raise ValueError(
                "CONSUMER_DATABASE__STATEMENT_TIMEOUT_SECONDS must be below CONSUMER_DATABASE__COMMAND_TIMEOUT_SECONDS"
            )
        if database.command_timeout_seconds >= kafka.rebalance_timeout_seconds:
            raise ValueError(
                "CONSUMER_DATABASE__COMMAND_TIMEOUT_SECONDS must be below CONSUMER_KAFKA__REBALANCE_TIMEOUT_SECONDS"
            )
        if database.idle_in_transaction_timeout_seconds >= kafka.session_timeout_seconds:
            raise ValueError(
                "CONSUMER_DATABASE__IDLE_IN_TRANSACTION_TIMEOUT_SECONDS must be below "
                "CONSUMER_KAFKA__SESSION_TIMEOUT_SECONDS: a stalled owner would block the next one"
            )
        if kafka.request_timeout_seconds >= self.outbox.turn_seconds:
            raise ValueError(
                "CONSUMER_KAFKA__REQUEST_TIMEOUT_SECONDS must be below CONSUMER_OUTBOX__TURN_SECONDS: "
                "a turn would end before its transitions are acknowledged"
            )
        return self


def variables() -> Iterator[tuple[str, str, str, Any]]:
    """(variable, group, name, default) of every setting, in order."""
    for group, field in Settings.model_fields.items():
        for name in type(field.default).model_fields:
            yield f"{PREFIX}{group}__{name}".upper(), group, name, getattr(field.default, name)


def load() -> Settings:
    """The settings of this process. Raises `ConfigurationError` naming every variable that is wrong."""
    problems = _unknown_names()
    try:
        settings = Settings()
    except ValidationError as error:
        details = error.errors(include_url=False)
        problems += [_problem(detail) for detail in details if detail["type"] != "extra_forbidden"]
    except SettingsError as error:
        # A group given as a whole: it is named by now.
        problems = problems or [str(error)]
    if problems:
        raise ConfigurationError("\n       ".join(problems))
    return settings


def _unknown_names() -> list[str]:
    allowed = {variable for variable, *_ in variables()} | {SECRETS_DIR}
    names = [*os.environ, *_names_of_secrets(os.environ.get(SECRETS_DIR, ""))]
    unknown = sorted(name for name in names if name.upper().startswith(PREFIX) and name.upper() not in allowed)
    return [f"unknown setting {name}: {suggestion(name, allowed)}" for name in unknown]


def _names_of_secrets(directory: str) -> list[str]:
    """The files of a directory, all of which are read, whatever they are called; none if no directory is given.

    Raises `ConfigurationError` naming one that cannot be read.
    """
    if not directory:
        return []
    if not Path(directory).is_dir():
        raise ConfigurationError(f"{SECRETS_DIR}={directory}: should be a directory that is there")
    path = Path(directory)
    try:
        files = [path for path in path.iterdir() if path.is_file()]
        for path in files:
            path.read_text("utf-8")
    except OSError as error:
        raise ConfigurationError(f"{SECRETS_DIR}: {path} cannot be read by this user: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{SECRETS_DIR}: {path} should be text in UTF-8, or lie elsewhere") from error
    return [path.name for path in files]


def _problem(detail: ErrorDetails) -> str:
    """What is wrong with which variable; the value too, unless it is a secret."""
    if len(detail["loc"]) < 2:  # settings that do not go together: the message names them
        return detail["msg"].removeprefix(OWN)
    group, name = map(str, detail["loc"][:2])
    variable = f"{PREFIX}{group}__{name}".upper()
    field = type(Settings.model_fields[group].default).model_fields[name]
    given = next((text for key, text in os.environ.items() if key.upper() == variable), detail["input"])
    hidden = variable.endswith(SECRETS) or not isinstance(given, str)
    return wrong(variable, None if hidden else given, detail["msg"], field)
