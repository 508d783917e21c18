"""How to connect to Kafka; the errors of its client become ours here, once, each with the variable to look at."""

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer
from aiokafka.conn import create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    IllegalSaslStateError,
    InvalidSessionTimeoutError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from consumer.errors import ConfigurationError, ConsumerError, UnavailableError
from consumer.kafka.token import TokenError, TokenProvider
from consumer.settings import KafkaSettings

# Where nobody has configured logging, as in a command, the error that is raised says it all.
logging.getLogger("aiokafka").addHandler(logging.NullHandler())

STOP_SECONDS = 5.0
MOMENT_SECONDS = 10.0
"""A group may be without a coordinator for so long before that is worth a line in the log."""
DIAGNOSIS_SECONDS = 5.0
ALERT_SECONDS = 1.0
SETTING = "CONSUMER_KAFKA__"
OTHER_NAME = (62, 64)
"""OpenSSL's verify codes for a certificate of another host name or IP address."""
OUT_OF_DATE = (9, 10)
"""The same for a certificate that is not yet or no longer valid."""
REFUSED_CERTIFICATE = (
    "ALERT_BAD_CERTIFICATE",
    "ALERT_CERTIFICATE_",
    "ALERT_UNKNOWN_CA",
    "ALERT_UNSUPPORTED_CERTIFICATE",
)
"""What brokers answer to a client's certificate; Java says CERTIFICATE_UNKNOWN in nearly all cases."""


class Client(Protocol):
    """What connects: aiokafka's consumer, producer and admin client."""

    async def start(self) -> None: ...


C = TypeVar("C", bound=Client)


class OnlyIfItLasts(logging.Filter):
    """Holds back that a group has no coordinator yet, which the client logs as an error, until that has lasted.

    Brokers make the topic of the groups' offsets with the first group, so each first start has such a moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._since = self._last = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        if not any(isinstance(part, GroupCoordinatorNotAvailableError) for part in record.args or ()):
            return True
        now = self._clock()
        if now - self._last > MOMENT_SECONDS:
            self._since = now
        self._last = now
        return now - self._since >= MOMENT_SECONDS


logging.getLogger("aiokafka.consumer.group_coordinator").addFilter(OnlyIfItLasts())


async def stop(client: Any) -> None:
    """Stops a consumer or a producer, within `STOP_SECONDS`; what it raises then is of no use to anybody."""
    with suppress(TimeoutError, KafkaError):
        await asyncio.wait_for(client.stop(), STOP_SECONDS)


@asynccontextmanager
async def running(client: C, settings: KafkaSettings, end: Callable[[C], Awaitable[object]] = stop) -> AsyncIterator[C]:
    """A client that runs for as long as the block lasts. Raises as `started`."""
    await started(client, settings, end)
    try:
        yield client
    finally:
        await end(client)


async def started(client: C, settings: KafkaSettings, end: Callable[[C], Awaitable[object]] = stop) -> C:
    """The client, started; one that fails is ended. Raises as `start`."""
    try:
        await start(client, settings)
    except BaseException:
        await end(client)
        raise
    return client


async def start(client: Client, settings: KafkaSettings) -> None:
    """Starts a client of Kafka. Where that fails, the error says what a broker said and which variable to look at."""
    # The client overlooks that a token is refused, and starts without brokers.
    if _asks_for_tokens(settings) and (why := await _diagnosis(settings)):
        raise UnavailableError(why)
    try:
        with classified():
            await client.start()
    except UnavailableError as error:
        if (why := await _diagnosis(settings)) is None:
            raise
        raise UnavailableError(why) from error


def open_consumer(**arguments: Any) -> AIOKafkaConsumer:
    """aiokafka's consumer, not started, whose look-ups of offsets survive a connection that is half open."""
    client = AIOKafkaConsumer(**arguments)
    # A look-up may take as long as one of its requests, and its time starts earlier. So it would give up before the
    # request does, which alone closes a connection that answers no more: that one would be used for ever.
    client._request_timeout_ms *= 2  # noqa: SLF001 - there is no public way
    return client


@contextmanager
def classified() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise _translated(error) from error


