-- owner -- whose an email is
SELECT user_id FROM public.emails WHERE id = %(email_id)s::uuid;

-- note -- who did what; nothing, where the same form was sent before
INSERT INTO opensend_milter.console_actions (actor, client_address, action, email_id, address, outcome, form)
VALUES (%(actor)s, %(client_address)s, %(action)s, %(email_id)s::uuid, %(address)s, %(outcome)s, %(form)s::uuid)
ON CONFLICT DO NOTHING;
