-- caller -- the key that a secret's hash belongs to, and what is asked of it before any message
SELECT k.id AS key_id, c.networks, coalesce(c.may_bulk, true) AS may_bulk
FROM (SELECT opensend_milter.key_id(%(token_hash)s) AS id) k
    LEFT JOIN opensend_milter.key_settings c ON c.key_id = k.id::uuid;

-- key -- what a key may see of itself
SELECT k.id::text AS id, k.name, k.permission, nullif(btrim(k.domain), '') IS NOT NULL AS restricted,
    (SELECT lower(d.name) FROM public.domains d WHERE d.user_id = k.user_id AND d.id::text = lower(btrim(k.domain)))
        AS domain,
    k.created_at, k.last_used_at, to_jsonb(c) - 'key_id' AS settings
FROM public.api_keys k LEFT JOIN opensend_milter.key_settings c ON c.key_id = k.id
WHERE k.id = %(key_id)s::uuid AND k.user_id IS NOT NULL;

-- submission -- one message of a key
SELECT s.email_id::text AS email_id, e.status,
    -- What is under way, or of unknown outcome, has left no event yet.
    coalesce(h.attempts, 0) + coalesce((j.state IN ('attempting', 'uncertain'))::integer, 0) AS attempts,
    e.created_at, greatest(e.created_at, e.sent_at, r.at, h.at, j.uncertain_at) AS updated_at, e.scheduled_at, s.recipients,
    r.fared, s.dropped, s.message_id, s.queue_id, s.provider_id,
    coalesce(v.payload ->> 'reply', v.payload ->> 'reason', '') AS reply,
    j.state AS work_state, j.attempts AS work_attempts, j.recipients AS work_left, j.last_error AS work_reason,
    e.status = 'bounced' AND e.sent_at IS NULL AS never_left
FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
    -- include: standing, email_id = s.email_id
    LEFT JOIN LATERAL (
        SELECT max(h.received_at) AS at, count(*) FILTER (WHERE h.type = 'sent' OR h.payload ? 'attempt') AS attempts
        FROM public.email_events h WHERE h.email_id = s.email_id) h ON true
    LEFT JOIN LATERAL (
        SELECT h.payload FROM public.email_events h
        WHERE h.email_id = s.email_id AND (h.type IN ('sent', 'failed', 'delayed') OR h.payload ? 'attempt')
        ORDER BY h.received_at DESC, h.id LIMIT 1) v ON true
WHERE s.key_id = %(key_id)s::uuid AND s.email_id = ANY (%(ids)s::uuid[]);

-- page -- ids of a key's messages, latest first
SELECT s.email_id::text FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
WHERE s.key_id = %(key_id)s::uuid
    -- What has bounced before anybody had it has failed, in the words of those who ask.
    AND (%(statuses)s::text[] IS NULL OR CASE WHEN e.status = 'bounced' AND e.sent_at IS NULL THEN 'failed' ELSE e.status END
        = ANY (%(statuses)s::text[]))
    AND (%(since)s::timestamptz IS NULL OR s.received_at >= %(since)s)
    AND (%(bulk_id)s::uuid IS NULL OR s.bulk_id = %(bulk_id)s::uuid)
    AND (%(before)s::uuid IS NULL OR s.email_id < %(before)s::uuid)
ORDER BY s.email_id DESC LIMIT %(limit)s;

-- rejection -- a message of a key that was not taken
SELECT queue_id AS request_id, rule, code, enhanced, text, refused_at, recipients, ref FROM opensend_milter.refusals
WHERE queue_id = %(request_id)s AND key_id = %(key_id)s ORDER BY id DESC LIMIT 1;

-- refused -- what a stranger may see of a refusal, for as long as there is any
SELECT r.rule, r.code, r.enhanced, r.from_domain FROM opensend_milter.refusal(%(ref)s, %(token_hash)b) r
WHERE r.refused_at > now() - %(age)s::interval LIMIT 1;

-- ready -- the database answers, and its tables are there
SELECT EXISTS (SELECT FROM opensend_milter.jobs LIMIT 1);
