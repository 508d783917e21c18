-- What Debezium needs besides wal_level=logical: a role that replicates, and a publication of the outbox's inserts.
--
--     psql -d conversation -f deploy/debezium/setup.sql        as a superuser
--
-- It may run again at any time. Other names: -v debezium=NAME. Then `\password conversation_debezium`.
\set ON_ERROR_STOP on
\if :{?debezium} \else \set debezium conversation_debezium \endif

BEGIN;

SELECT format('CREATE ROLE %I LOGIN REPLICATION', :'debezium')
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'debezium') \gexec
GRANT CONNECT ON DATABASE :"DBNAME" TO :"debezium";
GRANT USAGE ON SCHEMA public TO :"debezium";
GRANT SELECT ON public.transition_outbox TO :"debezium";

SELECT $$CREATE PUBLICATION conversation_outbox FOR TABLE public.transition_outbox WITH (publish = 'insert')$$
WHERE NOT EXISTS (SELECT FROM pg_publication WHERE pubname = 'conversation_outbox') \gexec

COMMIT;
