-- In the standalone profile it is our worker that looks for what is due.
CREATE INDEX webhook_deliveries_due_idx ON public.webhook_deliveries
    (webhook_id, coalesce(next_retry_at, created_at)) WHERE status = 'pending';
