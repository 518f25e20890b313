"""API-key mail gateway: Postfix and Dovecot in front, one transaction, a worker behind."""
