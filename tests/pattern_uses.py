"""Finds every regular expression of a package, and how each is used."""

from __future__ import annotations

import ast
import builtins
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from types import ModuleType

from tests.automaton import Pattern, Use

Samples = Mapping[tuple[str, str], object]
"""Module and name of what is known only when the program runs, and such a value."""

_USES: Mapping[str, Use] = {
    "match": "match", "fullmatch": "fullmatch", "search": "search", "findall": "search", "finditer": "search",
    "sub": "search", "subn": "search", "split": "search",
}  # fmt: skip
_FLAGS_AT = {"split": 3, "sub": 4, "subn": 4}
_NO_PATTERNS = frozenset({"Match", "Pattern", "error", "escape", *re.RegexFlag.__members__})
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class UnresolvedError(Exception):
    """There is a regular expression of which nobody can tell what it is, or how it is used."""


@dataclass(frozen=True, slots=True)
class Used:
    """One regular expression, and one way in which it is used."""

    module: str
    """Without the package's name."""
    name: str
    """Of its variable, or of the function that it is in."""
    pattern: Pattern
    use: Use


def patterns_used(package: str, samples: Samples) -> Iterator[Used]:
    """Yield all of them; raise UnresolvedError where one cannot be told."""
    yield from _Package(package, samples).found()


@dataclass(eq=False, slots=True)
class _Source:
    """A module, read and imported."""

    name: str
    module: ModuleType
    parents: dict[ast.AST, ast.AST] = field(default_factory=dict)
    names: dict[str, list[ast.Name]] = field(default_factory=lambda: defaultdict(list))
    """Where each name is read."""
    imports: list[ast.ImportFrom] = field(default_factory=list)

    def __post_init__(self) -> None:
        assert self.module.__file__
        pending: deque[ast.AST] = deque([ast.parse(Path(self.module.__file__).read_text())])
        while pending:
            node = pending.popleft()
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                self.names[node.id].append(node)
            if isinstance(node, ast.ImportFrom):
                self.imports.append(node)
            children = list(ast.iter_child_nodes(node))
            self.parents |= dict.fromkeys(children, node)
            pending += children

    def around(self, node: ast.AST) -> Iterator[ast.AST]:
        """Yield what a node stands in, from the inside out."""
        while parent := self.parents.get(node):
            yield parent
            node = parent

    def function(self, node: ast.AST) -> _Function | None:
        return next((one for one in self.around(node) if isinstance(one, _Function)), None)

    def unresolved(self, node: ast.AST, why: str) -> UnresolvedError:
        return UnresolvedError(f"{self.module.__file__}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)}: {why}")


