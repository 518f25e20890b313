-- What each process may do, and nothing else. Applied at every `db init` and `db migrate`, in one transaction.

-- A setting of the database that an installation may have hardened: nobody connects unasked.
DO $$
DECLARE
    member text;
BEGIN
    FOREACH member IN ARRAY ARRAY[
        'opensend_dovecot_auth', 'opensend_milter', 'opensend_worker', 'opensend_http', 'opensend_reader', 'opensend_body_reader',
        'opensend_console', 'opensend_console_actor'
    ] LOOP
        IF NOT has_database_privilege(member, current_database(), 'CONNECT') THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), member);
        END IF;
    END LOOP;
END $$;

-- Temporary tables and large objects can fill the disk. The right is PUBLIC's, so it is taken from all or from none: beside
-- OpenSend from none, because others work there. The functions are the superuser's.
DO $$
BEGIN
    IF EXISTS (SELECT FROM opensend_milter.migrations WHERE name LIKE 'opensend/%') THEN
        EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database());
        IF current_setting('is_superuser')::boolean THEN
            REVOKE EXECUTE ON FUNCTION pg_catalog.lo_creat(integer), pg_catalog.lo_create(oid),
                pg_catalog.lo_from_bytea(oid, bytea) FROM PUBLIC;
        END IF;
    END IF;
END $$;

-- What an earlier version granted in our own schema and this one does not.
REVOKE ALL ON ALL TABLES IN SCHEMA opensend_milter
    FROM opensend_key_reader, opensend_dovecot_auth, opensend_milter, opensend_worker, opensend_http, opensend_reader,
        opensend_body_reader, opensend_console, opensend_console_actor;
REVOKE ALL ON SCHEMA opensend_milter
    FROM opensend_key_reader, opensend_dovecot_auth, opensend_milter, opensend_worker, opensend_http, opensend_reader,
        opensend_body_reader, opensend_console, opensend_console_actor;

-- Some functions run as their owner, who cannot log in. They find keys, compare rows that OpenSend's REST API made, show of a
-- refusal what a stranger may see and what proves whose a domain is, and let the holder of a key read, take back and put off emails: the HTTP process alone can do
-- that to no email.
GRANT USAGE ON SCHEMA public TO opensend_key_reader;
GRANT SELECT (id, token_hash, user_id, permission) ON public.api_keys TO opensend_key_reader;
GRANT USAGE ON SCHEMA opensend_milter TO opensend_key_reader;
GRANT SELECT (id, user_id, "from", "to", cc, bcc, reply_to, subject, html, text, attachments, tags, topic_id, status),
    UPDATE (status, scheduled_at) ON public.emails TO opensend_key_reader;
GRANT SELECT (email_id, user_id, key_id), UPDATE (changed_at) ON opensend_milter.submissions TO opensend_key_reader;
GRANT SELECT (email_id), INSERT (email_id, user_id, not_before, announce_at), UPDATE (not_before, announce_at), DELETE
    ON opensend_milter.jobs TO opensend_key_reader;
GRANT SELECT, INSERT ON opensend_milter.row_digests TO opensend_key_reader;
GRANT SELECT (token_hash, key_id, expires_at) ON opensend_milter.key_secrets TO opensend_key_reader;
GRANT SELECT (key_id, expires_at) ON opensend_milter.key_settings TO opensend_key_reader;
GRANT SELECT (rule, code, enhanced, from_domain, refused_at, ref, token_hash) ON opensend_milter.refusals TO opensend_key_reader;
GRANT SELECT (name, secret) ON opensend_milter.secrets TO opensend_key_reader;
GRANT SELECT (expires_at), DELETE ON opensend_milter.key_secrets TO opensend_worker;
DO $$
BEGIN
    -- Whoever is no superuser must be a member of the new owner, and the new owner may CREATE for that moment.
    IF NOT pg_has_role('opensend_key_reader', 'USAGE') THEN
        GRANT opensend_key_reader TO CURRENT_USER;
    END IF;
    GRANT CREATE ON SCHEMA opensend_milter TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.key_id(text) OWNER TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.row_digest(uuid) OWNER TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.letters(text, uuid[], boolean) OWNER TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.may_change(text, uuid) OWNER TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.cancel(text, uuid) OWNER TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.reschedule(text, uuid, timestamptz) OWNER TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.refusal(text, bytea) OWNER TO opensend_key_reader;
    ALTER FUNCTION opensend_milter.ownership(text, text) OWNER TO opensend_key_reader;
    REVOKE CREATE ON SCHEMA opensend_milter FROM opensend_key_reader;
