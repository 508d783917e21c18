-- Three roles for one database: the owner migrates, the app reads and writes rows, the reader reads.
--
--     psql -d conversation -f deploy/postgres/roles.sql        as a superuser, or as the database's owner with CREATEDB and CREATEROLE
--
-- It may run again at any time. Other names: -v owner=NAME -v app=NAME -v reader=NAME. Passwords are set apart from it:
-- `\password conversation_app` in psql sends only a hash.
\set ON_ERROR_STOP on
\if :{?owner} \else \set owner conversation_owner \endif
\if :{?app} \else \set app conversation_app \endif
\if :{?reader} \else \set reader conversation_reader \endif
\set QUIET on
SET client_min_messages = warning;

BEGIN;

SELECT format('CREATE ROLE %I LOGIN', name) FROM unnest(ARRAY[:'owner', :'app', :'reader']) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec

-- Who is no superuser acts for the owner as its member.
SELECT format('GRANT %I TO %I', :'owner', current_user)
WHERE NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) \gexec

-- Nobody else connects; the app and the reader make nothing, not even temporary tables.
SELECT format('ALTER DATABASE %I OWNER TO %I', current_database(), :'owner') \gexec
REVOKE ALL ON DATABASE :"DBNAME" FROM PUBLIC, :"app", :"reader";
GRANT CONNECT ON DATABASE :"DBNAME" TO :"app", :"reader";
REVOKE ALL ON SCHEMA public FROM PUBLIC, :"app", :"reader";
GRANT USAGE, CREATE ON SCHEMA public TO :"owner";
GRANT USAGE ON SCHEMA public TO :"app", :"reader";

-- What another user migrated becomes the owner's. The types of tables, and the sequences of identities, go with them.
SELECT format('ALTER %s public.%I OWNER TO %I',
    CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'c' THEN 'TYPE' ELSE 'TABLE' END, relname, :'owner')
FROM pg_class AS relation
WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p', 'v', 'c')
    AND pg_get_userbyid(relowner) <> :'owner'
    AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = relation.oid AND deptype = 'e')
ORDER BY relname \gexec

-- The revision of the schema is the owner's to write. Alembic makes this table where it is missing; here it is made
-- first, since the privileges of tables to come would let the app write it.
CREATE TABLE IF NOT EXISTS public.alembic_version (
    version_num varchar(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
ALTER TABLE public.alembic_version OWNER TO :"owner";

-- The tables there are, and those of later migrations.
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO :"app";
GRANT SELECT ON ALL TABLES IN SCHEMA public TO :"reader";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO :"app";
ALTER DEFAULT PRIVILEGES FOR ROLE :"owner" IN SCHEMA public GRANT SELECT ON TABLES TO :"reader";
REVOKE INSERT, UPDATE, DELETE ON public.alembic_version FROM :"app";

COMMIT;
