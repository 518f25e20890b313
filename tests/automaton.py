"""A regular expression as an automaton: characters, and the ways between them in the order in which Python tries them.

Taken for more than they are: a repeat of more than sixteen characters, or of what is longer than one, never ends; a
back reference is any text; what a look-behind of more than one character asks is always so.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from importlib import import_module
from operator import and_
from typing import Any, Literal

Pattern = re.Pattern[str] | re.Pattern[bytes]
Use = Literal["match", "onward", "fullmatch", "search"]
"""From the start; from where the last match ended; as a whole; begun anew at each place."""
Characters = int
"""A set of them: one bit for each of an alphabet, and one for the edges of the text."""
ANY: Characters = -1

_parser, _compiler, _op = (import_module(f"re.{name}") for name in ("_parser", "_compiler", "_constants"))
_MOST_COPIES = 16
_ONE = frozenset({_op.LITERAL, _op.NOT_LITERAL, _op.IN, _op.ANY})
_ALSO = (0x660, 0x2028, 0x3000, 0x4E00, 0xD800, sys.maxunicode)
"""Beyond Latin: a digit, a line's end, a blank, a letter, half of a surrogate pair."""


@dataclass(eq=False, slots=True)
class Node:
    """A character to be read, or a place where ways part or meet."""

    depth: int
    """In how many atomic groups and look-aheads it is."""
    onward: list[Node] = field(default_factory=list)
    """In the order in which they are tried."""
    reads: Characters | None = None
    before: Characters = ANY
    """What the character before must be one of."""
    after: Characters = ANY
    may_fail: bool = False
    """For a reason that is not written here."""
    ends: bool = False
    opened: Node | None = None
    """Of the end of a round: where the first one began."""
    left: Node | None = None
    """And where it goes on after the last."""


@dataclass(frozen=True, eq=False, slots=True)
class Step:
    """A way from one character to the next, or to an end."""

    trail: tuple[Node, ...]

    @property
    def to(self) -> Node:
        return self.trail[-1]

    @property
    def before(self) -> Characters:
        return reduce(and_, (node.before for node in self.trail))

    @property
    def after(self) -> Characters:
        return reduce(and_, (node.after for node in self.trail))

    def stays(self, depth: int, since: int = 0) -> bool:
        """Tell whether it never leaves the group of that depth."""
        return all(node.depth >= depth for node in self.trail[since:])


