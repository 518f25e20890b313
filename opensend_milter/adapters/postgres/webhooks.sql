-- claim -- lease deliveries that are due, of each webhook the oldest; who is lost in a call gives it back by time
-- By chance: a webhook with a long list must not be the first each time.
WITH turn AS MATERIALIZED (
    SELECT w.id FROM public.webhooks w
    WHERE w.status = 'active' AND w.id <> ALL (%(full)s::uuid[]) AND EXISTS (
        SELECT FROM public.webhook_deliveries p
        WHERE p.webhook_id = w.id AND p.status = 'pending' AND coalesce(p.next_retry_at, p.created_at) <= now())
    ORDER BY random() LIMIT %(limit)s
-- MATERIALIZED: a join may run a subquery once per row, and each time the lock finds other rows.
), due AS MATERIALIZED (
    SELECT d.id FROM turn CROSS JOIN LATERAL (
        SELECT p.id FROM public.webhook_deliveries p
        WHERE p.webhook_id = turn.id AND p.status = 'pending' AND coalesce(p.next_retry_at, p.created_at) <= now()
        ORDER BY coalesce(p.next_retry_at, p.created_at) LIMIT 1 FOR UPDATE SKIP LOCKED) d
), claimed AS (
    UPDATE public.webhook_deliveries d
    SET attempt = d.attempt + 1, attempted_at = now(), next_retry_at = now() + %(lease)s::interval
    FROM due WHERE d.id = due.id
    RETURNING d.id, d.attempt, d.webhook_id, d.event_id
)
SELECT c.id::text AS id, c.attempt, w.id::text AS webhook_id, w.url, coalesce(s.generation, 1) AS generation,
    s.rotated_at, e.id::text AS event_id, e.type, e.received_at, e.email_id::text AS email_id, e.payload,
    -- What is older is told as it was told then: a receiver may have had it already.
    coalesce(e.received_at >= (SELECT g.applied_at FROM opensend_milter.migrations g
        WHERE g.name = 'ours/0009_inline_bounces'), false) AS is_told_in_full,
    m.created_at, m."from" AS sender, m."to", left(m.subject, 1000) AS subject, m.tags,
    m.document -> 'metadata' AS metadata, o.message_id, o.queue_id, o.recipients,
    coalesce(o.key_id::text, e.payload ->> 'key_id') AS key_id,
    -- Of a message that was refused for its recipients only the event says whose it was.
    (SELECT a.name FROM public.api_keys a WHERE a.id = coalesce(o.key_id,
        CASE WHEN e.email_id IS NULL AND e.type = 'suppressed' THEN (e.payload ->> 'key_id')::uuid END)) AS key_name
FROM claimed c
    JOIN public.webhooks w ON w.id = c.webhook_id
    JOIN public.email_events e ON e.id = c.event_id
    LEFT JOIN opensend_milter.webhook_settings s ON s.webhook_id = c.webhook_id
    LEFT JOIN public.emails m ON m.id = e.email_id
    LEFT JOIN opensend_milter.submissions o ON o.email_id = e.email_id;

-- record -- what came of an attempt; a yes counts however late, anything else only of the latest attempt
UPDATE public.webhook_deliveries
SET status = %(status)s::text, status_code = %(code)s, response_body = %(text)s,
    next_retry_at = now() + %(pause)s::interval
WHERE id = %(id)s::uuid AND status <> 'success'
    AND (%(status)s::text = 'success' OR (status = 'pending' AND attempt = %(attempt)s))
RETURNING true;

-- add -- a webhook of a user
INSERT INTO public.webhooks (url, event_types, user_id) VALUES (%(url)s, %(event_types)s::jsonb, %(user_id)s)
RETURNING id::text;

-- list -- webhooks of one user or of all, or those whose id begins or ends so, with what came of the latest attempt
SELECT w.id::text AS id, w.url, w.event_types, w.status, w.user_id, w.created_at,
    coalesce(s.generation, 1) AS generation, s.rotated_at,
    l.status AS last_status, l.status_code AS last_code, l.attempted_at AS last_attempted_at,
    (SELECT count(*) FROM public.webhook_deliveries d WHERE d.webhook_id = w.id AND d.status = 'pending') AS pending
FROM public.webhooks w
    LEFT JOIN opensend_milter.webhook_settings s ON s.webhook_id = w.id
    LEFT JOIN LATERAL (
        SELECT d.status, d.status_code, d.attempted_at FROM public.webhook_deliveries d
        WHERE d.webhook_id = w.id AND d.attempted_at IS NOT NULL ORDER BY d.attempted_at DESC LIMIT 1) l ON true
WHERE (%(user_id)s::text IS NULL OR w.user_id = %(user_id)s)
    AND (starts_with(w.id::text, %(named)s) OR right(w.id::text, 12) = %(named)s)
ORDER BY w.created_at, w.id;

-- remove -- forget a webhook, with its deliveries
WITH settings AS (DELETE FROM opensend_milter.webhook_settings WHERE webhook_id = %(id)s::uuid)
DELETE FROM public.webhooks WHERE id = %(id)s::uuid;

-- rotate -- the next secret
INSERT INTO opensend_milter.webhook_settings (webhook_id, generation, rotated_at) VALUES (%(id)s::uuid, 2, now())
ON CONFLICT (webhook_id) DO UPDATE SET generation = webhook_settings.generation + 1, rotated_at = now();

-- events -- events that one webhook was to be told, by how their ids begin or end
SELECT DISTINCT event_id::text AS id FROM public.webhook_deliveries
WHERE webhook_id = %(id)s::uuid
    AND (event_id BETWEEN %(first)s::uuid AND %(last)s::uuid OR right(event_id::text, 12) = %(end)s)
ORDER BY 1 LIMIT 21;

-- replay -- make deliveries due again, but not those that somebody has just in hand
UPDATE public.webhook_deliveries SET status = 'pending', attempt = 0, next_retry_at = NULL
WHERE webhook_id = %(id)s::uuid
    AND (%(event_id)s::uuid IS NULL OR event_id = %(event_id)s::uuid)
    AND (%(since)s::timestamptz IS NULL OR created_at >= %(since)s)
    AND (NOT %(failed)s OR status IN ('dead_letter', 'failed'))
    AND (status <> 'pending' OR (attempt > 0 AND attempted_at < now() - %(lease)s::interval));

-- deliveries -- of one webhook, latest first
SELECT d.id::text AS id, d.event_id::text AS event_id, 'email.' || e.type AS type, e.email_id::text AS email_id,
    d.status, d.attempt, d.status_code AS code, d.attempted_at, d.next_retry_at, d.created_at, d.response_body AS text
FROM public.webhook_deliveries d JOIN public.email_events e ON e.id = d.event_id
WHERE d.webhook_id = %(id)s::uuid AND (%(status)s::text IS NULL OR d.status = %(status)s)
ORDER BY d.created_at DESC, d.id LIMIT %(limit)s;