END $$;

GRANT USAGE ON SCHEMA opensend_milter TO opensend_dovecot_auth;
GRANT EXECUTE ON FUNCTION opensend_milter.key_id(text) TO opensend_dovecot_auth, opensend_http, opensend_console;
GRANT EXECUTE ON FUNCTION opensend_milter.row_digest(uuid) TO opensend_milter, opensend_http;
GRANT EXECUTE ON FUNCTION opensend_milter.letters(text, uuid[], boolean), opensend_milter.cancel(text, uuid),
    opensend_milter.reschedule(text, uuid, timestamptz) TO opensend_http;
GRANT EXECUTE ON FUNCTION opensend_milter.refusal(text, bytea) TO opensend_http;
GRANT EXECUTE ON FUNCTION opensend_milter.ownership(text, text) TO opensend_worker, opensend_console;
-- Postfix gives up after ten seconds and then says 535 for ever.
ALTER ROLE opensend_dovecot_auth SET statement_timeout = '3s';
ALTER ROLE opensend_dovecot_auth SET default_transaction_read_only = on;
-- What a host without power or network was in the middle of keeps its locks, and its connections count, for as long as Postgres
-- takes it for alive: two hours, as kernels have it. Others would wait for these locks, message by message.
DO $$
DECLARE
    role text;
    setting text;
BEGIN
    FOREACH role IN ARRAY ARRAY[
        'opensend_dovecot_auth', 'opensend_milter', 'opensend_worker', 'opensend_http', 'opensend_reader', 'opensend_body_reader',
        'opensend_console', 'opensend_console_actor'
    ] LOOP
        FOREACH setting IN ARRAY ARRAY[
            'tcp_keepalives_idle = 5', 'tcp_keepalives_interval = 5', 'tcp_keepalives_count = 3', 'tcp_user_timeout = 20000',
            'idle_in_transaction_session_timeout = 60000'
        ] LOOP
            EXECUTE format('ALTER ROLE %I SET %s', role, setting);
        END LOOP;
    END LOOP;
END $$;

GRANT USAGE ON SCHEMA public, opensend_milter TO opensend_milter, opensend_http, opensend_worker;

GRANT SELECT (id, user_id, permission, domain, last_used_at), UPDATE (last_used_at)
    ON public.api_keys TO opensend_milter, opensend_http;
GRANT SELECT (id, name, status, user_id) ON public.domains TO opensend_milter, opensend_http;
GRANT SELECT (user_id, email, reason) ON public.email_suppressions TO opensend_milter, opensend_http;
GRANT SELECT ON opensend_milter.odd_spellings TO opensend_milter, opensend_http;
GRANT SELECT (id, user_id, created_at, status, sent_at, scheduled_at, idempotency_key), UPDATE (idempotency_key)
    ON public.emails TO opensend_milter, opensend_http;
GRANT INSERT ON public.emails, public.email_events, public.webhook_deliveries, public.logs,
    opensend_milter.submissions, opensend_milter.raw_chunks, opensend_milter.jobs, opensend_milter.refusals
    TO opensend_milter, opensend_http;
GRANT SELECT (id, user_id, status, event_types) ON public.webhooks TO opensend_milter, opensend_http;
GRANT SELECT (email_id, key_id, content_digest, repeats), UPDATE (repeats, repeated_at)
    ON opensend_milter.submissions TO opensend_milter, opensend_http;
GRANT SELECT, INSERT, DELETE ON opensend_milter.fingerprints, opensend_milter.pieces TO opensend_milter, opensend_http;
GRANT SELECT ON opensend_milter.key_settings TO opensend_milter, opensend_http;
DO $$
BEGIN
    -- Only a hosted OpenSend has billing.
    IF to_regclass('public.usage_periods') IS NOT NULL THEN
        GRANT SELECT ON public.subscriptions, public.plans TO opensend_milter, opensend_http;
        GRANT SELECT, INSERT, UPDATE ON public.usage_periods TO opensend_milter, opensend_http;
    END IF;
END $$;

GRANT SELECT ON opensend_milter.domain_settings TO opensend_milter, opensend_http, opensend_worker;

GRANT SELECT, INSERT, UPDATE ON opensend_milter.rate_buckets, opensend_milter.key_usage
    TO opensend_milter, opensend_http;
