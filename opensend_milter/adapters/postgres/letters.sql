-- letters -- what was written, to whom, and what became of it: of what this secret may read
SELECT
    -- include: progress
    , w.sender, w.to_list, w.cc_list, w.bcc_list, w.reply_tos, w.subject, w.tags, w.topic_id::text AS topic_id, w.html, w.text,
    w.octets, e.sent_at, (SELECT n.type FROM public.email_events n
        WHERE n.email_id = e.id AND n.type IN ('delayed', 'delivery_delayed', 'opened', 'clicked')
        ORDER BY n.received_at DESC, n.id LIMIT 1) AS noted
FROM opensend_milter.letters(%(token_hash)s, %(ids)s::uuid[], %(whole)s) w JOIN public.emails e ON e.id = w.email_id
    LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id
    -- include: history
ORDER BY e.created_at DESC, e.id DESC;

-- place_of_user -- where an email stands in the list of what a key's user has sent
SELECT e.created_at FROM public.emails e JOIN public.api_keys k ON k.user_id = e.user_id
WHERE k.id = %(key_id)s::uuid AND e.id = %(id)s::uuid;

-- place_of_key -- where an email stands in the list of what a key has sent
SELECT received_at FROM opensend_milter.submissions WHERE key_id = %(key_id)s::uuid AND email_id = %(id)s::uuid;

-- older_of_user -- what a key's user has sent before, latest first
SELECT e.id::text FROM public.emails e
WHERE e.user_id = (SELECT k.user_id FROM public.api_keys k WHERE k.id = %(key_id)s::uuid)
    AND (e.created_at, e.id) < (%(at)s::timestamptz, %(id)s::uuid)
ORDER BY e.created_at DESC, e.id DESC LIMIT %(limit)s;

-- newer_of_user -- what a key's user has sent since, oldest first
SELECT e.id::text FROM public.emails e
WHERE e.user_id = (SELECT k.user_id FROM public.api_keys k WHERE k.id = %(key_id)s::uuid)
    AND (e.created_at, e.id) > (%(at)s::timestamptz, %(id)s::uuid)
ORDER BY e.created_at, e.id LIMIT %(limit)s;

-- older_of_key -- what a key has sent before, latest first
SELECT s.email_id::text FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
WHERE s.key_id = %(key_id)s::uuid AND (s.received_at, s.email_id) < (%(at)s::timestamptz, %(id)s::uuid)
ORDER BY s.received_at DESC, s.email_id DESC LIMIT %(limit)s;

-- newer_of_key -- what a key has sent since, oldest first
SELECT s.email_id::text FROM opensend_milter.submissions s JOIN public.emails e ON e.id = s.email_id
WHERE s.key_id = %(key_id)s::uuid AND (s.received_at, s.email_id) > (%(at)s::timestamptz, %(id)s::uuid)
ORDER BY s.received_at, s.email_id LIMIT %(limit)s;

-- now -- what time it is, by the clock that all else goes by
SELECT now();

-- cancel -- take an email back
SELECT opensend_milter.cancel(%(token_hash)s, %(id)s::uuid);

-- reschedule -- have an email sent at another time
SELECT opensend_milter.reschedule(%(token_hash)s, %(id)s::uuid, %(moment)s::timestamptz);
