"""The schema's history, in the package: an installed wheel can migrate.

Revisions are strings of digits. They count up: a database whose revision is greater than this build's is newer.
"""

import logging
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from consumer.errors import ConfigurationError, ConsumerError, UnavailableError
from consumer.postgres.errors import classified, server_message


class Progress:
    """How far a run has come; none of it lasts if the run fails."""

    def __init__(self, revisions: Sequence[str]) -> None:
        self._revisions = revisions
        self.has_started = False
        self.revision: str | None = None

    def start(self, heads: Sequence[str]) -> None:
        """Raises `ConfigurationError` if the database's revisions are none of this project's."""
        if len(heads) > 1 or not all(head.isdecimal() for head in heads):
            raise ConfigurationError(
                f"the table alembic_version says {', '.join(heads)}, which is no revision of conversation-consumer: "
                "does another program use this database? Check CONSUMER_DATABASE__URL"
            )
        self.has_started = True
        self.revision = heads[0] if heads else None

    def applied(self, revision: str) -> None:
        self.revision = revision

    @property
    def database_is_newer(self) -> bool:
        return self.revision is not None and int(self.revision) > int(self._revisions[-1])

    @property
    def next_revision(self) -> str | None:
        """The one that comes after the last that was applied; null at the end."""
        done = self._revisions.index(self.revision) + 1 if self.revision in self._revisions else 0
        return self._revisions[done] if done < len(self._revisions) else None


def upgrade(url: str) -> str:
    """Brings the database to the newest revision, and returns the one that it is at.

    Does nothing if the database is there, or newer than this build. Raises `ConsumerError`: then nothing was changed.
    """
    config = _config(url)
    progress: Progress = config.attributes["progress"]
    try:
        with classified():
            command.upgrade(config, "head")
    except (ConsumerError, sa.exc.DBAPIError, CommandError) as error:
        raise _failure(progress, error) from error
    return progress.revision or "none"


def _failure(progress: Progress, error: Exception) -> ConsumerError:
    """One line for whoever runs the migrations: they run in one transaction, so all of them or none."""
    said = server_message(error) if isinstance(error, sa.exc.DBAPIError) else str(error)
    kind = next((kind for kind in (ConfigurationError, UnavailableError) if isinstance(error, kind)), ConsumerError)
    if not progress.has_started or progress.next_revision is None:
        return kind(said)
    return kind(f"migration {progress.next_revision} failed, nothing was changed: {said}")


def upgrade_sql() -> str:
    """The statements of all migrations, for a database administrator to review and run."""
    with redirect_stdout(StringIO()) as output:
        command.upgrade(_config("postgresql://"), "head", sql=True)
    return output.getvalue()


def head() -> str:
    """The newest revision this build ships."""
    return _revisions(_config(""))[-1]


def check(url: str) -> None:
    """Raises if the migrations do not end in the tables of `consumer.postgres`."""
    command.check(_config(url))


def _config(url: str) -> Config:
    logging.getLogger("alembic.runtime.plugins").setLevel(logging.WARNING)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["url"] = url
    config.attributes["progress"] = Progress(_revisions(config))
    return config


def _revisions(config: Config) -> list[str]:
    """All of this build, oldest first."""
    return sorted(script.revision for script in ScriptDirectory.from_config(config).walk_revisions())
