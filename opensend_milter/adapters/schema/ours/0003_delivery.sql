-- What a delivery needs to know and learns, and what comes back of it.
CREATE TABLE opensend_milter.domain_settings (
    domain_id uuid PRIMARY KEY,
    courier text CHECK (courier IN ('smtp', 'ses', 'sendmail', 'plunk', 'file')),
    one_click boolean NOT NULL DEFAULT false
);
COMMENT ON TABLE opensend_milter.domain_settings IS 'of a domain in domains: without that row it means nothing';

ALTER TABLE opensend_milter.jobs
    ADD COLUMN recipients text[],
    ADD COLUMN courier text NOT NULL DEFAULT '',
    ADD COLUMN uncertain_at timestamptz,
    ADD COLUMN rounds integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN opensend_milter.jobs.recipients IS 'who is still to get it; NULL: all of the submission';
COMMENT ON COLUMN opensend_milter.jobs.rounds IS 'how often a person had it tried again';
COMMENT ON COLUMN opensend_milter.jobs.courier IS 'of its domain when it was taken; empty: the configured one';
CREATE INDEX jobs_lane_idx ON opensend_milter.jobs (user_id, courier, not_before) WHERE state = 'waiting';
CREATE INDEX jobs_uncertain_idx ON opensend_milter.jobs (uncertain_at) WHERE state = 'uncertain';

-- Where one recipient fared differently from the message.
CREATE TABLE opensend_milter.recipient_results (
    email_id uuid NOT NULL,
    address text NOT NULL,
    outcome text NOT NULL CHECK (outcome IN ('refused', 'deferred', 'delivered', 'bounced', 'complained')),
    reason text NOT NULL,
    courier text,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (email_id, address)
);
COMMENT ON TABLE opensend_milter.recipient_results IS 'recipients that fared differently from their message';

ALTER TABLE opensend_milter.submissions
    ADD COLUMN provider_id text,
    ADD COLUMN raw_dropped_at timestamptz;
CREATE INDEX submissions_raw_idx ON opensend_milter.submissions (received_at) WHERE raw_dropped_at IS NULL;
CREATE INDEX submissions_provider_id_idx ON opensend_milter.submissions (provider_id) WHERE provider_id IS NOT NULL;
COMMENT ON COLUMN opensend_milter.submissions.provider_id IS 'by what the provider knows the message';

CREATE TABLE opensend_milter.soft_bounces (
    user_id text NOT NULL,
    email text NOT NULL,
    source_id text NOT NULL,
    bounced_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, email, source_id)
);
CREATE INDEX soft_bounces_bounced_at_idx ON opensend_milter.soft_bounces (bounced_at);
COMMENT ON TABLE opensend_milter.soft_bounces IS 'temporary bounces of the last week; the worker prunes it';

-- Whoever hears something of a message puts it here; the worker alone acts on it.
CREATE TABLE opensend_milter.feedback (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind text NOT NULL,
    source_id text NOT NULL,
    email_id uuid NOT NULL,
    payload jsonb NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE opensend_milter.feedback IS 'verified reports that the worker has not yet taken up';

CREATE TABLE opensend_milter.webhook_settings (
    webhook_id uuid PRIMARY KEY,
    generation integer NOT NULL DEFAULT 1,
    rotated_at timestamptz
);
COMMENT ON TABLE opensend_milter.webhook_settings IS 'of a webhook in webhooks: how often its secret was changed';

-- From it every key is derived that signs a return path, a link or a webhook.
CREATE TABLE opensend_milter.secrets (
    name text PRIMARY KEY,
    secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
INSERT INTO opensend_milter.secrets (name, secret)
VALUES ('signing', uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()));
COMMENT ON TABLE opensend_milter.secrets IS 'known to worker and http only';
