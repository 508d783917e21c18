"""The composition root: settings in, wiring, signals, exit codes. The one place that sees every technology."""

import asyncio
import gc
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import suppress
from datetime import datetime
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import structlog
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from consumer import settings as configuration
from consumer.commands.doctor import examine
from consumer.commands.prune import BATCH_PAGES, Plan, carry_out, make_plan
from consumer.commands.publish import publish_lines
from consumer.commands.top import show as watch_replicas
from consumer.errors import ConfigurationError, ConsumerError
from consumer.kafka.admin import admin, check_topics, log_bounds
from consumer.kafka.partition import AssignedPartition
from consumer.kafka.producer import KafkaProducer
from consumer.kafka.source import KafkaSource
from consumer.lifecycle.model import HistoryRow
from consumer.observability import logs
from consumer.observability.health import Health
from consumer.observability.http import serve
from consumer.observability.metrics import Metrics
from consumer.offsets import Partition, StoredOffset
from consumer.postgres import migrations
from consumer.postgres.store import PostgresStore
from consumer.service.service import ConversationService, RetryPolicy
from consumer.settings import Settings
from consumer.ticker import Ticker
from consumer.worker import PartitionWorker

GARBAGE_THRESHOLD = 200_000
log = structlog.get_logger(__name__)
out = Console(width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True)
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keeps customer conversations right while many writers touch them at once.",
)
migrate_app = typer.Typer(invoke_without_command=True, help="The database's schema: `up` (default), `status`, `sql`.")
conversation_app = typer.Typer(no_args_is_help=True, help="One conversation, as the database has it.")
offsets_app = typer.Typer(no_args_is_help=True, help="Where the partitions go on, as the database has it.")
app.add_typer(migrate_app, name="migrate")
app.add_typer(conversation_app, name="conversation")
app.add_typer(offsets_app, name="offsets")

T = TypeVar("T")


ConversationId = Annotated[str, typer.Argument(help="The conversation id: `subject` of its events.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def version_option(
    show: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    if show:
        typer.echo(version("conversation-consumer"))
        raise typer.Exit


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 failed, 2 held wrong (usage, settings, topics, schema)."""
    try:
        app()
    except ConfigurationError as error:
        complain(error)
        sys.exit(2)
    except ConsumerError as error:
        complain(error)
        sys.exit(1)


def complain(error: ConsumerError) -> None:
    err.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)


@app.command()
def run() -> None:
    """Consume: apply events until SIGTERM or SIGINT. A second signal ends at once; nothing is lost by it."""
    settings = configuration.load()
    logs.configure(settings.log)
    asyncio.run(consume(settings))


async def consume(settings: Settings) -> None:
    """One replica, from its checks to its last commit."""
    metrics, health = Metrics(settings.kafka.topics), Health()
    metrics.build_info.labels(version("conversation-consumer")).set(1)
    max_record_bytes = await check_topics(settings.kafka)
    async with (
        PostgresStore.open(settings.database, metrics) as store,
        KafkaProducer.open(settings.kafka, max_record_bytes) as dead_letters,
    ):
        await check_schema(store)
        service = ConversationService(
            store,
            policy=settings.policy.policy,
            retry=RetryPolicy(**settings.retry.model_dump()),
            metrics=metrics,
            writers=settings.database.writers,
        )

        def run_worker(partition: AssignedPartition) -> Awaitable[None]:
            return PartitionWorker(
                partition, service, store, dead_letters, settings=settings.worker, metrics=metrics, health=health
            ).run()

        source = KafkaSource(settings.kafka, settings.worker, metrics, health, run_worker)
        async with serve(settings.http, metrics, health, store.answers) as port:
            stop_on_signals(source.stop)
            watch = asyncio.create_task(watch_event_loop(metrics))
            log.info("started", http_port=port, topics=settings.kafka.topics, group=settings.kafka.group_id)
            collect_garbage_seldom()
            try:
                await source.run()
            finally:
                watch.cancel()
    log.info("stopped")


@app.command()
def ticker() -> None:
    """Emit a tick for every conversation whose deadline has passed, until SIGTERM or SIGINT."""
    settings = configuration.load()
    logs.configure(settings.log)
    asyncio.run(tick(settings))


async def tick(settings: Settings) -> None:
    """One ticker; several share the work."""
    metrics, health = Metrics(settings.kafka.topics), Health(joined=True)
    metrics.build_info.labels(version("conversation-consumer")).set(1)
    topic = settings.kafka.topics[0]
    await check_topics(settings.kafka)
    async with PostgresStore.open(settings.database, metrics) as store, KafkaProducer.open(settings.kafka) as producer:
        await check_schema(store)

        async def emit(key: bytes, value: bytes) -> None:
            await producer.publish(topic, [(key, value)])

        ticking = Ticker(store, emit, settings.ticker, metrics, health)
        async with serve(settings.http, metrics, health, store.answers) as port:
            stop_on_signals(ticking.stop)
            log.info("ticking", http_port=port, topic=topic)
            await ticking.run()
    log.info("stopped")


async def check_schema(store: PostgresStore) -> None:
    """Raises `ConfigurationError` if this build cannot run on the database's schema."""
    revision = await store.schema_revision()
    if revision is None or revision < migrations.REQUIRED_REVISION:
        raise ConfigurationError(
            f"the database's schema is at {revision or 'nothing'}, this build needs "
            f"{migrations.REQUIRED_REVISION}: run `conversation-consumer migrate`"
        )


def stop_on_signals(stop: Callable[[], None]) -> None:
    def on_signal() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, os._exit, 1)
        stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)


