"""What a client of Kafka connects with: brokers, TLS, SASL."""

import ssl
from pathlib import Path
from typing import Any

from consumer.errors import ConfigurationError
from consumer.kafka.token import TokenProvider
from consumer.settings import KafkaSettings

SETTING = "CONSUMER_KAFKA__"


def connection_arguments(settings: KafkaSettings) -> dict[str, Any]:
    """Of any client. Raises `ConfigurationError` where a certificate file or the token provider cannot be used."""
    secure: dict[str, Any] = {}
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        secure["ssl_context"] = ssl_context(settings)
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


def asks_for_tokens(settings: KafkaSettings) -> bool:
    return settings.security_protocol.startswith("SASL") and settings.sasl_mechanism == "OAUTHBEARER"


def _sasl(settings: KafkaSettings) -> dict[str, Any]:
    if asks_for_tokens(settings):
        provider = TokenProvider(settings.sasl_token_provider or "")
        return {"sasl_mechanism": settings.sasl_mechanism, "sasl_oauth_token_provider": provider}
    return {
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": settings.sasl_password.get_secret_value() if settings.sasl_password else None,
    }


def ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    """Raises `ConfigurationError` where a certificate or a key cannot be used."""
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
