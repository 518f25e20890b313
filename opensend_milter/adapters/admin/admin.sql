-- user_exists -- whether a user of this id is there
SELECT EXISTS (SELECT FROM public."user" WHERE id = %(id)s);

-- some_users -- ids of a few users, for a hint
SELECT id FROM public."user" ORDER BY created_at, id LIMIT 5;

-- add_user -- a user, but only in a table that `db init` made: OpenSend's users are its own
INSERT INTO public."user" (id, name, email)
SELECT %(id)s, %(id)s, %(id)s || '@localhost'
WHERE EXISTS (SELECT FROM opensend_milter.migrations WHERE starts_with(name, 'opensend/'))
ON CONFLICT DO NOTHING;

-- add_key -- an API key as OpenSend stores it: hash and preview, for a restricted key the domain's id
INSERT INTO public.api_keys (name, token_hash, token_preview, permission, domain, user_id)
VALUES (%(name)s, %(token_hash)s, %(preview)s, %(permission)s, %(domain)s, %(user_id)s)
RETURNING id::text;

-- list_keys -- keys of one user or of all, with the name of the domain they are bound to and their settings
SELECT k.id::text AS id, k.name, k.user_id, k.permission, k.token_preview AS preview, k.created_at, k.last_used_at,
    nullif(btrim(k.domain), '') IS NOT NULL AS restricted,
    coalesce(
        (SELECT d.name FROM public.domains d WHERE d.user_id = k.user_id AND d.id::text = lower(btrim(k.domain))),
        CASE WHEN lower(btrim(k.domain)) !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
            THEN nullif(lower(btrim(k.domain)), '') END) AS domain,
    c.on_suppressed, c.allowed_senders, c.allowed_recipients, c.networks, c.per_minute, c.per_day, c.expires_at,
    coalesce(c.expires_at <= now(), false) AS expired, coalesce(c.may_attach, true) AS may_attach,
    coalesce(c.may_html, true) AS may_html, coalesce(c.may_bulk, true) AS may_bulk
FROM public.api_keys k LEFT JOIN opensend_milter.key_settings c ON c.key_id = k.id
WHERE (%(user_id)s::text IS NULL OR k.user_id = %(user_id)s) AND (starts_with(k.id::text, %(named)s) OR right(k.id::text, 12) = %(named)s)
ORDER BY k.created_at, k.id;

-- delete_key -- revoke: as in OpenSend, a key is good as long as its row is there
WITH settings AS (DELETE FROM opensend_milter.key_settings WHERE key_id = %(id)s::uuid),
    secrets AS (DELETE FROM opensend_milter.key_secrets WHERE key_id = %(id)s::uuid),
    usage AS (DELETE FROM opensend_milter.key_usage WHERE key_id = %(id)s::uuid),
    sessions AS (DELETE FROM opensend_milter.console_sessions WHERE key_id = %(id)s::uuid)
DELETE FROM public.api_keys WHERE id = %(id)s::uuid;

-- set_key -- what holds for one key only; NULL leaves a thing as it is, what is empty takes it away
INSERT INTO opensend_milter.key_settings AS c (key_id, on_suppressed, allowed_senders, allowed_recipients, networks,
    per_minute, per_day, expires_at, may_attach, may_html, may_bulk)
VALUES (%(id)s::uuid, nullif(%(on_suppressed)s::text, ''), nullif(%(allowed_senders)s::text[], '{}'),
    nullif(%(allowed_recipients)s::text[], '{}'), nullif(%(networks)s::text[], '{}'),
    nullif(%(per_minute)s::integer, 0), nullif(%(per_day)s::integer, 0),
    nullif(%(expires_at)s::text, '')::timestamptz, coalesce(%(may_attach)s, true), coalesce(%(may_html)s, true),
    coalesce(%(may_bulk)s, true))
ON CONFLICT (key_id) DO UPDATE
SET on_suppressed = CASE WHEN %(on_suppressed)s::text IS NULL THEN c.on_suppressed ELSE excluded.on_suppressed END,
    allowed_senders = CASE WHEN %(allowed_senders)s::text[] IS NULL THEN c.allowed_senders
        ELSE excluded.allowed_senders END,
    allowed_recipients = CASE WHEN %(allowed_recipients)s::text[] IS NULL THEN c.allowed_recipients
        ELSE excluded.allowed_recipients END,
    networks = CASE WHEN %(networks)s::text[] IS NULL THEN c.networks ELSE excluded.networks END,
    per_minute = CASE WHEN %(per_minute)s::integer IS NULL THEN c.per_minute ELSE excluded.per_minute END,
    per_day = CASE WHEN %(per_day)s::integer IS NULL THEN c.per_day ELSE excluded.per_day END,
    expires_at = CASE WHEN %(expires_at)s::text IS NULL THEN c.expires_at ELSE excluded.expires_at END,
    may_attach = coalesce(%(may_attach)s, c.may_attach),
    may_html = coalesce(%(may_html)s, c.may_html),
    may_bulk = coalesce(%(may_bulk)s, c.may_bulk);

