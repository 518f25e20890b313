-- event -- of what is `said (email_id, type, payload, source_id, user_id)` an event, unless it is there already
event AS (
    INSERT INTO public.email_events (email_id, type, payload, source_id, user_id)
    SELECT email_id, type, payload, source_id, user_id FROM said
    ON CONFLICT (source_id) DO NOTHING
    RETURNING id, user_id, type
), delivery AS (
    -- include: deliveries, user_id = {user_id}, type = {type}
)

-- deliveries -- of each `event` a delivery for each webhook of its user that asked for its type
INSERT INTO public.webhook_deliveries (webhook_id, event_id, attempt, status, id)
SELECT w.id, event.id, 0, 'pending',
    -- include: delivery_id, event = event.id, webhook = w.id
FROM event JOIN public.webhooks w ON w.user_id = {user_id}
WHERE w.status = 'active' AND w.event_types ? ('email.' || {type})

-- odd -- of what is `listed (user_id, email, folded)`, what is compared by another spelling
odd AS (
    INSERT INTO opensend_milter.odd_spellings (user_id, email, folded)
    SELECT user_id, email, folded FROM listed WHERE folded <> email ORDER BY user_id, email
    ON CONFLICT (user_id, email) DO NOTHING
)

-- answered -- of a `job (email_id, user_id)`: who fared otherwise than it, how many got an answer, and reports of those who are unknown
result AS (
    INSERT INTO opensend_milter.recipient_results (email_id, address, outcome, reason, courier)
    SELECT job.email_id, r.address, r.outcome, r.reason, %(courier)s
    FROM job, unnest(%(addresses)s::text[], %(outcomes)s::text[], %(reasons)s::text[])
        AS r (address, outcome, reason)
    ON CONFLICT (email_id, address) DO UPDATE
    SET outcome = excluded.outcome, reason = excluded.reason, courier = excluded.courier, noted_at = now()
), lane AS (
    INSERT INTO opensend_milter.lane_answers (user_id, courier, recipients, unknown)
    SELECT job.user_id, %(courier)s, %(answered)s::integer, %(unknown)s::integer FROM job WHERE %(answered)s::integer > 0
), report AS (
    INSERT INTO opensend_milter.feedback (kind, source_id, email_id, payload)
    SELECT 'bounced', r.source_id, job.email_id, r.payload
    FROM job, unnest(%(report_ids)s::text[], %(reports)s::jsonb[]) AS r (source_id, payload)
)

-- hits -- emails that are `found (id)`, as far as scope and filters let them through, newest first
SELECT e.id::text, e.created_at, CASE j.state WHEN 'uncertain' THEN j.state ELSE e.status END, e."from", s.from_address,
    s.sender, s.recipients, e."to", e.cc, e.bcc, s.dropped, e.subject, s.message_id, s.queue_id, k.name
FROM (SELECT DISTINCT id FROM found) AS f (email_id) JOIN public.emails e ON e.id = f.email_id
    LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id
    LEFT JOIN opensend_milter.jobs j ON j.email_id = e.id
    LEFT JOIN public.api_keys k ON k.id = s.key_id
WHERE (%(user_id)s::text IS NULL OR e.user_id = %(user_id)s)
    -- What a key may see is its own; with full access all of its user's.
    AND (%(reads_by)s::uuid IS NULL OR EXISTS (
        SELECT FROM public.api_keys r
        WHERE r.id = %(reads_by)s AND r.user_id = e.user_id AND (r.id = s.key_id OR r.permission = 'full_access')))
    AND (%(before)s::timestamptz IS NULL OR (e.created_at, e.id) < (%(before)s, %(before_id)s::uuid))
    AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s)
    AND (%(key_id)s::uuid IS NULL OR s.key_id = %(key_id)s)
    AND (%(domains)s::text[] IS NULL OR lower(substring(coalesce(s.from_address, e."from") FROM '@([^@<>]*)>?$'))
        = ANY (%(domains)s))
    AND (%(status)s::text IS NULL OR CASE j.state WHEN 'uncertain' THEN j.state ELSE e.status END = %(status)s)
    AND (%(courier)s::text IS NULL OR j.courier = %(courier)s
        OR EXISTS (SELECT FROM opensend_milter.recipient_results r WHERE r.email_id = e.id AND r.courier = %(courier)s)
        OR EXISTS (SELECT FROM public.email_events v
            WHERE v.email_id = e.id AND v.type IN ('sent', 'delayed') AND v.payload ->> 'courier' = %(courier)s))
ORDER BY e.created_at DESC, e.id DESC LIMIT %(limit)s

-- refused -- refusals that are `found (id)`, as far as scope and filters let them through, newest first
SELECT r.id::text, r.refused_at, r.rule, r.sender, r.recipients, r.message_id, r.queue_id, k.name, r.ref
FROM (SELECT DISTINCT id FROM found) AS f (refusal_id) JOIN opensend_milter.refusals r ON r.id = f.refusal_id
    LEFT JOIN public.api_keys k ON k.id::text = r.key_id
WHERE (%(user_id)s::text IS NULL OR r.user_id = %(user_id)s)
    AND (%(reads_by)s::uuid IS NULL OR EXISTS (
        SELECT FROM public.api_keys o WHERE o.id = %(reads_by)s
            AND (o.id::text = r.key_id OR o.permission = 'full_access' AND o.user_id = r.user_id)))
    AND (%(before)s::timestamptz IS NULL OR (r.refused_at, r.id) < (%(before)s, %(before_no)s::bigint))
    AND (%(since)s::timestamptz IS NULL OR r.refused_at >= %(since)s)
    AND (%(key_id)s::uuid IS NULL OR r.key_id = %(key_id)s::uuid::text)
    AND (%(domains)s::text[] IS NULL OR lower(substring(r.sender FROM '@([^@<>]*)>?$')) = ANY (%(domains)s))
    AND (%(rule)s::text IS NULL OR r.rule = %(rule)s)
