-- By what messages are known. The worker notes it right after the 250, and nothing waits for that.
CREATE TABLE opensend_milter.search (
    email_id uuid PRIMARY KEY,
    created_at timestamptz NOT NULL,
    terms bigint[] NOT NULL
);
-- Without a list of what is still to be sorted in: each of many looks for one answer would go through it.
CREATE INDEX search_terms_idx ON opensend_milter.search USING gin (terms) WITH (fastupdate = off);
COMMENT ON TABLE opensend_milter.search IS 'one row per message: hashes of all it is known by; the worker fills and prunes it';
COMMENT ON COLUMN opensend_milter.search.terms IS 'each begins with the number of the message''s stretch of time';

-- A word of every message is in every stretch, so the newest are found without a look at the others; and as terms begin with the
-- number, only one part of the index is written to.
CREATE TABLE opensend_milter.search_stretches (
    number bigint PRIMARY KEY,
    began_at timestamptz NOT NULL UNIQUE,
    messages integer NOT NULL DEFAULT 0
);
COMMENT ON TABLE opensend_milter.search_stretches IS 'stretches of time with about as many messages each; the last one lasts';

CREATE TABLE opensend_milter.search_progress (
    is_only boolean PRIMARY KEY DEFAULT true CHECK (is_only),
    noted_at timestamptz NOT NULL DEFAULT 'epoch',
    noted_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    checked_at timestamptz NOT NULL DEFAULT 'epoch',
    checked_id uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000'
);
COMMENT ON TABLE opensend_milter.search_progress IS 'the message up to which all are noted, and the one up to which late commits are too';

INSERT INTO opensend_milter.search_stretches (number, began_at) VALUES (1, '-infinity');
INSERT INTO opensend_milter.search_progress DEFAULT VALUES;
