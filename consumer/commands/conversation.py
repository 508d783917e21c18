"""`conversation`: one conversation, as the database has it."""

from datetime import datetime
from typing import Annotated

import typer

from consumer import settings as configuration
from consumer.commands.forget import forget
from consumer.commands.output import AsJson, moment, print_json, print_line, print_table
from consumer.commands.query import ask
from consumer.commands.rebuild import rebuild
from consumer.durations import timestamp
from consumer.errors import ConsumerError
from consumer.history.comparison import Stored
from consumer.history.explanation import explain
from consumer.history.past import as_of, decided_later
from consumer.lifecycle.model import Conversation, HistoryRow
from consumer.postgres.store import PostgresStore

MOST_DECIDED_LATER = 5
ConversationId = Annotated[str, typer.Argument(help="The conversation id: `subject` of its events.")]
app = typer.Typer(add_completion=False, no_args_is_help=True, help="One conversation, as the database has it.")


@app.command()
def show(
    conversation_id: ConversationId,
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="As it was decided by then: RFC 3339, or a date for its start; UTC."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Its sessions: what each is, since when, and who closed it."""
    if at is not None:
        _show_past(conversation_id, timestamp(at), as_json=as_json)
        return
    sessions, version = ask(lambda store: store.conversation(conversation_id))
    if not sessions:
        raise ConsumerError(f"no conversation {conversation_id!r}")
    conversation = Conversation(conversation_id, version, tuple(sessions))
    if as_json:
        print_json(_as_data(conversation))
        return
    _print_sessions(f"{conversation_id}, version {version}", conversation)


def _show_past(conversation_id: str, at: datetime, *, as_json: bool) -> None:
    stored, policy = _stored(conversation_id), configuration.load().policy.policy
    if at > stored.now:
        raise typer.BadParameter(f"{moment(at)} lies ahead: the database's clock says {moment(stored.now)}")
    conversation, later = as_of(stored, at, policy), decided_later(stored, at)
    if not conversation.version:
        raise ConsumerError(
            f"no conversation {conversation_id!r} at {moment(at)}: its first event was decided at "
            f"{moment(stored.history[0][1])}"
        )
    if as_json:
        rows = [row._asdict() for row in later]
        print_json({"at": at, **_as_data(conversation), "decided_later": rows})
        return
    _print_sessions(
        f"{conversation_id} at {moment(at)}, as decided by then: version {conversation.version}", conversation
    )
    for row in later[:MOST_DECIDED_LATER]:
        print_line(
            f"decided later: version {row.version}, dated {moment(row.occurred_at)}: {row.kind} by {row.actor}, "
            f"{row.outcome}, session {row.session} {row.to_status}"
        )
    if (more := len(later) - MOST_DECIDED_LATER) > 0:
        print_line(f"and {more} more that were dated before then and decided later")


def _as_data(conversation: Conversation) -> dict[str, object]:
    rows = [session._asdict() for session in conversation.sessions]
    return {"conversation_id": conversation.id, "version": conversation.version, "sessions": rows}


def _print_sessions(title: str, conversation: Conversation) -> None:
    print_table(
        title,
        ("session", "status", "opened", "closed", "by", "reason", "last activity", "deadline", "messages"),
        [
            (
                *(session.number, session.status, moment(session.opened_at)),
                *(moment(session.closed_at), session.closed_by, session.close_reason),
                *(moment(session.last_activity_at), moment(session.deadline)),
                f"{session.user_messages} by user, {session.agent_messages} by agent",
            )
            for session in conversation.sessions
        ],
    )


def _stored(conversation_id: str) -> Stored:
    """All that is stored of a conversation. Raises `ConsumerError` if that is nothing."""
    (stored,) = ask(lambda store: store.stored([conversation_id]))
    if stored.is_unknown:
        raise ConsumerError(f"no conversation {conversation_id!r}")
    return stored


@app.command()
def history(conversation_id: ConversationId, as_json: AsJson = False) -> None:
    """Every event it took and that is not pruned, in order."""
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


@app.command()
def why(
    conversation_id: ConversationId,
    session: Annotated[int | None, typer.Option(min=1, help="Default: the current one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Why a session has its status: what decided it, what it was up against, what would still change it."""
    stored, policy = _stored(conversation_id), configuration.load().policy.policy
    numbers = [one.number for one in stored.conversation.sessions]
    if session is not None and session not in numbers:
        raise ConsumerError(f"{conversation_id!r} has no session {session}: it has {', '.join(map(str, numbers))}")
    if not numbers:
        raise ConsumerError(f"{conversation_id!r} has no row, only history: see `conversation rebuild`")
    found = explain(stored, session or numbers[-1], policy)
    if as_json:
        print_json(
            {
                "conversation_id": conversation_id,
                "session": found.session.number,
                "status": found.session.status,
                "sentences": [sentence._asdict() for sentence in found.sentences],
                "unknown": found.unknown,
            }
        )
        return
    print_line(f"{conversation_id}, session {found.session.number}: {found.session.status}", style="bold")
    for version, text in found.sentences:
        print_line(f"version {version}: {text}" if version else text)
    if found.unknown:
        print_line(f"Times of then are not known: {found.unknown}.")


app.command()(rebuild)
app.command()(forget)
