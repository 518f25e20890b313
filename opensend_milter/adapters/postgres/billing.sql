-- subscriptions_of -- what OpenSend's billing says of users: `fine`, or why nothing may be sent
SELECT u.user_id,
    CASE
        WHEN s.user_id IS NULL OR s.status NOT IN ('active', 'trialing', 'past_due') THEN 'none'
        WHEN s.status = 'past_due' AND coalesce(s.current_period_end < now() - interval '3 days', true) THEN 'past_due'
        WHEN p.id IS NULL THEN 'missing_plan'
        WHEN p.slug = 'free' OR p.monthly_price_cents <= 0 THEN 'legacy_free'
        ELSE 'fine'
    END
FROM unnest(%(user_ids)s::text[]) AS u (user_id)
    LEFT JOIN public.subscriptions s ON s.user_id = u.user_id
    LEFT JOIN public.plans p ON p.id = s.plan_id;

-- reserve -- count messages as OpenSend's billing does, one row per user of the batch
WITH counted AS (
    SELECT u.user_id, u.messages, plan.monthly_email_quota AS quota,
        coalesce(s.current_period_start, month.start) AS period_start,
        coalesce(s.current_period_end, month.after) AS period_end
    FROM unnest(%(user_ids)s::text[], %(counts)s::integer[]) AS u (user_id, messages)
        CROSS JOIN (SELECT start AT TIME ZONE 'UTC' AS start, (start + interval '1 month') AT TIME ZONE 'UTC' AS after
            FROM date_trunc('month', now() AT TIME ZONE 'UTC') AS m (start)) month
        JOIN public.subscriptions s ON s.user_id = u.user_id
        LEFT JOIN public.plans plan ON plan.id = s.plan_id
)
INSERT INTO public.usage_periods AS p (user_id, period_start, period_end, emails_sent, included_email_quota,
    last_increment_at, usage_warning_80_notified_at, usage_warning_100_notified_at)
SELECT user_id, period_start, period_end, messages, quota, now(),
    CASE WHEN quota > 0 AND messages >= 0.8 * quota THEN now() END,
    CASE WHEN quota > 0 AND messages >= quota THEN now() END
FROM counted ORDER BY user_id
ON CONFLICT (user_id, period_start) DO UPDATE SET
    emails_sent = p.emails_sent + excluded.emails_sent,
    included_email_quota = coalesce(p.included_email_quota, excluded.included_email_quota),
    last_increment_at = now(),
    usage_warning_80_notified_at = coalesce(p.usage_warning_80_notified_at, CASE
        WHEN coalesce(p.included_email_quota, excluded.included_email_quota) > 0 AND p.emails_sent + excluded.emails_sent
            >= 0.8 * coalesce(p.included_email_quota, excluded.included_email_quota) THEN now() END),
    usage_warning_100_notified_at = coalesce(p.usage_warning_100_notified_at, CASE
        WHEN coalesce(p.included_email_quota, excluded.included_email_quota) > 0 AND p.emails_sent + excluded.emails_sent
            >= coalesce(p.included_email_quota, excluded.included_email_quota) THEN now() END);