def connection_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """Of any client. Raises `ConfigurationError` where a certificate file or the token provider cannot be used."""
    secure: dict[str, Any] = {}
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        secure["ssl_context"] = _ssl_context(settings)
    if settings.security_protocol.startswith("SASL"):
        secure |= _sasl(settings)
    return {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": "conversation-consumer",
        "request_timeout_ms": milliseconds(settings.request_timeout_seconds),
        "security_protocol": settings.security_protocol,
        **secure,
    }


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _asks_for_tokens(settings: KafkaSettings) -> bool:
    return settings.security_protocol.startswith("SASL") and settings.sasl_mechanism == "OAUTHBEARER"


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    if _asks_for_tokens(settings):
        provider = TokenProvider(settings.sasl_token_provider or "")
        return {"sasl_mechanism": settings.sasl_mechanism, "sasl_oauth_token_provider": provider}
    return {
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
    }


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca_file)
    except ssl.SSLError as error:
        raise ConfigurationError(f"{SETTING}SSL_CA_FILE holds no certificate in PEM: {error.reason}") from None
    if settings.ssl_certificate_file:
        _load_client_certificate(context, settings, settings.ssl_certificate_file)
    return context


def _load_client_certificate(context: ssl.SSLContext, settings: KafkaSettings, certificate: Path) -> None:
    asked = False

    def password() -> str:
        """Asked for where the key is encrypted: without it, OpenSSL would ask at the terminal."""
        nonlocal asked
        asked = True
        return settings.ssl_key_password.get_secret_value() if settings.ssl_key_password else ""

    try:
        context.load_cert_chain(certificate, settings.ssl_key_file, password)
    except ssl.SSLError as error:
        if asked:
            what = f"{'does not decrypt' if settings.ssl_key_password else 'is needed for'} the client's key"
            raise ConfigurationError(f"{SETTING}SSL_KEY_PASSWORD {what}: the key is encrypted") from None
        files = f"{SETTING}SSL_CERTIFICATE_FILE and {SETTING}SSL_KEY_FILE"
        raise ConfigurationError(f"{files} hold no certificate and its key in PEM: {error.reason}") from None


def _translated(error: Exception) -> ConsumerError:
    """An error of a client that was connected; the names of some are left only in the text of another."""
    if isinstance(error, InvalidSessionTimeoutError) or InvalidSessionTimeoutError.__name__ in str(error):
        return ConfigurationError(
            f"the brokers refuse the session timeout: set {SETTING}SESSION_TIMEOUT_SECONDS within their "
            "group.min.session.timeout.ms (6 s unless set) and group.max.session.timeout.ms (30 min unless set)"
        )
    if isinstance(error, TopicAuthorizationFailedError):
        return UnavailableError(f"{_denied(error, 'topics')}, or check {SETTING}TOPICS and {SETTING}DEAD_LETTER_TOPIC")
    if isinstance(error, GroupAuthorizationFailedError) or GroupAuthorizationFailedError.__name__ in str(error):
        return UnavailableError(f"{_denied(error, 'the consumer group')}, or check {SETTING}GROUP_ID")
    if isinstance(error, ClusterAuthorizationFailedError):
        return UnavailableError(f"{_denied(error, 'the cluster')}: a producer needs Write on its topics")
    return UnavailableError(f"no answer from Kafka: {error!r}")


def _denied(error: Exception, what: str) -> str:
    return f"Kafka denies this user access to {what} ({error}): {grant('an ACL')}"


def grant(what: str) -> str:
    """The remedy where an ACL is missing."""
    return f"give {SETTING}SASL_USERNAME, or its certificate, {what}"


async def _diagnosis(settings: KafkaSettings) -> str | None:
    """Why none of the bootstrap servers can be used: what each says. None if one of them can, by now."""
    found = []
    for server in settings.bootstrap_servers.split(","):
        try:
            await asyncio.wait_for(_ask(server, settings), DIAGNOSIS_SECONDS)
        except (KafkaError, OSError, TimeoutError) as error:
            found.append(f"{server}: {_explained(error, settings)}")
        else:
            return None
    return "no connection to Kafka: " + "; ".join(found)


