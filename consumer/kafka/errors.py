"""Errors of Kafka's client, classified once, each with the variable to look at."""

from collections.abc import Iterator
from contextlib import contextmanager

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    InvalidSessionTimeoutError,
    KafkaError,
    TopicAuthorizationFailedError,
)

from consumer.errors import ConfigurationError, ConsumerError, UnavailableError
from consumer.kafka.connection import SETTING


@contextmanager
def classified() -> Iterator[None]:
    """Translates what the client raises: an outage, or a setting that the brokers refuse."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise _translated(error) from error


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
