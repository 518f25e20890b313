-- caller -- the key that a secret's hash belongs to, and what is asked of it before any message
SELECT k.id AS key_id, c.networks, coalesce(c.may_bulk, true) AS may_bulk,
    coalesce(a.permission = 'full_access', false) AS has_full_access
FROM (SELECT opensend_milter.key_id(%(token_hash)s) AS id) k
    LEFT JOIN public.api_keys a ON a.id = k.id::uuid
    LEFT JOIN opensend_milter.key_settings c ON c.key_id = k.id::uuid;

-- key -- what a key may see of itself
SELECT k.id::text AS id, k.name, k.permission, nullif(btrim(k.domain), '') IS NOT NULL AS restricted,
    (SELECT lower(d.name) FROM public.domains d WHERE d.user_id = k.user_id AND d.id::text = lower(btrim(k.domain)))
        AS domain,
    k.created_at, k.last_used_at, to_jsonb(c) - 'key_id' AS settings
FROM public.api_keys k LEFT JOIN opensend_milter.key_settings c ON c.key_id = k.id
WHERE k.id = %(key_id)s::uuid AND k.user_id IS NOT NULL;

-- submission -- messages of a key
SELECT
    -- include: progress
FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
    -- include: history
WHERE s.key_id = %(key_id)s::uuid AND s.email_id = ANY (%(ids)s::uuid[]);

-- place -- where something stands in the list of what a key handed in
SELECT received_at, email_id::text, 0::bigint FROM opensend_milter.submissions
WHERE email_id = %(email_id)s::uuid AND key_id = %(key_id)s::uuid
UNION ALL
SELECT refused_at, '00000000-0000-0000-0000-000000000000', id FROM opensend_milter.refusals
WHERE (queue_id = %(request_id)s OR id = %(refusal_id)s) AND key_id = %(key_id)s::uuid::text
LIMIT 1;

-- page -- what a key handed in, latest first; of one moment first emails, then refusals
WITH mail AS (
    SELECT s.received_at AS at, s.email_id, 0::bigint AS refusal_id
    FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
    WHERE s.key_id = %(key_id)s::uuid AND s.received_at >= %(since)s::timestamptz
        AND (s.received_at, s.email_id) < (%(at)s::timestamptz, %(email_id)s::uuid)
        -- What has bounced before anybody had it has failed, in the words of those who ask.
        AND (%(statuses)s::text[] IS NULL OR CASE WHEN e.status = 'bounced' AND e.sent_at IS NULL THEN 'failed' ELSE e.status END
            = ANY (%(statuses)s::text[]))
        AND (%(tried)s::boolean IS NULL OR e.status = 'processing' OR %(tried)s = EXISTS (
            SELECT FROM public.email_events h WHERE h.email_id = e.id AND (h.type = 'sent' OR h.payload ? 'attempt')))
        AND (%(bulk_id)s::uuid IS NULL OR s.bulk_id = %(bulk_id)s::uuid)
    ORDER BY s.received_at DESC, s.email_id DESC LIMIT %(limit)s
), refused AS (
    SELECT refused_at, '00000000-0000-0000-0000-000000000000'::uuid, id FROM opensend_milter.refusals
    WHERE %(rejected)s::boolean AND key_id = %(key_id)s::uuid::text AND refused_at >= %(since)s::timestamptz
        AND (refused_at, '00000000-0000-0000-0000-000000000000'::uuid, id)
            < (%(at)s::timestamptz, %(email_id)s::uuid, %(refusal_id)s::bigint)
    ORDER BY refused_at DESC, id DESC LIMIT %(limit)s
)
SELECT email_id::text, refusal_id FROM (TABLE mail UNION ALL TABLE refused) p
ORDER BY at DESC, email_id DESC, refusal_id DESC LIMIT %(limit)s;

-- rejections -- messages of a key that were not taken
SELECT id, queue_id, rule, code, enhanced, text, refused_at, recipients, ref FROM opensend_milter.refusals
WHERE (id = ANY (%(ids)s::bigint[]) OR queue_id = %(request_id)s) AND key_id = %(key_id)s ORDER BY id DESC;

-- refused -- what a stranger may see of a refusal, for as long as there is any
SELECT r.rule, r.code, r.enhanced, r.from_domain FROM opensend_milter.refusal(%(ref)s, %(token_hash)b) r
WHERE r.refused_at > now() - %(age)s::interval LIMIT 1;

-- ready -- the database answers, and its tables are there
SELECT EXISTS (SELECT FROM opensend_milter.jobs LIMIT 1);
