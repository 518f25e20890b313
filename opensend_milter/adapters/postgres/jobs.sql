-- due_announcements -- take jobs to announce; they come again after a minute unless noted as announced
-- MATERIALIZED, here and below: a join may run a subquery once per row, and each time the lock finds other rows.
WITH due AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE announce_at <= now() AND not_before <= now() AND state = 'waiting'
        AND (NOT %(hand_over)s OR EXISTS (
            SELECT FROM public.emails e WHERE e.id = email_id AND e.status IN ('queued', 'scheduled')))
    ORDER BY announce_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE opensend_milter.jobs j SET announce_at = now() + interval '60 seconds' FROM due WHERE j.email_id = due.email_id
RETURNING j.email_id::text AS email_id, j.created_at AS requested_at, j.attempts;

-- announced -- the queue has these; a hint may be lost, so it is repeated after a while
UPDATE opensend_milter.jobs SET announce_at = now() + interval '15 minutes'
WHERE email_id = ANY (%(ids)s::uuid[]) AND state = 'waiting' AND not_before <= now();

-- announce_again -- the queue does not have these
UPDATE opensend_milter.jobs SET announce_at = now() + %(after)s
WHERE email_id = ANY (%(ids)s::uuid[]) AND state = 'waiting' AND announce_at IS NOT NULL;

-- handed_over -- the queue has these, and whoever reads it owns them now
DELETE FROM opensend_milter.jobs WHERE email_id = ANY (%(ids)s::uuid[]) AND state = 'waiting';

-- end_moved_on -- jobs, of those that wait longest, whose email somebody else has taken up: a poller, a person
WITH due AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE state = 'waiting' AND not_before <= now() ORDER BY not_before LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
DELETE FROM opensend_milter.jobs j USING due
WHERE j.email_id = due.email_id AND NOT EXISTS (
    SELECT FROM public.emails e WHERE e.id = j.email_id AND e.status IN ('queued', 'scheduled'));

-- due_lanes -- whose jobs are due: by one look into the index for each lane, however many jobs it has
WITH RECURSIVE lane AS (
    (SELECT user_id, courier, not_before FROM opensend_milter.jobs
        WHERE state = 'waiting' ORDER BY user_id, courier, not_before LIMIT 1)
    UNION ALL
    SELECT n.user_id, n.courier, n.not_before FROM lane l CROSS JOIN LATERAL (
        SELECT user_id, courier, not_before FROM opensend_milter.jobs
        WHERE state = 'waiting' AND (user_id, courier) > (l.user_id, l.courier)
        ORDER BY user_id, courier, not_before LIMIT 1) n
)
SELECT user_id, nullif(courier, '') FROM lane WHERE not_before <= now() LIMIT 1000;

-- take -- lease one waiting job by its id; whoever is just noting that it was announced is waited for
WITH due AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE email_id = %(id)s AND state = 'waiting' AND not_before <= now() FOR UPDATE
)
UPDATE opensend_milter.jobs j
SET state = 'claimed', lease_id = gen_random_uuid(), lease_until = now() + %(lease)s::interval, worker = %(worker)s
FROM due WHERE j.email_id = due.email_id
RETURNING j.email_id::text AS email_id, j.lease_id::text AS lease_id, j.attempts, j.rounds;

-- take_due -- lease the job of a lane that has waited longest
WITH due AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE state = 'waiting' AND user_id = %(user_id)s AND courier = %(courier)s AND not_before <= now()
    ORDER BY not_before LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE opensend_milter.jobs j
SET state = 'claimed', lease_id = gen_random_uuid(), lease_until = now() + %(lease)s::interval, worker = %(worker)s
FROM due WHERE j.email_id = due.email_id
RETURNING j.email_id::text AS email_id, j.lease_id::text AS lease_id, j.attempts, j.rounds;

-- mark_processing -- take the email out of everybody's reach, if it is still to be sent
UPDATE public.emails SET status = 'processing'
WHERE id = %(id)s AND (status = 'queued' OR (status = 'scheduled' AND scheduled_at <= now()))
RETURNING true;

-- email_status -- why an email is not to be sent now
SELECT status, scheduled_at FROM public.emails WHERE id = %(id)s;

-- forget -- an email that is finished, or gone, needs no job
DELETE FROM opensend_milter.jobs WHERE email_id = %(id)s AND lease_id = %(lease_id)s;

-- postpone -- give a job back for later
UPDATE opensend_milter.jobs
SET state = 'waiting', lease_id = NULL, lease_until = NULL, worker = NULL,
    not_before = coalesce(%(until)s, now() + interval '15 minutes'),
    announce_at = coalesce(%(until)s, now() + interval '15 minutes')
