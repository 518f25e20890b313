-- named -- by an id, the range that ids lie in, a queue id, or what the provider calls a message
WITH found (id) AS (
    (SELECT id FROM public.emails WHERE id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY id DESC LIMIT %(most_named)s)
    UNION ALL
    (SELECT email_id FROM opensend_milter.submissions WHERE queue_id = %(queue_id)s
        ORDER BY received_at DESC LIMIT %(most_named)s)
    UNION ALL
    (SELECT email_id FROM opensend_milter.submissions WHERE provider_id = %(provider_id)s LIMIT %(most_named)s)
)
-- include: hits

-- named_refusals -- by its number, or a queue id
WITH found (id) AS (
    SELECT id FROM opensend_milter.refusals WHERE id = %(number)s::bigint
    UNION ALL
    (SELECT id FROM opensend_milter.refusals WHERE queue_id = %(queue_id)s ORDER BY id DESC LIMIT %(most_named)s)
    UNION ALL
    SELECT id FROM opensend_milter.refusals WHERE ref = %(ref)s
)
-- include: refused

-- reader -- whose a key is, and whether it reads all that is its user's
SELECT user_id, permission = 'full_access' FROM public.api_keys WHERE id = %(reads_by)s::uuid;

-- noted_to -- the place of the message up to which all are noted
SELECT nullif(noted_at, 'epoch'), noted_id FROM opensend_milter.search_progress;

-- newest -- the next messages, newest first, each with what it is known by
-- include: newest, whose = true

-- newest_of_user -- the same of one user
-- include: newest, whose = user_id = %(of_user)s

-- listed -- the next messages, newest first
-- include: listed, whose = true

-- listed_of_user -- the same of one user
-- include: listed, whose = user_id = %(of_user)s

-- noted -- the next messages that are noted under all of these terms
WITH found AS MATERIALIZED (
    SELECT n.email_id, n.created_at
    FROM (
        SELECT number FROM opensend_milter.search_stretches
        WHERE %(before)s::timestamptz IS NULL OR began_at <= %(before)s ORDER BY number DESC) g
    CROSS JOIN LATERAL (
        SELECT email_id, created_at FROM opensend_milter.search
        WHERE terms @>
                -- include: laid, terms = %(terms)s::bigint[], number = g.number
            AND (%(before)s::timestamptz IS NULL OR (created_at, email_id) < (%(before)s, %(before_id)s::uuid))
            AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
        ORDER BY created_at DESC, email_id DESC LIMIT %(limit)s) n
    -- By that alone, which they come in: so it ends where there are enough, whatever Postgres expects.
    ORDER BY g.number DESC LIMIT %(limit)s
)
SELECT f.email_id::text, f.created_at, k.*
FROM found f LEFT JOIN LATERAL (
    -- include: known_of, id = f.email_id
    ) k ON true
ORDER BY f.created_at DESC, f.email_id DESC;

-- these -- some messages
WITH found (id) AS (SELECT unnest(%(ids)s::uuid[]))
-- include: hits

-- newest_refusals -- the next refusals, newest first, each with what it is known by
-- include: newest_refused, whose = true

-- newest_refusals_of_user -- the same of one user
-- include: newest_refused, whose = user_id = %(of_user)s

-- these_refusals -- some refusals
WITH found (id) AS (SELECT unnest(%(ids)s::bigint[]))
-- include: refused
