"""The schema's history, in the package: an installed wheel can migrate."""

import logging
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory


def upgrade(url: str) -> None:
    """Brings the database to the newest revision; does nothing where it is there."""
    command.upgrade(_config(url), "head")


def upgrade_sql() -> str:
    """The statements of all migrations, for a database administrator to review and run."""
    with redirect_stdout(StringIO()) as output:
        command.upgrade(_config("postgresql://"), "head", sql=True)
    return output.getvalue()


def head() -> str:
    """The newest revision this build ships."""
    return str(ScriptDirectory.from_config(_config("")).get_current_head())


def check(url: str) -> None:
    """Raises if the migrations do not end in the tables of `consumer.postgres`."""
    command.check(_config(url))


def _config(url: str) -> Config:
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    return config