WHERE email_id = %(id)s AND lease_id = %(lease_id)s;

-- submission -- what was recorded of the message when it was taken, and who has it since
SELECT s.user_id, s.from_address, coalesce(j.recipients, s.recipients) AS recipients,
    j.recipients IS NOT NULL AS some_have_it,
    CASE WHEN j.recipients IS NOT NULL THEN (
        SELECT array_agg(ARRAY[r.address, r.reason]) FROM opensend_milter.recipient_results r
        WHERE r.email_id = s.email_id AND (r.outcome = 'refused'
            -- While it was asked: who bounced later has no courier.
            OR r.outcome = 'bounced' AND r.courier IS NOT NULL)) END AS refused,
    s.received_at, s.queue_id, s.client_address, s.front_door, s.tls, nullif(j.courier, '') AS courier, s.size_bytes
FROM opensend_milter.submissions s JOIN opensend_milter.jobs j ON j.email_id = s.email_id
WHERE s.email_id = %(id)s;

-- route -- what the domain of From asks for
-- By the index; only where that finds none, by reading all domains of the user: one may be stored in capitals.
SELECT d.region, coalesce(d.ses_configuration_set_name, '') AS configuration_set, d.track_opens,
    d.track_clicks, coalesce(d.tracking_subdomain, '') AS tracking_host, coalesce(c.one_click, false) AS one_click
FROM (
    (SELECT id FROM public.domains
        WHERE user_id = %(user_id)s AND name = ANY (%(names)s) AND status = 'verified' LIMIT 1)
    UNION ALL
    (SELECT id FROM public.domains
        WHERE user_id = %(user_id)s AND lower(name) = ANY (%(names)s) ORDER BY status = 'verified' DESC LIMIT 1)
    LIMIT 1
) one JOIN public.domains d ON d.id = one.id LEFT JOIN opensend_milter.domain_settings c ON c.domain_id = d.id;

-- raw -- the message, piece by piece
SELECT bytes FROM opensend_milter.raw_chunks WHERE email_id = %(id)s ORDER BY chunk_no;

-- extend -- these are still in hand
UPDATE opensend_milter.jobs j SET lease_until = now() + %(lease)s::interval
FROM unnest(%(ids)s::uuid[], %(lease_ids)s::uuid[]) AS i (email_id, lease_id)
WHERE j.email_id = i.email_id AND j.lease_id = i.lease_id AND j.state IN ('claimed', 'attempting');

-- begin -- the attempt begins: from here on a lease that ends is uncertain
UPDATE opensend_milter.jobs
SET state = 'attempting', attempts = %(attempt)s, lease_until = now() + %(lease)s::interval
WHERE email_id = %(id)s AND lease_id = %(lease_id)s AND state = 'claimed'
    -- Always so; named here, a table that is not there yet stops a message before it leaves and cannot be recorded.
    AND EXISTS (SELECT FROM opensend_milter.lane_answers) IS NOT NULL
RETURNING true;

-- give_back -- undo a claim for which not one byte went out
WITH job AS (
    UPDATE opensend_milter.jobs
    SET state = 'waiting', attempts = %(attempt)s - 1, lease_id = NULL, lease_until = NULL, worker = NULL,
        announce_at = now(), last_error = NULL
    WHERE email_id = %(id)s AND lease_id = %(lease_id)s
    RETURNING email_id
)
UPDATE public.emails e SET status = 'queued' FROM job WHERE e.id = job.email_id AND e.status = 'processing';

-- record_sent -- the next hop has it: close the job
WITH job AS (
    DELETE FROM opensend_milter.jobs
    WHERE email_id = %(id)s AND lease_id = %(lease_id)s AND state IN ('attempting', 'uncertain')
    RETURNING email_id, user_id
), mail AS (
    UPDATE public.emails e
    SET status = %(status)s, sent_at = now(), provider_last_attempted_at = now(), provider_next_retry_at = NULL,
        provider_dead_lettered_at = NULL, provider_last_error_code = NULL, provider_last_error_message = NULL
    FROM job
    -- What came back of the message already knows more than we do.
    WHERE e.id = job.email_id AND e.status NOT IN ('delivered', 'bounced', 'complained', 'suppressed')
), submission AS (
    UPDATE opensend_milter.submissions s SET provider_id = %(provider_id)s
    FROM job WHERE s.email_id = job.email_id AND %(provider_id)s::text IS NOT NULL
), reached AS (
    DELETE FROM opensend_milter.recipient_results r USING job
    WHERE r.email_id = job.email_id AND r.outcome = 'deferred' AND r.address <> ALL (%(addresses)s::text[])
),
-- include: answered
, said AS (
    SELECT e.id AS email_id, %(type)s::text AS type, %(payload)s::jsonb AS payload,
        %(source_id)s::text AS source_id, %(user_id)s::text AS user_id
    FROM job JOIN public.emails e ON e.id = job.email_id
),
-- include: event, user_id = %(user_id)s, type = %(type)s::text
SELECT count(*) FROM job;

