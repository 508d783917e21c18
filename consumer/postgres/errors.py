"""Errors of the driver, classified once, by SQLSTATE."""

import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote, urlsplit

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

_URL = "CONSUMER_DATABASE__URL"
_CONTENTION = {"40001": "serialization", "40P01": "deadlock", "55P03": "lock", "23505": "duplicate"}
_REFUSED = ("22", "54", "23514")
_SESSION_POOLING = (
    "a pooler gives the statements of one connection to several of the server's: "
    "set PgBouncer's pool_mode to session, or have CONSUMER_DATABASE__URL name PostgreSQL itself"
)
_MISCONFIGURED = {
    "42P01": "run `conversation-consumer migrate`",
    "3D000": f"create the database, or check {_URL}",
    "42501": f"grant it to the user of {_URL}, or name another one there",
    "28000": f"check user and sslmode in {_URL}, and the server's pg_hba.conf",
    "28P01": f"check user and password in {_URL}",
    "26000": _SESSION_POOLING,
    "42P05": _SESSION_POOLING,
}
_TOO_SLOW = "57014"
_FULL = "53"
_READ_ONLY = "25006"
_LOST = ("08", "57", "58", _READ_ONLY, "25P03", "25P04", "0A000")
_MAY_QUOTE_VALUES = ("22", "P0")
REFUSED_PARAMETER = "unsupported startup parameter"
_OF_POOLERS = {
    REFUSED_PARAMETER: f"add it to PgBouncer's ignore_startup_parameters, or have {_URL} name PostgreSQL itself",
    "not allowed in statement pooling": "set PgBouncer's pool_mode to session or transaction, or have "
    f"{_URL} name PostgreSQL itself",
    "no such database": f"add it to PgBouncer's [databases], or check {_URL}",
    "authentication failed": f"check user and password in {_URL}, and PgBouncer's auth_file",
    "does not exist": f"create the database, or check {_URL}",
    "no such user": f"add it to PgBouncer's auth_file, or check {_URL}",
}
"""PgBouncer reports nearly everything as an error of the connection: only its message tells what is meant."""


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


@contextmanager
def contention_is_outage(held: str) -> Iterator[None]:
    """For callers that race with nobody: what another transaction holds is an outage to them, and they try again."""
    try:
        yield
    except ContentionError as error:
        raise UnavailableError(f"another transaction holds {held} ({error.reason})") from error


@contextmanager
def connecting(url: str) -> Iterator[None]:
    """Translates what making a connection raises: a setting that is wrong, or an outage."""
    server = f"PostgreSQL at {urlsplit(url).netloc.rpartition('@')[2] or 'its default address'}"
    try:
        yield
    except asyncpg.PostgresError as error:
        known = _classify(error)
        if isinstance(known, ConfigurationError | UnavailableError):
            raise type(known)(f"{server}: {known}{_certificate_hint(error, url)}") from error
        raise ConfigurationError(f"{server}: {server_message(error)}: check {_URL}") from error
    except asyncpg.InternalClientError as error:
        raise ConnectionLostError(f"{server}: the connection has ended while it was made") from error
    except asyncpg.ClientConfigurationError as error:
        raise ConfigurationError(f"{_URL} is not understood: {_without_password(str(error), url)}") from error
    except UnicodeError as error:  # of the encoding of host names
        raise ConfigurationError(f"{server}: no host name looks like this: check {_URL}") from error
    except (TimeoutError, OSError) as error:
        if isinstance(error, FileNotFoundError) and urlsplit(url).hostname:  # no socket of this machine, so no server
            raise ConfigurationError(f"a file that {_URL} names does not exist: check its certificates") from error
        raise _unconnected(error, server) from error


def server_message(error: BaseException) -> str:
    """What the server said, on one line, without the values of rows that it may quote."""
    cause = driver_error(error)
    state = _sqlstate(cause)
    text = "" if state.startswith(_MAY_QUOTE_VALUES) else str(getattr(cause, "message", None) or cause)
    text = " ".join(text.split())
    return f"{text} (SQLSTATE {state})".strip() if state else f"{type(cause).__name__}: {text}"


def driver_error(error: BaseException) -> BaseException:
    """The error of the driver that SQLAlchemy has wrapped."""
    if not isinstance(error, sa.exc.DBAPIError) or error.orig is None:
        return error
    return error.orig.__cause__ or error.orig


def _sqlstate(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or "")


def _classify(error: Exception) -> ConsumerError | None:
    cause = driver_error(error)
    state = _sqlstate(cause)
    if state in _CONTENTION:
        return ContentionError(_CONTENTION[state])
    if remedy := _remedy(state, cause):
        return ConfigurationError(f"{server_message(cause)}: {remedy}")
    if state.startswith(_REFUSED) or isinstance(cause, asyncpg.DataError):
        return RefusedError(f"PostgreSQL refused a value (SQLSTATE {state or 'none'})")
    return _outage(error, cause, state)


def _outage(error: Exception, cause: BaseException, state: str) -> UnavailableError | None:
    if state == _TOO_SLOW or isinstance(cause, TimeoutError):
        return TooSlowError("a statement took longer than CONSUMER_DATABASE__STATEMENT_TIMEOUT_SECONDS")
    if state.startswith(_FULL):
        return UnavailableError(f"the database has run out of something: {server_message(cause)}")
    invalidated = isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    # An internal error of the client: the server's goodbye has arrived, the end of the connection has not.
    ended = isinstance(cause, asyncpg.InterfaceError | asyncpg.InternalClientError | OSError)
    if invalidated or ended or state.startswith(_LOST):
        remedy = f": if it is a standby, have {_URL} name the primary" if state == _READ_ONLY else ""
        return ConnectionLostError(f"the database is unavailable: {server_message(cause)}{remedy}")
    return None


def _remedy(state: str, cause: BaseException) -> str:
    """What to do about an error that no retry mends; empty for others."""
    if state in _MISCONFIGURED:
        return _MISCONFIGURED[state]
    of_pooler = (remedy for words, remedy in _OF_POOLERS.items() if words in str(cause))
    return next(of_pooler, "") if state.startswith("08") else ""


def _unconnected(error: OSError, server: str) -> ConsumerError:
    """Most specific first: Python's errors of TLS and of time limits are errors of the operating system to it."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConfigurationError(
            f"{server}: its certificate is not accepted: {error.verify_message}: check host and sslrootcert in {_URL}"
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return ConfigurationError(f"{server}: TLS failed: {error.reason}: check sslmode and certificates in {_URL}")
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return ConfigurationError(f"{server}: it does not speak TLS: check sslmode in {_URL}, and the server's ssl")
    if isinstance(error, TimeoutError):
        return ConnectionLostError(
            f"{server}: no answer within CONSUMER_DATABASE__CONNECT_TIMEOUT_SECONDS: check the server, and host and "
            f"port in {_URL}"
        )
    # Python's own text repeats the address. The numbers of name resolution are negative, and not the system's.
    reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or error
    return ConnectionLostError(f"{server}: {reason}: check the server, and host and port in {_URL}")


def _certificate_hint(error: asyncpg.PostgresError, url: str) -> str:
    """A server that refuses a client's certificate closes the connection; the driver hears no more than that."""
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and "sslcert=" in urlsplit(url).query:
        return f": it may refuse the client's certificate, which its log would say: check sslcert in {_URL}"
    return ""


def _without_password(text: str, url: str) -> str:
    password = urlsplit(url).password or ""
    for secret in filter(None, (password, unquote(password))):
        text = text.replace(secret, "***")
    return text
