-- domains -- domains of one user or of all, by name
SELECT id::text AS id, name, user_id, status FROM public.domains
WHERE %(user_id)s::text IS NULL OR user_id = %(user_id)s ORDER BY lower(name), user_id, id;

-- courier -- of a domain that has one of its own
SELECT courier FROM opensend_milter.domain_settings WHERE domain_id = %(id)s::uuid;

-- ses_identity -- what a domain's row holds of Amazon SES
SELECT dkim_origin, dkim_tokens, dkim_selector, custom_return_path FROM public.domains WHERE id = %(id)s::uuid;

-- ownership -- what proves that a domain is a user's
SELECT opensend_milter.ownership(%(user_id)s, %(domain)s);

-- set_status -- how a domain stands
UPDATE public.domains SET status = %(status)s WHERE id = %(id)s::uuid;
