"""Views for analysts: one row per session, and one per race that the history can show."""

from alembic import op

revision = "0002"
down_revision = "0001"

# A status lasts until the earliest transition that was written after it: a reinstatement takes effect before the
# expiry that it undoes. The running status of an open session lasts until now.
CONVERSATION_REPORT = """
CREATE VIEW conversation_report AS
WITH stretch AS (
    SELECT conversation_id, session, to_status AS status, occurred_at AS since,
        min(occurred_at) OVER (
            PARTITION BY conversation_id, session ORDER BY version ROWS BETWEEN 1 FOLLOWING AND UNBOUNDED FOLLOWING
        ) AS until
    FROM conversation_event
    WHERE from_status IS DISTINCT FROM to_status
), spent AS (
    SELECT conversation_id, session, stretch.status,
        sum(greatest(0, extract(
            epoch FROM least(until, closed_at, CASE WHEN closed_at IS NULL THEN now() END) - since
        ))) AS seconds
    FROM stretch JOIN conversation_session USING (conversation_id, session)
    GROUP BY conversation_id, session, stretch.status
), closing AS (
    SELECT DISTINCT ON (conversation_id, session) conversation_id, session, actor, from_status, outcome
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
    coalesce((SELECT seconds FROM spent WHERE (spent.conversation_id, spent.session, spent.status)
        = (s.conversation_id, s.session, 'pending')), 0) AS seconds_pending,
    coalesce((SELECT seconds FROM spent WHERE (spent.conversation_id, spent.session, spent.status)
        = (s.conversation_id, s.session, 'progress')), 0) AS seconds_in_progress,
    coalesce((SELECT seconds FROM spent WHERE (spent.conversation_id, spent.session, spent.status)
        = (s.conversation_id, s.session, 'idle_timeout')), 0) AS seconds_idle,
    s.user_messages, s.agent_messages
FROM conversation_session AS s LEFT JOIN closing USING (conversation_id, session)
"""

RACE_REPORT = """
CREATE VIEW race_report AS
SELECT CASE
        WHEN source = 'consumer' THEN 'split'
        WHEN outcome = 'reclassified' THEN 'reclassified from expired'
        ELSE outcome
    END AS race,
    conversation_id, session, version, type, actor, from_status, to_status, occurred_at, recorded_at
FROM conversation_event
WHERE outcome IN ('reinstated', 'late', 'outranked')
    OR (outcome = 'reclassified' AND from_status = 'expired')
    OR (source = 'consumer' AND type = 'inbound-message' AND version > 1)
"""


def upgrade() -> None:
    op.execute(CONVERSATION_REPORT)
    op.execute(RACE_REPORT)


def downgrade() -> None:
    op.execute("DROP VIEW race_report")
    op.execute("DROP VIEW conversation_report")
