"""Errors of the driver, with and without SQLAlchemy around them."""

import asyncpg
import pytest
import sqlalchemy as sa

from consumer.errors import ConnectionLostError
from consumer.postgres.errors import classified, server_message

ENDING = asyncpg.InternalClientError("cannot switch to state 11; another operation (2) is in progress")


def wrapped(cause: Exception) -> sa.exc.DBAPIError:
    """As SQLAlchemy raises it while it makes a connection."""
    orig = Exception(str(cause))
    orig.__cause__ = cause
    return sa.exc.InternalError(None, None, orig)


@pytest.mark.parametrize("error", [ENDING, wrapped(ENDING)], ids=["of the driver", "wrapped by SQLAlchemy"])
def test_a_connection_that_the_server_is_just_ending_is_lost(error: Exception) -> None:
    with pytest.raises(ConnectionLostError), classified():
        raise error


def test_what_the_server_says_on_several_lines_is_one_line() -> None:
    error = asyncpg.ConnectionFailureError.new(
        {"C": "08006", "M": "connection to worker failed: refused\n\tIs it there?"}
    )

    assert server_message(error) == "connection to worker failed: refused Is it there? (SQLSTATE 08006)"


def test_a_server_that_takes_no_writes_is_an_outage_that_says_what_it_may_be() -> None:
    error = asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT in a read-only transaction")

    with pytest.raises(ConnectionLostError, match="if it is a standby, have CONSUMER_DATABASE"), classified():
        raise error