GRANT SELECT, DELETE ON opensend_milter.rate_buckets, opensend_milter.key_usage TO opensend_worker;
-- A key may ask what became of its own messages.
GRANT SELECT (id, name, created_at) ON public.api_keys TO opensend_http;
GRANT SELECT (sent_at, scheduled_at, provider_last_error_message) ON public.emails TO opensend_http;
GRANT SELECT (email_id, key_id, received_at, queue_id, message_id, recipients, dropped, front_door, provider_id, bulk_id,
        changed_at)
    ON opensend_milter.submissions TO opensend_http;
GRANT SELECT ON opensend_milter.recipient_results TO opensend_http;
GRANT SELECT (id, queue_id, key_id, rule, code, enhanced, text, refused_at, recipients, ref)
    ON opensend_milter.refusals TO opensend_http;
GRANT SELECT (email_id, state, attempts, not_before, recipients, last_error, uncertain_at)
    ON opensend_milter.jobs TO opensend_http;
GRANT SELECT (id, email_id, type, payload, received_at) ON public.email_events TO opensend_http;

-- And be told the story of a message: nothing of its contents.
GRANT SELECT ("from", "to", cc, bcc, subject) ON public.emails TO opensend_http;
GRANT SELECT (user_id) ON public.email_events TO opensend_http;
GRANT SELECT (suppressed_at, source_email_id) ON public.email_suppressions TO opensend_http;
GRANT SELECT (url, created_at) ON public.webhooks TO opensend_http;
GRANT SELECT (id, status, attempt, status_code, attempted_at, next_retry_at) ON public.webhook_deliveries TO opensend_http;
GRANT SELECT (client_address, tls, sender, from_address, size_bytes, repeated_at, raw_dropped_at)
    ON opensend_milter.submissions TO opensend_http;
GRANT SELECT (courier, announce_at) ON opensend_milter.jobs TO opensend_http;
GRANT SELECT ON opensend_milter.odd_spellings TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (user_id, sender, message_id, front_door, client_address, size_bytes)
    ON opensend_milter.refusals TO opensend_http;

GRANT INSERT ON opensend_milter.feedback TO opensend_http, opensend_worker;
GRANT SELECT ON opensend_milter.secrets TO opensend_http, opensend_worker;

-- A webhook tells by what its receiver knows a message, and by which key it came.
GRANT SELECT ("from", "to", subject, tags, document) ON public.emails TO opensend_worker;
GRANT SELECT (id, name) ON public.api_keys TO opensend_worker;
GRANT SELECT (name, applied_at) ON opensend_milter.migrations TO opensend_worker;
GRANT SELECT (id, status, scheduled_at, user_id, created_at, provider_retry_count),
    UPDATE (status, sent_at, provider_retry_count, provider_last_attempted_at, provider_next_retry_at,
            provider_dead_lettered_at, provider_last_error_code, provider_last_error_message)
    ON public.emails TO opensend_worker;
GRANT SELECT, INSERT ON public.email_events TO opensend_worker;
GRANT SELECT, INSERT, UPDATE (reason, source_event_id, source_email_id, source_message_id, metadata, updated_at)
    ON public.email_suppressions TO opensend_worker;
GRANT SELECT, INSERT, DELETE ON opensend_milter.odd_spellings TO opensend_worker;
GRANT SELECT (id, url, user_id, status, event_types) ON public.webhooks TO opensend_worker;
GRANT SELECT, INSERT, UPDATE ON public.webhook_deliveries TO opensend_worker;
GRANT SELECT (id, name, status, user_id, region, ses_configuration_set_name, track_opens, track_clicks,
        tracking_subdomain, dkim_origin, dkim_tokens, dkim_selector, custom_return_path)
    ON public.domains TO opensend_worker;
GRANT SELECT, UPDATE (provider_id, raw_dropped_at) ON opensend_milter.submissions TO opensend_worker;
GRANT SELECT, DELETE ON opensend_milter.raw_chunks TO opensend_worker;
-- It makes rows whole before OpenSend's own worker has them.
GRANT SELECT (attachments), UPDATE (attachments) ON public.emails TO opensend_worker;
GRANT SELECT, INSERT, DELETE ON opensend_milter.pieces TO opensend_worker;
GRANT SELECT, UPDATE, DELETE ON opensend_milter.jobs TO opensend_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON opensend_milter.recipient_results, opensend_milter.soft_bounces
    TO opensend_worker;
GRANT SELECT, DELETE ON opensend_milter.feedback TO opensend_worker;
GRANT SELECT, INSERT, DELETE ON opensend_milter.lane_answers TO opensend_worker;
GRANT SELECT ON opensend_milter.webhook_settings TO opensend_worker;
GRANT SELECT (id, refused_at), DELETE ON opensend_milter.refusals TO opensend_worker;
GRANT SELECT, DELETE ON opensend_milter.fingerprints TO opensend_worker;
GRANT SELECT (email_id, computed_at), DELETE ON opensend_milter.row_digests TO opensend_worker;

