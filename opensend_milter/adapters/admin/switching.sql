-- server -- what answers, as whom, and which of these tables it has
SELECT current_database(), current_setting('server_encoding'), current_user::text,
    ARRAY(SELECT relname::text FROM pg_class
        WHERE relnamespace = to_regnamespace('public') AND relname = ANY (%(tables)s) ORDER BY 1);

-- limit_time -- how long each statement of this transaction may take
SELECT set_config('statement_timeout', %(limit)s, true);

-- lacking -- of these columns, what this role may not read, or not all rows of: the right, and the GRANT
WITH asked AS (
    SELECT c.oid, c.relname, bool_and(has_column_privilege(c.oid, a.attnum, 'SELECT')) AS readable
    FROM unnest(%(tables)s::text[], %(columns)s::text[]) AS r (table_name, column_name)
        JOIN pg_class c ON c.relname = r.table_name AND c.relnamespace = to_regnamespace('public')
        JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = r.column_name
    GROUP BY c.oid, c.relname
)
SELECT 'use the schema public', format('GRANT USAGE ON SCHEMA public TO %%I;', current_user)
WHERE NOT has_schema_privilege('public', 'USAGE')
UNION ALL
(SELECT 'read public.' || relname, format('GRANT SELECT ON public.%%I TO %%I;', relname, current_user)
    FROM asked WHERE NOT readable ORDER BY relname)
UNION ALL
(SELECT 'see all rows of public.' || relname, format('ALTER ROLE %%I BYPASSRLS;', current_user)
    FROM asked WHERE row_security_active(oid) ORDER BY relname);

-- unique_indexes -- by table, the columns of each index that keeps two rows from being alike
SELECT t.relname::text, ARRAY(
    SELECT a.attname::text FROM pg_attribute a
    WHERE a.attrelid = t.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) ORDER BY 1)
FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
WHERE t.relnamespace = to_regnamespace('public') AND t.relname = ANY (%(tables)s)
    AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
    -- A column of PostgreSQL 15 and later: there NULL may be like NULL.
    AND to_jsonb(i) ->> 'indnullsnotdistinct' IS DISTINCT FROM 'true';

-- migrating -- what this role has of what `db migrate` needs, and which of our roles and schema are there already
SELECT me.rolsuper, me.rolcreaterole,
    to_regnamespace('opensend_milter') IS NOT NULL,
    has_database_privilege(current_database(), 'CREATE'),
    pg_is_in_recovery(),
    ARRAY(SELECT DISTINCT pg_get_userbyid(c.relowner)::text FROM pg_class c
        WHERE c.relnamespace = to_regnamespace('public') AND c.relname = ANY (%(tables)s)
            AND NOT pg_has_role(c.relowner, 'USAGE') ORDER BY 1),
    ARRAY(SELECT r.rolname::text FROM pg_roles r WHERE r.rolname = ANY (%(roles)s) ORDER BY 1),
    ARRAY(SELECT r.rolname::text FROM pg_roles r WHERE r.rolname = ANY (%(roles)s)
            AND current_setting('server_version_num')::integer >= 160000
            AND NOT pg_has_role(r.oid, 'USAGE WITH ADMIN OPTION') ORDER BY 1)
FROM pg_roles me WHERE me.rolname = current_user;

-- key_counts -- keys: all, and those without a user, which nobody takes
SELECT count(*), count(*) FILTER (WHERE user_id IS NULL) FROM public.api_keys;

-- bound_keys -- keys that are bound to a domain, and its name where that is a domain of the key's user
SELECT k.name, coalesce(k.token_preview, ''), k.permission, k.user_id, r.restriction,
    CASE WHEN r.restriction ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        THEN (SELECT lower(d.name) FROM public.domains d WHERE d.id = r.restriction::uuid AND d.user_id = k.user_id)
        ELSE r.restriction END
FROM public.api_keys k CROSS JOIN LATERAL (SELECT nullif(lower(btrim(k.domain)), '')) AS r (restriction)
WHERE k.user_id IS NOT NULL AND r.restriction IS NOT NULL
ORDER BY k.name, k.id LIMIT %(most)s;

-- verified -- which of these users have which of these domains verified
SELECT DISTINCT a.user_id, a.ascii_domain
FROM unnest(%(user_ids)s::text[], %(ascii_domains)s::text[], %(unicode_domains)s::text[])
        AS a (user_id, ascii_domain, unicode_domain)
    JOIN public.domains d ON d.user_id = a.user_id AND lower(d.name) IN (a.ascii_domain, a.unicode_domain)
WHERE d.status = 'verified';

-- verified_count -- how many domains are verified
SELECT count(*) FROM public.domains WHERE status = 'verified' AND user_id IS NOT NULL;

-- shared_domains -- names that several users have, with how many such names there are
SELECT lower(name), count(DISTINCT user_id), count(*) OVER ()
FROM public.domains WHERE user_id IS NOT NULL
GROUP BY lower(name) HAVING count(DISTINCT user_id) > 1
ORDER BY 1 LIMIT %(most)s;

-- newest -- the newest rows, by the index of created_at, never their content; a list that is no list of texts is NULL
SELECT e.id::text, e.user_id, e."from",
    CASE WHEN jsonb_typeof(e."to") = 'array' AND jsonb_typeof(e.cc) = 'array' AND jsonb_typeof(e.bcc) = 'array'
        THEN ARRAY(SELECT DISTINCT CASE jsonb_typeof(v) WHEN 'string' THEN v #>> '{}' END
            FROM jsonb_array_elements(e."to" || e.cc || e.bcc) AS one (v) LIMIT %(recipients)s) END,
    CASE WHEN jsonb_typeof(e.reply_to) = 'array'
        THEN ARRAY(SELECT CASE jsonb_typeof(v) WHEN 'string' THEN v #>> '{}' END
            FROM jsonb_array_elements(e.reply_to) AS one (v) LIMIT %(recipients)s) END,
    e.body_bytes, e.attachment_bytes
FROM (
    SELECT id, user_id, "from", "to", coalesce(nullif(cc, 'null'), '[]') AS cc, coalesce(nullif(bcc, 'null'), '[]') AS bcc,
        coalesce(nullif(reply_to, 'null'), '[]') AS reply_to,
        -- Of a long value these two read nothing but its length.
        (coalesce(octet_length(html), 0) + coalesce(octet_length(text), 0))::bigint AS body_bytes,
        coalesce(pg_column_size(attachments), 0)::bigint AS attachment_bytes
    FROM public.emails ORDER BY created_at DESC LIMIT %(rows)s
) e;

-- suppressed -- recipients of rows that were on the suppression list when the row was made
SELECT DISTINCT a.place, a.recipient, s.reason
FROM unnest(%(places)s::integer[], %(ids)s::uuid[], %(user_ids)s::text[], %(recipients)s::text[],
        %(spellings)s::text[]) AS a (place, id, user_id, recipient, spelling)
    JOIN public.email_suppressions s ON s.user_id = a.user_id AND s.email = a.spelling
    JOIN public.emails e ON e.id = a.id AND s.suppressed_at <= e.created_at;

-- has_billing -- whether there is a table of what is counted for bills
SELECT to_regclass('public.usage_periods') IS NOT NULL;

-- bills -- whether anything was ever counted for a bill
SELECT EXISTS (SELECT FROM public.usage_periods);

-- late -- how many rows have been queued for longer than ten minutes, as far as it is worth counting
SELECT count(*) FROM (
    SELECT FROM public.emails WHERE status = 'queued' AND created_at < now() - interval '10 minutes' LIMIT %(most)s
) late;
