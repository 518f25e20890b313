-- Whether a next hop knows a lane's recipients: more than a fifth unknown says more of it than of them. After a crash of the
-- server it is empty, which is no harm.
CREATE UNLOGGED TABLE opensend_milter.lane_answers (
    user_id text NOT NULL,
    courier text NOT NULL,
    id bigint GENERATED ALWAYS AS IDENTITY,
    recipients integer NOT NULL,
    unknown integer NOT NULL,
    noted_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, courier, id)
);
COMMENT ON TABLE opensend_milter.lane_answers IS 'one row per attempt that was answered; the worker keeps the newest of each lane';
