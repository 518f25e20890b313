-- taken -- how many messages came in lately, by the index of that time, and how the newest of them fare
WITH lately AS MATERIALIZED (
    SELECT email_id, received_at FROM opensend_milter.submissions
    WHERE received_at > now() - interval '1 hour' ORDER BY received_at DESC LIMIT %(most)s
)
SELECT CASE j.state WHEN 'uncertain' THEN j.state ELSE e.status END AS status, count(*) AS messages,
    count(*) FILTER (WHERE l.received_at > now() - interval '1 minute') AS of_last_minute
FROM lately l JOIN public.emails e ON e.id = l.email_id
    LEFT JOIN opensend_milter.jobs j ON j.email_id = l.email_id
GROUP BY 1 ORDER BY 2 DESC, 1;

-- handed_over -- of as many of the newest of a day, how many next hops took lately, and how long that was after it could be
WITH newest AS MATERIALIZED (
    SELECT sent_at, sent_at - greatest(created_at, scheduled_at) AS delay FROM public.emails
    WHERE created_at > now() - interval '1 day' ORDER BY created_at DESC LIMIT %(most)s
)
SELECT count(*) FILTER (WHERE sent_at > now() - interval '1 minute'), count(*),
    percentile_disc(0.5) WITHIN GROUP (ORDER BY delay), max(delay)
FROM newest WHERE sent_at > now() - interval '1 hour';

-- put_off -- why messages wait for another attempt, the most frequent cause first
SELECT courier, left(last_error, 300) AS reason, count(*) AS messages, min(not_before) AS next_at
FROM opensend_milter.jobs WHERE state = 'waiting' AND last_error IS NOT NULL
GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT %(causes)s;

-- failing_webhooks -- how many have not taken what they are to be told again
SELECT count(DISTINCT webhook_id) FROM (
    SELECT webhook_id FROM public.webhook_deliveries WHERE status = 'pending' AND attempt > 0 LIMIT %(most)s) AS called;

-- refused -- how many each rule has refused lately
SELECT rule, count(*) AS messages FROM (
    SELECT rule FROM opensend_milter.refusals
    WHERE refused_at > now() - interval '1 hour' ORDER BY refused_at DESC LIMIT %(most)s) lately
GROUP BY rule ORDER BY 2 DESC, 1;

-- lanes -- what is to be delivered, by user and courier, the longest due first
SELECT user_id, courier, count(*) FILTER (WHERE state <> 'uncertain') AS waiting,
    count(*) FILTER (WHERE state = 'uncertain') AS uncertain,
    now() - min(not_before) FILTER (WHERE state = 'waiting' AND not_before <= now()) AS due_for
FROM opensend_milter.jobs GROUP BY user_id, courier
ORDER BY due_for DESC NULLS LAST, user_id, courier LIMIT %(lanes)s;

-- volume -- how many messages of each outcome came in, and how many were refused, by steps of so many seconds
SELECT floor(extract(epoch FROM created_at) / %(step_s)s)::bigint AS bar, status, count(*) FROM public.emails
WHERE created_at >= to_timestamp(%(first)s::bigint * %(step_s)s) GROUP BY 1, 2
UNION ALL
SELECT floor(extract(epoch FROM refused_at) / %(step_s)s)::bigint, 'refused', count(*) FROM opensend_milter.refusals
WHERE refused_at >= to_timestamp(%(first)s::bigint * %(step_s)s) GROUP BY 1;

-- suppressions -- suppressed addresses, latest first, each with the message that it is suppressed for
SELECT user_id, email, reason, suppressed_at, updated_at, source_email_id::text AS source_email_id
FROM public.email_suppressions ORDER BY suppressed_at DESC, email LIMIT %(limit)s;
