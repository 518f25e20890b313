-- What proves that a domain is a user's, told to who may not know the secret that it is made of: HMAC-SHA-256 (RFC 2104) of the two.
CREATE FUNCTION opensend_milter.ownership(user_id text, domain text) RETURNS bytea
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT sha256(k.outside || sha256(
        k.inside || convert_to('opensend-milter:domain:' || ownership.user_id || ':' || ownership.domain, 'UTF8')))
    FROM (
        SELECT string_agg(set_byte('\x00', 0, b.octet # 54), '' ORDER BY b.place) AS inside,
            string_agg(set_byte('\x00', 0, b.octet # 92), '' ORDER BY b.place) AS outside
        FROM opensend_milter.secrets s, generate_series(0, 63) AS g (place), LATERAL (
            SELECT g.place, CASE WHEN g.place < length(s.secret) THEN get_byte(s.secret, g.place) ELSE 0 END AS octet) b
        WHERE s.name = 'signing') k
$$;
REVOKE ALL ON FUNCTION opensend_milter.ownership(text, text) FROM PUBLIC;

-- What is wrong on each host, for the console.
CREATE TABLE opensend_milter.findings (
    host text NOT NULL,
    name text NOT NULL,
    result text NOT NULL CHECK (result IN ('good', 'warning', 'problem', 'skipped')),
    seen text NOT NULL,
    mend text NOT NULL,
    checked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (host, name)
);
COMMENT ON TABLE opensend_milter.findings IS 'of each host what `doctor --store` saw last: one row per check';
