-- email -- what is recorded of one email, but nothing of its contents
SELECT e.id::text, e.user_id, e.status, e.created_at, e.scheduled_at, e."from", e.subject, e."to", e.cc, e.bcc,
    s.front_door, s.client_address, s.tls, s.key_id::text, k.name, s.sender, s.queue_id, s.message_id, s.size_bytes,
    s.repeats, s.repeated_at, s.raw_dropped_at, s.recipients, s.dropped, r.fared, r.noted,
    j.state, j.attempts, j.recipients, j.last_error, j.not_before, j.announce_at, j.uncertain_at
FROM public.emails e LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id
    -- include: standing, email_id = e.id
    LEFT JOIN public.api_keys k ON k.id = s.key_id
WHERE e.id = %(id)s::uuid;

-- events -- what happened to it, the newest; opens and clicks, which may be many, are counted
WITH event AS MATERIALIZED (
    SELECT id, received_at, type, payload, user_id FROM public.email_events
    WHERE email_id = %(id)s::uuid AND type NOT IN ('opened', 'clicked')
    ORDER BY received_at DESC, id LIMIT %(most)s
), visit AS MATERIALIZED (
    SELECT received_at, type FROM public.email_events
    WHERE email_id = %(id)s::uuid AND type IN ('opened', 'clicked') LIMIT %(most_visits)s
)
SELECT v.received_at AS at, v.type, v.payload, 1 AS count, v.received_at AS last_at, t.told
FROM event v LEFT JOIN LATERAL (
    SELECT jsonb_agg(jsonb_build_array(w.id, w.url, d.status, d.attempt, d.status_code, d.attempted_at, d.next_retry_at)
        ORDER BY w.id) AS told
    FROM public.webhooks w JOIN public.webhook_deliveries d ON d.id =
        -- include: delivery_id, event = v.id, webhook = w.id
    WHERE w.user_id = v.user_id) t ON true
UNION ALL
SELECT min(received_at), type, '{}', count(*), max(received_at), NULL FROM visit GROUP BY type
ORDER BY at;

-- listings -- which of these recipients are on their user's suppression list now, in whatever spelling
SELECT DISTINCT ON (a.recipient) a.recipient, l.email, l.reason, l.suppressed_at,
    coalesce(l.source_email_id = %(id)s::uuid, false)
FROM unnest(%(recipients)s::text[], %(spellings)s::text[]) AS a (recipient, spelling)
    CROSS JOIN LATERAL (
        SELECT a.spelling AS email
        UNION ALL
        SELECT o.email FROM opensend_milter.odd_spellings o WHERE o.user_id = %(user_id)s AND o.folded = a.spelling) known
    JOIN public.email_suppressions l ON l.user_id = %(user_id)s AND l.email = known.email
ORDER BY a.recipient, l.suppressed_at;

-- refusal -- what is recorded of a message that was not taken
SELECT f.id::text, f.refused_at, f.rule, f.code, f.enhanced, f.text, f.front_door, f.queue_id, f.client_address,
    f.key_id, k.name, f.user_id, f.sender, f.recipients, f.message_id, f.size_bytes
FROM opensend_milter.refusals f LEFT JOIN public.api_keys k ON k.id::text = f.key_id
WHERE f.id = %(id)s::bigint;

-- keys -- keys by either end of an id, or by name
SELECT id::text, name FROM public.api_keys
WHERE length(%(start)s) >= 4 AND starts_with(id::text, %(start)s) OR right(id::text, 12) = %(start)s OR name = %(name)s
ORDER BY created_at, id LIMIT %(most)s;
