-- By what somebody looks a refusal up who got it. What was refused before has none.
ALTER TABLE opensend_milter.refusals
    ADD COLUMN from_domain text,
    ADD COLUMN ref text,
    ADD COLUMN token_hash bytea;
CREATE INDEX refusals_ref_idx ON opensend_milter.refusals (ref) WHERE ref IS NOT NULL;
COMMENT ON COLUMN opensend_milter.refusals.ref IS 'in the reply, for people; made of token_hash';
COMMENT ON COLUMN opensend_milter.refusals.token_hash IS 'SHA-256 of what the address in the reply ends with';

-- The whole of what a stranger may see of one, for the HTTP process: hash in, nothing of key, recipients or client out.
CREATE FUNCTION opensend_milter.refusal(ref text, token_hash bytea)
    RETURNS TABLE (rule text, code integer, enhanced text, from_domain text, refused_at timestamptz)
    LANGUAGE sql STABLE STRICT PARALLEL SAFE SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT r.rule, r.code, r.enhanced, r.from_domain, r.refused_at FROM opensend_milter.refusals r
    WHERE r.ref = refusal.ref AND r.token_hash = refusal.token_hash
$$;
REVOKE ALL ON FUNCTION opensend_milter.refusal(text, bytea) FROM PUBLIC;
