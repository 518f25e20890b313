-- facts_for -- what judging a batch of messages needs: one row per message, in order
WITH asked AS (
    SELECT *
    FROM unnest(%(key_ids)s::uuid[], %(ascii_domains)s::text[], %(unicode_domains)s::text[],
            %(idempotency_keys)s::text[], %(fingerprints)b::bytea[], %(spellings)s::text[])
        WITH ORDINALITY AS a (key_id, ascii_domain, unicode_domain, idempotency_key, fingerprint, spellings, ordinal)
), keyed AS (
    SELECT a.*, k.id IS NOT NULL AS known, k.user_id, nullif(lower(btrim(k.domain)), '') AS restriction,
        c.on_suppressed, coalesce(k.last_used_at < now() - interval '1 minute', true) AS unused_lately,
        c.allowed_senders, c.allowed_recipients, c.networks, coalesce(c.may_attach, true) AS may_attach,
        coalesce(c.may_html, true) AS may_html, CASE WHEN c.expires_at <= now() THEN c.expires_at END AS expired_at,
        c.per_day
    FROM asked a
        LEFT JOIN public.api_keys k ON k.id = a.key_id
        LEFT JOIN opensend_milter.key_settings c ON c.key_id = k.id
), earlier AS (
    -- What was given up, has bounced before anybody had it, or is not there any more, is not ours: sent again, it is a new message.
    SELECT k.ordinal, e.id AS email_id, e.created_at, e.scheduled_at,
        e.created_at < now() - interval '24 hours' OR e.status IN ('failed', 'canceled', 'cancelled', 'suppressed')
            OR e.status = 'bounced' AND e.sent_at IS NULL AS expired,
        CASE WHEN s.email_id IS NULL THEN 'rest' WHEN s.key_id = k.key_id THEN 'key' ELSE 'account' END AS holder
    FROM keyed k JOIN public.emails e ON e.user_id = k.user_id AND e.idempotency_key = k.idempotency_key
        LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id
    UNION ALL
    SELECT k.ordinal, f.email_id, f.received_at, e.scheduled_at,
        f.received_at < now() - %(window)s::interval OR coalesce(e.status IN ('failed', 'canceled', 'cancelled', 'suppressed')
            OR e.status = 'bounced' AND e.sent_at IS NULL, true),
        'key'
    FROM keyed k
        -- Each by itself: joined, by a plan made while the table was empty, it is read from end to end long after.
        CROSS JOIN LATERAL (SELECT * FROM opensend_milter.fingerprints
            WHERE key_id = k.key_id AND fingerprint = k.fingerprint OFFSET 0) f
        LEFT JOIN public.emails e ON e.id = f.email_id
)
SELECT k.known,
    k.user_id,
    k.restriction IS NOT NULL AS restricted,
    CASE WHEN k.restriction ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
        THEN (SELECT lower(d.name) FROM public.domains d WHERE d.id = k.restriction::uuid AND d.user_id = k.user_id)
        ELSE k.restriction END AS restricted_domain,
    coalesce(d.verified, false) AS sender_domain_verified,
    (SELECT jsonb_agg(jsonb_build_array(s.spelling, s.reason)) FROM (
        SELECT r.spelling, l.reason
        FROM unnest(string_to_array(k.spellings, chr(10))) AS r (spelling),
            LATERAL (SELECT reason FROM public.email_suppressions
                WHERE user_id = k.user_id AND email = r.spelling OFFSET 0) l
        UNION ALL
        SELECT o.folded, l.reason
        FROM (SELECT email, folded FROM opensend_milter.odd_spellings
                WHERE user_id = k.user_id AND folded = ANY (string_to_array(k.spellings, chr(10)))
                    -- Most have none, and then none of fifty is looked for.
                    AND (SELECT true FROM opensend_milter.odd_spellings WHERE user_id = k.user_id ORDER BY folded LIMIT 1)
                OFFSET 0) o,
            LATERAL (SELECT reason FROM public.email_suppressions
                WHERE user_id = k.user_id AND email = o.email OFFSET 0) l
        ) s) AS suppressed,
    k.on_suppressed,
    k.unused_lately,
    r.email_id::text AS earlier_id,
    r.holder AS earlier_holder,
    r.created_at AS earlier_received_at,
    r.scheduled_at AS earlier_scheduled_at,
    r.expired AS earlier_expired,
    (SELECT s.content_digest FROM opensend_milter.submissions s WHERE s.email_id = r.email_id) AS earlier_content_digest,
    (SELECT c.courier FROM opensend_milter.domain_settings c WHERE c.domain_id = d.id) AS courier,
    k.allowed_senders,
    k.allowed_recipients,
    k.networks,
    k.may_attach,
    k.may_html,
    k.expired_at,
    k.per_day,
    CASE WHEN k.per_day IS NOT NULL THEN (SELECT u.messages FROM opensend_milter.key_usage u
        WHERE u.key_id = k.key_id AND u.day = (now() AT TIME ZONE 'UTC')::date) END AS sent_today,
    now() AS now
