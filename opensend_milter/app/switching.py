"""What to know of an OpenSend before this gateway takes its relay's place: only read, and judged by our own rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from opensend_milter.adapters.admin.switching import (
    MOST_COUNTED,
    TIMEOUT_S,
    BoundKey,
    Migrating,
    SwitchingReader,
    UntoldError,
)
from opensend_milter.adapters.schema import facts
from opensend_milter.adapters.schema.migrations import OLDEST_SERVER
from opensend_milter.app.judging_rows import Some, Tally, domain_to_ask, refusal_of_key, tally
from opensend_milter.app.lanes import policy_of
from opensend_milter.config import Config
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning
from opensend_milter.core.model import Refuse
from opensend_milter.core.rules import Rule

REACHABLE = "opensend.reachable"
MOST_LINES = 20
_NAME_CHARACTERS = 30
_NOT_TOLD = "not told by rows: limits of keys, repetitions, exact size and form"
_MENDS: Mapping[Rule, str] = {
    Rule.FROM_UNVERIFIED: "as opensend.domains says",
    Rule.FROM_MALFORMED: "From is to be user@domain",
    Rule.FROM_NOT_ONE: "From is to be one address",
    Rule.RECIPIENT_MALFORMED: "each is to be user@domain",
    Rule.RECIPIENT_SUPPRESSED: "policy.on_suppressed: drop-recipient",
    Rule.TOO_MANY_RECIPIENTS: "size.max_recipients; Amazon SES takes 50",
    Rule.TOO_LARGE: "size.max_message_bytes",
    Rule.ATTACHMENTS_TOO_LARGE: "size.max_attachment_bytes",
    Rule.SANDBOX_MIXED: "send two messages",
    Rule.CANNOT_CARRY: "Amazon SES cannot send it either",
}


@contextmanager
def before_switching(config: Config, *, timeout_s: float = TIMEOUT_S) -> Iterator[list[Check]]:
    """Yield the checks; what they opened is closed afterwards. `timeout_s`: for each statement."""
    # What will be in force beside OpenSend, whatever the configuration says today.
    beside = dataclasses.replace(config, profile="opensend")
    reader = SwitchingReader(beside, timeout_s=timeout_s)
    try:
        yield list(Switching(beside, reader).checks())
    finally:
        reader.close()


class Switching:
    """The checks of one run."""

    def __init__(self, config: Config, reader: SwitchingReader) -> None:
        self._config = config
        self._reader = reader
        self._policy = policy_of(config)
        self._tally: Tally | UntoldError | None = None

    def checks(self) -> Iterator[Check]:
        """Return the checks in the order they are shown."""
        yield Check(
            name=REACHABLE,
            why="all that follows is asked of OpenSend's own database",
            look=_told(self._reachable),
        )
        looks: tuple[tuple[str, str, Callable[[], Seen]], ...] = (
            ("opensend.snapshot", "another OpenSend may mean something else by a column", self._snapshot),
            ("opensend.tables", "while a column is not as we need it, each message is put off", self._tables),
            ("opensend.migrate", "`db migrate` makes our schema, our roles and their rights", self._migrate),
            ("opensend.keys", "a key that is bound to a domain sends only from that, verified", self._keys),
            ("opensend.domains", "From must be a verified domain of the key's user", self._domains),
            ("opensend.rows", "what our rules refuse OpenSend's relay may have let through", self._rows),
            ("opensend.billing", "mail is counted, and blocked, only where billing is set", self._billing),
            ("opensend.queue", "the ingester hears of a row from the queue, or by polling", self._queue),
        )  # fmt: skip
        for name, why, look in looks:
            yield Check(name=name, why=why, look=_told(look), needs=REACHABLE)

    def _reachable(self) -> Seen:
        try:
            server = self._reader.server()
        except StoreUnavailable as error:
            return problem(str(error).splitlines()[0], "systemctl status postgresql; opensend-milter check-config")
        shown = f"PostgreSQL {server.version // 10_000}, {_shown(server.database)} as {_shown(server.user)}"
        if server.version < OLDEST_SERVER:
            return problem(f"{shown}: {OLDEST_SERVER // 10_000} or newer is needed")
        if server.encoding != "UTF8":
            return problem(f"{shown}: its encoding is {server.encoding}, not UTF8")
        if server.missing:
            return problem(
                f"{shown}: no OpenSend\nschema public has no table {', '.join(server.missing)}",
                "DATABASE_URL, as OpenSend has it",
            )
        if lacking := self._reader.lacking():
            mend = "\n".join(one.mend for one in lacking)
            return warning(_lines(f"{shown}, who may not", [one.right for one in lacking]), mend)
        return good(f"{shown}, UTF8")

    def _snapshot(self) -> Seen:
        standing = self._reader.standing()
        unique = [f"no unique index on {index.table} {index.definition[6:]}" for index in standing.not_unique]
        lines = [*unique, *standing.differing]
        if lines:
            first = f"{len(lines)} difference(s) from OpenSend of {facts.SNAPSHOT}"
            mends = [
                f"CREATE UNIQUE INDEX CONCURRENTLY {index.name} ON public.{index.table} {index.definition[6:]};"
                for index in standing.not_unique
            ]
            mend = "\n".join(mends) or "opensend.tables says what of it matters to us"
            return (problem if unique else warning)(_lines(first, lines), mend)
        first = f"{standing.tables} tables as of {facts.SNAPSHOT}"
        if not standing.more:
            return good(f"{first}, exactly")
        more = [f"{_shown(column.table)}.{_shown(column.name)}" for column in standing.more]
        return good(_lines(f"{first}, and {len(more)} column(s) more", more))

    def _tables(self) -> Seen:
        lines = self._reader.differences()
        if lines:
            return problem(_lines("not as we need them", lines), _OTHER_VERSION)
        return good("all that we need is there")

    def _migrate(self) -> Seen:
        if misfits := self._reader.misfits():
            return problem(_lines("`db migrate` refuses these tables", misfits), _OTHER_VERSION)
        found = self._reader.migrating()
        there = [*(["schema opensend_milter"] if found.has_schema else []), *found.roles]
        already = ["there already:", *(f"  {one}" for one in there)] if there else []
        if lacks := list(_lacks(found)):
            owner = " and ".join(map(_shown, found.other_owners)) or "a superuser"
            return warning(
                _lines("`db migrate` cannot be run by this role", [*lacks, *already]),
                f"opensend-milter db migrate   # with DATABASE_URL of {owner}",
            )
        return good(_lines("`db migrate` can be run by this role", already))

    def _keys(self) -> Seen:
        every, without_user = self._reader.key_counts()
        bound = self._reader.bound_keys()
        asked = {key: domain for key in bound if (domain := domain_to_ask(key.user_id, key.domain))}
        verified = self._reader.verified(sorted(set(asked.values())))
        refused, held = [], []
        for key in bound:
            is_verified = key in asked and asked[key][:2] in verified
            if refusal := refusal_of_key(self._policy, key, verified=is_verified):
                refused.append(f"{_named(key)}: {_why(key, refusal)}")
            elif key.permission != "sending_access":
                held.append(f"{_named(key)}: {_shown(key.permission)}, yet held to {_shown(key.domain or '')} here")
        shown = f"{every} key(s), {_at_most(len(bound))} of them bound to a domain"
        if without_user:
            shown += f"; {without_user} without a user, which OpenSend refuses too"
        if refused:
            more = [f"{len(held)} more with {_FULL}"] if held else []
            first = f"{len(refused)} key(s) could send nothing"
            mend = "verify the domain, or make a new key for one that is verified"
            return problem("\n".join([_lines(first, refused), *more]), mend)
        if held:
            return warning(
                _lines(f"{len(held)} with {_FULL}", held), "in OpenSend: a key without a domain, to send from any"
            )
        return good(shown)

    def _domains(self) -> Seen:
        if self._policy.sender_domains != "verified":
            return skipped("policy.sender_domains is restricted-only: From need not be verified")
        if not self._reader.verified_count():
            return problem("none is verified: each message would be refused", "verify one in OpenSend")
        senders = self._tallied().unverified.most_common()
        names, shared = self._reader.shared_domains()
        sharing = [f"{_shown(name)}: a domain of {users} users" for name, users in shared]
        if senders:
            lines = [f"{domain} of user {_shown(user_id)}: {count}" for (user_id, domain), count in senders]
            more = [f"{names} domain(s) of several users"] if names else []
            return problem(
                "\n".join([_lines(f"rows from {len(senders)} domain(s) that are not verified", lines), *more]),
                "verify them, or policy.sender_domains: restricted-only",
            )
        if sharing:
            return warning(
                _lines(f"{names} domain(s) of several users", sharing),
                "whoever verified it may send from it: delete the one that is not to",
            )
        return good("all mail was from verified domains lately")

    def _tallied(self) -> Tally:
        """Judge the rows once; who could not be told is not asked again."""
        if self._tally is None:
            try:
                self._tally = tally(self._reader, self._policy)
            except UntoldError as error:
                self._tally = error
        if isinstance(self._tally, UntoldError):
            raise self._tally
        return self._tally

    def _rows(self) -> Seen:
        counted = self._tallied()
        refused = sum(some.count for some in counted.refused.values())
        first = f"of the newest {counted.rows} row(s) {refused} would have been refused"
        lines = []
        for rule, some in sorted(counted.refused.items(), key=lambda found: -found[1].count):
            lines += _examples(rule.value, some)
        lines += _examples("without a suppressed recipient", counted.left_out)
        lines += _examples("cannot be read", counted.unreadable)
        text = "\n".join([first, *lines, _NOT_TOLD])
        mend = "\n".join(
            f"{rule.value}: {_MENDS.get(rule, 'as reply-codes.md says')}"
            for rule in sorted(counted.refused, key=lambda rule: -counted.refused[rule].count)
        )
        if counted.refused:
            return problem(text, mend)
        return warning(text, "SELECT * FROM emails WHERE id = '...'   # the ids above") if lines else good(text)

    def _billing(self) -> Seen:
        if self._config.billing == "none":
            if self._reader.seems_to_bill():
                return warning(
                    "OpenSend seems to bill, and billing is none\nusage_periods has rows",
                    "billing: stripe   # as OpenSend's BILLING_BACKEND",
                )
            return good("billing is none, and OpenSend has counted nothing")
        users = sorted(self._tallied().users)
        says = self._reader.subscriptions(users)
        refused = [f"user {_shown(user_id)}: {says[user_id]}" for user_id in users if says[user_id] != "fine"]
        if refused:
            return problem(
                _lines(f"{len(refused)} of {len(users)} who sent lately would be refused", refused),
                "what each word means: reply-codes.md, quota",
            )
        return good(f"{len(users)} user(s) who sent lately may send")

    def _queue(self) -> Seen:
        late = self._reader.late()
        waiting = [f"{_at_most(late)} row(s) `queued` for over ten minutes now"] if late else []
        if not self._config.queue.url:
            unset = "queue.url is not set: OpenSend's ingester must poll"
            text = "\n".join([unset, "one that has a queue URL leaves our rows `queued` for ever", *waiting])
            mend = "queue.url, as OpenSend's BACKGROUND_JOBS_QUEUE_URL"
            return (problem if late else warning)(text, mend)
        if late:
            return problem(waiting[0], "see that OpenSend's ingester runs, and reads that queue")
        return good("queue.url is set, and no row waits")


_FULL = "full access, held to a domain here and not by OpenSend"
_OTHER_VERSION = "a version of opensend-milter that knows this OpenSend"


def _told(look: Callable[[], Seen]) -> Callable[[], Seen]:
    """Make a question without an answer a finding."""

    def told() -> Seen:
        try:
            return look()
        except UntoldError as error:
            return error.seen

    return told


def _lines(first: str, lines: Sequence[str]) -> str:
    more = len(lines) - MOST_LINES
    return "\n".join([first, *lines[:MOST_LINES], *([f"and {more} more"] if more > 0 else [])])


def _examples(name: str, some: Some) -> list[str]:
    return [f"{name}: {some.count}, such as", *(f"  {one}" for one in some.ids)] if some.count else []


def _shown(text: str) -> str:
    """Return a stranger's text as part of a line."""
    plain = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return plain if len(plain) <= _NAME_CHARACTERS else plain[: _NAME_CHARACTERS - 3] + "..."


def _at_most(count: int) -> str:
    return f"{count} or more" if count == MOST_COUNTED else str(count)


def _named(key: BoundKey) -> str:
    return f"{_shown(key.name)} ({_shown(key.preview)})"


def _why(key: BoundKey, refusal: Refuse) -> str:
    """Say in a few words why a key cannot send."""
    if key.domain is None:
        return "its domain is gone, or another user's"
    said = {Rule.FROM_UNVERIFIED: "not verified", Rule.FROM_MALFORMED: "no domain name"}
    return f"{_shown(key.domain)} is {said.get(refusal.rule, refusal.rule.value)}"


def _lacks(found: Migrating) -> Iterator[str]:
    if found.is_standby:
        yield "a standby takes no changes: the primary's URL is needed"
    if found.is_superuser:
        return
    if found.other_owners:
        yield f"not the owner of OpenSend's tables: {', '.join(map(_shown, found.other_owners))} is"
    if not found.creates_roles:
        yield "no CREATEROLE"
    if not (found.has_schema or found.creates_schemas):
        yield "no CREATE on the database"
    if found.not_its_roles:
        yield f"no ADMIN OPTION on {', '.join(found.not_its_roles)}"