class Automaton:
    """Of one use of a pattern."""

    def __init__(self, pattern: Pattern, use: Use) -> None:
        tree = _parser.parse(pattern.pattern, pattern.flags)
        self._is_bytes = isinstance(pattern.pattern, bytes)
        codes = range(256) if self._is_bytes else sorted({*range(0x180), *_ALSO, *_named(tree)})
        self._alphabet = [chr(code) for code in codes if 0 <= code <= sys.maxunicode]
        self.edge: Characters = 1 << len(self._alphabet)
        """No character, but where the text begins or ends."""
        self.all: Characters = self.edge - 1
        self.by_ease = sorted(self._alphabet, key=lambda one: (not one.isalnum(), not one.isprintable(), one))
        """The alphabet, what is easiest to read first."""
        self._sets: dict[str, Characters] = {}
        if use == "onward":
            tree = [(_op.POSSESSIVE_REPEAT, (0, _op.MAXREPEAT, tree))]
        end = Node(0, ends=True, after=self.edge if use == "fullmatch" else ANY)
        self.start = self._built(tree, pattern.flags, end, 0)
        self.skip = Node(0, reads=self.all)
        """Passes over a character, so that the search begins anew behind it."""
        if use == "search":
            self.start = Node(0, [self.start, self.skip])
            self.skip.onward = [self.start]

    def steps(self, node: Node) -> Iterator[Step]:
        """Yield the ways on, in the order in which they are tried."""
        pending: list[tuple[Node, ...]] = [(onward,) for onward in reversed(node.onward)]
        while pending:
            trail = pending.pop()
            last = trail[-1]
            if last.reads is not None or last.ends:
                yield Step(trail)
                continue
            # A round that has read nothing is the last.
            is_over = last.opened is not None and not {last, last.opened}.isdisjoint(trail[:-1])
            pending += [(*trail, one) for one in reversed(last.onward) if not is_over or one is last.left]

    def of(self, character: str) -> Characters:
        """Return the set of one character."""
        return 1 << self._alphabet.index(character)

    def easiest(self, characters: Characters) -> str:
        """Return the one of them that is easiest to read."""
        return next(one for one in self.by_ease if characters & self.of(one))

    def spelled(self, text: str) -> Any:
        """Return a text as the pattern takes it."""
        return text.encode("latin-1") if self._is_bytes else text

    def _built(self, items: Iterable[tuple[Any, Any]], flags: int, then: Node, depth: int) -> Node:
        for kind, value in reversed(list(items)):
            then = self._item(kind, value, flags, then, depth)
        return then

    def _item(self, kind: Any, value: Any, flags: int, then: Node, depth: int) -> Node:
        match kind:
            case _op.SUBPATTERN:
                _, added, removed, inner = value
                node = self._built(inner, (flags | added) & ~removed, then, depth)
            case _op.BRANCH | _op.GROUPREF_EXISTS | _op.FAILURE:
                node = Node(depth, [self._built(inner, flags, then, depth) for inner in _choices(kind, value)])
            case _op.MAX_REPEAT | _op.MIN_REPEAT:
                node = self._repeat(value, flags, then, depth, greedy=kind is _op.MAX_REPEAT)
            case _op.ATOMIC_GROUP:
                node = Node(depth, [self._built(value, flags, Node(depth, [then]), depth + 1)])
            case _op.POSSESSIVE_REPEAT:
                # To Python each round is an atomic group of its own, too.
                least, most, inner = value
                rounds = [(_op.MAX_REPEAT, (least, most, [(_op.ATOMIC_GROUP, inner)]))]
                node = self._item(_op.ATOMIC_GROUP, rounds, flags, then, depth)
            case _op.ASSERT | _op.ASSERT_NOT:
                node = self._look(value, flags, then, depth, wanted=kind is _op.ASSERT)
            case _op.AT:
                node = self._place(value, flags, then, depth)
            case _op.GROUPREF:
                node = self._repeat((0, _op.MAXREPEAT, [(_op.ANY, None)]), re.DOTALL, then, depth, greedy=True)
            case _:
                node = Node(depth, [then], reads=self._set(kind, value, flags))
        return node

    def _repeat(self, value: Any, flags: int, then: Node, depth: int, *, greedy: bool) -> Node:
        least, most, inner = value

        def choice(further: Node, left: Node) -> list[Node]:
            return [further, left] if greedy else [left, further]

        if most <= 1 or (most <= _MOST_COPIES and _is_one(inner)):
            built = then
            for _ in range(most - least):
                built = Node(depth, choice(self._built(inner, flags, built, depth), then))
            for _ in range(least):
                built = self._built(inner, flags, built, depth)
            return built
        opened = Node(depth)
        left = Node(depth, [then], may_fail=least > 1)
        again = Node(depth, opened=opened, left=left)
        body = self._built(inner, flags, again, depth)
        again.onward = choice(Node(depth, [body], may_fail=most is not _op.MAXREPEAT), left)
        opened.onward = [body] if least else choice(body, then)
        return opened

    def _look(self, value: Any, flags: int, then: Node, depth: int, *, wanted: bool) -> Node:
        direction, inner = value
        if _is_one(inner):
            kind, character = inner[0]
            found = self._set(kind, character, flags)
            asked = found if wanted else ~found
            return Node(depth, [then], before=asked) if direction < 0 else Node(depth, [then], after=asked)
        passed = Node(depth, [then], may_fail=True)
        if direction < 0:
            return passed
        # What is looked at is read once for itself: that leads nowhere, but takes its time.
        return Node(depth, [self._built(inner, flags, Node(depth, ends=True, may_fail=True), depth + 1), passed])

    def _place(self, place: Any, flags: int, then: Node, depth: int) -> Node:
        line_end = self._set(_op.LITERAL, ord("\n"), 0) | self.edge
        match place:
            case _op.AT_BEGINNING:
                return Node(depth, [then], before=line_end if flags & re.MULTILINE else self.edge)
            case _op.AT_BEGINNING_STRING:
                return Node(depth, [then], before=self.edge)
            case _op.AT_END:
                return Node(depth, [then], after=line_end)
            case _op.AT_END_STRING:
                return Node(depth, [then], after=self.edge)
            case _:
                return Node(depth, [then], may_fail=True)

    def _set(self, kind: Any, value: Any, flags: int) -> Characters:
        """Ask Python itself which characters it means."""
        key = f"{kind} {value} {flags}"
        if key not in self._sets:
            state = _parser.State()
            state.flags = flags
            one = _compiler.compile(_parser.SubPattern(state, [(kind, value)]), flags)
            fits = [one.fullmatch(self.spelled(character)) is not None for character in self._alphabet]
            self._sets[key] = sum(1 << place for place, fit in enumerate(fits) if fit)
        return self._sets[key]


def _choices(kind: Any, value: Any) -> list[Any]:
    match kind:
        case _op.BRANCH:
            return [*value[1]]
        case _op.GROUPREF_EXISTS:
            return [inner or () for inner in value[1:]]
        case _:
            return []


def _is_one(items: Any) -> bool:
    return len(items) == 1 and items[0][0] in _ONE


def _named(tree: Any) -> Iterator[int]:
    """Yield the characters that a pattern names, and their neighbours."""
    for item in tree:
        match item:
            case (_op.LITERAL | _op.NOT_LITERAL, int(code)):
                yield from (code - 1, code, code + 1)
            case (_op.RANGE, (low, high)):
                yield from (low - 1, low, high, high + 1)
            case tuple() | list() | _parser.SubPattern():
                yield from _named(item)
            case _:
                pass
