-- due_announcements -- take jobs to announce; they come again after a minute unless noted as announced
-- MATERIALIZED, here and below: a join may run a subquery once per row, and each time the lock finds other rows.
WITH due AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE announce_at <= now() AND not_before <= now() AND state = 'waiting'
    ORDER BY announce_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
UPDATE opensend_milter.jobs j SET announce_at = now() + interval '60 seconds' FROM due WHERE j.email_id = due.email_id
RETURNING j.email_id::text, j.created_at, j.attempts;

-- announced -- the queue has these; a hint may be lost, so it is repeated after a while
UPDATE opensend_milter.jobs SET announce_at = now() + interval '15 minutes'
WHERE email_id = ANY (%(ids)s::uuid[]) AND state = 'waiting' AND not_before <= now();

-- handed_over -- the queue has these, and whoever reads it owns them now
DELETE FROM opensend_milter.jobs WHERE email_id = ANY (%(ids)s::uuid[]) AND state = 'waiting';

-- take -- lease one waiting job by its id; whoever is just noting that it was announced is waited for
WITH due AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE email_id = %(id)s AND state = 'waiting' AND not_before <= now() FOR UPDATE
)
UPDATE opensend_milter.jobs j
SET state = 'claimed', lease_id = gen_random_uuid(), lease_until = now() + %(lease)s, worker = %(worker)s
FROM due WHERE j.email_id = due.email_id
RETURNING j.email_id::text, j.lease_id::text, j.attempts;

-- take_due -- lease the job that has waited longest
WITH due AS MATERIALIZED (
    SELECT email_id FROM opensend_milter.jobs
    WHERE state = 'waiting' AND not_before <= now()
    ORDER BY not_before LIMIT 1 FOR UPDATE SKIP LOCKED
)
UPDATE opensend_milter.jobs j
SET state = 'claimed', lease_id = gen_random_uuid(), lease_until = now() + %(lease)s, worker = %(worker)s
FROM due WHERE j.email_id = due.email_id
RETURNING j.email_id::text, j.lease_id::text, j.attempts;

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

-- submission -- what was recorded of the message when it was taken
SELECT user_id, from_address, recipients, received_at, queue_id, client_address, front_door, tls, size_bytes
FROM opensend_milter.submissions WHERE email_id = %(id)s;

-- raw -- the message, piece by piece
SELECT bytes FROM opensend_milter.raw_chunks WHERE email_id = %(id)s ORDER BY chunk_no;

-- begin -- the attempt begins: from here on a lease that ends is uncertain
UPDATE opensend_milter.jobs
SET state = 'attempting', attempts = %(attempt)s, lease_until = now() + %(lease)s
WHERE email_id = %(id)s AND lease_id = %(lease_id)s AND state = 'claimed'
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
    RETURNING email_id
), mail AS (
    UPDATE public.emails e
    SET status = 'sent', sent_at = now(), provider_last_attempted_at = now(), provider_next_retry_at = NULL,
        provider_dead_lettered_at = NULL, provider_last_error_code = NULL, provider_last_error_message = NULL
    FROM job
    -- What came back of the message already knows more than we do.
    WHERE e.id = job.email_id AND e.status NOT IN ('delivered', 'bounced', 'complained', 'suppressed')
), event AS (
    INSERT INTO public.email_events (email_id, type, payload, source_id, user_id)
    SELECT e.id, %(type)s, %(payload)s::jsonb, %(source_id)s, %(user_id)s
    FROM job JOIN public.emails e ON e.id = job.email_id
    ON CONFLICT (source_id) DO NOTHING
)
SELECT count(*) FROM job;

