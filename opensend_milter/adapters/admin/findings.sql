-- forget -- what a host's doctor saw before, and what no doctor of any host has seen for long
DELETE FROM opensend_milter.findings WHERE host = %(host)s OR checked_at < now() - interval '30 days';

-- keep -- what a host's doctor sees now
INSERT INTO opensend_milter.findings (host, name, result, seen, mend)
SELECT %(host)s, f.name, f.result, f.seen, f.mend
FROM unnest(%(names)s::text[], %(results)s::text[], %(seen)s::text[], %(mends)s::text[]) AS f (name, result, seen, mend);

-- examined -- by host, when its doctor looked, and how many checks ended how
SELECT host, now() - min(checked_at) AS age, count(*) FILTER (WHERE result = 'good') AS good,
    count(*) FILTER (WHERE result = 'skipped') AS skipped
FROM opensend_milter.findings GROUP BY host ORDER BY host;

-- faults -- what was wrong, problems first
SELECT host, name, result, seen, mend FROM opensend_milter.findings
WHERE result IN ('problem', 'warning') ORDER BY result, host, name LIMIT %(most)s;