ORDER BY r.refused_at DESC, r.id DESC LIMIT %(limit)s

-- delivery_id -- of an event's delivery to a webhook: by it that is found, since no index of OpenSend's knows the event
encode(substring(sha256(uuid_send({event}) || uuid_send({webhook})) FOR 16), 'hex')::uuid

-- standing -- of an email, what says where each of its recipients stands
LEFT JOIN opensend_milter.jobs j ON j.email_id = {email_id}
LEFT JOIN LATERAL (
    SELECT max(f.noted_at) AS at, jsonb_object_agg(f.address, f.noted_at) AS noted,
        jsonb_agg(jsonb_build_array(f.address, f.outcome, f.reason) ORDER BY f.address) AS fared
    FROM opensend_milter.recipient_results f WHERE f.email_id = {email_id}) r ON true

-- progress -- how far an email `e` is, of which `s` is our record
e.id::text AS email_id, e.status,
-- What is under way, or of unknown outcome, has left no event yet.
coalesce(h.attempts, 0) + coalesce((j.state IN ('attempting', 'uncertain'))::integer, 0) AS attempts,
e.created_at, greatest(e.created_at, e.sent_at, s.changed_at, r.at, h.at, j.uncertain_at) AS updated_at, e.scheduled_at,
s.recipients, r.fared, s.dropped, s.message_id, s.queue_id, s.provider_id,
coalesce(v.payload ->> 'reply', v.payload ->> 'reason', '') AS reply,
j.state AS work_state, j.attempts AS work_attempts, j.recipients AS work_left, j.last_error AS work_reason,
e.status = 'bounced' AND e.sent_at IS NULL AS never_left

-- history -- what `progress` is told from
-- include: standing, email_id = e.id
LEFT JOIN LATERAL (
    SELECT max(h.received_at) AS at, count(*) FILTER (WHERE h.type = 'sent' OR h.payload ? 'attempt') AS attempts
    FROM public.email_events h WHERE h.email_id = e.id) h ON true
LEFT JOIN LATERAL (
    SELECT h.payload FROM public.email_events h
    WHERE h.email_id = e.id AND (h.type IN ('sent', 'failed', 'delayed') OR h.payload ? 'attempt')
    ORDER BY h.received_at DESC, h.id LIMIT 1) v ON true

-- staged -- the {list} of the attachments of an {email}, each with the content that waits in `pieces`
SELECT jsonb_agg(a.fields || jsonb_build_object('content', (
    SELECT string_agg(p.content, '' ORDER BY p.piece_no) FROM opensend_milter.pieces p
    WHERE p.email_id = {email} AND p.attachment_no = a.no)) ORDER BY a.no)
FROM jsonb_array_elements({list}) WITH ORDINALITY AS a (fields, no)

-- lacking -- whether the row `e` only names its attachments; one that is larger than any list of names has them
CASE WHEN pg_column_size(e.attachments) > 1000000 THEN false
    ELSE jsonb_path_exists(e.attachments, '$[*] ? (!exists(@.content))') END

-- known -- by what an email `e`, of which `s` is our record, is known
e."from", s.from_address, s.sender, s.recipients, e."to", e.cc, e.bcc, s.dropped, e.subject, s.message_id, e.user_id,
s.key_id::text

-- known_of -- the same of one; OFFSET 0 keeps Postgres, which cannot know how few are asked for, from reading all of the tables
SELECT
    -- include: known
FROM public.emails e LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id WHERE e.id = {id} OFFSET 0

-- newest -- the next messages but for those that are noted, where it is {whose}; each bound is one that an index knows
SELECT p.id::text, p.created_at, k.*
FROM (
    SELECT id, created_at FROM public.emails
    WHERE {whose}
        AND (created_at, id) > (coalesce(%(noted_at)s::timestamptz, '-infinity'), %(noted_id)s::uuid)
        AND (created_at, id) < (coalesce(%(before)s::timestamptz, 'infinity'), %(before_id)s::uuid)
        AND created_at >= coalesce(%(since)s::timestamptz, '-infinity')
    ORDER BY created_at DESC, id DESC LIMIT %(limit)s) p
LEFT JOIN LATERAL (
    -- include: known_of, id = p.id
    ) k ON true
ORDER BY p.created_at DESC, p.id DESC;

-- listed -- the next messages, where it is {whose}; each bound is one that an index knows
SELECT id::text, created_at FROM public.emails
WHERE {whose}
    AND (created_at, id) < (coalesce(%(before)s::timestamptz, 'infinity'), %(before_id)s::uuid)
    AND created_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY created_at DESC, id DESC LIMIT %(limit)s;

-- newest_refused -- the next refusals, where it is {whose}; each bound of time is one that an index knows
SELECT id, refused_at, sender, recipients, message_id FROM opensend_milter.refusals
WHERE {whose}
    AND (refused_at, id) < (coalesce(%(before)s::timestamptz, 'infinity'), %(before_no)s::bigint)
    AND refused_at >= coalesce(%(since)s::timestamptz, '-infinity')
ORDER BY refused_at DESC, id DESC LIMIT %(limit)s;

-- laid -- terms as they are noted: with the number of a stretch of time before each
ARRAY(SELECT {number} << 44 | term FROM unnest({terms}) AS t (term))
