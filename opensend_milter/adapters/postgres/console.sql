-- verifier -- what a user's password is known again by
SELECT salt, digest FROM opensend_milter.console_users WHERE name = %(name)s;

-- key -- the key that a secret's hash belongs to, while it is good
SELECT a.id::text, a.name, c.networks
FROM (SELECT opensend_milter.key_id(%(token_hash)s) AS id) k JOIN public.api_keys a ON a.id = k.id::uuid
    LEFT JOIN opensend_milter.key_settings c ON c.key_id = a.id;

-- begin -- a session; those that have ended go, and of one visitor the oldest
WITH ended AS (
    DELETE FROM opensend_milter.console_sessions WHERE expires_at <= now()
), older AS (
    DELETE FROM opensend_milter.console_sessions WHERE token_hash IN (
        SELECT token_hash FROM opensend_milter.console_sessions
        WHERE user_name = %(user_name)s OR key_id = %(key_id)s::uuid
        ORDER BY created_at DESC, token_hash OFFSET %(kept)s)
)
INSERT INTO opensend_milter.console_sessions (token_hash, user_name, key_id, client_address, expires_at)
VALUES (%(token_hash)s, %(user_name)s, %(key_id)s::uuid, %(client_address)s, now() + %(lasts)s::interval);

-- visitor -- whose session it is, while it lasts and its user or its key is there and good
SELECT s.user_name, k.id::text, k.name, c.networks
FROM opensend_milter.console_sessions s
    LEFT JOIN public.api_keys k ON k.id = s.key_id AND k.user_id IS NOT NULL
    LEFT JOIN opensend_milter.key_settings c ON c.key_id = k.id
WHERE s.token_hash = %(token_hash)s AND s.expires_at > now()
    AND (s.user_name IS NOT NULL OR k.id IS NOT NULL AND coalesce(c.expires_at > now(), true));

-- end -- a session
DELETE FROM opensend_milter.console_sessions WHERE token_hash = %(token_hash)s;

-- note_view -- that somebody is shown what a message says
INSERT INTO opensend_milter.console_views (viewer, client_address, email_id, what)
VALUES (%(viewer)s, %(client_address)s, %(email_id)s::uuid, %(what)s);

-- taken -- what was done about a message from the console, the latest first
SELECT done_at, actor, action, address, outcome FROM opensend_milter.console_actions
WHERE email_id = %(email_id)s::uuid ORDER BY id DESC LIMIT %(most)s;
