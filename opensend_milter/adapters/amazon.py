"""Opens sessions with Amazon that share what describes its services: megabytes of JSON, read once a process."""

from __future__ import annotations

from functools import cache

import boto3.session
import botocore.session
from botocore.loaders import Loader


def session() -> boto3.session.Session:
    """Return one of the caller's own: the default one is shared with whoever else uses boto3 here."""
    below = botocore.session.Session()
    opened = boto3.session.Session(botocore_session=below)
    below.register_component("data_loader", _descriptions())
    return opened


@cache
def _descriptions() -> Loader:
    loader: Loader = botocore.session.Session().get_component("data_loader")
    return loader
