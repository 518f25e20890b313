-- event -- of what is `said (email_id, type, payload, source_id, user_id)` an event, unless it is there already
event AS (
    INSERT INTO public.email_events (email_id, type, payload, source_id, user_id)
    SELECT email_id, type, payload, source_id, user_id FROM said
    ON CONFLICT (source_id) DO NOTHING
    RETURNING id, user_id, type
), delivery AS (
    -- include: deliveries, user_id = {user_id}, type = {type}
)

-- deliveries -- of each `event` a delivery for each webhook of its user that asked for its type
INSERT INTO public.webhook_deliveries (webhook_id, event_id, attempt, status)
SELECT w.id, event.id, 0, 'pending' FROM event JOIN public.webhooks w ON w.user_id = {user_id}
WHERE w.status = 'active' AND w.event_types ? ('email.' || {type})

-- odd -- of what is `listed (user_id, email, folded)`, what is compared by another spelling
odd AS (
    INSERT INTO opensend_milter.odd_spellings (user_id, email, folded)
    SELECT user_id, email, folded FROM listed WHERE folded <> email ORDER BY user_id, email
    ON CONFLICT (user_id, email) DO NOTHING
)
