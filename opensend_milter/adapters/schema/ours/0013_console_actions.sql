-- What somebody did from the console. No table of others' is altered for it.
CREATE TABLE opensend_milter.console_actions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    done_at timestamptz NOT NULL DEFAULT now(),
    actor text NOT NULL,
    client_address text NOT NULL,
    action text NOT NULL CHECK (action IN ('retry', 'cancel', 'suppress')),
    email_id uuid NOT NULL,
    address text,
    outcome text NOT NULL,
    form uuid NOT NULL UNIQUE
);
CREATE INDEX console_actions_done_at_idx ON opensend_milter.console_actions (done_at);
CREATE INDEX console_actions_email_id_idx ON opensend_milter.console_actions (email_id, id);
COMMENT ON TABLE opensend_milter.console_actions IS 'who did what about a message from the console, when, and what came of it';
COMMENT ON COLUMN opensend_milter.console_actions.address IS 'the recipient whom it was about';
COMMENT ON COLUMN opensend_milter.console_actions.outcome IS 'done, or why not';
COMMENT ON COLUMN opensend_milter.console_actions.form IS 'each form that was shown does a thing once';
