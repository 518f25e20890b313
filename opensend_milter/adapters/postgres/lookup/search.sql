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

-- user_of -- whose a key is
SELECT (SELECT user_id FROM public.api_keys WHERE id = %(reads_by)s::uuid);

-- newest -- the next messages, newest first, each with what it is known by
SELECT e.id::text, e.created_at, e."from", s.from_address, s.sender, s.recipients, e."to", e.cc, e.bcc, s.dropped, e.subject,
    s.message_id
FROM public.emails e LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id
WHERE (%(of_user)s::text IS NULL OR e.user_id = %(of_user)s)
    AND (%(before)s::timestamptz IS NULL OR (e.created_at, e.id) < (%(before)s, %(before_id)s::uuid))
    AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s)
ORDER BY e.created_at DESC, e.id DESC LIMIT %(limit)s;

-- these -- some messages
WITH found (id) AS (SELECT unnest(%(ids)s::uuid[]))
-- include: hits

-- newest_refusals -- the next refusals, newest first, each with what it is known by
SELECT r.id, r.refused_at, r.sender, r.recipients, r.message_id FROM opensend_milter.refusals r
WHERE (%(of_user)s::text IS NULL OR r.user_id = %(of_user)s)
    AND (%(before)s::timestamptz IS NULL OR (r.refused_at, r.id) < (%(before)s, %(before_no)s::bigint))
    AND (%(since)s::timestamptz IS NULL OR r.refused_at >= %(since)s)
ORDER BY r.refused_at DESC, r.id DESC LIMIT %(limit)s;

-- these_refusals -- some refusals
WITH found (id) AS (SELECT unnest(%(ids)s::bigint[]))
-- include: refused
