-- contents -- what was read in a message, of attachments their names
SELECT headers, left(text, %(most)s), left(html, %(most)s),
    CASE jsonb_typeof(attachments) WHEN 'array' THEN
        ARRAY(SELECT coalesce(file ->> 'filename', '') FROM jsonb_array_elements(attachments) AS f (file)) END
FROM public.emails WHERE id = %(id)s::uuid;

-- piece -- one piece of a message as it was handed in
SELECT bytes FROM opensend_milter.raw_chunks WHERE email_id = %(id)s::uuid AND chunk_no = %(chunk_no)s;
