"""What Schemathesis must know of the account it tests with, as no schema can say it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import schemathesis
from hypothesis import strategies as st

NAMES = st.sampled_from(["", "App ", "Jörg Müller ", '"Smith, John" ', "日本 "])
LOCALS = st.from_regex(r"\A[a-z0-9]([a-z0-9.+_-]{0,20}[a-z0-9])?\Z").filter(lambda local: ".." not in local)
ADDRESSES = st.builds(
    lambda name, local: f"{name}<{local}@sandbox.test>" if name else f"{local}@sandbox.test", NAMES, LOCALS
)
"""Of the one domain that is verified, as any may be the sender."""
PLACE = re.compile(r"req_[0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}")
"""Where a list goes on."""
NOW = datetime.now(UTC)
TIMES = st.one_of(
    st.builds("in {} {}".format, st.integers(1, 29), st.sampled_from(["minutes", "hours", "days"])),
    st.integers(1, 29).map(lambda days: (NOW + timedelta(days=days)).isoformat()),
)

schemathesis.openapi.format("mailbox", ADDRESSES)
schemathesis.openapi.format("sending-time", TIMES)


@schemathesis.hook
def before_call(_: schemathesis.HookContext, case: schemathesis.Case[Any], __: dict[str, object]) -> None:
    """Wait for no outcome longer than it takes: a message that is put off for days has none.

    Let no list go both ways, which no schema can forbid. And let no batch be permissive: it may hold anything then, and
    no schema can make that a matter of a header field.
    """
    if all(PLACE.fullmatch(str(case.query.get(name))) for name in ("after", "before")):
        del case.query["before"]
    if case.query.get("wait") in range(2, 31):
        case.query["wait"] = 1
    if str(case.headers.get("x-batch-validation")).strip().lower() == "permissive":
        case.headers["x-batch-validation"] = "strict"
