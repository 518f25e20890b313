"""Templates and certificates turned into the files that Postfix and Dovecot read."""
