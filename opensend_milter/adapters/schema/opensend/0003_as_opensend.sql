-- The shapes of OpenSend's own catalog, where ours were guessed. Rows stay; a log that was cut is kept as a string.
CREATE FUNCTION pg_temp.as_jsonb(written text) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    RETURN written::jsonb;
EXCEPTION WHEN data_exception THEN
    RETURN to_jsonb(written);
END $$;

ALTER TABLE public.logs
    ALTER COLUMN request_body TYPE jsonb USING pg_temp.as_jsonb(request_body),
    ALTER COLUMN response_body TYPE jsonb USING pg_temp.as_jsonb(response_body),
    ALTER COLUMN endpoint DROP NOT NULL,
    ALTER COLUMN status DROP NOT NULL,
    ALTER COLUMN method DROP NOT NULL;
CREATE INDEX logs_user_created_at_idx ON public.logs (user_id, created_at);
CREATE INDEX logs_document_gin_idx ON public.logs USING gin (document);

ALTER TABLE public."user"
    ADD COLUMN email_verified boolean NOT NULL DEFAULT false,
    ADD COLUMN image text,
    ADD COLUMN updated_at timestamp NOT NULL DEFAULT now(),
    ALTER COLUMN created_at TYPE timestamp USING created_at AT TIME ZONE 'UTC';
ALTER INDEX public.user_email_key RENAME TO user_email_unique;

ALTER TABLE public.domains
    ADD COLUMN dkim_private_key_ct text,
    ADD COLUMN dkim_private_key_iv text,
    ADD COLUMN dkim_public_key text,
    ADD COLUMN dkim_selector varchar(63);

ALTER INDEX public.emails_user_id_created_at_idx RENAME TO emails_user_created_at_idx;
ALTER INDEX public.emails_user_id_thread_id_idx RENAME TO emails_user_thread_idx;
ALTER INDEX public.emails_tags_idx RENAME TO emails_tags_gin_idx;

ALTER INDEX public.email_events_source_id_key RENAME TO email_events_source_id_idx;
ALTER TABLE public.email_events RENAME CONSTRAINT email_events_email_id_fkey TO email_events_email_id_emails_id_fk;

ALTER INDEX public.email_suppressions_user_id_idx RENAME TO email_suppressions_user_idx;
ALTER INDEX public.email_suppressions_user_id_email_key RENAME TO email_suppressions_user_email_idx;

ALTER TABLE public.webhooks ADD COLUMN document jsonb, ALTER COLUMN event_types DROP DEFAULT;
ALTER TABLE public.webhook_deliveries
    RENAME CONSTRAINT webhook_deliveries_webhook_id_fkey TO webhook_deliveries_webhook_id_webhooks_id_fk;
ALTER TABLE public.webhook_deliveries
    RENAME CONSTRAINT webhook_deliveries_event_id_fkey TO webhook_deliveries_event_id_email_events_id_fk;
