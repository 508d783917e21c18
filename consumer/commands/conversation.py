"""`conversation`: one conversation, as the database has it."""

from datetime import datetime
from typing import Annotated

import typer

from consumer.commands.output import AsJson, moment, print_json, print_table
from consumer.commands.query import ask
from consumer.errors import ConsumerError
from consumer.lifecycle.model import HistoryRow
from consumer.postgres.store import PostgresStore

ConversationId = Annotated[str, typer.Argument(help="The conversation id: `subject` of its events.")]
app = typer.Typer(add_completion=False, no_args_is_help=True, help="One conversation, as the database has it.")


@app.command()
def show(conversation_id: ConversationId, as_json: AsJson = False) -> None:
    """Its sessions: what each is, since when, and who closed it."""
    sessions, version = ask(lambda store: store.conversation(conversation_id))
    if not sessions:
        raise ConsumerError(f"no conversation {conversation_id!r}")
    if as_json:
        rows = [session._asdict() for session in sessions]
        print_json({"conversation_id": conversation_id, "version": version, "sessions": rows})
        return
    print_table(
        f"{conversation_id}, version {version}",
        ("session", "status", "opened", "closed", "by", "reason", "last activity", "deadline", "user", "agent"),
        [
            (
                *(session.number, session.status, moment(session.opened_at)),
                *(moment(session.closed_at), session.closed_by, session.close_reason),
                *(moment(session.last_activity_at), moment(session.deadline)),
                *(f"{session.user_messages} messages", f"{session.agent_messages} messages"),
            )
            for session in sessions
        ],
    )


@app.command()
def history(conversation_id: ConversationId, as_json: AsJson = False) -> None:
    """Every event it took and that is not pruned, in order: why it is what it is."""
    rows, version = ask(lambda store: _history_and_version(store, conversation_id))
    if not version:
        raise ConsumerError(f"no conversation {conversation_id!r}")
    if as_json:
        for row, recorded_at in rows:
            print_json(row._asdict() | {"recorded_at": recorded_at})
        return
    pruned = version - len(rows)
    print_table(
        f"{conversation_id}, {pruned} of {version} rows pruned" if pruned else conversation_id,
        ("version", "session", "occurred", "event", "outcome", "status", "by", "reason", "source", "id"),
        [
            (
                *(row.version, row.session, moment(row.occurred_at), f"{row.kind} {row.requested or ''}".rstrip()),
                *(row.outcome, f"{row.from_status or '-'} -> {row.to_status}" if row.is_transition else row.to_status),
                *(row.actor, row.reason, row.source, row.event_id),
            )
            for row, _ in rows
        ],
    )


async def _history_and_version(
    store: PostgresStore, conversation_id: str
) -> tuple[list[tuple[HistoryRow, datetime]], int]:
    """The rows that are left of its history, and how many there were; none of either if it is unknown."""
    rows = await store.history(conversation_id)
    return rows, rows[-1][0].version if rows else (await store.conversation(conversation_id))[1]