def collect_garbage_seldom() -> None:
    """What is there by now stays; what a batch makes is freed without the collector, which took a third of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 100)


async def watch_event_loop(metrics: Metrics) -> None:
    while True:
        due = time.monotonic() + 1
        await asyncio.sleep(1)
        metrics.event_loop_lag.set(time.monotonic() - due)


@migrate_app.callback()
def migrate(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        migrate_up()


@migrate_app.command("up")
def migrate_up() -> None:
    """Bring the database to the newest schema."""
    revision, newest = migrations.upgrade(configuration.load().database.url.get_secret_value()), migrations.head()
    newer = "" if revision == newest else f", newer than the {newest} of this build: nothing to do"
    out.print(f"schema at {revision}{newer}", highlight=False)


@migrate_app.command("status")
def migrate_status() -> None:
    """Print the schema the database has, and the one this build ships."""
    revision = with_store(PostgresStore.schema_revision)
    out.print(
        f"database {revision or 'nothing'}, this build {migrations.head()}, needed {migrations.REQUIRED_REVISION}"
    )


@migrate_app.command("sql")
def migrate_sql() -> None:
    """Print the statements, for an administrator to run."""
    typer.echo(migrations.upgrade_sql())


@app.command()
def topics(
    partitions: Annotated[int, typer.Option(min=1, help="Partitions of the input topics.")] = 12,
    replication: Annotated[int, typer.Option(min=1, help="Replicas of each topic.")] = 1,
) -> None:
    """Create the topics that are missing."""
    settings = configuration.load().kafka
    wanted: list[tuple[str, int, dict[str, str]]] = [(topic, partitions, {}) for topic in settings.topics]
    wanted.append((settings.dead_letter_topic, 1, {"max.message.bytes": str(2 * 2**20), "retention.ms": "-1"}))
    wanted.append((settings.transition_topic, partitions, {}))

    async def create() -> None:
        async with admin(settings) as client:
            for topic, count, configs in wanted:
                created = await client.create(topic, count, replication, configs)
                out.print(f"{topic}: {'created' if created else 'was there'}", highlight=False)

    asyncio.run(create())


@app.command()
def publish(
    file: Annotated[typer.FileBinaryRead, typer.Argument(help="One CloudEvent a line; `-` reads standard input.")],
    topic: Annotated[str | None, typer.Option(help="Default: the first input topic.")] = None,
) -> None:
    """Publish events. A line that is no valid event is reported and left out; the others are sent."""
    settings = configuration.load()
    sent, wrong = asyncio.run(publish_lines(err, settings, topic or settings.kafka.topics[0], file))
    for line in wrong:
        err.print(Text(line, style="red"), soft_wrap=True)
    out.print(f"{sent} published, {len(wrong)} rejected")
    raise typer.Exit(1 if wrong else 0)


@conversation_app.command("show")
def conversation_show(conversation_id: ConversationId, as_json: AsJson = False) -> None:
    """Its sessions: what each is, since when, and who closed it."""
    sessions, revision = with_store(lambda store: store.conversation(conversation_id))
    if not sessions:
        raise ConsumerError(f"no conversation {conversation_id!r}")
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "conversation_id": conversation_id,
                    "version": revision,
                    "sessions": [session._asdict() for session in sessions],
                },
                default=str,
            )
        )
        return
    headings = ("session", "status", "opened", "last activity", "user", "agent", "deadline", "closed", "by", "reason")
    rows = [
        (
            *(session.number, session.status, moment(session.opened_at), moment(session.last_activity_at)),
            *(session.user_messages, session.agent_messages, moment(session.deadline)),
            *(moment(session.closed_at), session.closed_by, session.close_reason),
        )
        for session in sessions
    ]
    print_table(f"{conversation_id}, version {revision}", headings, rows)


@conversation_app.command("history")
def conversation_history(conversation_id: ConversationId, as_json: AsJson = False) -> None:
    """Every event it took and that is not pruned, in order: why it is what it is."""
    rows, revision = with_store(lambda store: history_and_version(store, conversation_id))
    if not revision:
        raise ConsumerError(f"no conversation {conversation_id!r}")
    if as_json:
        for row, recorded_at in rows:
            typer.echo(json.dumps(row._asdict() | {"recorded_at": recorded_at}, default=rfc3339))
        return
    headings = ("version", "session", "occurred", "event", "by", "outcome", "status", "reason", "source", "id")
    pruned = revision - len(rows)
    print_table(
        f"{conversation_id}, {pruned} of {revision} rows pruned" if pruned else conversation_id,
        headings,
        [
            (
                *(row.version, row.session, moment(row.occurred_at), f"{row.kind} {row.requested or ''}", row.actor),
                *(row.outcome, f"{row.from_status or '-'} -> {row.to_status}" if row.is_transition else row.to_status),
                *(row.reason, row.source, row.event_id),
            )
            for row, _ in rows
        ],
    )


async def history_and_version(
    store: PostgresStore, conversation_id: str
) -> tuple[list[tuple[HistoryRow, datetime]], int]:
    """The rows that are left of its history, and how many there were; none of either if it is unknown."""
    rows = await store.history(conversation_id)
    return rows, rows[-1][0].version if rows else (await store.conversation(conversation_id))[1]


@offsets_app.command("show")
def offsets_show() -> None:
    """Print where each partition goes on."""
    rows = [
        (partition.group, partition.topic, partition.number, offset.next_offset, offset.cluster_id)
        for partition, offset in with_store(PostgresStore.stored_offsets)
    ]
    print_table(None, ("group", "topic", "partition", "next offset", "cluster"), rows)


@offsets_app.command("set")
def offsets_set(
    topic: Annotated[str, typer.Argument(help="Input topic.")],
    partition: Annotated[int, typer.Argument(min=0, help="Its partition.")],
    offset: Annotated[int, typer.Argument(min=0, help="Offset of the record to go on with.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")] = False,
) -> None:
    """Have a partition go on elsewhere, in the cluster of now. Records in between are skipped, or seen again."""
    settings = configuration.load()
    place = Partition(settings.kafka.group_id, topic, partition)

    async def move() -> None:
        async with admin(settings.kafka) as client, PostgresStore.open(settings.database) as store:
            if partition not in range((await client.topics()).get(topic, 0)):
                raise ConfigurationError(f"there is no {topic}[{partition}]")
            first, end = (await log_bounds(settings.kafka, [place]))[place]
            if not first <= offset <= end:
                raise ConfigurationError(f"{topic}[{partition}] has offsets {first} to {end}")
            before = await store.stored_offset(place)
            out.print(
                f"{topic}[{partition}]: {before.next_offset if before else 'nothing'} -> {offset}", highlight=False
            )
            if yes:
                await store.set_offset(place, StoredOffset(await client.cluster_id(), offset))
            else:
                out.print("nothing done: add --yes")

    asyncio.run(move())


@app.command()
def prune(
    older_than: Annotated[
        str | None, typer.Option(metavar="DURATION", help="As 30d; default: CONSUMER_PRUNE__HORIZON.")
    ] = None,
    batch: Annotated[
        int, typer.Option(min=1, max=10_000, help="Pages of the table per transaction, of some 50 rows each.")
    ] = BATCH_PAGES,
    pause: Annotated[float, typer.Option(min=0, help="Seconds of rest between two transactions.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without, only say what would be done.")] = False,
) -> None:
    """Remove history older than a horizon; conversations stay. It may be stopped (exit code 1) and run again."""
    if dry_run and yes:
        raise typer.BadParameter("--dry-run or --yes, not both")
    settings = configuration.load()
    horizon = configuration.duration(older_than) if older_than is not None else settings.prune.horizon

    async def work() -> bool:
        async with admin(settings.kafka) as client, PostgresStore.open(settings.database) as store:
            await check_schema(store)
            plan = await make_plan(client, store, settings.kafka.topics, horizon)
            print_plan(plan)
            if not (yes or dry_run):
                out.print("nothing done: add --yes, or --dry-run to count the rows")
                return True
            stopping = asyncio.Event()
            stop_on_signals(stopping.set)
            done = await carry_out(err, store, plan, stopping, batch_pages=batch, pause_seconds=pause, dry_run=dry_run)
            what = "to remove, counted" if dry_run else "removed"
            out.print(
                f"{done.rows:,} rows {what} in {done.seconds:.1f} s, {done.rows / done.seconds:,.0f} rows/s"
                + ("" if done.whole else "; stopped before the end: run it again to go on"),
                highlight=False,
            )
            return done.whole

    raise typer.Exit(0 if asyncio.run(work()) else 1)


def print_plan(plan: Plan) -> None:
    lines = [
        f"to go: history recorded before {moment(plan.before)}, {configuration.spelled(plan.horizon)} ago",
        f"table: {plan.pages * plan.page_bytes / 2**20:,.1f} MiB, {plan.pages:,} pages",
        *(
            f"{topic}: no record is older than {configuration.spelled(retention)}"
            for topic, retention in plan.retentions.items()
        ),
    ]
    out.print("\n".join(lines), highlight=False, markup=False)


@app.command()
def top(
    urls: Annotated[list[str], typer.Argument(help="Replicas, as HOST:PORT or the URL of their /metrics.")],
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between rounds.")] = 1.0,
    rounds: Annotated[int | None, typer.Option(min=1, help="End after so many; default: never.")] = None,
) -> None:
    """Watch replicas: rate, lag, conflicts, retries, dead letters."""
    with suppress(KeyboardInterrupt):
        watch_replicas(out, urls, interval, rounds)


@app.command()
def doctor() -> None:
    """Check that everything is in place, and say what to do where it is not. Exit code 1 if something is amiss."""
    settings = configuration.load()
    logs.configure(settings.log.model_copy(update={"level": "error"}))

    async def check() -> bool:
        healthy = True
        async for finding in examine(settings):
            mark = "[red]✗[/]" if finding.remedy else "[green]✓[/]"
            out.print(f"{mark} {finding.check}: {escape(finding.seen)}", highlight=False, soft_wrap=True)
            if finding.remedy:
                healthy = False
                out.print(f"  → {escape(finding.remedy)}", highlight=False, soft_wrap=True)
        return healthy

    raise typer.Exit(0 if asyncio.run(check()) else 1)


@app.command()
def config(markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's table.")] = False) -> None:
    """List every setting: its variable, its default, and what it does."""
    if markdown:
        typer.echo(configuration.markdown())
        return
    print_table(None, ("variable", "default", "meaning"), configuration.variables())


def with_store(action: Callable[[PostgresStore], Coroutine[Any, Any, T]]) -> T:
    """Runs a query on the configured database."""

    async def work() -> T:
        async with PostgresStore.open(configuration.load().database) as store:
            return await action(store)

    return asyncio.run(work())


def print_table(title: str | None, headings: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Cells are folded, never cut: an id that is cut is of no use."""
    table = Table(title=title and escape(title), box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    out.print(table, highlight=False)


def rfc3339(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def moment(at: datetime | None) -> str:
    return at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if at else ""