-- record_deferred -- try again later, by the database's clock: the worker's may be far off
WITH due AS (
    SELECT least(greatest(%(next_attempt_at)s, now() + %(shortest)s), now() + %(longest)s) AS next_attempt_at
), job AS (
    UPDATE opensend_milter.jobs j
    SET state = 'waiting', lease_id = NULL, lease_until = NULL, worker = NULL, not_before = due.next_attempt_at,
        announce_at = due.next_attempt_at, last_error = %(reason)s
    FROM due
    WHERE j.email_id = %(id)s AND j.lease_id = %(lease_id)s AND j.state IN ('attempting', 'uncertain')
    RETURNING j.email_id, j.not_before
), mail AS (
    UPDATE public.emails e
    SET status = 'queued', provider_retry_count = provider_retry_count + 1, provider_last_attempted_at = now(),
        provider_next_retry_at = job.not_before, provider_last_error_code = 'delivery_deferred',
        provider_last_error_message = %(reason)s
    FROM job WHERE e.id = job.email_id AND e.status = 'processing'
), event AS (
    INSERT INTO public.email_events (email_id, type, payload, source_id, user_id)
    SELECT e.id, %(type)s, %(payload)s::jsonb, %(source_id)s, %(user_id)s
    FROM job JOIN public.emails e ON e.id = job.email_id
    ON CONFLICT (source_id) DO NOTHING
)
SELECT count(*) FROM job;

-- record_failed -- it will not be sent
WITH job AS (
    DELETE FROM opensend_milter.jobs
    WHERE email_id = %(id)s AND lease_id = %(lease_id)s AND state IN ('claimed', 'attempting', 'uncertain')
    RETURNING email_id
), mail AS (
    UPDATE public.emails e
    SET status = 'failed', provider_retry_count = provider_retry_count + 1, provider_last_attempted_at = now(),
        provider_next_retry_at = NULL, provider_dead_lettered_at = now(),
        provider_last_error_code = 'delivery_failed', provider_last_error_message = %(reason)s
    FROM job WHERE e.id = job.email_id AND e.status = 'processing'
), event AS (
    INSERT INTO public.email_events (email_id, type, payload, source_id, user_id)
    SELECT e.id, %(type)s, %(payload)s::jsonb, %(source_id)s, %(user_id)s
    FROM job JOIN public.emails e ON e.id = job.email_id
    ON CONFLICT (source_id) DO NOTHING
)
SELECT count(*) FROM job;

-- record_uncertain -- it may be out: it stays, and nobody sends it by himself
-- The lease id is kept: who learns the outcome after all may still record it.
UPDATE opensend_milter.jobs
SET state = 'uncertain', lease_until = NULL, announce_at = NULL, last_error = %(reason)s
WHERE email_id = %(id)s AND lease_id = %(lease_id)s AND state IN ('attempting', 'uncertain')
RETURNING true;

-- is_recorded -- tell a record that was written and whose answer was lost from one that is not ours to write
SELECT EXISTS (SELECT FROM public.email_events WHERE source_id = %(source_id)s);

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
SET state = 'uncertain', lease_until = NULL, announce_at = NULL, last_error = %(reason)s
FROM ended WHERE j.email_id = ended.email_id
RETURNING j.email_id::text, (SELECT queue_id FROM opensend_milter.submissions s WHERE s.email_id = j.email_id);

-- prune_old_refusals -- a batch of those that are too old
DELETE FROM opensend_milter.refusals WHERE id IN (
    SELECT id FROM opensend_milter.refusals WHERE refused_at < now() - %(age)s ORDER BY refused_at LIMIT %(limit)s);

-- prune_surplus_refusals -- a batch of all but the newest
DELETE FROM opensend_milter.refusals WHERE id IN (
    SELECT id FROM opensend_milter.refusals
    WHERE id <= (SELECT id FROM opensend_milter.refusals ORDER BY id DESC OFFSET %(keep)s LIMIT 1)
    ORDER BY id LIMIT %(limit)s);

-- prune_jobs -- a batch of jobs whose email somebody else has sent, or is sending
DELETE FROM opensend_milter.jobs WHERE email_id IN (
    SELECT j.email_id FROM opensend_milter.jobs j
    WHERE j.state = 'waiting' AND NOT EXISTS (
        SELECT FROM public.emails e WHERE e.id = j.email_id AND e.status IN ('queued', 'scheduled'))
    LIMIT %(limit)s);

-- prune_fingerprints -- a batch of names whose time is over
DELETE FROM opensend_milter.fingerprints WHERE (key_id, fingerprint) IN (
    SELECT key_id, fingerprint FROM opensend_milter.fingerprints
    WHERE received_at < now() - %(age)s::interval ORDER BY received_at LIMIT %(limit)s);
