-- A user that was refused little, among millions of others' refusals.
CREATE INDEX refusals_user_id_idx ON opensend_milter.refusals (user_id, refused_at);
