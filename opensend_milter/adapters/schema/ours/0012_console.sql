-- The console: who may look, who is looking, and who read what a message says. No table of others' is altered for it.
CREATE TABLE opensend_milter.console_users (
    name text PRIMARY KEY,
    salt bytea NOT NULL,
    digest bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON COLUMN opensend_milter.console_users.digest IS 'what scrypt makes of the password and the salt';

CREATE TABLE opensend_milter.console_sessions (
    token_hash bytea PRIMARY KEY,
    user_name text REFERENCES opensend_milter.console_users ON DELETE CASCADE,
    key_id uuid,
    client_address text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    CHECK (num_nonnulls(user_name, key_id) = 1)
);
CREATE INDEX console_sessions_expires_at_idx ON opensend_milter.console_sessions (expires_at);
COMMENT ON TABLE opensend_milter.console_sessions IS 'of a user, or of the holder of a key; a session is good as long as its row is there';
COMMENT ON COLUMN opensend_milter.console_sessions.token_hash IS 'SHA-256 of what the cookie holds';

CREATE TABLE opensend_milter.console_views (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    viewed_at timestamptz NOT NULL DEFAULT now(),
    viewer text NOT NULL,
    client_address text NOT NULL,
    email_id uuid NOT NULL,
    what text NOT NULL CHECK (what IN ('text', 'html', 'raw'))
);
CREATE INDEX console_views_viewed_at_idx ON opensend_milter.console_views (viewed_at);
COMMENT ON TABLE opensend_milter.console_views IS 'who was shown what a message says, and when';
