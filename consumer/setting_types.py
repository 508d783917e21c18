"""The kinds of settings that pydantic does not bring. The error of each says what should be written."""

import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _matching(pattern: str, expected: str) -> AfterValidator:
    """A text of this pattern. The error of another one says what is expected."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"should be {expected}")
        return text

    return AfterValidator(check)


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


_LABEL = r"[^:,.\s]{1,63}"
_SERVER = rf"{_LABEL}(\.{_LABEL})*\.?:[0-9]+"

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), Field(min_length=1)]
Servers = Annotated[str, _matching(rf"{_SERVER}(,{_SERVER})*", "HOST:PORT, several separated by commas")]
Function = Annotated[str, _matching(r"[\w.]+:\w+", "MODULE:FUNCTION")]
PostgresqlUrl = Annotated[SecretStr, AfterValidator(_postgresql_url)]
in_any_case = BeforeValidator(_lower)
"""Of a choice whose values are in lower case."""
