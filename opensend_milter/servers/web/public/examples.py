"""One request in three languages, as somebody would paste it: curl, Python and Node.js, with nothing to install."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

_SUBMISSION, _EMAIL = "req_01KB8Z5J0M7Q3T9V4X6C2D8E1F", "0f5f63f8-1d0f-4c7a-9d53-2f0f7f6f3a11"
_MESSAGE = {"from": "App <app@example.org>", "to": "someone@example.net", "subject": "Hello"}
_INDENT = "    "
_KEY_IN_PYTHON = '"Authorization": "Bearer " + os.environ["KEY"]'
_KEY_IN_NODE = "Authorization: `Bearer ${process.env.KEY}`"


class Example(NamedTuple):
    """What is asked, beside method and path."""

    body: Any = None
    query: Mapping[str, str] = {}
    headers: Mapping[str, str] = {}
    id: str = ""


EXAMPLES: Mapping[str, Example] = {
    "send": Example({**_MESSAGE, "body": "It works."}, headers={"Idempotency-Key": "order-1042"}),
    "sendBulk": Example({"messages": [{**_MESSAGE, "body": f"It works, {word}."} for word in ("too", "again")]}),
    "listSubmissions": Example(query={"status": "smtp_failed", "limit": "10"}),
    "getSubmission": Example(id=_SUBMISSION),
    "listMessages": Example(query={"q": "someone@example.net"}),
    "getMessage": Example(id=_SUBMISSION),
    "getKey": Example(),
    "listEmails": Example(query={"limit": "10"}),
    "sendEmail": Example({**_MESSAGE, "html": "<p>It works.</p>"}, headers={"Idempotency-Key": "order-1042"}),
    "sendEmails": Example([{**_MESSAGE, "text": "It works."}, {**_MESSAGE, "text": "Don't worry."}]),
    "getEmail": Example(id=_EMAIL),
    "updateEmail": Example({"scheduled_at": "in 2 hours"}, id=_EMAIL),
    "cancelEmail": Example(id=_EMAIL),
    "getHealth": Example(),
    "getReadiness": Example(),
}
"""By the operation's name in the document."""


class Call(NamedTuple):
    """One request; the key is in the environment, as KEY."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: object
    has_key: bool


def call_of(base: str, method: str, path: str, example: Example, *, has_key: bool) -> Call:
    """Return the request that an example is of."""
    query = f"?{urlencode(example.query)}" if example.query else ""
    headers = {**example.headers, **({"Content-Type": "application/json"} if example.body else {})}
    return Call(method, base + path.replace("{id}", quote(example.id)) + query, headers, example.body, has_key)


def in_curl(call: Call) -> str:
    """Write it for a shell."""
    words = [] if call.method == "GET" else [f"-X {call.method}"]
    lines = [" ".join(["curl -sS", *words, shlex.quote(call.url)])]
    lines += ['-H "Authorization: Bearer $KEY"'] if call.has_key else []
    lines += [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in call.headers.items()]
    lines += [f"-d {shlex.quote(json.dumps(call.body, indent=2))}"] if call.body else []
    return " \\\n  ".join(lines) + "\n"


def in_python(call: Call) -> str:
    """Write it for Python's standard library."""
    headers = [f"{json.dumps(name)}: {json.dumps(value)}," for name, value in call.headers.items()]
    headers[:0] = [f"{_KEY_IN_PYTHON},"] if call.has_key else []
    lines = [f"{json.dumps(call.url)},", f'method="{call.method}",']
    lines += ["headers={", *(f"{_INDENT}{one}" for one in headers), "},"] if headers else []
    lines += [f"data=json.dumps({_nested(call.body, _INDENT)}).encode(),"] if call.body else []
    imports = ["import json", *(["import os"] if call.has_key else []), "import urllib.request", ""]
    asking = ["request = urllib.request.Request(", *(f"{_INDENT}{line}" for line in lines), ")"]
    answer = ["with urllib.request.urlopen(request) as answer:", f"{_INDENT}print(json.load(answer))", ""]
    return "\n".join([*imports, *asking, *answer])


def in_node(call: Call) -> str:
    """Write it for Node.js, as a module."""
    headers = [f"{json.dumps(name)}: {json.dumps(value)}," for name, value in call.headers.items()]
    headers[:0] = [f"{_KEY_IN_NODE},"] if call.has_key else []
    lines = [f'method: "{call.method}",']
    lines += ["headers: {", *(f"  {one}" for one in headers), "},"] if headers else []
    lines += [f"body: JSON.stringify({_nested(call.body, '  ')}),"] if call.body else []
    asking = [f"const answer = await fetch({json.dumps(call.url)}, {{", *(f"  {line}" for line in lines), "});"]
    return "\n".join([*asking, "console.log(await answer.json());", ""])


def _nested(body: object, indent: str) -> str:
    """Write a value within a line that is indented."""
    return json.dumps(body, indent=len(indent)).replace("\n", f"\n{indent}")
