-- The suppression list is OpenSend's, and somebody may spell an address there as nobody else does.
CREATE TABLE opensend_milter.odd_spellings (
    user_id text NOT NULL,
    email text NOT NULL,
    folded text NOT NULL,
    PRIMARY KEY (user_id, email)
);
CREATE INDEX odd_spellings_folded_idx ON opensend_milter.odd_spellings (user_id, folded);
COMMENT ON TABLE opensend_milter.odd_spellings IS 'rows of email_suppressions that are compared by another spelling; without them it means nothing';
