-- By what a message is known when it is sent again, what was left out of it, and what is set for a key.
ALTER TABLE opensend_milter.submissions
    ADD COLUMN content_digest bytea,
    ADD COLUMN dropped jsonb,
    ADD COLUMN left_out jsonb,
    ADD COLUMN repeats integer NOT NULL DEFAULT 0,
    ADD COLUMN repeated_at timestamptz;
COMMENT ON COLUMN opensend_milter.submissions.content_digest IS 'of what the sender wrote: the same in each try';
COMMENT ON COLUMN opensend_milter.submissions.dropped IS 'suppressed recipients that were left out';
COMMENT ON COLUMN opensend_milter.submissions.left_out IS 'header fields that OpenSend''s row cannot carry';
COMMENT ON COLUMN opensend_milter.submissions.repeats IS 'how often the client sent it again';

CREATE TABLE opensend_milter.fingerprints (
    key_id uuid NOT NULL,
    fingerprint bytea NOT NULL,
    email_id uuid NOT NULL,
    received_at timestamptz NOT NULL,
    PRIMARY KEY (key_id, fingerprint)
);
CREATE INDEX fingerprints_received_at_idx ON opensend_milter.fingerprints (received_at);
COMMENT ON TABLE opensend_milter.fingerprints IS 'messages with a Message-ID of their client; the worker prunes it';

CREATE TABLE opensend_milter.key_settings (
    key_id uuid PRIMARY KEY,
    on_suppressed text CHECK (on_suppressed IN ('reject-message', 'drop-recipient'))
);
COMMENT ON TABLE opensend_milter.key_settings IS 'of a key in api_keys: without that row it means nothing';

-- Its rows live as long as one transaction.
CREATE UNLOGGED TABLE opensend_milter.pieces (
    email_id uuid NOT NULL,
    attachment_no integer NOT NULL,
    piece_no integer NOT NULL,
    content text NOT NULL,
    PRIMARY KEY (email_id, attachment_no, piece_no)
);
ALTER TABLE opensend_milter.pieces ALTER COLUMN content SET STORAGE EXTERNAL;
COMMENT ON TABLE opensend_milter.pieces IS 'attachments on their way into a row of emails';