-- record_partly -- some have it; the others are tried again later
WITH job AS (
    UPDATE opensend_milter.jobs j
    SET state = 'waiting', lease_id = NULL, lease_until = NULL, worker = NULL, not_before = now() + %(wait)s::interval,
        announce_at = now() + %(wait)s::interval, last_error = %(reason)s, recipients = %(left)s
    WHERE j.email_id = %(id)s AND j.lease_id = %(lease_id)s AND j.state IN ('attempting', 'uncertain')
    RETURNING j.email_id, j.user_id, j.not_before
), mail AS (
    UPDATE public.emails e
    SET status = 'queued', provider_retry_count = provider_retry_count + 1, provider_last_attempted_at = now(),
        provider_next_retry_at = job.not_before, provider_last_error_code = 'delivery_deferred',
        provider_last_error_message = %(reason)s
    FROM job WHERE e.id = job.email_id AND e.status = 'processing'
), submission AS (
    UPDATE opensend_milter.submissions s SET provider_id = %(provider_id)s
    FROM job WHERE s.email_id = job.email_id AND %(provider_id)s::text IS NOT NULL
),
-- include: answered
, said AS (
    SELECT e.id AS email_id, %(type)s::text AS type,
        %(payload)s::jsonb || jsonb_build_object('next_attempt_at', job.not_before) AS payload,
        %(source_id)s::text AS source_id, %(user_id)s::text AS user_id
    FROM job JOIN public.emails e ON e.id = job.email_id
),
-- include: event, user_id = %(user_id)s, type = %(type)s::text
SELECT count(*) FROM job;

-- record_deferred -- try again later, by the database's clock: the worker's may be far off
WITH job AS (
    UPDATE opensend_milter.jobs j
    SET state = 'waiting', lease_id = NULL, lease_until = NULL, worker = NULL, not_before = now() + %(wait)s::interval,
        announce_at = now() + %(wait)s::interval, last_error = %(reason)s
    WHERE j.email_id = %(id)s AND j.lease_id = %(lease_id)s AND j.state IN ('attempting', 'uncertain')
    RETURNING j.email_id, j.not_before
), mail AS (
    UPDATE public.emails e
    SET status = 'queued', provider_retry_count = provider_retry_count + 1, provider_last_attempted_at = now(),
        provider_next_retry_at = job.not_before, provider_last_error_code = 'delivery_deferred',
        provider_last_error_message = %(reason)s
    FROM job WHERE e.id = job.email_id AND e.status = 'processing'
), said AS (
    SELECT e.id AS email_id, %(type)s::text AS type,
        %(payload)s::jsonb || jsonb_build_object('next_attempt_at', job.not_before) AS payload,
        %(source_id)s::text AS source_id, %(user_id)s::text AS user_id
    FROM job JOIN public.emails e ON e.id = job.email_id
),
-- include: event, user_id = %(user_id)s, type = %(type)s::text
SELECT count(*) FROM job;

-- record_failed -- it will not be sent: nobody has it
WITH job AS (
    DELETE FROM opensend_milter.jobs
    WHERE email_id = %(id)s AND lease_id = %(lease_id)s AND state IN ('claimed', 'attempting', 'uncertain')
    RETURNING email_id, user_id
), mail AS (
    UPDATE public.emails e
    SET status = %(status)s, provider_retry_count = provider_retry_count + 1, provider_last_attempted_at = now(),
        provider_next_retry_at = NULL, provider_dead_lettered_at = now(),
        provider_last_error_code = 'delivery_failed', provider_last_error_message = %(reason)s
    FROM job WHERE e.id = job.email_id AND e.status = 'processing'
),
-- include: answered
, said AS (
    SELECT e.id AS email_id, %(type)s::text AS type, %(payload)s::jsonb AS payload,
        %(source_id)s::text AS source_id, %(user_id)s::text AS user_id
    FROM job JOIN public.emails e ON e.id = job.email_id
    WHERE %(is_told)s
),
-- include: event, user_id = %(user_id)s, type = %(type)s::text
SELECT count(*) FROM job;

