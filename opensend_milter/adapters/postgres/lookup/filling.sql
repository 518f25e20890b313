-- take -- how far it is, unless another process goes on from there just now; who is told keeps all others from it
SELECT noted_at, noted_id::text, checked_at, checked_id::text FROM opensend_milter.search_progress FOR UPDATE SKIP LOCKED;

-- take_turn -- the same, when the other process is done
SELECT noted_at, noted_id::text, checked_at, checked_id::text FROM opensend_milter.search_progress FOR UPDATE;

-- next_page -- the next messages behind a place, each with what it is known by unless that is noted already
WITH page AS MATERIALIZED (
    SELECT id, created_at FROM public.emails
    WHERE (created_at, id) > (%(at)s, %(id)s::uuid) ORDER BY created_at, id LIMIT %(limit)s
)
SELECT page.id::text, page.created_at, k.*
FROM page LEFT JOIN LATERAL (
    -- include: known_of, id = page.id AND NOT EXISTS (SELECT FROM opensend_milter.search n WHERE n.email_id = page.id)
    ) k ON true
-- Not a bound of the page itself: for between two bounds Postgres expects few rows, reads all there are, and sorts.
WHERE page.created_at < least(%(until)s::timestamptz, now() - %(age)s::interval)
ORDER BY page.created_at, page.id;

-- begin_stretch -- a new one, where the last has enough
INSERT INTO opensend_milter.search_stretches (number, began_at)
SELECT last.number + 1, %(at)s FROM (
    SELECT number, began_at, messages FROM opensend_milter.search_stretches ORDER BY number DESC LIMIT 1) last
WHERE last.messages >= %(enough)s AND last.began_at < %(at)s;

-- note -- by what these are known, each in the stretch of time that it falls in
WITH noted AS (
    INSERT INTO opensend_milter.search (email_id, created_at, terms)
    SELECT n.email_id, n.created_at,
        -- include: laid, terms = n.terms::bigint[], number = g.number
    FROM unnest(%(ids)s::uuid[], %(times)s::timestamptz[], %(terms)s::text[]) AS n (email_id, created_at, terms)
        CROSS JOIN LATERAL (
            SELECT number FROM opensend_milter.search_stretches WHERE began_at <= n.created_at
            ORDER BY began_at DESC LIMIT 1) g
    ON CONFLICT (email_id) DO NOTHING
    RETURNING email_id
)
UPDATE opensend_milter.search_stretches SET messages = messages + (SELECT count(*) FROM noted)
WHERE number = (SELECT max(number) FROM opensend_milter.search_stretches);

-- noted -- all up to this one are; those of long ago need not be looked at again
UPDATE opensend_milter.search_progress SET noted_at = %(at)s, noted_id = %(id)s::uuid,
    checked_at = CASE WHEN is_past THEN %(at)s ELSE checked_at END,
    checked_id = CASE WHEN is_past THEN %(id)s::uuid ELSE checked_id END
FROM (
    SELECT (checked_at, checked_id) = (noted_at, noted_id) AND %(at)s < now() - %(late)s::interval AS is_past
    FROM opensend_milter.search_progress) p;

-- checked -- all up to this one are noted, those too that were committed late
UPDATE opensend_milter.search_progress SET checked_at = %(at)s, checked_id = %(id)s::uuid;

-- forget -- what is noted of emails that are gone, of so many behind an id; return the last of these
WITH page AS MATERIALIZED (
    SELECT s.email_id, (SELECT e.id FROM public.emails e WHERE e.id = s.email_id) IS NULL AS is_gone
    FROM opensend_milter.search s WHERE s.email_id > %(id)s::uuid ORDER BY s.email_id LIMIT %(limit)s
), gone AS (
    DELETE FROM opensend_milter.search WHERE email_id = ANY (ARRAY(SELECT email_id FROM page WHERE is_gone))
)
SELECT email_id::text FROM page ORDER BY email_id DESC LIMIT 1;

-- lag -- for how many seconds the message that is to be noted next has waited
SELECT coalesce(extract(epoch FROM now() - e.created_at), 0)::float
FROM opensend_milter.search_progress p LEFT JOIN LATERAL (
    SELECT e.created_at FROM public.emails e WHERE (e.created_at, e.id) > (p.noted_at, p.noted_id)
    ORDER BY e.created_at, e.id LIMIT 1) e ON true;

-- empty -- for whoever fills it anew
TRUNCATE opensend_milter.search, opensend_milter.search_stretches;

-- begin -- from the first message of all
WITH first AS (INSERT INTO opensend_milter.search_stretches (number, began_at) VALUES (1, '-infinity'))
UPDATE opensend_milter.search_progress SET (noted_at, noted_id, checked_at, checked_id)
    = ('epoch', %(least)s::uuid, 'epoch', %(least)s::uuid);
