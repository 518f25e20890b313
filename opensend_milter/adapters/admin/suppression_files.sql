-- make_incoming -- where the lines of a file are put first, gone at the end of the transaction
CREATE TEMPORARY TABLE incoming (email text, folded text, reason text, since timestamptz) ON COMMIT DROP;

-- fill_incoming -- the lines
COPY incoming FROM STDIN;

-- add_incoming -- suppress the addresses that are not suppressed yet
WITH listed AS (SELECT %(user_id)s::text AS user_id, email, folded FROM incoming),
-- include: odd
INSERT INTO public.email_suppressions (user_id, email, reason, suppressed_at)
SELECT %(user_id)s, email, reason, coalesce(since, now()) FROM incoming
ON CONFLICT (user_id, email) DO NOTHING;

-- export -- what is suppressed for a user, oldest first
SELECT email, reason, suppressed_at FROM public.email_suppressions WHERE user_id = %(user_id)s
ORDER BY suppressed_at, email;