-- record_uncertain -- it may be out: it stays, and nobody sends it by himself
-- The lease id is kept: who learns the outcome after all may still record it.
UPDATE opensend_milter.jobs
SET state = 'uncertain', lease_until = NULL, announce_at = NULL, uncertain_at = now(), last_error = %(reason)s
WHERE email_id = %(id)s AND lease_id = %(lease_id)s AND state IN ('attempting', 'uncertain')
RETURNING true;

-- is_recorded -- tell a record that was written and whose answer was lost from one that is not ours to write
SELECT EXISTS (SELECT FROM public.email_events WHERE source_id = %(source_id)s)
    -- Where a bounce is all that is told, until it is taken up.
    OR EXISTS (SELECT FROM opensend_milter.feedback WHERE source_id = %(source_id)s);

-- release_claimed -- workers died before their attempt began: give their jobs back
WITH ended AS (
    SELECT email_id FROM opensend_milter.jobs
    WHERE state = 'claimed' AND lease_until < now() FOR UPDATE SKIP LOCKED
), job AS (
    UPDATE opensend_milter.jobs j
    SET state = 'waiting', lease_id = NULL, lease_until = NULL, worker = NULL, announce_at = now()
    FROM ended WHERE j.email_id = ended.email_id
    RETURNING j.email_id
), mail AS (
    UPDATE public.emails e SET status = 'queued' FROM job WHERE e.id = job.email_id AND e.status = 'processing'
)
SELECT email_id::text FROM job;

-- release_attempting -- workers died in their attempt: who knows what the next hop has
WITH ended AS (
    SELECT email_id FROM opensend_milter.jobs
    WHERE state = 'attempting' AND lease_until < now() FOR UPDATE SKIP LOCKED
)
UPDATE opensend_milter.jobs j
SET state = 'uncertain', lease_until = NULL, announce_at = NULL, uncertain_at = now(), last_error = %(reason)s
FROM ended WHERE j.email_id = ended.email_id
RETURNING j.email_id::text, (SELECT queue_id FROM opensend_milter.submissions s WHERE s.email_id = j.email_id);

-- set_right -- let be due a batch of what a clock that was ahead has put off: jobs made, tried, announced or leased in times to come
WITH late AS MATERIALIZED (
    SELECT j.email_id FROM opensend_milter.jobs j JOIN public.emails e ON e.id = j.email_id AND e.status = 'queued'
    WHERE j.state = 'waiting' AND j.not_before > now() AND (j.created_at > now() OR EXISTS (
        SELECT FROM public.email_events v WHERE v.email_id = j.email_id AND v.received_at > now()))
    LIMIT %(limit)s FOR UPDATE OF j SKIP LOCKED
), unannounced AS MATERIALIZED (
    -- Nothing that is due is announced again later than after a quarter of an hour, and no lease is of more than an hour.
    SELECT email_id FROM opensend_milter.jobs
    WHERE state = 'waiting' AND not_before <= now() AND announce_at > now() + interval '1 hour'
    LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), leased AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE state IN ('claimed', 'attempting') AND lease_until > now() + interval '1 hour'
    LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE opensend_milter.jobs j SET
    not_before = least(j.not_before, now()),
    announce_at = CASE WHEN j.state = 'waiting' THEN now() ELSE j.announce_at END,
    lease_until = CASE WHEN j.state <> 'waiting' THEN now() + %(lease)s::interval END
FROM (TABLE late UNION ALL TABLE unannounced UNION ALL TABLE leased) put_off WHERE j.email_id = put_off.email_id;

-- long_uncertain -- nobody could tell what became of these
SELECT j.email_id::text AS email_id, j.lease_id::text AS lease_id, j.attempts, j.rounds, j.user_id, s.queue_id
FROM opensend_milter.jobs j LEFT JOIN opensend_milter.submissions s ON s.email_id = j.email_id
WHERE j.state = 'uncertain' AND j.uncertain_at < now() - %(age)s::interval LIMIT 100;

-- drop_raw -- the bytes of a batch of old messages that are finished
WITH old AS MATERIALIZED (
    SELECT s.email_id FROM opensend_milter.submissions s
    WHERE s.raw_dropped_at IS NULL AND s.received_at < now() - %(age)s::interval
        AND NOT EXISTS (SELECT FROM opensend_milter.jobs j WHERE j.email_id = s.email_id)
    ORDER BY s.received_at LIMIT %(limit)s
), dropped AS (
    DELETE FROM opensend_milter.raw_chunks c USING old WHERE c.email_id = old.email_id
)
UPDATE opensend_milter.submissions s SET raw_dropped_at = now() FROM old WHERE s.email_id = old.email_id;