-- sent_today -- messages of a key with a daily limit, this UTC day
SELECT messages FROM opensend_milter.key_usage
WHERE key_id = %(id)s::uuid AND day = (now() AT TIME ZONE 'UTC')::date;

-- rotate_key -- a new secret; the old one stays good for a while, older ones no longer than that
WITH old AS (
    SELECT id, token_hash FROM public.api_keys WHERE id = %(id)s::uuid FOR UPDATE
), older AS (
    UPDATE opensend_milter.key_secrets SET expires_at = least(expires_at, now() + %(keep)s::interval)
    WHERE key_id = %(id)s::uuid
), ended AS (
    DELETE FROM opensend_milter.console_sessions WHERE key_id = %(id)s::uuid
), kept AS (
    INSERT INTO opensend_milter.key_secrets (token_hash, key_id, expires_at)
    SELECT token_hash, id, now() + %(keep)s::interval FROM old WHERE %(keep)s::interval > interval '0'
)
UPDATE public.api_keys k SET token_hash = %(token_hash)s, token_preview = %(preview)s FROM old WHERE k.id = old.id;

-- list_secrets -- secrets that a key had before and that are still good, latest first
SELECT left(token_hash, 12) AS hash, created_at AS replaced_at, expires_at
FROM opensend_milter.key_secrets
WHERE key_id = %(id)s::uuid AND (expires_at IS NULL OR expires_at > now())
ORDER BY created_at DESC, token_hash;

-- delete_secret -- end a secret before its time, and what somebody may have begun with it
WITH ended AS (DELETE FROM opensend_milter.console_sessions WHERE key_id = %(id)s::uuid)
DELETE FROM opensend_milter.key_secrets WHERE key_id = %(id)s::uuid AND starts_with(token_hash, %(hash)s);

-- add_domain -- a domain of a user
INSERT INTO public.domains (name, status, user_id) VALUES (%(name)s, %(status)s, %(user_id)s)
RETURNING id::text;

-- list_domains -- domains by user, by name or id, or all, with the number of keys bound to them
SELECT d.id::text AS id, d.name, d.user_id, d.status, d.created_at,
    (SELECT count(*) FROM public.api_keys k
        WHERE k.user_id = d.user_id AND lower(btrim(k.domain)) IN (d.id::text, lower(d.name))) AS keys
FROM public.domains d
WHERE (%(user_id)s::text IS NULL OR d.user_id = %(user_id)s)
    AND (%(name)s::text IS NULL OR lower(d.name) = %(name)s OR d.id::text = %(name)s)
ORDER BY d.status = 'verified' DESC, lower(d.name), d.created_at;

-- verify_domain -- mail may be sent from this domain
UPDATE public.domains SET status = 'verified' WHERE id = %(id)s::uuid;

-- delete_domain -- forget a domain
DELETE FROM public.domains WHERE id = %(id)s::uuid;

-- put_suppression -- suppress an address, or say anew why it is
WITH listed AS (SELECT %(user_id)s::text AS user_id, %(email)s::text AS email, %(folded)s::text AS folded),
-- include: odd
INSERT INTO public.email_suppressions (user_id, email, reason) SELECT user_id, email, %(reason)s FROM listed
ON CONFLICT (user_id, email) DO UPDATE SET reason = excluded.reason, updated_at = now()
RETURNING user_id, email, reason, suppressed_at, updated_at;

-- delete_suppression -- let mail reach an address again, in whatever spellings it is suppressed
DELETE FROM public.email_suppressions
WHERE user_id = %(user_id)s AND (email = ANY (%(spellings)s::text[]) OR email IN (
    SELECT o.email FROM opensend_milter.odd_spellings o
    WHERE o.user_id = %(user_id)s AND o.folded = ANY (%(spellings)s::text[])))
RETURNING user_id, email, reason, suppressed_at, updated_at;

-- bounced_inline -- who was suppressed because a next hop refused him, since then, oldest first
SELECT user_id, email, reason, suppressed_at, updated_at FROM public.email_suppressions
WHERE metadata ->> 'via' = 'inline' AND reason = 'bounced' AND suppressed_at >= %(since)s
    AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s)
ORDER BY suppressed_at, email;

-- delete_bounced_inline -- let mail reach these again, as far as they are still listed for that
DELETE FROM public.email_suppressions s USING unnest(%(user_ids)s::text[], %(emails)s::text[]) AS n (user_id, email)
WHERE s.user_id = n.user_id AND s.email = n.email AND s.metadata ->> 'via' = 'inline' AND s.reason = 'bounced';

