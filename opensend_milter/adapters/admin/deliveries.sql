-- standing -- where emails stand, to say why something was not done
SELECT e.id::text, e.status, j.state, s.raw_dropped_at IS NOT NULL
FROM public.emails e LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id
    LEFT JOIN opensend_milter.jobs j ON j.email_id = e.id
WHERE e.id = ANY (%(ids)s::uuid[]);

-- unsent_ids -- what failed, or bounced before anybody had it, oldest first
SELECT e.id::text FROM public.emails e JOIN opensend_milter.submissions s ON s.email_id = e.id
WHERE e.status = %(status)s AND e.sent_at IS NULL AND s.raw_dropped_at IS NULL
    AND (%(user_id)s::text IS NULL OR e.user_id = %(user_id)s)
    AND (%(since)s::timestamptz IS NULL OR coalesce(e.provider_dead_lettered_at, e.created_at) >= %(since)s)
ORDER BY e.created_at, e.id;

-- retry -- try again: what nobody got from the start, what waits at once, what is uncertain because a person says so
WITH failed AS MATERIALIZED (
    SELECT e.id, e.user_id, s.from_address
    FROM public.emails e JOIN opensend_milter.submissions s ON s.email_id = e.id
    WHERE e.id = ANY (%(ids)s::uuid[]) AND s.raw_dropped_at IS NULL
        AND (e.status = 'failed' OR e.status = 'bounced' AND e.sent_at IS NULL)
    FOR UPDATE OF e
), begun AS (
    INSERT INTO opensend_milter.jobs (email_id, user_id, courier, rounds)
    SELECT f.id, f.user_id, coalesce((
            SELECT c.courier FROM public.domains d JOIN opensend_milter.domain_settings c ON c.domain_id = d.id
            WHERE d.user_id = f.user_id AND lower(d.name) = lower(split_part(f.from_address, '@', -1)) LIMIT 1), ''),
        (SELECT count(*) FROM public.email_events v
            WHERE v.email_id = f.id AND (v.type = 'failed' OR v.type = 'bounced' AND v.payload ? 'attempt'))
    FROM failed f
    ON CONFLICT (email_id) DO NOTHING
    RETURNING email_id
), unheard AS (
    DELETE FROM opensend_milter.recipient_results r USING begun WHERE r.email_id = begun.email_id
), unknown AS MATERIALIZED (
    SELECT email_id, user_id, attempts, rounds, last_error FROM opensend_milter.jobs
    WHERE email_id = ANY (%(ids)s::uuid[]) AND state = 'uncertain' FOR UPDATE
), taken_up AS (
    UPDATE opensend_milter.jobs j SET state = 'waiting', attempts = 0, rounds = j.rounds + 1, lease_id = NULL,
        lease_until = NULL, worker = NULL, uncertain_at = NULL, not_before = now(), announce_at = now()
    FROM unknown WHERE j.email_id = unknown.email_id
    RETURNING j.email_id
), said AS (
    -- It counts as an attempt, and nothing else will say so. No webhook: nothing new is known.
    INSERT INTO public.email_events (email_id, type, payload, source_id, user_id)
    SELECT u.email_id, 'delayed', jsonb_build_object('reason', u.last_error, 'attempt', u.attempts),
        'provider-delayed:' || u.email_id || ':' || u.attempts || coalesce('.' || nullif(u.rounds, 0)::text, ''), u.user_id
    FROM unknown u JOIN public.emails e ON e.id = u.email_id
    ON CONFLICT (source_id) DO NOTHING
), hurried AS (
    UPDATE opensend_milter.jobs j SET not_before = now(), announce_at = now()
    FROM public.emails e
    WHERE j.email_id = ANY (%(ids)s::uuid[]) AND j.state = 'waiting' AND e.id = j.email_id AND e.status = 'queued'
    RETURNING j.email_id
), again AS (
    SELECT email_id, 'failed' AS was FROM begun UNION ALL SELECT email_id, 'uncertain' FROM taken_up
    UNION ALL SELECT email_id, 'waiting' FROM hurried
), mail AS (
    UPDATE public.emails e SET status = 'queued', provider_next_retry_at = NULL, provider_dead_lettered_at = NULL
    FROM again WHERE e.id = again.email_id
)
SELECT email_id::text, was FROM again;

-- close -- end a delivery as a person says: what waits or is uncertain, not what is in hand
WITH job AS (
    DELETE FROM opensend_milter.jobs
    WHERE email_id = ANY (%(ids)s::uuid[]) AND state = ANY (%(states)s::text[])
    RETURNING email_id, user_id, state, attempts, rounds
), submission AS (
    UPDATE opensend_milter.submissions s SET changed_at = now() FROM job WHERE s.email_id = job.email_id
), mail AS (
    UPDATE public.emails e
    SET status = %(status)s::text,
        sent_at = CASE WHEN %(status)s::text = 'sent' THEN now() ELSE e.sent_at END,
        provider_dead_lettered_at = CASE WHEN %(status)s::text = 'failed' THEN now() END,
        provider_next_retry_at = NULL
    FROM job WHERE e.id = job.email_id AND e.status IN ('queued', 'scheduled', 'processing')
    RETURNING e.id
), said AS (
    SELECT job.email_id, %(status)s::text AS type, jsonb_build_object('reason', %(reason)s::text)
            -- The attempt of which nobody knows the outcome has left no event of its own.
            || CASE job.state WHEN 'uncertain' THEN jsonb_build_object('attempt', job.attempts) ELSE '{}' END AS payload,
        'opensend-milter:' || %(status)s::text || ':' || job.email_id || coalesce(':' || nullif(job.rounds, 0)::text, '')
            AS source_id,
        job.user_id
    FROM job JOIN mail ON mail.id = job.email_id
    WHERE %(status)s::text <> 'canceled'
),
-- include: event, user_id = event.user_id, type = event.type
SELECT email_id::text, state FROM job;

-- set_domain -- what a domain asks of our worker; NULL leaves a thing as it is
WITH tracking AS (
    UPDATE public.domains SET track_opens = coalesce(%(track_opens)s, track_opens),
        track_clicks = coalesce(%(track_clicks)s, track_clicks),
        tracking_subdomain = CASE WHEN %(tracking_host)s::text IS NULL THEN tracking_subdomain
            ELSE nullif(%(tracking_host)s, '') END,
        region = coalesce(%(region)s, region),
        ses_configuration_set_name = CASE WHEN %(configuration_set)s::text IS NULL THEN ses_configuration_set_name
            ELSE nullif(%(configuration_set)s, '') END
    WHERE id = %(id)s::uuid
)
INSERT INTO opensend_milter.domain_settings (domain_id, courier, one_click)
VALUES (%(id)s::uuid, nullif(%(courier)s, ''), coalesce(%(one_click)s, false))
ON CONFLICT (domain_id) DO UPDATE
SET courier = CASE WHEN %(courier)s::text IS NULL THEN domain_settings.courier ELSE nullif(%(courier)s, '') END,
    one_click = coalesce(%(one_click)s, domain_settings.one_click);

-- show_domain -- what a domain asks of our worker
SELECT d.name, d.user_id, d.status, c.courier, d.region, d.ses_configuration_set_name AS configuration_set,
    d.track_opens, d.track_clicks, d.tracking_subdomain AS tracking_host, coalesce(c.one_click, false) AS one_click
FROM public.domains d LEFT JOIN opensend_milter.domain_settings c ON c.domain_id = d.id
WHERE d.id = %(id)s::uuid;