-- By what messages are known is noted by the worker, which so reads of emails whom they are for.
GRANT SELECT (cc, bcc) ON public.emails TO opensend_worker;
GRANT SELECT, INSERT, DELETE, TRUNCATE ON opensend_milter.search TO opensend_worker;
GRANT SELECT, INSERT, UPDATE, TRUNCATE ON opensend_milter.search_stretches TO opensend_worker;
GRANT SELECT, UPDATE ON opensend_milter.search_progress TO opensend_worker;

-- What the doctor found, it stores as the worker where it may not as the owner.
GRANT SELECT, INSERT, DELETE ON opensend_milter.findings TO opensend_worker;
GRANT SELECT ON opensend_milter.search, opensend_milter.search_stretches, opensend_milter.search_progress
    TO opensend_http, opensend_reader, opensend_body_reader, opensend_console;

-- Who looks for a message sees how it fared and not what it says: neither its text nor the fields of its header, for there
-- is what an application puts there. Whoever may read all that is another role. Neither can write.
GRANT USAGE ON SCHEMA public, opensend_milter TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (id, name, user_id, permission, domain, created_at) ON public.api_keys
    TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (id, name, status, user_id) ON public.domains TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (id, "from", "to", cc, bcc, reply_to, subject, status, tags, scheduled_at, sent_at, created_at, user_id,
        provider_retry_count, provider_last_attempted_at, provider_next_retry_at, provider_dead_lettered_at,
        provider_last_error_code, provider_last_error_message)
    ON public.emails TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT ON public.email_events, opensend_milter.submissions, opensend_milter.jobs, opensend_milter.recipient_results,
    opensend_milter.domain_settings
    TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (id, refused_at, rule, code, enhanced, text, front_door, queue_id, client_address, key_id, user_id, sender,
        from_domain, recipients, message_id, size_bytes, ref)
    ON opensend_milter.refusals TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (user_id, email, reason, source_email_id, suppressed_at, updated_at) ON public.email_suppressions
    TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (id, url, user_id, status, event_types, created_at) ON public.webhooks
    TO opensend_reader, opensend_body_reader, opensend_console;
-- What customers' servers answer may quote what they were told.
GRANT SELECT (id, webhook_id, event_id, attempt, status, status_code, attempted_at, next_retry_at, created_at)
    ON public.webhook_deliveries TO opensend_reader, opensend_body_reader, opensend_console;
GRANT SELECT (html, text, headers, attachments, document) ON public.emails TO opensend_body_reader;
GRANT SELECT ON opensend_milter.raw_chunks TO opensend_body_reader;
ALTER ROLE opensend_reader SET default_transaction_read_only = on;
ALTER ROLE opensend_body_reader SET default_transaction_read_only = on;
-- A person waits, and so do others for what they lock.
ALTER ROLE opensend_reader SET statement_timeout = '30s';
ALTER ROLE opensend_body_reader SET statement_timeout = '60s';
ALTER ROLE opensend_console SET statement_timeout = '30s';

-- The console shows that, and lists of keys, domains and webhooks. It puts down who looks and who read what a message says, and
-- cannot take the latter back.
GRANT SELECT (token_preview, last_used_at) ON public.api_keys TO opensend_console;
GRANT SELECT (created_at, dkim_origin, dkim_tokens, dkim_selector, custom_return_path) ON public.domains TO opensend_console;
GRANT SELECT ON opensend_milter.key_settings, opensend_milter.key_usage, opensend_milter.webhook_settings,
    opensend_milter.console_users, opensend_milter.findings TO opensend_console;
GRANT SELECT, INSERT, DELETE ON opensend_milter.console_sessions TO opensend_console;
GRANT INSERT ON opensend_milter.console_views TO opensend_console;
GRANT SELECT (id, viewed_at), DELETE ON opensend_milter.console_views TO opensend_worker;
GRANT SELECT ON opensend_milter.console_actions TO opensend_console;
GRANT SELECT (id, done_at), DELETE ON opensend_milter.console_actions TO opensend_worker;

-- What somebody does from the console is done by a role that may nothing, but where `actions.sql` follows this file.
REVOKE ALL ON public.emails, public.email_events, public.email_suppressions, public.domains, public.webhooks,
    public.webhook_deliveries FROM opensend_console_actor;
ALTER ROLE opensend_console_actor SET statement_timeout = '30s';
