-- OpenSend's tables, by name and shape, for an installation that has no OpenSend.
CREATE TABLE public."user" (
    id text PRIMARY KEY,
    name text NOT NULL,
    email text NOT NULL UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE public.domains (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL,
    status varchar(50) NOT NULL DEFAULT 'not_started',
    region varchar(50) NOT NULL DEFAULT 'us-east-1',
    user_id text,
    track_clicks boolean NOT NULL DEFAULT false,
    track_opens boolean NOT NULL DEFAULT false,
    tls varchar(20) NOT NULL DEFAULT 'opportunistic',
    tracking_subdomain varchar(255),
    custom_return_path varchar(255),
    capabilities jsonb,
    ses_configuration_set_name varchar(255),
    dedicated_ip_pool_id uuid,
    dkim_origin varchar(16) NOT NULL DEFAULT 'AWS_SES',
    dkim_tokens jsonb,
    records jsonb,
    document jsonb,
    created_at timestamptz NOT NULL DEFAULT now()
);
-- OpenSend has no index here; every message asks for (user, name).
CREATE INDEX domains_user_id_name_idx ON public.domains (user_id, name);

CREATE TABLE public.api_keys (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    name varchar(255) NOT NULL,
    token_hash text NOT NULL,
    token_preview varchar(50),
    permission varchar(50) NOT NULL DEFAULT 'full_access',
    domain varchar(255),
    last_used_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    document jsonb,
    user_id text
);
CREATE UNIQUE INDEX api_keys_token_hash_idx ON public.api_keys (token_hash);
CREATE INDEX api_keys_user_id_idx ON public.api_keys (user_id);

CREATE TABLE public.emails (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    "from" varchar(512) NOT NULL,
    "to" jsonb NOT NULL,
    cc jsonb,
    bcc jsonb,
    reply_to jsonb,
    subject text NOT NULL,
    html text,
    text text,
    status varchar(50) NOT NULL DEFAULT 'queued',
    tags jsonb,
    headers jsonb,
    attachments jsonb,
    scheduled_at timestamptz,
    sent_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    user_id text,
    topic_id uuid,
    thread_id uuid,
    idempotency_key varchar(256),
    reply_address varchar(512),
    reply_token varchar(128),
    provider_retry_count integer NOT NULL DEFAULT 0,
    provider_last_attempted_at timestamptz,
    provider_next_retry_at timestamptz,
    provider_dead_lettered_at timestamptz,
    provider_last_error_code varchar(255),
    provider_last_error_message text,
    document jsonb
);
CREATE INDEX emails_status_idx ON public.emails (status);
CREATE INDEX emails_created_at_idx ON public.emails (created_at);
CREATE INDEX emails_status_created_at_idx ON public.emails (status, created_at);
CREATE INDEX emails_user_id_created_at_idx ON public.emails (user_id, created_at);
CREATE INDEX emails_user_id_thread_id_idx ON public.emails (user_id, thread_id);
CREATE INDEX emails_tags_idx ON public.emails USING gin (tags);
CREATE UNIQUE INDEX emails_user_id_idempotency_key_idx ON public.emails (user_id, idempotency_key);
CREATE UNIQUE INDEX emails_user_id_reply_token_idx ON public.emails (user_id, reply_token);

CREATE TABLE public.email_events (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email_id uuid REFERENCES public.emails (id),
    type varchar(50) NOT NULL,
    payload jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    source_id varchar(255) UNIQUE,
    user_id text
);
CREATE INDEX email_events_email_id_idx ON public.email_events (email_id);
CREATE INDEX email_events_user_id_idx ON public.email_events (user_id);

CREATE TABLE public.email_suppressions (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id text NOT NULL,
    email varchar(512) NOT NULL,
    reason varchar(50) NOT NULL,
    source_event_id varchar(255),
    source_email_id uuid,
    source_message_id varchar(255),
    metadata jsonb,
    suppressed_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (user_id, email)
);
CREATE INDEX email_suppressions_user_id_idx ON public.email_suppressions (user_id);
CREATE INDEX email_suppressions_email_idx ON public.email_suppressions (email);

CREATE TABLE public.webhooks (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    url text NOT NULL,
    event_types jsonb NOT NULL DEFAULT '[]',
    status varchar(50) NOT NULL DEFAULT 'active',
    signing_secret_enc text,
    created_at timestamptz NOT NULL DEFAULT now(),
    user_id text
);

CREATE TABLE public.webhook_deliveries (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    webhook_id uuid NOT NULL REFERENCES public.webhooks (id) ON DELETE CASCADE,
    event_id uuid NOT NULL REFERENCES public.email_events (id),
    attempt integer NOT NULL DEFAULT 1,
    status varchar(50) NOT NULL DEFAULT 'pending',
    status_code integer,
    response_body text,
    attempted_at timestamptz,
    next_retry_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE public.logs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    endpoint text NOT NULL,
    status integer NOT NULL,
    method varchar(10) NOT NULL,
    user_agent text,
    request_body text,
    response_body text,
    document jsonb,
    user_id text,
    api_key_id uuid,
    created_at timestamptz NOT NULL DEFAULT now()
);
