-- Deletes from the outbox what the connector has published: what its slot has confirmed.
--
--     psql -d conversation -f deploy/debezium/delete-published.sql      as the app's role, every minute or so
--
-- A row that this sees was committed before `position`. Once the slot has confirmed `position`, Kafka has the row. Where
-- the connector does not get so far within 20 seconds, or is away, nothing is deleted.
DO $$
DECLARE
    position pg_lsn;
    seen bigint[];
BEGIN
    SELECT pg_current_wal_insert_lsn(), array_agg(id) INTO position, seen
    FROM (SELECT id FROM transition_outbox ORDER BY id LIMIT 100000) AS oldest
    WHERE EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = 'conversation_outbox' AND active);
    FOR attempt IN 1..200 LOOP
        EXIT WHEN seen IS NULL;
        COMMIT;
        IF EXISTS (
            SELECT FROM pg_replication_slots
            WHERE slot_name = 'conversation_outbox' AND active AND confirmed_flush_lsn >= position
        ) THEN
            DELETE FROM transition_outbox WHERE id = ANY (seen);
            seen := NULL;
        ELSE
            PERFORM pg_sleep(0.1);
        END IF;
    END LOOP;
END
$$;
