"""The fields of one JSON object: taken one by one, with all faults gathered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from opensend_milter.core.address import NotAnAddressListError, envelope_address, parse_addresses
from opensend_milter.core.model import Mailbox

Code = Literal["required", "unknown", "not_offered", "wrong_type", "invalid", "too_long", "too_many", "too_large"]

NAME_CHARACTERS = 256
MOST_ERRORS = 100
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
"""What ends a line for one reader or another, or cannot be written at all."""
_UNWRITABLE = re.compile("[\x00\ud800-\udfff]")
_ADDRESS_CHARACTERS = 1_024
_SHOWN_OCTETS = 50_000
"""All of one To, Cc or Reply-To: a longer header field is refused over SMTP as well."""
_CONTROLS = "holds a control character, a line separator or half of a surrogate pair"


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldError:
    """What is wrong with one field."""

    field: str
    """As `to[1]` or `attachments[0].data`; empty for the whole."""
    message: str
    code: Code


def shown(name: str) -> str:
    """Spell a name that a stranger chose so that any reader can show it."""
    return name.encode("ascii", "backslashreplace").decode("ascii")[:60]


class Fields:
    """The fields of one object; what is wrong with them goes to `errors`."""

    def __init__(self, fields: Mapping[str, object], errors: list[FieldError], prefix: str = "") -> None:
        self._left = {name: value for name, value in fields.items() if value is not None}
        """What null says is not said."""
        self._unknown = set(fields)
        self.errors = errors
        self._prefix = prefix

    def fault(self, name: str, message: str, code: Code) -> None:
        """Note what is wrong with a field."""
        here = self._prefix + name
        self.errors.append(FieldError(field=here, message=f"{here}: {message}", code=code))

    def has(self, name: str) -> bool:
        """Tell whether a field is given."""
        return name in self._left

    def take(self, *names: str, required: bool = False) -> object:
        """Take a field that may be spelled in several ways; None where it is missing or null."""
        self._unknown.difference_update(names)
        found = [self._left.pop(name) for name in names if name in self._left]
        if len(found) > 1:
            self.fault(names[0], f"given twice, also as {' or '.join(names[1:])}", "invalid")
        if not found and required:
            self.fault(names[0], "missing", "required")
        return found[0] if found else None

    def refuse(self, *names: str) -> None:
        """Refuse fields that others offer."""
        for name in names:
            if self.take(name) is not None:
                self.fault(name, "not offered here", "not_offered")

    def refuse_the_rest(self) -> None:
        """Refuse what nobody took."""
        for name in sorted(self._unknown)[:MOST_ERRORS]:
            self.fault(shown(name), "no such field", "unknown")

    def string(self, *names: str, required: bool = False) -> str | None:
        """Take a string."""
        value = self.take(*names, required=required)
        if value is None or isinstance(value, str):
            return value
        self.fault(names[0], "expected a string", "wrong_type")
        return None

    def body(self, name: str, *, required: bool = False) -> str | None:
        """Take a text of any length."""
        text = self.string(name, required=required)
        if text is not None and _UNWRITABLE.search(text):
            self.fault(name, "holds a NUL or half of a surrogate pair", "invalid")
        return text

    def line(self, name: str, at_most: int, *, required: bool = False) -> str | None:
        """Take a string that becomes part of a header field: a tab is a space there, spaces around it are none."""
        text = self.string(name, required=required)
        if text is None:
            return None
        line = text.replace("\t", " ")
        if UNSAFE.search(line):
            self.fault(name, _CONTROLS, "invalid")
        elif len(line) > at_most:
            self.fault(name, f"longer than {at_most} characters", "too_long")
        elif required and not line.strip():
            self.fault(name, "must not be blank", "required")
        return line.strip()

    def mailbox(self, name: str, *, required: bool = False) -> Mailbox | None:
        """Take an address, with or without a display name."""
        value = self.take(name, required=required)
        return None if value is None else self._mailbox(name, value)

    def mailboxes(self, *names: str, at_most: int, required: bool = False) -> tuple[Mailbox, ...]:
        """Take an address or a list of them."""
        name = names[0]
        value = self.take(*names, required=required)
        if value is None:
            return ()
        if not isinstance(value, list):
            one = self._mailbox(name, value)
            return (one,) if one else ()
        if required and not value:
            self.fault(name, "must not be empty", "required")
        if len(value) > at_most:
            self.fault(name, f"{len(value)} addresses are over the limit of {at_most}", "too_many")
            return ()
        found = [self._mailbox(f"{name}[{index}]", one) for index, one in enumerate(value)]
        mailboxes = tuple(one for one in found if one)
        if sum(map(_shown_octets, mailboxes)) > _SHOWN_OCTETS:
            self.fault(name, "names and addresses together are too long for a header field", "too_long")
        return mailboxes

    def _mailbox(self, name: str, value: object) -> Mailbox | None:
        if not isinstance(value, str):
            self.fault(name, "expected a string", "wrong_type")
        elif UNSAFE.search(value):
            self.fault(name, _CONTROLS, "invalid")
        elif len(value) > _ADDRESS_CHARACTERS:
            self.fault(name, f"longer than {_ADDRESS_CHARACTERS} characters", "too_long")
        else:
            return self._parsed(name, value)
        return None

    def _parsed(self, name: str, value: str) -> Mailbox | None:
        try:
            (shown,) = parse_addresses(value, at_most=1, plain=True)
        except NotAnAddressListError as error:
            self.fault(name, f"not one address ({error}); write it as: Name <user@domain>", "invalid")
            return None
        except ValueError:
            self.fault(name, "not one address; write it as: Name <user@domain>", "invalid")
            return None
        address = envelope_address(shown.address)
        if address is None:
            self.fault(name, "not an address that mail can be sent to", "invalid")
        elif UNSAFE.search(shown.name) or len(shown.name) > NAME_CHARACTERS:
            self.fault(name, f"the name is longer than {NAME_CHARACTERS} characters, or cannot be shown", "invalid")
        else:
            return Mailbox(shown.name, address)
        return None


def _shown_octets(mailbox: Mailbox) -> int:
    """Bound what a mailbox takes in a header field, encoded words and folding included."""
    return len(mailbox.address.encode()) + (3 * len(mailbox.name.encode()) + 80 if mailbox.name else 0) + 6
