"""The auth gate's page of metrics; the gate itself needs nothing that is wired."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from opensend_milter.adapters import prometheus
from opensend_milter.core import counting
from opensend_milter.servers import metrics_page


def logins_shown(port: int) -> AbstractContextManager[None]:
    """Show what the gate of this process counts; with port 0 count nothing."""
    if not port:
        return nullcontext()
    return metrics_page.shown(port, prometheus.alone(counting.AT_AUTH), key="metrics.auth_port")
