-- stage -- the next piece of an attachment that is too large to be a parameter
INSERT INTO opensend_milter.pieces (email_id, attachment_no, piece_no, content)
VALUES (%(id)s, %(attachment_no)s, %(piece_no)s, %(content)s);

-- unstage -- the pieces are in the row now
DELETE FROM opensend_milter.pieces WHERE email_id = ANY (%(ids)s::uuid[]);

-- lacking -- which of these rows only name their attachments
SELECT e.id::text FROM public.emails e WHERE e.id = ANY (%(ids)s::uuid[]) AND
    -- include: lacking
;

-- waiting -- the next of what waits, each with whether its row only names its attachments
SELECT j.email_id::text,
    -- include: lacking
FROM opensend_milter.jobs j JOIN public.emails e ON e.id = j.email_id
WHERE j.state = 'waiting' AND (%(after)s::uuid IS NULL OR j.email_id > %(after)s::uuid)
ORDER BY j.email_id LIMIT %(limit)s;

-- take -- a waiting job whose row only names its attachments, unless somebody has it in hand
SELECT FROM opensend_milter.jobs j JOIN public.emails e ON e.id = j.email_id
WHERE j.email_id = %(id)s AND j.state = 'waiting' AND
    -- include: lacking
FOR UPDATE OF j SKIP LOCKED;

-- raw -- the bytes as they came
SELECT bytes FROM opensend_milter.raw_chunks WHERE email_id = %(id)s ORDER BY chunk_no;

-- fill -- put the pieces into the row
UPDATE public.emails SET attachments = (
    -- include: staged, list = %(attachments)s::jsonb, email = %(id)s::uuid
)
WHERE id = %(id)s;