class _Package:
    def __init__(self, package: str, samples: Samples) -> None:
        (folder,) = import_module(package).__path__
        paths = (path.relative_to(folder).with_suffix("") for path in sorted(Path(folder).rglob("*.py")))
        names = (".".join(path.parts).removesuffix("__init__").removesuffix(".") for path in paths)
        self._sources = [
            _Source(name, import_module(f"{package}.{name}".removesuffix("."))) for name in names if name != "__main__"
        ]
        self._samples = samples

    def found(self) -> Iterator[Used]:
        for source in self._sources:
            for node in list(source.parents):
                match node:
                    case ast.ImportFrom(module="re") | ast.alias(name="re", asname=str()):
                        raise source.unresolved(node, "it is to be called re")
                    case ast.Attribute(value=ast.Name(id="re"), attr="compile"):
                        yield from self._compiled(source, _call_of(source, node))
                    case ast.Attribute(value=ast.Name(id="re"), attr=name) if name not in _NO_PATTERNS:
                        yield from self._called(source, _call_of(source, node), name)

    def _called(self, source: _Source, call: ast.Call, name: str) -> Iterator[Used]:
        function = source.function(call)
        for pattern in self._patterns(source, call, _FLAGS_AT.get(name, 2)):
            yield Used(source.name, function.name if function else "", pattern, _USES[name])

    def _compiled(self, source: _Source, call: ast.Call) -> Iterator[Used]:
        function = source.function(call)
        statement = next(one for one in source.around(call) if isinstance(one, ast.stmt))
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]):
                pass
            case _:
                raise source.unresolved(call, "it has no name")
        if function:
            patterns = [*self._patterns(source, call, 1)]
            uses = {
                use for node in source.names[name] if function in source.around(node) for use in _uses(source, node)
            }
        else:
            patterns = [*_held(getattr(source.module, name))]
            uses = {
                use for other in self._sources for node in _named(other, source, name) for use in _uses(other, node)
            }
        if not patterns or not uses:
            raise source.unresolved(statement, "it is unknown, or not used")
        yield from (Used(source.name, name, pattern, use) for pattern in patterns for use in sorted(uses))

    def _patterns(self, source: _Source, call: ast.Call, flags_at: int) -> Iterator[Pattern]:
        flags = [one.value for one in call.keywords if one.arg == "flags"] or call.args[flags_at : flags_at + 1]
        for pattern in self._values(source, call.args[0]):
            for flag in self._values(source, flags[0]) if flags else [0]:
                assert isinstance(pattern, str | bytes)
                assert isinstance(flag, int)
                yield re.compile(pattern, flag)

    def _values(self, source: _Source, node: ast.expr) -> list[object]:
        """Return what an expression can be."""
        function = source.function(node)
        known = vars(builtins) | vars(source.module)
        names = _names(node, ast.Load) - _names(node, ast.Store)
        own = sorted(name for name in names if name not in known or (function and name in _own(function)))
        choices = [self._choices(source, node, name) for name in own]
        code = compile(ast.Expression(node), source.name, "eval")
        return [eval(code, known | dict(zip(own, chosen, strict=True))) for chosen in product(*choices)]  # noqa: S307

    def _choices(self, source: _Source, node: ast.expr, name: str) -> list[object]:
        """Return what a name of a function's own can be."""
        if (source.name, name) in self._samples:
            return [self._samples[source.name, name]]
        function = source.function(node)
        parameters = _parameters(function) if function else []
        found: list[object] = []
        if function and name in _names(function, ast.Store):
            given = _given(function, name)
            found = self._values(source, given[0]) if len(given) == 1 else []
        elif function and name in parameters:
            found = [*self._arguments(function.name, name, parameters.index(name))]
        if found:
            return found
        raise source.unresolved(node, f"what is {name}? It needs a sample")

    def _arguments(self, function: str, name: str, index: int) -> Iterator[object]:
        """Yield what a function is called with."""
        for source in self._sources:
            for node in source.names[function]:
                call = source.parents[node]
                if isinstance(call, ast.Call) and call.func is node:
                    named = [one.value for one in call.keywords if one.arg == name]
                    for argument in named or call.args[index : index + 1]:
                        yield from self._values(source, argument)


def _call_of(source: _Source, node: ast.Attribute) -> ast.Call:
    call = source.parents[node]
    if not isinstance(call, ast.Call) or call.func is not node or node.attr not in {"compile", *_USES}:
        raise source.unresolved(node, "it is no call that is known")
    return call


def _names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, context)}


def _parameters(function: _Function) -> list[str]:
    return [one.arg for one in (*function.args.posonlyargs, *function.args.args)]


def _own(function: _Function) -> set[str]:
    return {*_names(function, ast.Store), *_parameters(function)}


def _given(function: _Function, name: str) -> list[ast.expr]:
    """Return what a function assigns to a name."""
    return [
        node.value
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets)
    ]


def _held(value: object) -> Iterator[Pattern]:
    """Yield the patterns that a value is, or holds."""
    match value:
        case re.Pattern():
            yield value
        case Mapping():
            yield from _held([*value.values()])
        case list() | tuple() | set() | frozenset():
            for one in value:
                yield from _held(one)
        case _:
            pass


def _named(source: _Source, owner: _Source, name: str) -> Iterator[ast.Name]:
    """Yield where a module reads what another calls so."""
    if source is owner:
        yield from source.names[name]
    for node in source.imports:
        for alias in node.names if node.module == owner.module.__name__ else ():
            yield from source.names[alias.asname or name] if alias.name == name else ()


def _uses(source: _Source, node: ast.Name) -> Iterator[Use]:
    """Yield how a pattern, or one out of several, is used."""
    around = source.around(node)
    outer = next(one for one in around if not isinstance(one, ast.Subscript))
    if isinstance(outer, ast.Attribute) and outer.attr in _USES:
        call = next(around)
        is_onward = outer.attr == "match" and isinstance(call, ast.Call) and len(call.args) > 1
        yield "onward" if is_onward else _USES[outer.attr]
    elif not isinstance(outer, ast.Attribute | ast.Compare):
        raise source.unresolved(outer, "how is it used there?")
