-- What the holder of a key may read of emails, take back and put off: by its secret's hash, which no process can look up.
ALTER TABLE opensend_milter.submissions ADD COLUMN changed_at timestamptz;
COMMENT ON COLUMN opensend_milter.submissions.changed_at IS 'when somebody ended it, or moved its time';

CREATE INDEX refusals_key_id_idx ON opensend_milter.refusals (key_id, refused_at);

-- A key with full access reads what its user has sent; any other what it sent itself, and not what that says.
CREATE FUNCTION opensend_milter.letters(token_hash text, asked uuid[], whole boolean) RETURNS TABLE (
        email_id uuid, sender text, to_list jsonb, cc_list jsonb, bcc_list jsonb, reply_tos jsonb, subject text,
        tags jsonb, topic_id uuid, html text, text text, octets bigint)
    LANGUAGE sql STABLE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT e.id, e."from", e."to", e.cc, e.bcc, e.reply_to, e.subject, e.tags, e.topic_id,
        CASE WHEN letters.whole AND k.permission = 'full_access' THEN e.html END,
        CASE WHEN letters.whole AND k.permission = 'full_access' THEN e.text END,
        -- Of one alone: to know it, all of it is read.
        CASE WHEN cardinality(letters.asked) = 1 AND k.permission = 'full_access'
            THEN coalesce(octet_length(e.html), 0)::bigint + coalesce(octet_length(e.text), 0) ELSE 0 END
    FROM public.api_keys k JOIN public.emails e ON e.user_id = k.user_id
    WHERE k.id = opensend_milter.key_id(letters.token_hash)::uuid AND e.id = ANY (letters.asked)
        AND (k.permission = 'full_access' OR EXISTS (
            SELECT FROM opensend_milter.submissions s WHERE s.email_id = e.id AND s.key_id = k.id))
$$;

-- Only with full access, as with Resend and OpenSend.
CREATE FUNCTION opensend_milter.may_change(token_hash text, asked uuid) RETURNS boolean
    LANGUAGE sql STABLE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
    SELECT EXISTS (
        SELECT FROM public.api_keys k JOIN public.emails e ON e.user_id = k.user_id
        WHERE k.id = opensend_milter.key_id(may_change.token_hash)::uuid AND k.permission = 'full_access'
            AND e.id = may_change.asked)
$$;

-- Where it stands then: `canceled`, or why it is not; NULL: there is none.
CREATE FUNCTION opensend_milter.cancel(token_hash text, asked uuid) RETURNS text
    LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT opensend_milter.may_change(token_hash, asked) THEN
        RETURN NULL;
    END IF;
    -- First the job, then the row, as the worker does: whoever claims it just now is waited for.
    PERFORM FROM opensend_milter.jobs j WHERE j.email_id = asked FOR UPDATE;
    UPDATE public.emails e SET status = 'canceled' WHERE e.id = asked AND e.status = 'scheduled';
    IF FOUND THEN
        DELETE FROM opensend_milter.jobs j WHERE j.email_id = asked;
        UPDATE opensend_milter.submissions s SET changed_at = now() WHERE s.email_id = asked;
    END IF;
    RETURN (SELECT e.status FROM public.emails e WHERE e.id = asked);
END $$;

-- Where it stands: `scheduled` for that time, or why it is not; NULL: there is none.
CREATE FUNCTION opensend_milter.reschedule(token_hash text, asked uuid, moment timestamptz) RETURNS text
    LANGUAGE plpgsql VOLATILE STRICT SECURITY DEFINER
    SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT opensend_milter.may_change(token_hash, asked) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM opensend_milter.jobs j WHERE j.email_id = asked FOR UPDATE;
    UPDATE public.emails e SET scheduled_at = moment WHERE e.id = asked AND e.status = 'scheduled';
    IF FOUND THEN
        UPDATE opensend_milter.submissions s SET changed_at = now() WHERE s.email_id = asked;
        -- Beside OpenSend it may be announced, and have no job any more: it is announced again when its time has come.
        INSERT INTO opensend_milter.jobs (email_id, user_id, not_before, announce_at)
        SELECT s.email_id, s.user_id, moment, moment FROM opensend_milter.submissions s WHERE s.email_id = asked
        ON CONFLICT (email_id) DO UPDATE SET not_before = moment, announce_at = moment;
    END IF;
    RETURN (SELECT e.status FROM public.emails e WHERE e.id = asked);
END $$;

REVOKE ALL ON FUNCTION opensend_milter.letters(text, uuid[], boolean), opensend_milter.may_change(text, uuid),
    opensend_milter.cancel(text, uuid), opensend_milter.reschedule(text, uuid, timestamptz) FROM PUBLIC;
