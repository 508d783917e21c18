"""Errors of the driver, classified once, by SQLSTATE."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import sqlalchemy as sa

from consumer.errors import (
    ConfigurationError,
    ConnectionLostError,
    ConsumerError,
    ContentionError,
    RefusedError,
    TooSlowError,
    UnavailableError,
)

_CONTENTION = {"40001": "serialization", "40P01": "deadlock", "55P03": "lock", "23505": "duplicate"}
_REFUSED = ("22", "54", "23514")
_MISCONFIGURED = {
    "42P01": "the database's tables are not there: run `conversation-consumer migrate`",
    "3D000": "the database does not exist: create it, or check CONSUMER_DATABASE__URL",
    "42501": "the database user may not do this: grant it, or check CONSUMER_DATABASE__URL",
}
_TOO_SLOW = "57014"
_UNAVAILABLE = ("08", "53", "57", "58", "28", "25006", "25P03", "25P04", "0A000")


@contextmanager
def classified() -> Iterator[None]:
    """Translates what the driver raises, by SQLSTATE. A programming error stays what it is."""
    try:
        yield
    except (sa.exc.DBAPIError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.PostgresError):
            error.detail = None  # may quote the row
        if (known := _classify(error)) is None:
            raise
        raise known from error
    except asyncpg.InternalClientError as error:  # the server's goodbye has arrived, the end of the connection has not
        raise ConnectionLostError("the database has ended the connection") from error
    except UnicodeEncodeError as error:
        raise RefusedError("a value cannot be encoded") from error
    except TimeoutError as error:
        raise TooSlowError("no answer from the database in time") from error
    except sa.exc.TimeoutError as error:
        raise UnavailableError("no connection of the pool came free in time") from error
    except OSError as error:
        raise ConnectionLostError(f"no answer from the database: {type(error).__name__}: {error}") from error


def _of_writers_and_settings(state: str) -> ConsumerError | None:
    if state in _CONTENTION:
        return ContentionError(_CONTENTION[state])
    return ConfigurationError(_MISCONFIGURED[state]) if state in _MISCONFIGURED else None


def _classify(error: Exception) -> ConsumerError | None:
    wrapped = error if isinstance(error, sa.exc.DBAPIError) else None
    cause = (wrapped.orig and wrapped.orig.__cause__) or wrapped.orig if wrapped else error
    state = str(getattr(cause, "sqlstate", None) or "")
    if known := _of_writers_and_settings(state):
        return known
    if state.startswith(_REFUSED) or isinstance(cause, asyncpg.DataError):
        return RefusedError(f"PostgreSQL refused a value (SQLSTATE {state or 'none'})")
    if state == _TOO_SLOW or isinstance(cause, TimeoutError):
        return TooSlowError("a statement took longer than CONSUMER_DATABASE__STATEMENT_TIMEOUT_SECONDS")
    if isinstance(cause, asyncpg.ClientConfigurationError):
        return ConfigurationError("CONSUMER_DATABASE__URL is not an address that the driver understands")
    lost = isinstance(cause, asyncpg.InterfaceError | OSError) or (wrapped and wrapped.connection_invalidated)
    if lost or state.startswith(_UNAVAILABLE):
        return ConnectionLostError(f"the database is unavailable (SQLSTATE {state or 'none'}): {type(cause).__name__}")
    return None
