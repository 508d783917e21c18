"""The kinds of settings that pydantic does not bring. The error of each says what should be written."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

PORTS = range(1, 2**16)
SERVER = re.compile(r"(?:[^:,.\s]{1,63}\.)*[^:,.\s]{1,63}\.?:([0-9]{1,5})")
"""A host name, of labels that DNS would take, and a port."""


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _servers(text: str) -> str:
    found = [SERVER.fullmatch(server) for server in text.split(",")]
    if not all(server and int(server[1]) in PORTS for server in found):
        raise ValueError("should be HOST:PORT, several separated by commas")
    return text


def _function(text: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", text):
        raise ValueError("should be MODULE:FUNCTION")
    return text


def _postgresql_url(url: SecretStr) -> SecretStr:
    try:  # what the parser raises may quote the password
        parts = urlsplit(url.get_secret_value())
        usable = parts.scheme in ("postgresql", "postgres") and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(
            "should be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with / @ # in USER and PASSWORD as %XX"
        )
    return url


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
Servers = Annotated[str, AfterValidator(_servers)]
Function = Annotated[str, AfterValidator(_function)]
PostgresqlUrl = Annotated[SecretStr, AfterValidator(_postgresql_url)]
in_any_case = BeforeValidator(_lower)
"""Of a choice whose values are in lower case."""
