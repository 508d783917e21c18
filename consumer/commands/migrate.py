"""`migrate`: the database's schema."""

import typer

from consumer import settings as configuration
from consumer.commands.output import out
from consumer.commands.query import ask
from consumer.postgres import migrations
from consumer.postgres.store import PostgresStore
from consumer.postgres.tables import REQUIRED_REVISION

app = typer.Typer(
    add_completion=False, invoke_without_command=True, help="The database's schema: `up` (default), `status`, `sql`."
)


@app.callback()
def migrate(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        up()


@app.command()
def up() -> None:
    """Bring the database to the newest schema. A newer one is left as it is."""
    revision, newest = migrations.upgrade(configuration.load().database.url.get_secret_value()), migrations.head()
    newer = f", newer than the {newest} of this build: nothing to do" if revision > newest else ""
    out.print(f"schema at {revision}{newer}")


@app.command()
def status() -> None:
    """Print the schema the database has, and the one this build ships."""
    revision = ask(PostgresStore.schema_revision)
    out.print(f"database {revision or 'nothing'}, this build {migrations.head()}, needed {REQUIRED_REVISION}")


@app.command()
def sql() -> None:
    """Print the statements, for an administrator to run."""
    typer.echo(migrations.upgrade_sql())