FROM keyed k LEFT JOIN earlier r USING (ordinal)
    LEFT JOIN LATERAL (
        SELECT * FROM (
            -- By the index; only where that finds none, by reading all domains of the user: one may be stored in capitals.
            (SELECT d.id, true AS verified FROM public.domains d
                WHERE d.user_id = k.user_id AND d.name IN (k.ascii_domain, k.unicode_domain) AND d.status = 'verified'
                LIMIT 1)
            UNION ALL
            (SELECT d.id, d.status = 'verified' FROM public.domains d
                WHERE d.user_id = k.user_id AND lower(d.name) IN (k.ascii_domain, k.unicode_domain)
                ORDER BY d.status = 'verified' DESC LIMIT 1)
        ) one LIMIT 1
    ) d ON true
ORDER BY k.ordinal;

-- row_digests -- what OpenSend's REST API took, as far as it can be compared
SELECT id::text, opensend_milter.row_digest(id) FROM unnest(%(ids)s::uuid[]) AS r (id);

-- free_names -- let names be used again whose time is over
WITH named AS (
    UPDATE public.emails SET idempotency_key = NULL
    WHERE id = ANY (%(ids)s::uuid[]) AND idempotency_key IS NOT NULL
        -- Not of one that somebody has taken up again since.
        AND (created_at < now() - interval '24 hours' OR status IN ('failed', 'canceled', 'cancelled', 'suppressed')
            OR status = 'bounced' AND sent_at IS NULL)
)
DELETE FROM opensend_milter.fingerprints f
USING unnest(%(key_ids)s::uuid[], %(fingerprints)b::bytea[], %(ids)s::uuid[]) AS n (key_id, fingerprint, email_id)
-- Not one that somebody else has taken since.
WHERE f.key_id = n.key_id AND f.fingerprint = n.fingerprint AND f.email_id = n.email_id;

-- settle -- store a batch: rows, records, raw bytes, jobs and refusals, all or nothing
WITH mail AS (
    INSERT INTO public.emails (id, "from", "to", cc, bcc, reply_to, subject, html, text, status, tags, headers,
        attachments, user_id, created_at, scheduled_at, idempotency_key, document)
    SELECT m.id, m.sender, m.to_list, m.cc_list, m.bcc_list, m.reply_to, m.subject, m.html, m.text,
        CASE WHEN m.scheduled_at IS NULL THEN 'queued' ELSE 'scheduled' END, m.tags, m.headers,
        CASE WHEN m.staged THEN (
            -- include: staged, list = m.attachments, email = m.id
        ) ELSE m.attachments END,
        m.user_id, now(), m.scheduled_at, m.idempotency_key, m.document
    FROM unnest(%(ids)s::uuid[], %(senders)s::text[], %(to_lists)s::jsonb[], %(cc_lists)s::jsonb[],
        %(bcc_lists)s::jsonb[], %(reply_tos)s::jsonb[], %(subjects)s::text[], %(htmls)s::text[], %(texts)s::text[],
        %(tag_lists)s::jsonb[], %(header_objects)s::jsonb[], %(attachment_lists)s::jsonb[], %(staged)s::boolean[],
        %(user_ids)s::text[], %(scheduled_ats)s::timestamptz[],
        %(idempotency_keys)s::text[], %(documents)s::jsonb[])
        AS m (id, sender, to_list, cc_list, bcc_list, reply_to, subject, html, text, tags, headers, attachments,
            staged, user_id, scheduled_at, idempotency_key, document)
), submission AS (
    INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
        client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256, content_digest,
        dropped, left_out, bulk_id)
    SELECT s.id, now(), s.user_id, s.key_id, s.front_door, s.queue_id, s.client_address, s.tls, s.sender,
        s.from_address, string_to_array(s.recipients, chr(10)),
        s.message_id, s.size_bytes, s.sha256, s.content_digest, s.dropped, s.left_out, s.bulk_id
    FROM unnest(%(ids)s::uuid[], %(user_ids)s::text[], %(key_ids)s::uuid[],
        %(front_doors)s::text[], %(queue_ids)s::text[], %(client_addresses)s::text[], %(tls)s::text[],
        %(envelope_senders)s::text[], %(from_addresses)s::text[], %(recipients)s::text[],
        %(message_ids)s::text[], %(sizes)s::bigint[], %(digests)b::bytea[], %(content_digests)b::bytea[], %(dropped)s::jsonb[],
        %(left_out)s::jsonb[], %(bulk_ids)s::uuid[])
        AS s (id, user_id, key_id, front_door, queue_id, client_address, tls, sender, from_address,
            recipients, message_id, size_bytes, sha256, content_digest, dropped, left_out, bulk_id)
), fingerprint AS (
    INSERT INTO opensend_milter.fingerprints (key_id, fingerprint, email_id, received_at)
    SELECT f.key_id, f.fingerprint, f.email_id, now()
    FROM unnest(%(key_ids)s::uuid[], %(fingerprints)b::bytea[], %(ids)s::uuid[])
        AS f (key_id, fingerprint, email_id)
    WHERE f.fingerprint IS NOT NULL ORDER BY f.key_id, f.fingerprint
), raw AS (
    INSERT INTO opensend_milter.raw_chunks (email_id, chunk_no, bytes)
    SELECT r.id, 0, r.bytes FROM unnest(%(ids)s::uuid[], %(only_chunks)b::bytea[]) AS r (id, bytes)
    WHERE r.bytes IS NOT NULL
)
INSERT INTO opensend_milter.jobs (email_id, user_id, not_before, announce_at, courier)
SELECT j.email_id, j.user_id, coalesce(j.scheduled_at, now()), coalesce(j.scheduled_at, now()), j.courier
FROM unnest(%(ids)s::uuid[], %(user_ids)s::text[], %(scheduled_ats)s::timestamptz[], %(couriers)s::text[])
    AS j (email_id, user_id, scheduled_at, courier);

