"""How to connect to Kafka; the errors of its client are classified here, once."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka.errors import (
    KafkaError,
)

from consumer.errors import UnavailableError
from consumer.settings import KafkaSettings

STOP_SECONDS = 5.0


@contextmanager
def classified() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise UnavailableError(f"no answer from Kafka: {error!r}") from error


def connection_arguments(settings: KafkaSettings) -> dict[str, Any]:
    secure: dict[str, Any] = {}
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=settings.ssl_ca_file)
        if settings.ssl_certificate_file:
            context.load_cert_chain(settings.ssl_certificate_file, settings.ssl_key_file)
        secure["ssl_context"] = context
    if settings.security_protocol.startswith("SASL") and settings.sasl_password:
        secure["sasl_mechanism"] = settings.sasl_mechanism
        secure["sasl_plain_username"] = settings.sasl_username
        secure["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return {
        "bootstrap_servers": settings.bootstrap_servers,
        "client_id": "conversation-consumer",
        "request_timeout_ms": milliseconds(settings.request_timeout_seconds),
        "security_protocol": settings.security_protocol,
        **secure,
    }


def milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
