-- What OpenSend's REST API took under an Idempotency-Key, compared with a message of ours: read once, and only for that.
CREATE TABLE opensend_milter.row_digests (
    email_id uuid PRIMARY KEY,
    digest bytea,
    computed_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX row_digests_computed_at_idx ON opensend_milter.row_digests (computed_at);
COMMENT ON TABLE opensend_milter.row_digests IS 'of rows that REST made; NULL: cannot be compared. The worker prunes it';

CREATE FUNCTION opensend_milter.hex_digest(written text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN encode(sha256(convert_to(coalesce(written, ''), 'UTF8')), 'hex');

CREATE FUNCTION opensend_milter.items(list jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN CASE jsonb_typeof(list) WHEN 'array' THEN list ELSE '[]' END;

CREATE FUNCTION opensend_milter.addresses(list jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
    SELECT string_agg(DISTINCT lower(a COLLATE "C"), ' ' ORDER BY lower(a COLLATE "C"))
    FROM jsonb_array_elements_text(list) AS l (a);
END;

CREATE FUNCTION opensend_milter.lines(written text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    RETURN rtrim(replace(replace(written, E'\r\n', E'\n'), E'\r', E'\n'), E'\n');

-- Whoever asks learns whether two contents are equal, and nothing else of a row. The same in Python: core/identity.py.
CREATE FUNCTION opensend_milter.row_digest(asked uuid) RETURNS bytea
    LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    made bytea;
BEGIN
    SELECT d.digest INTO made FROM opensend_milter.row_digests d WHERE d.email_id = asked;
    IF FOUND THEN
        RETURN made;
    END IF;
    SELECT sha256(convert_to(concat_ws(E'\n',
            opensend_milter.hex_digest(lower(coalesce(substring(e."from" FROM '<([^<>]*)>$'), e."from") COLLATE "C")),
            opensend_milter.hex_digest(opensend_milter.addresses(
                opensend_milter.items(e."to") || opensend_milter.items(e.cc) || opensend_milter.items(e.bcc))),
            opensend_milter.hex_digest(btrim(e.subject)),
            opensend_milter.hex_digest(opensend_milter.lines(e.text)),
            opensend_milter.hex_digest(opensend_milter.lines(e.html)),
            (SELECT string_agg(concat_ws(E'\n',
                    opensend_milter.hex_digest(f.file ->> 'filename'),
                    opensend_milter.hex_digest(translate(f.file ->> 'content', E' \t\r\n', ''))), E'\n' ORDER BY f.place)
                FROM jsonb_array_elements(opensend_milter.items(e.attachments)) WITH ORDINALITY AS f (file, place))),
            'UTF8'))
        INTO made
        FROM public.emails e
        -- None for a row that is too large to be read in passing, or that only says where an attachment is to be had.
        WHERE e.id = asked
            AND coalesce(octet_length(e.text), 0) + coalesce(octet_length(e.html), 0) <= 500000
            -- First as it is stored, then as it is: letters that repeat are stored a hundred times smaller.
            AND CASE WHEN pg_column_size(e.attachments) > 400000 THEN false
                ELSE coalesce(pg_column_size(e.attachments || '[]'), 0) <= 500000 END
            AND pg_column_size(e."to") + coalesce(pg_column_size(e.cc), 0) + coalesce(pg_column_size(e.bcc), 0) <= 100000
            AND NOT EXISTS (SELECT FROM jsonb_array_elements(opensend_milter.items(e.attachments)) AS f (file)
                WHERE jsonb_typeof(f.file -> 'filename') IS DISTINCT FROM 'string'
                    OR jsonb_typeof(f.file -> 'content') IS DISTINCT FROM 'string');
    INSERT INTO opensend_milter.row_digests (email_id, digest) VALUES (asked, made) ON CONFLICT DO NOTHING;
    RETURN made;
END $$;
REVOKE ALL ON FUNCTION opensend_milter.row_digest(uuid) FROM PUBLIC;
