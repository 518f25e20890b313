-- nothing -- to see how long an answer takes
SELECT 1;

-- setting -- one of the server's settings
SELECT current_setting(%(name)s);

-- writable -- whether this is a standby, and whether it was told to write nothing
SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only') = 'on';

-- roles_not_durable -- roles whose commit need not be on disk
SELECT setrole::regrole::text FROM pg_db_role_setting
WHERE 'synchronous_commit=off' = ANY (setconfig) AND setrole <> 0;

-- has_right -- whether a role may do something with a table, with a column of it or any ("*"), or with a function
SELECT CASE
    WHEN %(name)s::text LIKE '%%(%%)' THEN has_function_privilege(%(role)s::text, %(name)s::text, %(right)s::text)
    WHEN %(column)s::text IS NULL THEN has_table_privilege(%(role)s::text, %(name)s::text, %(right)s::text)
    WHEN %(column)s::text = '*' THEN has_any_column_privilege(%(role)s::text, %(name)s::text, %(right)s::text)
    ELSE has_column_privilege(%(role)s::text, %(name)s::text, %(column)s::text, %(right)s::text) END;

-- powerful_roles -- of these roles, those that may do more than what they are granted
SELECT rolname FROM pg_roles
WHERE rolname = ANY (%(roles)s::text[])
    AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls);

-- filling -- whether one of these roles may make temporary tables, and whether large objects
SELECT coalesce(bool_or(has_database_privilege(rolname, current_database(), 'TEMPORARY')), false),
    coalesce(bool_or(has_function_privilege(rolname, function, 'EXECUTE')), false)
FROM pg_roles, unnest(ARRAY['pg_catalog.lo_creat(integer)', 'pg_catalog.lo_create(oid)',
    'pg_catalog.lo_from_bytea(oid, bytea)']) AS f (function)
WHERE rolname = ANY (%(roles)s::text[]);

-- indexes -- each with its table, whether it is valid, and the column that leads it
SELECT c.relname, t.relname, i.indisvalid,
    (SELECT a.attname FROM pg_attribute a WHERE a.attrelid = t.oid AND a.attnum = i.indkey[0])
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
    JOIN pg_namespace n ON n.oid = t.relnamespace
WHERE n.nspname IN ('public', 'opensend_milter');

-- clock -- what the server has for the time
SELECT clock_timestamp();

-- connections -- how many are in use, and how many there may be
SELECT (SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL),
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int;

-- role_use -- by role, its limit, the connections it has, from how many hosts, and how many the server lets in
SELECT r.rolname, r.rolconnlimit, count(a.pid), count(DISTINCT coalesce(host(a.client_addr), '')),
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
FROM pg_roles r LEFT JOIN pg_stat_activity a ON a.usename = r.rolname
WHERE r.rolname = ANY (%(roles)s::text[]) GROUP BY 1, 2 ORDER BY 1;

-- jobs -- how many are due, for how long the oldest, how many a lost worker has, and how many are uncertain
SELECT count(*) FILTER (WHERE state = 'waiting' AND not_before <= now()),
    coalesce(extract(epoch FROM now() - min(not_before) FILTER (WHERE state = 'waiting' AND not_before <= now())), 0),
    count(*) FILTER (WHERE state IN ('claimed', 'attempting') AND lease_until < now() - interval '5 minutes'),
    count(*) FILTER (WHERE state = 'uncertain')
FROM opensend_milter.jobs;

-- moved_on -- how many jobs wait though their emails do not
SELECT count(*) FROM opensend_milter.jobs j WHERE j.state = 'waiting' AND NOT EXISTS (
    SELECT FROM public.emails e WHERE e.id = j.email_id AND e.status IN ('queued', 'scheduled'));

-- reports -- how many are not taken up yet, and how old the oldest is
SELECT count(*), coalesce(extract(epoch FROM now() - min(received_at)), 0) FROM opensend_milter.feedback;

-- lane_answers -- by lane, how many of the last recipients there were, and how many of them the next hop did not know
WITH RECURSIVE lane AS (
    (SELECT user_id, courier FROM opensend_milter.lane_answers ORDER BY user_id, courier LIMIT 1)
    UNION ALL
    SELECT n.user_id, n.courier FROM lane l CROSS JOIN LATERAL (
        SELECT user_id, courier FROM opensend_milter.lane_answers
        WHERE (user_id, courier) > (l.user_id, l.courier) ORDER BY user_id, courier LIMIT 1) n
)
SELECT lane.user_id, lane.courier, counted.recipients, counted.unknown FROM lane CROSS JOIN LATERAL (
    SELECT sum(recipients)::integer AS recipients, sum(unknown)::integer AS unknown FROM (
        SELECT recipients, unknown, sum(recipients) OVER (ORDER BY id DESC) - recipients AS newer FROM (
            SELECT id, recipients, unknown FROM opensend_milter.lane_answers
            WHERE user_id = lane.user_id AND courier = lane.courier AND noted_at > now() - %(age)s::interval
            ORDER BY id DESC LIMIT %(most)s) newest) one
    WHERE newer < %(most)s) counted
WHERE counted.unknown > 0;

-- client_addresses -- of the newest messages by SMTP, taken or not, the last one's client address
SELECT client_address FROM (
    (SELECT received_at AS at, front_door, client_address FROM opensend_milter.submissions
        ORDER BY received_at DESC LIMIT 1000)
    UNION ALL
    (SELECT refused_at, front_door, client_address FROM opensend_milter.refusals ORDER BY refused_at DESC LIMIT 1000)
) AS newest WHERE front_door = 'smtp' ORDER BY at DESC LIMIT 1;

-- workers -- how many connections workers have
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'opensend-worker%%';