-- add_chunk -- store a piece of a message that is more than one
INSERT INTO opensend_milter.raw_chunks (email_id, chunk_no, bytes) VALUES (%(id)s, %(chunk_no)s, %(bytes)b);

-- refuse -- record refusals; of a message that was not read to its end, the key says whose it was
INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address, key_id,
    user_id, sender, recipients, message_id, size_bytes, from_domain, ref, token_hash)
SELECT r.rule, r.code, r.enhanced, r.text, r.front_door, r.queue_id, r.client_address, r.key_id,
    coalesce(r.user_id, (SELECT k.user_id FROM public.api_keys k WHERE k.id = r.key_uuid)), r.sender,
    ARRAY(SELECT jsonb_array_elements_text(r.recipients)), r.message_id, r.size_bytes, r.from_domain, r.ref, r.token_hash
FROM unnest(%(rules)s::text[], %(codes)s::integer[], %(enhanced)s::text[], %(texts)s::text[], %(front_doors)s::text[],
    %(queue_ids)s::text[], %(client_addresses)s::text[], %(key_ids)s::text[], %(user_ids)s::text[], %(senders)s::text[],
    %(recipients)s::jsonb[], %(message_ids)s::text[], %(sizes)s::bigint[], %(key_uuids)s::uuid[],
    %(from_domains)s::text[], %(refs)s::text[], %(token_hashes)b::bytea[])
    AS r (rule, code, enhanced, text, front_door, queue_id, client_address, key_id, user_id, sender, recipients,
        message_id, size_bytes, key_uuid, from_domain, ref, token_hash);

-- repeat -- count a message that was sent again
UPDATE opensend_milter.submissions s SET repeats = s.repeats + r.times, repeated_at = now()
FROM (SELECT id, count(*) AS times FROM unnest(%(ids)s::uuid[]) AS i (id) GROUP BY id) r
WHERE s.email_id = r.id;

-- count -- count messages of keys that have a daily limit; a key that would go beyond it is left out
INSERT INTO opensend_milter.key_usage AS u (key_id, day, messages)
SELECT c.key_id, (now() AT TIME ZONE 'UTC')::date, c.messages
FROM unnest(%(ids)s::uuid[], %(counts)s::integer[], %(limits)s::integer[]) AS c (key_id, messages, per_day)
WHERE c.messages <= c.per_day
-- In one order everywhere: of two batches with the same keys one waits, and neither for ever.
ORDER BY c.key_id
ON CONFLICT (key_id, day) DO UPDATE SET messages = u.messages + excluded.messages
WHERE u.messages + excluded.messages <= (SELECT c.per_day
    FROM unnest(%(ids)s::uuid[], %(limits)s::integer[]) AS c (key_id, per_day) WHERE c.key_id = excluded.key_id);

-- touch_keys -- note that keys are in use; whoever else does it just now does it for us too
UPDATE public.api_keys SET last_used_at = now() WHERE id IN (
    SELECT id FROM public.api_keys
    WHERE id = ANY (%(ids)s::uuid[]) AND coalesce(last_used_at < now() - interval '1 minute', true)
    FOR UPDATE SKIP LOCKED);

-- suppressed -- OpenSend's event of suppressed recipients, and a delivery for each webhook that asked for it
WITH event AS (
    SELECT id, email_id, 'suppressed' AS type, payload, user_id
    FROM unnest(%(event_ids)s::uuid[], %(email_ids)s::uuid[], %(user_ids)s::text[], %(payloads)s::jsonb[])
        AS a (id, email_id, user_id, payload)
), written AS (
    INSERT INTO public.email_events (id, email_id, type, payload, user_id)
    SELECT id, email_id, type, payload, user_id FROM event
)
-- include: deliveries, user_id = event.user_id, type = 'suppressed'::text

-- log -- what OpenSend's dashboard shows of a request
INSERT INTO public.logs (endpoint, method, status, request_body, response_body, document, user_id, api_key_id)
SELECT l.endpoint, l.method, l.status, l.request, l.response, l.document, k.user_id, k.id
FROM unnest(%(endpoints)s::text[], %(methods)s::text[], %(statuses)s::integer[], %(requests)s::jsonb[],
        %(responses)s::jsonb[], %(documents)s::jsonb[], %(key_ids)s::uuid[])
    AS l (endpoint, method, status, request, response, document, key_id)
    JOIN public.api_keys k ON k.id = l.key_id AND k.user_id IS NOT NULL;
