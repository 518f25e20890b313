-- What OpenSend has no column for. Never a foreign key into OpenSend's tables: it must be free to delete its rows.
CREATE TABLE opensend_milter.submissions (
    email_id uuid PRIMARY KEY,
    received_at timestamptz NOT NULL,
    user_id text NOT NULL,
    key_id uuid NOT NULL,
    front_door text NOT NULL,
    queue_id text NOT NULL,
    client_address text NOT NULL,
    tls text NOT NULL,
    sender text NOT NULL,
    from_address text NOT NULL,
    recipients text[] NOT NULL,
    message_id text,
    size_bytes bigint NOT NULL,
    sha256 bytea NOT NULL
);
CREATE INDEX submissions_queue_id_idx ON opensend_milter.submissions (queue_id);
CREATE INDEX submissions_received_at_idx ON opensend_milter.submissions (received_at);
COMMENT ON TABLE opensend_milter.submissions IS 'one row per accepted message, beside OpenSend''s emails row';

CREATE TABLE opensend_milter.raw_chunks (
    email_id uuid NOT NULL,
    chunk_no integer NOT NULL,
    bytes bytea NOT NULL,
    PRIMARY KEY (email_id, chunk_no)
) WITH (toast_tuple_target = 8160);
-- Mail is mostly base64 or already compressed: compressing it costs more than it saves.
ALTER TABLE opensend_milter.raw_chunks ALTER COLUMN bytes SET STORAGE EXTERNAL;
COMMENT ON TABLE opensend_milter.raw_chunks IS 'the message as Postfix handed it over, in order of chunk_no';

CREATE TABLE opensend_milter.jobs (
    email_id uuid PRIMARY KEY,
    user_id text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    state text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'claimed', 'attempting', 'uncertain')),
    not_before timestamptz NOT NULL DEFAULT now(),
    announce_at timestamptz DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    lease_id uuid,
    lease_until timestamptz,
    worker text,
    last_error text
);
CREATE INDEX jobs_due_idx ON opensend_milter.jobs (not_before) WHERE state = 'waiting';
CREATE INDEX jobs_announce_idx ON opensend_milter.jobs (announce_at) WHERE announce_at IS NOT NULL;
CREATE INDEX jobs_lease_idx ON opensend_milter.jobs (lease_until) WHERE state IN ('claimed', 'attempting');
COMMENT ON TABLE opensend_milter.jobs IS 'outbox and work list: one row per email that is not finished';

CREATE TABLE opensend_milter.refusals (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    refused_at timestamptz NOT NULL DEFAULT now(),
    rule text NOT NULL,
    code integer NOT NULL,
    enhanced text NOT NULL,
    text text NOT NULL,
    front_door text NOT NULL,
    queue_id text NOT NULL,
    client_address text NOT NULL,
    key_id text NOT NULL,
    user_id text,
    sender text NOT NULL,
    recipients text[] NOT NULL,
    message_id text,
    size_bytes bigint NOT NULL
);
CREATE INDEX refusals_refused_at_idx ON opensend_milter.refusals (refused_at);
CREATE INDEX refusals_queue_id_idx ON opensend_milter.refusals (queue_id);
COMMENT ON TABLE opensend_milter.refusals IS 'every refusal of ours with its rule; the worker prunes it';

-- The whole of what Dovecot may ask: hash in, key id out.
CREATE FUNCTION opensend_milter.key_id(token_hash text) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.id::text FROM public.api_keys k WHERE k.token_hash = key_id.token_hash AND k.user_id IS NOT NULL
$$;
REVOKE ALL ON FUNCTION opensend_milter.key_id(text) FROM PUBLIC;
