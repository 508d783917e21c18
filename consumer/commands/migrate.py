"""`migrate`: the database's schema, and how its tables are distributed."""

import asyncio
from typing import Annotated

import typer

from consumer import settings as configuration
from consumer.commands.output import Yes, out, print_line
from consumer.commands.query import ask
from consumer.postgres import migrations
from consumer.postgres.distribution import COLUMN, DistributionPlan, administering, distribute, make_plan
from consumer.postgres.store import PostgresStore
from consumer.postgres.tables import REQUIRED_REVISION

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    help="The database's schema: `up` (default), `status`, `sql`, `citus`.",
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
def citus(
    shards: Annotated[
        int | None, typer.Option(min=1, help="Default: two a worker, four at least. A cluster has no more workers.")
    ] = None,
    yes: Yes = False,
) -> None:
    """Distribute the tables over the workers of a Citus cluster, by conversation. They may hold rows."""
    asyncio.run(_distribute(configuration.load().database.url.get_secret_value(), shards, yes=yes))


async def _distribute(url: str, shards: int | None, *, yes: bool) -> None:
    async with administering(url) as connection:
        plan = await make_plan(connection, shards)
        if not plan.tables:
            out.print(f"distributed over {len(plan.workers)} workers in {plan.shards} shards: nothing to do")
            return
        _print_plan(plan)
        if not yes:
            out.print("nothing done: add --yes")
            return
        async for table in distribute(connection, plan):
            out.print(f"{table} is distributed", highlight=False)
        out.print("committed")


def _print_plan(plan: DistributionPlan) -> None:
    print_line(f"workers: {', '.join(plan.workers)}")
    for table, size in plan.tables:
        print_line(f"{table}: by {COLUMN}, {plan.shards} shards, {size / 2**20:,.1f} MiB to copy")
    print_line("kafka_offset stays on the coordinator. Writers wait until all is copied.")


@app.command()
def status() -> None:
    """Print the schema the database has, and the one this build ships."""
    revision = ask(PostgresStore.schema_revision)
    out.print(f"database {revision or 'nothing'}, this build {migrations.head()}, needed {REQUIRED_REVISION}")


@app.command()
def sql() -> None:
    """Print the statements, for an administrator to run."""
    typer.echo(migrations.upgrade_sql())
