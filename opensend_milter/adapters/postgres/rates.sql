-- lease -- give back, refill and take; a bucket that is not there has no answer
WITH asked AS MATERIALIZED (
    SELECT a.name, a.least, a.most, a.back, coalesce(k.per_minute, a.per_minute) AS per_minute
    FROM unnest(%(names)s::text[], %(least)s::integer[], %(most)s::integer[], %(back)s::integer[],
            %(per_minute)s::integer[], %(key_ids)s::uuid[]) AS a (name, least, most, back, per_minute, key_id)
        LEFT JOIN opensend_milter.key_settings k ON k.key_id = a.key_id
), limited AS MATERIALIZED (
    SELECT a.*, a.per_minute::double precision / 60 AS per_second,
        greatest(a.per_minute::double precision / 60 * %(burst_s)s::double precision,
            least(a.per_minute, %(small_burst)s::integer)) AS burst
    FROM asked a WHERE a.per_minute > 0
), held AS MATERIALIZED (
    -- In the order of names, so that two who want the same never wait for each other.
    SELECT b.name, b.tokens, b.refilled_at FROM opensend_milter.rate_buckets b
    WHERE b.name = ANY (%(names)s::text[]) ORDER BY b.name FOR UPDATE
), timed AS MATERIALIZED (
    -- After the lock: whoever had it before has refilled up to an earlier time.
    SELECT h.*, clock_timestamp() AS seen_at FROM held h
), standing AS MATERIALIZED (
    SELECT l.name, l.least, l.most, t.seen_at, least(l.burst, t.tokens + l.back
            + greatest(extract(epoch FROM t.seen_at - t.refilled_at)::double precision, 0) * l.per_second)
        AS available
    FROM limited l JOIN timed t ON t.name = l.name
), granted AS MATERIALIZED (
    SELECT s.*, CASE WHEN s.available >= s.least THEN least(s.most, floor(s.available)::integer) ELSE 0 END AS tokens
    FROM standing s
), taken AS (
    UPDATE opensend_milter.rate_buckets b SET tokens = g.available - g.tokens, refilled_at = g.seen_at
    FROM granted g WHERE b.name = g.name
    RETURNING b.name, g.tokens AS granted, b.tokens AS rest
)
SELECT a.name, coalesce(t.granted, 0), coalesce(t.rest, 0), a.per_minute
FROM asked a LEFT JOIN taken t ON t.name = a.name
WHERE a.per_minute = 0 OR t.name IS NOT NULL;

-- create -- full buckets, by itself: it may wait for who leases, who therefore must never wait for it
INSERT INTO opensend_milter.rate_buckets (name, tokens)
SELECT n.name, 'infinity' FROM unnest(%(names)s::text[]) AS n (name) ORDER BY n.name
ON CONFLICT (name) DO NOTHING;
