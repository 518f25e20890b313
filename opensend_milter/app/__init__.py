"""Composition root: a Config in, wired objects out; the only place where servers and adapters meet."""

from opensend_milter.app.answering import http
from opensend_milter.app.serving import serve
from opensend_milter.app.trying import find_email, prepare_sandbox
from opensend_milter.app.working import job_store, work

__all__ = ["find_email", "http", "job_store", "prepare_sandbox", "serve", "work"]
