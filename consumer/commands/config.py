"""`config`: every setting, in force or by default."""

import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import typer
from pydantic import SecretStr

from consumer import settings as configuration
from consumer.commands.output import AsJson, print_json, print_table
from consumer.durations import format_duration
from consumer.settings import SECRETS_DIR, Settings, variables

app = typer.Typer(add_completion=False)


@app.command()
def config(
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of the documentation: names and defaults.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List every setting: its value, where the value comes from, what it does. Secrets are masked."""
    if as_markdown:
        typer.echo(markdown())
        return
    values = list(in_force())
    if as_json:
        print_json([value._asdict() for value in values])
        return
    print_table(None, ("variable", "value", "source", "meaning"), values)


class ValueInForce(NamedTuple):
    """A setting of this process. Secrets are masked."""

    variable: str
    value: str
    source: str
    meaning: str


def in_force() -> Iterator[ValueInForce]:
    """Every setting with its value and where that comes from. Raises `ConfigurationError` as `load` does."""
    settings = configuration.load()
    given = {name.upper() for name in os.environ}
    directory = os.environ.get(SECRETS_DIR)
    files = {path.name.upper() for path in Path(directory).iterdir()} if directory else set()
    for variable, group, name, _ in variables():
        source = "environment" if variable in given else f"file in {SECRETS_DIR}" if variable in files else "default"
        value = getattr(getattr(settings, group), name)
        yield ValueInForce(variable, _masked(value), source, _meaning(group, name))


def markdown() -> str:
    """All settings with their defaults, as a table."""
    rows = [
        f"| `{variable}` | {f'`{_as_text(default)}`' if _as_text(default) else ''} | {_meaning(group, name)} |"
        for variable, group, name, default in variables()
    ]
    return "\n".join(("| Variable | Default | Meaning |", "|---|---|---|", *rows))


def _meaning(group: str, name: str) -> str:
    return type(Settings.model_fields[group].default).model_fields[name].description or ""


def _as_text(value: object) -> str:
    match value:
        case None:
            return ""
        case SecretStr():
            return value.get_secret_value()
        case bool():
            return str(value).lower()
        case timedelta():
            return format_duration(value)
        case tuple():
            return ",".join(value)
        case _:
            return f"{value:g}" if isinstance(value, float) else str(value)


def _masked(value: object) -> str:
    """As text; a URL without its password, of any other secret nothing."""
    text = _as_text(value)
    if not isinstance(value, SecretStr):
        return text
    if "://" not in text:
        return "***"
    parts = urlsplit(text)
    user, has_user, host = parts.netloc.rpartition("@")
    name, has_password, _ = user.partition(":")
    netloc = f"{name}{':***' if has_password else ''}{has_user}{host}"
    query = re.sub(r"(?i)(password=)[^&]*", r"\1***", parts.query)
    return urlunsplit(parts._replace(netloc=netloc, query=query))
