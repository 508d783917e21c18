"""Why no broker can be used: what each of them says to a connection of its own, and the variable to look at."""

import asyncio
import socket
import ssl

from aiokafka.conn import create_conn
from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.metadata import MetadataRequest

from consumer.kafka.connection import SETTING, asks_for_tokens, connection_arguments, ssl_context
from consumer.kafka.token import TokenError
from consumer.settings import KafkaSettings

DIAGNOSIS_SECONDS = 5.0
ALERT_SECONDS = 1.0
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


async def diagnosis(settings: KafkaSettings) -> str | None:
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
    if not brokers and asks_for_tokens(settings):
        raise SaslAuthenticationFailed("the broker refuses the token")


async def _hear_alert(host: str, port: int, settings: KafkaSettings) -> None:
    """Raises the `SSLError` of a broker that ends the connection over TLS: the client says only that it ended.

    From TLS 1.3 on, a client learns after the handshake what the broker thinks of its certificate.
    """
    if not settings.security_protocol.endswith("SSL"):
        return
    reader, writer = await asyncio.open_connection(host, port, ssl=ssl_context(settings))
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
    if asks_for_tokens(settings):
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