-- prune_old_refusals -- a batch of those that are too old
DELETE FROM opensend_milter.refusals WHERE id IN (
    SELECT id FROM opensend_milter.refusals WHERE refused_at < now() - %(age)s::interval ORDER BY refused_at LIMIT %(limit)s);

-- prune_surplus_refusals -- a batch of all but the newest
DELETE FROM opensend_milter.refusals WHERE id IN (
    SELECT id FROM opensend_milter.refusals
    WHERE id <= (SELECT id FROM opensend_milter.refusals ORDER BY id DESC OFFSET %(keep)s LIMIT 1)
    ORDER BY id LIMIT %(limit)s);

-- prune_console_views -- a batch of those that are too old
DELETE FROM opensend_milter.console_views WHERE id IN (
    SELECT id FROM opensend_milter.console_views WHERE viewed_at < now() - %(age)s::interval ORDER BY viewed_at LIMIT %(limit)s);

-- prune_console_actions -- a batch of those that are too old
DELETE FROM opensend_milter.console_actions WHERE id IN (
    SELECT id FROM opensend_milter.console_actions WHERE done_at < now() - %(age)s::interval ORDER BY done_at LIMIT %(limit)s);

-- prune_jobs -- a batch of jobs whose email somebody else has sent, or is sending
DELETE FROM opensend_milter.jobs WHERE email_id IN (
    SELECT j.email_id FROM opensend_milter.jobs j
    WHERE j.state = 'waiting' AND NOT EXISTS (
        SELECT FROM public.emails e WHERE e.id = j.email_id AND e.status IN ('queued', 'scheduled'))
    LIMIT %(limit)s);

-- prune_key_usage -- a batch of counts of days long gone
DELETE FROM opensend_milter.key_usage WHERE (key_id, day) IN (
    SELECT key_id, day FROM opensend_milter.key_usage
    WHERE day < (now() AT TIME ZONE 'UTC')::date - 40 LIMIT %(limit)s);

-- prune_key_secrets -- secrets that have been no good for a month
DELETE FROM opensend_milter.key_secrets WHERE expires_at < now() - interval '30 days';

-- prune_rate_buckets -- a batch of buckets that are full by now, unless one was just used; in the order of leasing
DELETE FROM opensend_milter.rate_buckets
WHERE name = ANY (ARRAY(
        SELECT name FROM opensend_milter.rate_buckets WHERE refilled_at < now() - interval '10 minutes'
        ORDER BY refilled_at LIMIT %(limit)s))
    AND refilled_at < now() - interval '10 minutes';

-- prune_lane_answers -- a batch of what is too old, or beyond the newest of its lane
WITH RECURSIVE lane AS (
    (SELECT user_id, courier FROM opensend_milter.lane_answers ORDER BY user_id, courier LIMIT 1)
    UNION ALL
    SELECT n.user_id, n.courier FROM lane l CROSS JOIN LATERAL (
        SELECT user_id, courier FROM opensend_milter.lane_answers
        WHERE (user_id, courier) > (l.user_id, l.courier) ORDER BY user_id, courier LIMIT 1) n
)
DELETE FROM opensend_milter.lane_answers a USING (
    SELECT lane.user_id, lane.courier, beyond.id FROM lane CROSS JOIN LATERAL (
        SELECT id, row_number() OVER (ORDER BY id DESC) > %(keep)s OR noted_at < now() - %(age)s::interval AS is_old
        FROM opensend_milter.lane_answers
        WHERE user_id = lane.user_id AND courier = lane.courier ORDER BY id DESC LIMIT %(keep)s::integer + %(limit)s::integer) beyond
    WHERE beyond.is_old LIMIT %(limit)s) old
WHERE a.user_id = old.user_id AND a.courier = old.courier AND a.id = old.id;

-- prune_row_digests -- a batch of those whose names are free again
DELETE FROM opensend_milter.row_digests WHERE email_id IN (
    SELECT email_id FROM opensend_milter.row_digests
    WHERE computed_at < now() - interval '2 days' ORDER BY computed_at LIMIT %(limit)s);

-- prune_fingerprints -- a batch of names whose time is over
DELETE FROM opensend_milter.fingerprints WHERE (key_id, fingerprint) IN (
    SELECT key_id, fingerprint FROM opensend_milter.fingerprints
    WHERE received_at < now() - %(age)s::interval ORDER BY received_at LIMIT %(limit)s);

-- backlog -- by state, how many jobs there are, and how long the oldest has been due
SELECT state, count(*),
    coalesce(extract(epoch FROM now() - min(not_before) FILTER (WHERE state = 'waiting' AND not_before <= now())), 0)
FROM opensend_milter.jobs GROUP BY state;
