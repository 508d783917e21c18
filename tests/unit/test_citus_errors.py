"""What a coordinator of Citus repeats of a worker's words without their SQLSTATE."""

import asyncpg
import pytest

from consumer.errors import ConnectionLostError, ConsumerError, ContentionError, RefusedError
from consumer.postgres.citus import repeated_errors


class Connection:
    def __init__(self, *, on_citus: bool) -> None:
        self.on_citus = on_citus


def internal_error(text: str) -> asyncpg.InternalServerError:
    return asyncpg.InternalServerError.new({"C": "XX000", "M": text})


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("terminating connection due to administrator command", ConnectionLostError),
        ("failure on connection marked as essential: worker:5432", ConnectionLostError),
        ('new row for relation "conversation_event_102008" violates check constraint "mine"', RefusedError),
        ('duplicate key value violates unique constraint "conversation_event_pkey_102008"', ContentionError),
        ("canceling statement due to lock timeout", ContentionError),
    ],
)
def test_it_is_known_by_its_words_and_an_outage_where_it_is_not(text: str, known: type[ConsumerError]) -> None:
    with pytest.raises(known), repeated_errors(Connection(on_citus=True)):
        raise internal_error(text)


def test_an_outage_says_what_the_worker_said() -> None:
    with (
        pytest.raises(ConnectionLostError, match='null value in column "mine"'),
        repeated_errors(Connection(on_citus=True)),
    ):
        raise internal_error('null value in column "mine" violates not-null constraint')


def test_elsewhere_an_internal_error_stays_what_it_is() -> None:
    with pytest.raises(asyncpg.InternalServerError), repeated_errors(Connection(on_citus=False)):
        raise internal_error("cache lookup failed")
