"""`conversation_report` in one pass of the history: its time grew with the square of the sessions."""

from importlib import import_module

from alembic import op

revision = "0006"
down_revision = "0005"

# A status lasts until the earliest transition that was written after it: a reinstatement takes effect before the
# expiry that it undoes. The running status of an open session lasts until now.
CONVERSATION_REPORT = """
CREATE OR REPLACE VIEW conversation_report AS
WITH stretch AS (
    SELECT conversation_id, session, to_status AS status, occurred_at AS since,
        min(occurred_at) OVER (
            PARTITION BY conversation_id, session ORDER BY version ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
        ) AS until
    FROM conversation_event
    WHERE from_status IS DISTINCT FROM to_status
), timed AS (
    SELECT conversation_id, session, stretch.status,
        greatest(0, extract(
            epoch FROM least(until, closed_at, CASE WHEN closed_at IS NULL THEN now() END) - since
        )) AS seconds
    FROM stretch JOIN conversation_session USING (conversation_id, session)
), spent AS (
    SELECT conversation_id, session,
        sum(seconds) FILTER (WHERE status = 'pending') AS pending,
        sum(seconds) FILTER (WHERE status = 'progress') AS progress,
        sum(seconds) FILTER (WHERE status = 'idle_timeout') AS idle
    FROM timed GROUP BY conversation_id, session
), closing AS (
    SELECT DISTINCT ON (conversation_id, session) conversation_id, session, actor, from_status
    FROM conversation_event
    WHERE from_status IS DISTINCT FROM to_status
        AND to_status NOT IN ('pending', 'progress', 'idle_timeout')
    ORDER BY conversation_id, session, version DESC
)
SELECT s.conversation_id, s.session, s.status, s.opened_at, s.closed_at, s.closed_by, s.close_reason,
    CASE WHEN s.closed_at IS NOT NULL THEN closing.actor END AS closed_by_actor,
    CASE WHEN s.reclassified_at IS NOT NULL THEN closing.from_status END AS reclassified_from,
    s.reclassified_at,
    extract(epoch FROM s.accepted_at - s.opened_at) AS seconds_to_acceptance,
    coalesce(spent.pending, 0) AS seconds_pending,
    coalesce(spent.progress, 0) AS seconds_in_progress,
    coalesce(spent.idle, 0) AS seconds_idle,
    s.user_messages, s.agent_messages
FROM conversation_session AS s
LEFT JOIN closing USING (conversation_id, session)
LEFT JOIN spent USING (conversation_id, session)
"""


def upgrade() -> None:
    op.execute(CONVERSATION_REPORT)


def downgrade() -> None:
    op.execute("DROP VIEW conversation_report")
    op.execute(import_module("consumer.postgres.migrations.versions.0002_reports").CONVERSATION_REPORT)