-- list_suppressions -- suppressed addresses of one user or of all, latest first
SELECT user_id, email, reason, suppressed_at, updated_at
FROM public.email_suppressions
WHERE %(user_id)s::text IS NULL OR user_id = %(user_id)s
ORDER BY suppressed_at DESC, email LIMIT %(limit)s;

-- list_emails -- emails, latest first
SELECT e.id::text AS id, e.created_at, e.status, e.user_id, s.queue_id, e."from" AS sender,
    coalesce(to_jsonb(s.recipients), e."to") AS recipients, e.subject
FROM public.emails e LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id
WHERE (%(status)s::text IS NULL OR e.status = %(status)s)
    AND (%(user_id)s::text IS NULL OR e.user_id = %(user_id)s)
    AND (%(since)s::timestamptz IS NULL OR e.created_at >= %(since)s)
ORDER BY e.created_at DESC, e.id LIMIT %(limit)s;

-- find_email -- the latest email of a queue id: Postfix uses its short ids again
SELECT e.id::text, e.status
FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
WHERE s.queue_id = %(queue_id)s
ORDER BY s.received_at DESC LIMIT 1;

-- emails_beginning -- emails by the range that their ids lie in, and the latest one of a queue id
SELECT w.asked, found.id::text
FROM unnest(%(asked)s::text[], %(first)s::uuid[], %(last)s::uuid[]) AS w (asked, first, last)
    CROSS JOIN LATERAL (
        (SELECT e.id FROM public.emails e WHERE e.id BETWEEN w.first AND w.last ORDER BY e.id LIMIT %(most)s)
        UNION
        (SELECT s.email_id FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
            WHERE s.queue_id = w.asked ORDER BY s.received_at DESC LIMIT 1)) AS found;

-- emails_ending -- of the newest emails those whose ids end so
SELECT right(newest.id::text, 12), newest.id::text
FROM (SELECT id FROM public.emails ORDER BY created_at DESC LIMIT %(newest)s) AS newest
WHERE right(newest.id::text, 12) = ANY (%(ends)s::text[]);

-- show_email -- all of one email but its contents
SELECT id::text AS id, created_at, status, user_id, "from" AS sender, "to", cc, bcc, reply_to, subject, headers,
    coalesce(octet_length(text), 0) AS text_bytes, coalesce(octet_length(html), 0) AS html_bytes,
    CASE jsonb_typeof(attachments) WHEN 'array' THEN jsonb_array_length(attachments) ELSE 0 END AS attachments,
    tags, document -> 'metadata' AS metadata, scheduled_at, sent_at, provider_retry_count AS retries,
    provider_last_attempted_at AS last_attempted_at,
    provider_next_retry_at AS next_retry_at, provider_dead_lettered_at AS given_up_at,
    provider_last_error_code AS last_error_code, provider_last_error_message AS last_error
FROM public.emails WHERE id = %(id)s::uuid;

-- show_submission -- how the message came in, and how much of it is kept
SELECT s.received_at, s.key_id::text AS key_id, k.name AS key_name, s.front_door, s.queue_id, s.client_address, s.tls,
    s.sender, s.from_address, s.recipients, s.message_id, s.size_bytes,
    (SELECT coalesce(sum(octet_length(c.bytes)), 0)::bigint
        FROM opensend_milter.raw_chunks c WHERE c.email_id = s.email_id) AS kept_bytes,
    encode(s.sha256, 'hex') AS sha256, s.dropped, s.left_out, s.repeats, s.repeated_at, s.provider_id, s.raw_dropped_at
FROM opensend_milter.submissions s LEFT JOIN public.api_keys k ON k.id = s.key_id
WHERE s.email_id = %(id)s::uuid;

-- show_job -- where its delivery stands; no row: it is finished
SELECT state, attempts, not_before, announce_at, lease_until, worker, last_error, nullif(courier, '') AS courier,
    recipients, uncertain_at
FROM opensend_milter.jobs WHERE email_id = %(id)s::uuid;

-- show_results -- who fared differently from the message
SELECT address, outcome, reason, courier, noted_at
FROM opensend_milter.recipient_results WHERE email_id = %(id)s::uuid ORDER BY address;

-- show_events -- what happened to it, in order
SELECT received_at AS at, type, payload, source_id
FROM public.email_events WHERE email_id = %(id)s::uuid
ORDER BY received_at, id;

-- list_refusals -- messages that were not taken, latest first
SELECT ref, refused_at, rule, code, enhanced, text, front_door, queue_id, client_address, key_id, user_id, sender,
    from_domain, recipients, message_id, size_bytes
FROM opensend_milter.refusals
WHERE (%(queue_id)s::text IS NULL OR queue_id = %(queue_id)s OR ref = %(ref)s)
    AND (%(rule)s::text IS NULL OR rule = %(rule)s)
    AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s)
    AND (%(since)s::timestamptz IS NULL OR refused_at >= %(since)s)
ORDER BY refused_at DESC, id DESC LIMIT %(limit)s;