async def _ask(server: str, settings: KafkaSettings) -> None:
    """Connects, authenticates and asks for the brokers, as a client does that says no more than that it failed."""
    host, _, port = server.rpartition(":")
    arguments = connection_arguments(settings)
    del arguments["bootstrap_servers"]
    connection = None
    try:
        connection = await create_conn(host, int(port), **arguments)
        brokers = (await connection.send(MetadataRequest([]))).brokers
    except KafkaConnectionError:
        await _hear_alert(host, int(port), settings)
        raise
    finally:
        if connection is not None:
            connection.close()
    if not brokers and _asks_for_tokens(settings):
        raise SaslAuthenticationFailed("the broker refuses the token")


async def _hear_alert(host: str, port: int, settings: KafkaSettings) -> None:
    """Raises the `SSLError` of a broker that ends the connection over TLS: the client says only that it ended.

    From TLS 1.3 on, a client learns after the handshake what the broker thinks of its certificate.
    """
    if not settings.security_protocol.endswith("SSL"):
        return
    reader, writer = await asyncio.open_connection(host, port, ssl=_ssl_context(settings))
    try:
        async with asyncio.timeout(ALERT_SECONDS):
            await reader.read(1)
    except TimeoutError:
        return
    finally:
        writer.close()


def _explained(error: Exception, settings: KafkaSettings) -> str:
    """What went wrong on the way to one broker, and the variable to look at."""
    servers, protocol = f"{SETTING}BOOTSTRAP_SERVERS", f"{SETTING}SECURITY_PROTOCOL ({settings.security_protocol})"
    match error:
        case ssl.SSLError():
            why, look = _explained_tls(error, protocol)
        case socket.gaierror():
            why, look = f"the host name is unknown ({error.strerror})", f"check {servers}"
        case ConnectionRefusedError():
            why, look = "the connection is refused", f"check {servers}, and whether the broker runs"
        case TimeoutError():
            why, look = "no answer", f"check {servers}, {protocol} and the network"
        case TokenError():
            why, look = str(error), f"check {SETTING}SASL_TOKEN_PROVIDER ({settings.sasl_token_provider})"
        case SaslAuthenticationFailed():
            why, look = str(error), f"check {_credentials(settings)}"
        case UnsupportedSaslMechanismError():
            why, look = str(error), f"check {SETTING}SASL_MECHANISM ({settings.sasl_mechanism})"
        case IllegalSaslStateError():
            why, look = "the port does not authenticate by SASL", f"check {protocol}"
        case _:
            port = "speak no TLS" if settings.security_protocol.endswith("SSL") else "want TLS or SASL"
            why, look = f"the connection is closed ({error!r})", f"the port may {port}, check {protocol}"
    return f"{why}: {look}"


def _credentials(settings: KafkaSettings) -> str:
    if _asks_for_tokens(settings):
        return f"the token of {SETTING}SASL_TOKEN_PROVIDER ({settings.sasl_token_provider})"
    return f"{SETTING}SASL_USERNAME and {SETTING}SASL_PASSWORD"


def _explained_tls(error: ssl.SSLError, protocol: str) -> tuple[str, str]:
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in OTHER_NAME:
            return error.verify_message, f"name the brokers in {SETTING}BOOTSTRAP_SERVERS as their certificates do"
        if error.verify_code in OUT_OF_DATE:
            return error.verify_message, "renew the certificate of the broker, or check this machine's clock"
        return f"the certificate is not trusted ({error.verify_message})", f"check {SETTING}SSL_CA_FILE"
    reason = error.reason or ""
    if "ALERT_CERTIFICATE_REQUIRED" in reason:
        files = f"{SETTING}SSL_CERTIFICATE_FILE and {SETTING}SSL_KEY_FILE"
        return "a client certificate is required", f"set {files}"
    if any(word in reason for word in REFUSED_CERTIFICATE):
        return f"the broker refuses the client's certificate ({reason})", (
            f"check authority and dates of the one in {SETTING}SSL_CERTIFICATE_FILE"
        )
    return f"no TLS ({error.reason or error})", f"the port may speak plaintext, check {protocol}"
