-- named -- by an id, the range that ids lie in, a queue id, or what the provider calls a message
WITH found (id) AS (
    (SELECT id FROM public.emails WHERE id BETWEEN %(first)s::uuid AND %(last)s::uuid ORDER BY id DESC LIMIT %(examined)s)
    UNION ALL
    (SELECT email_id FROM opensend_milter.submissions WHERE queue_id = %(queue_id)s
        ORDER BY received_at DESC LIMIT %(examined)s)
    UNION ALL
    (SELECT email_id FROM opensend_milter.submissions WHERE provider_id = %(provider_id)s LIMIT %(examined)s)
)
-- include: hits

-- named_refusals -- by its number, or a queue id
WITH found (id) AS (
    SELECT id FROM opensend_milter.refusals WHERE id = %(number)s::bigint
    UNION ALL
    (SELECT id FROM opensend_milter.refusals WHERE queue_id = %(queue_id)s ORDER BY id DESC LIMIT %(examined)s)
)
-- include: refused
