-- What retrying and canceling a message and suppressing a recipient needs, and the record of it. Only with `console.actions`.
GRANT USAGE ON SCHEMA public, opensend_milter TO opensend_console_actor;
GRANT SELECT (id, status, sent_at, user_id),
    UPDATE (status, sent_at, provider_next_retry_at, provider_dead_lettered_at) ON public.emails TO opensend_console_actor;
GRANT SELECT (email_id, from_address, raw_dropped_at), UPDATE (changed_at)
    ON opensend_milter.submissions TO opensend_console_actor;
GRANT SELECT (email_id, user_id, state, attempts, rounds, last_error), INSERT (email_id, user_id, courier, rounds),
    UPDATE (state, attempts, rounds, lease_id, lease_until, worker, uncertain_at, not_before, announce_at), DELETE
    ON opensend_milter.jobs TO opensend_console_actor;
GRANT SELECT (email_id), DELETE ON opensend_milter.recipient_results TO opensend_console_actor;
GRANT SELECT (id, name, user_id) ON public.domains TO opensend_console_actor;
GRANT SELECT (domain_id, courier) ON opensend_milter.domain_settings TO opensend_console_actor;
GRANT SELECT (id, email_id, type, payload, source_id, user_id), INSERT (email_id, type, payload, source_id, user_id)
    ON public.email_events TO opensend_console_actor;
GRANT SELECT (id, user_id, status, event_types) ON public.webhooks TO opensend_console_actor;
GRANT INSERT (id, webhook_id, event_id, attempt, status) ON public.webhook_deliveries TO opensend_console_actor;
GRANT SELECT (user_id, email, reason, suppressed_at, updated_at), INSERT (user_id, email, reason), UPDATE (reason, updated_at)
    ON public.email_suppressions TO opensend_console_actor;
GRANT SELECT (user_id, email), INSERT (user_id, email, folded) ON opensend_milter.odd_spellings TO opensend_console_actor;
GRANT INSERT ON opensend_milter.console_actions TO opensend_console_actor;
