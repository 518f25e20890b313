-- next_page -- of so many rows of the list behind a row: those that may be spelled oddly and are not noted, then the last
WITH page AS MATERIALIZED (
    SELECT user_id, email FROM public.email_suppressions
    WHERE (user_id, email) > (%(user_id)s, %(email)s) ORDER BY user_id, email LIMIT %(limit)s
)
SELECT p.user_id, p.email FROM page p
-- Capitals, a quote, a blank, and whatever is not ASCII.
WHERE p.email ~ '[^!#-@[-~]' AND NOT EXISTS (
    SELECT FROM opensend_milter.odd_spellings o WHERE o.user_id = p.user_id AND o.email = p.email)
UNION ALL
(SELECT user_id, email FROM page ORDER BY user_id DESC, email DESC LIMIT 1)
ORDER BY user_id, email;

-- note -- by what these are compared
INSERT INTO opensend_milter.odd_spellings (user_id, email, folded)
SELECT * FROM unnest(%(user_ids)s::text[], %(emails)s::text[], %(folded)s::text[])
ON CONFLICT (user_id, email) DO NOTHING;

-- forget -- what is on the list no more
DELETE FROM opensend_milter.odd_spellings o WHERE NOT EXISTS (
    SELECT FROM public.email_suppressions s WHERE s.user_id = o.user_id AND s.email = o.email);
