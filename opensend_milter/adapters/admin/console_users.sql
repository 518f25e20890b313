-- put -- a user with this password; of one that is there already the sessions end
WITH ended AS (DELETE FROM opensend_milter.console_sessions WHERE user_name = %(name)s)
INSERT INTO opensend_milter.console_users (name, salt, digest) VALUES (%(name)s, %(salt)s, %(digest)s)
ON CONFLICT (name) DO UPDATE SET salt = excluded.salt, digest = excluded.digest;

-- list -- users, with how many sessions each has open
SELECT u.name, u.created_at, (SELECT count(*) FROM opensend_milter.console_sessions s
    WHERE s.user_name = u.name AND s.expires_at > now()) AS sessions
FROM opensend_milter.console_users u ORDER BY u.name;

-- remove -- a user, with its sessions
DELETE FROM opensend_milter.console_users WHERE name = %(name)s;

-- end -- the sessions of a user, or of a key, or all
DELETE FROM opensend_milter.console_sessions
WHERE (%(user_name)s::text IS NULL OR user_name = %(user_name)s) AND (%(key_id)s::uuid IS NULL OR key_id = %(key_id)s::uuid);

-- views -- who was shown what a message says, latest first
SELECT viewed_at, viewer, client_address, email_id::text AS email_id, what FROM opensend_milter.console_views
WHERE (%(email_id)s::uuid IS NULL OR email_id = %(email_id)s::uuid)
    AND (%(since)s::timestamptz IS NULL OR viewed_at >= %(since)s)
ORDER BY viewed_at DESC, id DESC LIMIT %(limit)s;

-- actions -- who did what from the console, latest first
SELECT done_at, actor, client_address, action, email_id::text AS email_id, address, outcome FROM opensend_milter.console_actions
WHERE (%(email_id)s::uuid IS NULL OR email_id = %(email_id)s::uuid)
    AND (%(since)s::timestamptz IS NULL OR done_at >= %(since)s)
ORDER BY done_at DESC, id DESC LIMIT %(limit)s;
