"""Tells of a regular expression whether some text makes matching it slow, and which.

Python's matcher tries one way after the other. It is slow where one text can be read in many ways (two repeats that
share a word, or two ways round one repeat), and where a search, begun anew at each place, reads on and fails each time.
What is possessive or atomic is not entered again once it was left; but a search does begin anew in the midst of it.

What cannot be told counts as slow. Not seen: what repeats with an end multiply, and what is done with a match.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations, permutations, product, takewhile
from operator import and_
from typing import Any, Literal

from tests.automaton import ANY, Automaton, Characters, Node, Pattern, Step, Use

Kind = Literal["exponential", "polynomial", "rescans"]


@dataclass(frozen=True, slots=True)
class Slow:
    """Why a pattern is slow, and a text that shows it: the pump many times between the other two."""

    kind: Kind
    prefix: str
    pump: str
    suffix: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.prefix!a} + n * {self.pump!a} + {self.suffix!a}"


def slow(pattern: Pattern, use: Use) -> Slow | None:
    """Return what makes this use of a pattern slow; None where it takes time linear in the text."""
    return _Search(pattern, use).found()


@dataclass(frozen=True, slots=True)
class _Runner:
    """One of those that read the same word."""

    start: Node
    first: Sequence[Step]
    goal: Node
    within: Collection[Node]
    is_held: bool
    """In the group where ways part: who leaves it, or comes to an end, has matched, and no other way is tried."""


_Nodes = tuple[Node, ...]
_Place = tuple[_Nodes, Characters]
"""Where all runners are, and by which characters all of them can have come there."""
_CameFrom = Mapping[_Place, tuple[_Place | None, Characters]]


class _Search:
    def __init__(self, pattern: Pattern, use: Use) -> None:
        self._pattern, self._use = pattern, use
        self._automaton = Automaton(pattern, use)
        self._start = Node(0, [self._automaton.start], reads=self._automaton.edge)
        self._steps: dict[Node, list[Step]] = {}
        pending = [self._start]
        while pending:
            node = pending.pop()
            if node not in self._steps:
                self._steps[node] = [step for step in self._automaton.steps(node) if not step.to.ends]
                pending += [step.to for step in self._steps[node]]
        self._onward = {node: self._reached(node) for node in self._steps}
        around = {node: {one for one in onward if node in self._onward[one]} for node, onward in self._onward.items()}
        self._rounds = {node: others for node, others in around.items() if others}
        """The characters of repeats, each with those that are in the same one."""
        self._failing: dict[tuple[Node, int], bool] = {}

    def _reached(self, node: Node) -> set[Node]:
        """Return what is reached by one step or more."""
        seen: set[Node] = set()
        pending = [node]
        while pending:
            fresh = {step.to for step in self._steps[pending.pop()]} - seen
            seen |= fresh
            pending += fresh
        return seen

    def found(self) -> Slow | None:
        """Look for the worst first."""
        for node in self._rounds:
            if word := self._two_ways_round(node):
                return self._slow("exponential", node, word)
        for node in self._rounds:
            if word := self._round_and_on(node):
                return self._slow("rescans" if node is self._automaton.skip else "polynomial", node, word)
        return None

    def _two_ways_round(self, node: Node) -> str:
        """Find a word that leads from a character back to it in two ways."""
        for one, other in combinations(self._steps[node], 2):
            depth, since = _parting(one, other)
            if one.stays(depth, since) and other.stays(depth, since):
                around = self._rounds[node]
                runners = [_Runner(node, [step], node, around, is_held=True) for step in (one, other)]
                if word := self._word(runners, depth):
                    return word
        return ""

    def _round_and_on(self, node: Node) -> str:
        """Find a word that leads round a repeat, round another, and from the one to the other."""
        around, steps, is_skip = self._rounds[node], self._steps[node], node is self._automaton.skip
        for one, other in permutations(steps, 2):
            depth, since = _parting(one, other)
            # What is tried first has to fail: the way to the other in any case, the way round if it comes before that.
            is_first = steps.index(one) < steps.index(other)
            if one.to not in around or not other.stays(depth, since) or (is_first and not one.stays(depth, since)):
                continue
            for goal in self._rounds:
                if goal is not other.to and goal not in self._onward[other.to]:
                    continue
                runners = [
                    _Runner(node, [one], node, around, is_held=is_first),
                    _Runner(node, [other], goal, self._leading_to(goal), is_held=not is_skip),
                    _Runner(goal, self._steps[goal], goal, self._rounds[goal], is_held=True),
                ]
                if word := self._word(runners, depth):
                    return word
        return ""

    def _leading_to(self, goal: Node) -> set[Node]:
        return {node for node, onward in self._onward.items() if goal in onward}

    def _word(self, runners: Sequence[_Runner], depth: int) -> str:
        """Find a word with which all come to their goals; empty where there is none."""
        for first in product(*(runner.first for runner in runners)):
            # Many of them follow each other: the last character of each is the one before the next.
            last = _shared(runner.start.reads for runner in runners) & _shared(step.before for step in first)
            if word := self._walked(runners, first, last, depth):
                return word
        return ""

    def _walked(self, runners: Sequence[_Runner], first: Sequence[Step], last: Characters, depth: int) -> str:
        goal = tuple(runner.goal for runner in runners)
        came_from: dict[_Place, tuple[_Place | None, Characters]] = {}
        pending: deque[_Place] = deque()

        def arrive(steps: Sequence[Step], before: _Place | None, read: Characters) -> None:
            nodes = tuple(step.to for step in steps)
            place = nodes, _shared(node.reads for node in nodes) & _shared(step.after for step in steps)
            if read and place[1] and place not in came_from and self._may_come(runners, nodes, depth):
                came_from[place] = before, read
                pending.append(place)

        arrive(first, None, last)
        while pending:
            place = nodes, characters = pending.popleft()
            if nodes == goal and characters & last:
                return self._spelled(place, characters & last, came_from)
            ways = (self._ways(runner, node, depth) for runner, node in zip(runners, nodes, strict=True))
            for steps in product(*ways):
                arrive(steps, place, characters & _shared(step.before for step in steps))
        return ""

    def _ways(self, runner: _Runner, node: Node, depth: int) -> list[Step]:
        steps = (step for step in self._steps[node] if step.to in runner.within or step.to is runner.goal)
        return [step for step in steps if step.stays(depth) or not runner.is_held]

    def _may_come(self, runners: Sequence[_Runner], nodes: _Nodes, depth: int) -> bool:
        pairs = zip(runners, nodes, strict=True)
        return all(self._can_fail(node, depth) for runner, node in pairs if runner.is_held)

    def _can_fail(self, node: Node, depth: int) -> bool:
        """Tell whether what follows a character may fail, so that other ways are tried in the group of that depth."""
        key = node, depth
        if key not in self._failing:
            pending, seen = [node], set[Node]()
            self._failing[key] = False
            while pending and not self._failing[key]:
                one = pending.pop()
                if one in seen or _can_end(one, depth):
                    continue
                seen.add(one)
                taken = self._taken(one, depth)
                self._failing[key] = taken is None
                pending += taken or ()
        return self._failing[key]

    def _taken(self, node: Node, depth: int) -> list[Node] | None:
        """Return where the first open way leads for each character; None where for some there may be none."""
        left, taken = self._automaton.all | self._automaton.edge, []
        for step in self._automaton.steps(node):
            inside = takewhile(lambda passed: passed.depth >= depth, step.trail)
            if any(passed.may_fail for passed in inside) or (node.reads or 0) & ~step.before:
                return None
            open_to = left & step.after & (ANY if step.to.reads is None else step.to.reads)
            left &= ~open_to
            if open_to and step.stays(depth) and not step.to.ends:
                taken.append(step.to)
        return None if left else taken

    def _spelled(self, place: _Place, read: Characters, came_from: _CameFrom) -> str:
        """Write the word that was read on the way to a place."""
        word = []
        at: _Place | None = place
        while at is not None:
            word.append(self._automaton.easiest(read))
            at, read = came_from[at]
        return "".join(reversed(word))

    def _slow(self, kind: Kind, node: Node, pump: str) -> Slow:
        prefix = "" if node is self._automaton.skip else self._prefix(node, pump[-1])
        return Slow(kind, prefix, pump, self._suffix(prefix + pump * 6))

    def _prefix(self, node: Node, last: str) -> str:
        """Find a word that leads from the start to a character."""
        edge, last_one = self._automaton.edge, self._automaton.of(last)
        firsts = [step for step in self._steps[self._start] if step.before & edge]
        runner = _Runner(self._start, firsts, node, self._leading_to(node), is_held=False)
        return next(filter(None, (self._walked([runner], [step], last_one, 0) for step in firsts)), "")

    def _suffix(self, text: str) -> str:
        """Return a character that lets matching fail behind a text, best one that hardly anything reads."""
        methods: Mapping[Use, Any] = {"fullmatch": self._pattern.fullmatch, "search": self._pattern.search}
        tried = methods.get(self._use, self._pattern.match)

        def readers(character: str) -> int:
            return sum(1 for node in self._steps if (node.reads or 0) & self._automaton.of(character))

        suffixes = [*sorted(self._automaton.by_ease, key=readers), ""]
        return next((one for one in suffixes if not tried(self._automaton.spelled(text + one))), "")


def _can_end(node: Node, depth: int) -> bool:
    """Tell whether a match, or the group, can end behind a character, whatever follows."""
    pending, seen = list(node.onward), set[Node]()
    while pending:
        one = pending.pop()
        if one.depth < depth:
            return True
        if one in seen or one.may_fail or {one.before, one.after} != {ANY}:
            continue
        if one.ends:
            return True
        seen.add(one)
        pending += one.onward if one.reads is None else ()
    return False


def _parting(one: Step, other: Step) -> tuple[int, int]:
    """Return in how many groups two ways part, and after how many places."""
    shared = [a for a, b in takewhile(lambda pair: pair[0] is pair[1], zip(one.trail, other.trail, strict=False))]
    return (shared[-1].depth if shared else 0), len(shared)


def _shared(sets: Iterable[Characters | None]) -> Characters:
    return reduce(and_, (one or 0 for one in sets))
