"""A conversation as it was at a time.

The time is that of decisions (`recorded_at`): what the database held then, so what everybody saw. What took effect
earlier by its own date (`occurred_at`), but was decided later, was not known then; `decided_later` has it.
"""

from datetime import datetime

from consumer.errors import ConsumerError
from consumer.history.comparison import Stored
from consumer.history.replay import decided_by, is_whole, retrace
from consumer.history.wording import moment
from consumer.lifecycle.model import Conversation, HistoryRow, Policy


def as_of(stored: Stored, at: datetime, policy: Policy) -> Conversation:
    """The conversation as it was decided by a time; at version 0 if there was none.

    Raises `ConsumerError` if that cannot be known: rows are missing, or another policy made them.
    """
    if _is_unchanged_since(stored, at):
        return stored.conversation
    history = decided_by(stored.history, at)
    if not is_whole(stored.history, stored.version):
        raise ConsumerError(_not_whole(stored, history[-1] if history else None))
    retraced = retrace(stored.id, history, policy)
    if retraced.contradiction:
        raise ConsumerError(
            f"the policy of now does not lead to this history: {retraced.contradiction}. If the policy was another "
            "one then, give it in CONSUMER_POLICY__*"
        )
    return retraced.conversation


def decided_later(stored: Stored, at: datetime) -> list[HistoryRow]:
    """The rows that are dated at or before a time, and were decided after it."""
    return [row for row, recorded_at in stored.history if row.occurred_at <= at < recorded_at]


def _is_unchanged_since(stored: Stored, at: datetime) -> bool:
    if stored.row is None or not stored.history:
        return False
    last, _ = stored.history[-1]
    return last.version == stored.version and all(recorded_at <= at for _, recorded_at in stored.history)


def _not_whole(stored: Stored, last: tuple[HistoryRow, datetime] | None) -> str:
    text = f"it cannot be told: {len(stored.history)} of {stored.version} history rows are there, the others are pruned"
    if last is None:
        return f"{text}, and none of those left was decided by then"
    row, recorded_at = last
    return (
        f"{text}. The last one decided by then is version {row.version} of {moment(recorded_at)}: it left session "
        f"{row.session} as {row.to_status}"
    )
