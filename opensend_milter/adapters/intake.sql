-- facts_for -- what judging a batch of messages needs: one row per message, in order
WITH asked AS (
    SELECT ordinal, key_id, ascii_domain, unicode_domain
    FROM unnest(%(key_ids)s::uuid[], %(ascii_domains)s::text[], %(unicode_domains)s::text[])
        WITH ORDINALITY AS a (key_id, ascii_domain, unicode_domain, ordinal)
), keyed AS (
    SELECT a.*, k.id IS NOT NULL AS known, k.user_id, nullif(lower(btrim(k.domain)), '') AS restriction
    FROM asked a LEFT JOIN public.api_keys k ON k.id = a.key_id
), listed AS (
    SELECT r.ordinal, jsonb_agg(DISTINCT jsonb_build_array(r.recipient, s.reason)) AS suppressed
    FROM unnest(%(ordinals)s::bigint[], %(recipients)s::text[], %(spellings)s::text[])
            AS r (ordinal, recipient, spelling)
        JOIN keyed k ON k.ordinal = r.ordinal
        JOIN public.email_suppressions s ON s.user_id = k.user_id AND s.email = r.spelling
    GROUP BY r.ordinal
)
SELECT k.known,
    k.user_id,
    k.restriction IS NOT NULL,
    coalesce(
        (SELECT lower(d.name) FROM public.domains d WHERE d.user_id = k.user_id AND d.id::text = k.restriction),
        CASE WHEN k.restriction !~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN k.restriction END),
    EXISTS (SELECT FROM public.domains d
        WHERE d.user_id = k.user_id AND d.status = 'verified' AND lower(d.name) IN (k.ascii_domain, k.unicode_domain)),
    l.suppressed
FROM keyed k LEFT JOIN listed l USING (ordinal)
ORDER BY k.ordinal;

-- settle -- store a batch: rows, records, raw bytes, jobs and refusals, all or nothing
WITH mail AS (
    INSERT INTO public.emails (id, "from", "to", cc, bcc, reply_to, subject, html, text, status, tags, headers,
        attachments, user_id, created_at)
    SELECT m.id, m.sender, m.to_list, m.cc_list, m.bcc_list, m.reply_to, m.subject, m.html, m.text, 'queued',
        '[]'::jsonb, m.headers, m.attachments, m.user_id, m.received_at
    FROM unnest(%(ids)s::uuid[], %(senders)s::text[], %(to_lists)s::jsonb[], %(cc_lists)s::jsonb[],
        %(bcc_lists)s::jsonb[], %(reply_tos)s::jsonb[], %(subjects)s::text[], %(htmls)s::text[], %(texts)s::text[],
        %(header_objects)s::jsonb[], %(attachment_lists)s::jsonb[], %(user_ids)s::text[],
        %(received_ats)s::timestamptz[])
        AS m (id, sender, to_list, cc_list, bcc_list, reply_to, subject, html, text, headers, attachments, user_id,
            received_at)
), submission AS (
    INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
        client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256)
    SELECT s.id, s.received_at, s.user_id, s.key_id, s.front_door, s.queue_id, s.client_address, s.tls, s.sender,
        s.from_address, (SELECT array_agg(value ORDER BY place)
            FROM jsonb_array_elements_text(s.recipients) WITH ORDINALITY AS r (value, place)),
        s.message_id, s.size_bytes, s.sha256
    FROM unnest(%(ids)s::uuid[], %(received_ats)s::timestamptz[], %(user_ids)s::text[], %(key_ids)s::uuid[],
        %(front_doors)s::text[], %(queue_ids)s::text[], %(client_addresses)s::text[], %(tls)s::text[],
        %(envelope_senders)s::text[], %(from_addresses)s::text[], %(recipients)s::jsonb[], %(message_ids)s::text[],
        %(sizes)s::bigint[], %(digests)b::bytea[])
        AS s (id, received_at, user_id, key_id, front_door, queue_id, client_address, tls, sender, from_address,
            recipients, message_id, size_bytes, sha256)
), raw AS (
    INSERT INTO opensend_milter.raw_chunks (email_id, chunk_no, bytes)
    SELECT * FROM unnest(%(ids)s::uuid[], %(chunk_numbers)s::integer[], %(first_chunks)b::bytea[])
)
INSERT INTO opensend_milter.jobs (email_id, user_id)
SELECT * FROM unnest(%(job_ids)s::uuid[], %(job_user_ids)s::text[]);

-- add_chunk -- store the next piece of a large message
INSERT INTO opensend_milter.raw_chunks (email_id, chunk_no, bytes) VALUES (%(id)s, %(chunk_no)s, %(bytes)b);

-- refuse -- record refusals
INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address, key_id, sender,
    recipients, message_id, size_bytes)
SELECT r.rule, r.code, r.enhanced, r.text, r.front_door, r.queue_id, r.client_address, r.key_id, r.sender,
    ARRAY(SELECT jsonb_array_elements_text(r.recipients)), r.message_id, r.size_bytes
FROM unnest(%(rules)s::text[], %(codes)s::integer[], %(enhanced)s::text[], %(texts)s::text[], %(front_doors)s::text[],
    %(queue_ids)s::text[], %(client_addresses)s::text[], %(key_ids)s::text[], %(senders)s::text[],
    %(recipients)s::jsonb[], %(message_ids)s::text[], %(sizes)s::bigint[])
    AS r (rule, code, enhanced, text, front_door, queue_id, client_address, key_id, sender, recipients, message_id,
        size_bytes);
