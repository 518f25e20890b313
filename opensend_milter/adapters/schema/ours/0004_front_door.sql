-- What a key may do beyond OpenSend's own columns, and how much of it. Without its row in api_keys all of it means nothing.
ALTER TABLE opensend_milter.key_settings
    ADD COLUMN allowed_senders text[],
    ADD COLUMN allowed_recipients text[],
    ADD COLUMN networks text[],
    ADD COLUMN per_minute integer CHECK (per_minute > 0),
    ADD COLUMN per_day integer CHECK (per_day > 0),
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN may_attach boolean NOT NULL DEFAULT true,
    ADD COLUMN may_html boolean NOT NULL DEFAULT true,
    ADD COLUMN may_bulk boolean NOT NULL DEFAULT true;
COMMENT ON COLUMN opensend_milter.key_settings.allowed_senders IS 'addresses, or @domain; NULL: any';
COMMENT ON COLUMN opensend_milter.key_settings.allowed_recipients IS 'addresses, or @domain; NULL: any';
COMMENT ON COLUMN opensend_milter.key_settings.networks IS 'from where it may be used; NULL: from anywhere';

-- A second secret of a key, for as long as clients change over.
CREATE TABLE opensend_milter.key_secrets (
    token_hash text PRIMARY KEY,
    key_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz
);
CREATE INDEX key_secrets_key_id_idx ON opensend_milter.key_secrets (key_id);
COMMENT ON TABLE opensend_milter.key_secrets IS 'further secrets of keys in api_keys: without that row they mean nothing';

CREATE TABLE opensend_milter.key_usage (
    key_id uuid NOT NULL,
    day date NOT NULL,
    messages integer NOT NULL,
    PRIMARY KEY (key_id, day)
);
COMMENT ON TABLE opensend_milter.key_usage IS 'messages of keys that have a daily limit, by UTC day; the worker prunes it';

-- Token buckets: a process takes a block of tokens at a time. After a crash they are full again, which is no harm.
CREATE UNLOGGED TABLE opensend_milter.rate_buckets (
    name text PRIMARY KEY,
    tokens double precision NOT NULL,
    refilled_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX rate_buckets_refilled_at_idx ON opensend_milter.rate_buckets (refilled_at);
COMMENT ON TABLE opensend_milter.rate_buckets IS 'token buckets of rate limits; the worker prunes what is full';

ALTER TABLE opensend_milter.submissions ADD COLUMN bulk_id uuid;
CREATE INDEX submissions_bulk_id_idx ON opensend_milter.submissions (bulk_id) WHERE bulk_id IS NOT NULL;
CREATE INDEX submissions_key_id_idx ON opensend_milter.submissions (key_id, received_at);

-- The whole of what Dovecot and the HTTP process may ask: hash in, key id out.
CREATE OR REPLACE FUNCTION opensend_milter.key_id(token_hash text) RETURNS text
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.id::text FROM public.api_keys k
    WHERE k.user_id IS NOT NULL AND k.id = coalesce(
        (SELECT a.id FROM public.api_keys a WHERE a.token_hash = key_id.token_hash),
        (SELECT s.key_id FROM opensend_milter.key_secrets s
            WHERE s.token_hash = key_id.token_hash AND (s.expires_at IS NULL OR s.expires_at > now())))
        AND NOT EXISTS (SELECT FROM opensend_milter.key_settings c WHERE c.key_id = k.id AND c.expires_at <= now())
$$;
