"""A broker that asks who its clients are: TLS, SASL in each of its mechanisms, client certificates, ACLs."""

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from consumer.settings import KafkaSettings
from tests.stack.certificates import YESTERDAY, Authority
from tests.stack.kafka_broker import KafkaBroker
from tests.stack.process import free_port

USER = "consumer"
USERS = (USER, "ticker", "relay", "publisher", "operator", "administrator")
PASSWORD = "swordfish-4711"
AUDIENCE = "kafka"
ISSUER = "https://issuer.example"
SECURITY = {"ADMIN": "PLAINTEXT", "SASL": "SASL_SSL", "MTLS": "SSL", "EXPIRED": "SSL", "OTHERHOST": "SSL"}
"""Listener -> protocol. The last two have a certificate that is no longer valid, and one of another host."""
PROPERTIES = """
listeners={listeners},CONTROLLER://127.0.0.1:{controller}
advertised.listeners={listeners}
controller.quorum.voters=1@127.0.0.1:{controller}
inter.broker.listener.name=ADMIN
listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT
ssl.keystore.type=PEM
ssl.keystore.location={keystore}
ssl.truststore.type=PEM
ssl.truststore.location={truststore}
listener.name.mtls.ssl.client.auth=required
listener.name.expired.ssl.keystore.location={expired_keystore}
listener.name.otherhost.ssl.keystore.location={other_keystore}
ssl.principal.mapping.rules=RULE:^.*CN=([^,]+).*$/$1/
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{user}="{password}";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required;
listener.name.sasl.oauthbearer.sasl.server.callback.handler.class=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerValidatorCallbackHandler
listener.name.sasl.oauthbearer.sasl.oauthbearer.jwks.endpoint.url=file://{keys}
listener.name.sasl.oauthbearer.sasl.oauthbearer.expected.audience={audience}
listener.name.sasl.oauthbearer.sasl.oauthbearer.expected.issuer={issuer}
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
"""


class Issuer:
    """Signs tokens; its public key lies in a file."""

    def __init__(self, directory: Path) -> None:
        self._key = rsa.generate_private_key(65537, 2048)
        numbers = self._key.public_key().public_numbers()
        key = {"kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256", "n": _number(numbers.n), "e": _number(numbers.e)}
        self.keys = directory / "keys.json"
        self.keys.write_text(json.dumps({"keys": [key]}))

    @property
    def private_key(self) -> bytes:
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )


def signed_token(private_key: bytes, user: str = USER, lifetime_seconds: float = 600) -> str:
    """A JSON web token, RS256."""
    key = serialization.load_pem_private_key(private_key, None)
    assert isinstance(key, rsa.RSAPrivateKey)
    now = time.time()
    claims = {"sub": user, "iss": ISSUER, "aud": AUDIENCE, "iat": int(now), "exp": int(now + lifetime_seconds)}
    content = b".".join(_base64(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, claims))
    return (content + b"." + _base64(key.sign(content, padding.PKCS1v15(), hashes.SHA256()))).decode()


def _base64(content: bytes) -> bytes:
    return base64.urlsafe_b64encode(content).rstrip(b"=")


def _number(value: int) -> str:
    return _base64(value.to_bytes((value.bit_length() + 7) // 8, "big")).decode()


@dataclass(frozen=True, slots=True)
class SecureBroker:
    """Its ports by listener, and what clients need."""

    ports: dict[str, int]
    authority: Authority
    stranger: Authority
    issuer: Issuer

    @property
    def admin(self) -> KafkaSettings:
        """Of a client that may do everything."""
        return KafkaSettings(bootstrap_servers=f"127.0.0.1:{self.ports['ADMIN']}")

    def address(self, listener: str, host: str = "localhost") -> str:
        return f"{host}:{self.ports[listener]}"

    def tls(self, listener: str = "MTLS", **settings: Any) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.address(listener),
            "security_protocol": "SSL",
            "ssl_ca_file": self.authority.certificate,
            "request_timeout_seconds": 5,
            **settings,
        }

    def sasl(self, mechanism: str = "SCRAM-SHA-512", **settings: Any) -> dict[str, Any]:
        return {
            **self.tls("SASL"),
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": mechanism,
            "sasl_username": USER,
            "sasl_password": PASSWORD,
            **settings,
        }


@contextmanager
def secure_broker(directory: Path) -> Iterator[SecureBroker]:
    authority, stranger, issuer = Authority(directory), Authority(directory, "stranger"), Issuer(directory)
    ports = {listener: free_port() for listener in SECURITY}
    hosts = {listener: "127.0.0.1" if listener == "ADMIN" else "localhost" for listener in SECURITY}
    overrides = PROPERTIES.format(
        listeners=",".join(f"{listener}://{hosts[listener]}:{port}" for listener, port in ports.items()),
        protocols=",".join(f"{listener}:{protocol}" for listener, protocol in SECURITY.items()),
        controller=free_port(),
        keystore=authority.issue("localhost").keystore(),
        expired_keystore=authority.issue("localhost", not_after=YESTERDAY).keystore(),
        other_keystore=authority.issue("kafka.example").keystore(),
        truststore=authority.certificate,
        keys=issuer.keys,
        audience=AUDIENCE,
        issuer=ISSUER,
        user=USER,
        password=PASSWORD,
    )
    scram = [f"SCRAM-SHA-{size}=[name={user},password={PASSWORD}]" for size in (256, 512) for user in USERS]
    allowed = [f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls=file://{issuer.keys}"]
    broker = KafkaBroker(ports["ADMIN"], overrides, scram, allowed)
    try:
        yield SecureBroker(ports, authority, stranger, issuer)
    finally:
        broker.stop()
