-- put -- put verified reports down for the worker
INSERT INTO opensend_milter.feedback (kind, source_id, email_id, payload)
SELECT * FROM unnest(%(kinds)s::text[], %(source_ids)s::text[], %(email_ids)s::uuid[], %(payloads)s::jsonb[]);

-- secret -- what all keys of ours are derived from
SELECT secret FROM opensend_milter.secrets WHERE name = 'signing';

-- take_turn -- one worker at a time, so that what is said of a message is taken up in the order it was heard
SELECT pg_try_advisory_xact_lock(hashtextextended('opensend_milter.feedback', 0));

-- due -- the oldest reports, less those of a message that somebody is just sending: he knows it better
SELECT f.id, f.kind, f.source_id, f.payload, s.email_id::text AS email_id, s.user_id, s.recipients
FROM opensend_milter.feedback f
    LEFT JOIN opensend_milter.submissions s ON s.email_id = coalesce(
        nullif(f.email_id, '00000000-0000-0000-0000-000000000000'),
        (SELECT p.email_id FROM opensend_milter.submissions p WHERE p.provider_id = f.payload ->> 'provider_id' LIMIT 1),
        -- Last, and only where it contradicts nothing: a message's header is written by its sender.
        (SELECT c.email_id FROM opensend_milter.submissions c
            WHERE c.email_id = nullif(f.payload ->> 'claimed_id', '')::uuid AND c.provider_id IS NULL))
    LEFT JOIN opensend_milter.jobs j ON j.email_id = s.email_id
WHERE (j.email_id IS NULL OR j.state <> 'attempting' OR j.lease_until < now())
    -- The provider may be faster than the record of what it answered.
    AND (s.email_id IS NOT NULL OR f.email_id <> '00000000-0000-0000-0000-000000000000'
        OR f.received_at < now() - %(patience)s::interval)
ORDER BY f.id LIMIT %(limit)s;

-- standing -- where the deliveries stand, and stand still: locked before anything else, as those who record do
SELECT j.email_id::text AS email_id, j.state = 'attempting' AND j.lease_until >= now() AS is_in_hand,
    j.state IN ('attempting', 'uncertain') AS is_unresolved, j.recipients
FROM opensend_milter.jobs j WHERE j.email_id = ANY (%(ids)s::uuid[]) ORDER BY j.email_id FOR UPDATE;

-- lane_answers -- how many of a lane's last recipients there were, and how many of them the next hop did not know
SELECT coalesce(sum(recipients), 0)::integer, coalesce(sum(unknown), 0)::integer FROM (
    SELECT recipients, unknown, sum(recipients) OVER (ORDER BY id DESC) - recipients AS newer FROM (
        SELECT id, recipients, unknown FROM opensend_milter.lane_answers
        WHERE user_id = %(user_id)s AND courier = %(courier)s AND noted_at > now() - %(age)s::interval
        ORDER BY id DESC LIMIT %(most)s) newest) counted
WHERE newer < %(most)s;

-- told_inline -- how many of these recipients an event says that the next hop refused
SELECT count(DISTINCT v.payload -> 'recipients' -> 0 ->> 'email') FROM public.email_events v
WHERE v.email_id = %(id)s::uuid AND v.type = 'bounced' AND v.payload ->> 'via' = 'inline'
    AND v.payload -> 'recipients' -> 0 ->> 'email' = ANY (%(addresses)s::text[]);

-- event -- an event, unless it is there already, and a delivery for each webhook that asked for it
WITH said AS (
    SELECT (SELECT e.id FROM public.emails e WHERE e.id = %(id)s::uuid) AS email_id, %(type)s::text AS type,
        %(payload)s::jsonb AS payload, %(source_id)s::text AS source_id, %(user_id)s::text AS user_id
),
-- include: event, user_id = %(user_id)s, type = %(type)s::text
SELECT count(*) FROM event;

-- close_job -- it is known now what became of it
DELETE FROM opensend_milter.jobs WHERE email_id = %(id)s::uuid;

-- leave -- note when it left, where nobody could
UPDATE public.emails SET sent_at = now(), provider_next_retry_at = NULL, provider_dead_lettered_at = NULL,
    provider_last_error_code = NULL, provider_last_error_message = NULL
WHERE id = %(id)s::uuid AND status IN ('queued', 'processing', 'failed') AND status = ANY (%(before)s);

-- move -- an email's status moves forward
UPDATE public.emails SET status = %(status)s WHERE id = %(id)s::uuid AND status = ANY (%(before)s);

-- reject -- the provider will not send it
UPDATE public.emails SET status = 'failed', provider_next_retry_at = NULL, provider_dead_lettered_at = now(),
    provider_last_error_code = 'provider_rejected', provider_last_error_message = %(reason)s
WHERE id = %(id)s::uuid AND status = ANY (%(before)s);

-- result -- what became of single recipients
INSERT INTO opensend_milter.recipient_results (email_id, address, outcome, reason)
SELECT %(id)s::uuid, r.address, %(outcome)s, r.reason
FROM unnest(%(addresses)s::text[], %(reasons)s::text[]) AS r (address, reason)
ON CONFLICT (email_id, address) DO UPDATE SET outcome = excluded.outcome, reason = excluded.reason, noted_at = now()
WHERE recipient_results.outcome = ANY (%(weaker)s);

-- suppress -- no more mail of this user to these; a complaint outweighs a bounce, and neither what a person decided
WITH listed AS (
    SELECT %(user_id)s::text AS user_id, email, folded, metadata
    FROM unnest(%(emails)s::text[], %(folded)s::text[], %(metadata)s::jsonb[]) AS s (email, folded, metadata)
),
-- include: odd
INSERT INTO public.email_suppressions (user_id, email, reason, source_event_id, source_email_id, source_message_id,
    metadata)
SELECT user_id, email, %(reason)s, %(source_id)s, %(id)s::uuid, nullif(%(provider_id)s, ''), metadata
FROM listed ORDER BY email
ON CONFLICT (user_id, email) DO UPDATE SET reason = excluded.reason, source_event_id = excluded.source_event_id,
    source_email_id = excluded.source_email_id, source_message_id = excluded.source_message_id,
    metadata = excluded.metadata, updated_at = now()
WHERE email_suppressions.reason = 'bounced' AND excluded.reason = 'complained';

-- soft_bounce -- a bounce that may pass
INSERT INTO opensend_milter.soft_bounces (user_id, email, source_id)
SELECT %(user_id)s, s.email, %(source_id)s FROM unnest(%(emails)s::text[]) AS s (email)
ON CONFLICT DO NOTHING;

-- often_bounced -- who bounced too often lately
SELECT b.email, count(*) FROM opensend_milter.soft_bounces b
WHERE b.user_id = %(user_id)s AND b.email = ANY (%(emails)s) AND b.bounced_at > now() - %(age)s::interval
GROUP BY b.email HAVING count(*) >= %(limit)s;

-- clear_soft -- these get mail again, or none at all
DELETE FROM opensend_milter.soft_bounces WHERE user_id = %(user_id)s AND email = ANY (%(emails)s);

-- done -- these reports are taken up
DELETE FROM opensend_milter.feedback WHERE id = ANY (%(ids)s);

-- prune_soft -- a batch of bounces that are too old to count
DELETE FROM opensend_milter.soft_bounces WHERE (user_id, email, source_id) IN (
    SELECT user_id, email, source_id FROM opensend_milter.soft_bounces
    WHERE bounced_at < now() - %(age)s::interval ORDER BY bounced_at LIMIT %(limit)s);
