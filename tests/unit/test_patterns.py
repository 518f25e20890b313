"""No regular expression of the package takes more time than its text is long; where one does, it is said why it may."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.automaton import Pattern, Use
from tests.pattern_uses import UnresolvedError, patterns_used
from tests.patterns import Kind, slow

# By their names in every version of Python; the public ones of 3.10 are deprecated.
sre_parser, sre = (import_module(f"re.{name}") for name in ("_parser", "_constants"))

SAFE: Mapping[tuple[str, str], str] = {
    ("adapters.schema.migrations", "our_indexes"): "it reads our own migrations",
    ("adapters.postgres.link", "_parts"): "it reads our own statements",
}
"""Module, and variable or function: why nobody can make this one slow."""

SAMPLES = {
    ("core.dns_records", "token"): "token",
    ("core.dsn", "boundary"): "=_mark",
    ("core.message", "octets"): 998,
    ("core.tracking", "boundary"): b"=_mark",
    ("core.tracking", "part"): SimpleNamespace(around=(b"=_outer", b"=_mark")),
}


@cache
def slow_ones() -> Mapping[tuple[str, str], Sequence[str]]:
    """Return the places of slow patterns, with what shows it."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for used in patterns_used("opensend_milter", SAMPLES):
        if why := slow(used.pattern, used.use):
            found[used.module, used.name].append(f"{used.use} {used.pattern.pattern!r} is {why}")
    return found


def test_no_pattern_is_slow() -> None:
    """Mend it (possessive, atomic, disjoint), or say in SAFE why its text is nobody else's, or never long."""
    assert {place: found for place, found in slow_ones().items() if place not in SAFE} == {}


def test_what_is_said_to_be_safe_is_there_and_would_be_slow() -> None:
    assert SAFE.keys() - slow_ones().keys() == set()


def repeats_of_several(tree: Any) -> Iterator[Any]:
    """Find possessive repeats whose turn may fail after its first item: where it began is forgotten then."""
    for kind, value in tree:
        if kind is sre.POSSESSIVE_REPEAT:
            body = list(value[2])
            while len(body) == 1 and body[0][0] is sre.SUBPATTERN:
                body = list(body[0][1][3])
            if (len(body) > 1 and body[0][0] is not sre.ASSERT) or body[0][0] is sre.BRANCH:
                yield body
        for inner in value if isinstance(value, tuple | list) else (value,):
            for one in inner if isinstance(inner, list) else (inner,):
                if isinstance(one, sre_parser.SubPattern):
                    yield from repeats_of_several(one)


def test_no_possessive_repeat_is_read_wrong() -> None:
    """Write `(?>(?:...)*)` for `(?:...)*+`, or look ahead first: Debian 12 has Python 3.11.2 (CPython 106052)."""
    found = {
        (used.module, used.name)
        for used in patterns_used("opensend_milter", SAMPLES)
        if list(repeats_of_several(sre_parser.parse(used.pattern.pattern, used.pattern.flags & ~re.UNICODE)))
    }
    assert found == set()


@pytest.mark.parametrize("pattern", ["(?: b+)*+ <", "a(?:x|yz)*+", "a(?:(?: b+)*+ <)?"])
def test_a_possessive_repeat_of_several_is_seen(pattern: str) -> None:
    assert list(repeats_of_several(sre_parser.parse(pattern)))


@pytest.mark.parametrize("pattern", ["(?>(?: b+)*) <", "[ab]*+c", "(?:(?=a+b).c)*+", "(?:a)++"])
def test_any_other_possessive_repeat_is_let_be(pattern: str) -> None:
    assert not list(repeats_of_several(sre_parser.parse(pattern)))


# ---------------------------------------------------------------------- one pattern


@pytest.mark.parametrize(
    ("pattern", "use", "kind"),
    [
        # Two ways round one repeat.
        (r"(?:a+)+b", "match", "exponential"),
        (r"(?:a|a)*b", "match", "exponential"),
        (r"(?:a*)*b", "match", "exponential"),
        (r"(?:a?b?)*c", "match", "exponential"),
        (r"(?:\w+\s?)*", "fullmatch", "exponential"),
        (r"(?:a|ab|b)*", "fullmatch", "exponential"),
        (r"(?>(?:a|a)*b)", "match", "exponential"),
        (r"(?:(?:a|b)*?)*?c", "match", "exponential"),
        (rb"(?:[\x00-\x7f]|[a-z]x?)*\xff", "match", "exponential"),
        (r"(?i:(?:ab?|Ab)*c)", "match", "exponential"),
        (r"(?:[0-9]{1,99},?)*x", "match", "exponential"),
        # Two repeats that share a word.
        (r"a*a*b", "match", "polynomial"),
        (r"a*?a*?b", "match", "polynomial"),
        (r"[ \t]*;?[ \t]*", "fullmatch", "polynomial"),
        (r".*x.*y", "match", "polynomial"),
        (r"(?:ab)*(?:abab)*c", "match", "polynomial"),
        (r"(?>a*a*b)", "match", "polynomial"),
        (r"a{0,99}a{0,99}b", "match", "polynomial"),
        (r"(.*)=\1x", "match", "polynomial"),
        (r"a*\Ba*b", "match", "polynomial"),
        # What is looked at is read, whatever becomes of it.
        (r"(?:a(?=.*b))*", "match", "polynomial"),
        (r"(?:a(?!.*b))*", "match", "polynomial"),
        # What is tried first fails each time, though the whole does not.
        (r"(?:(?>a[^b]*b|a))*", "match", "polynomial"),
        (r"a(?:[^c]*c)?", "onward", "polynomial"),
        # A search begins anew in the midst of what it has read; possessive or not.
        (r"[^<]*<", "search", "rescans"),
        (r"[^<]*+<", "search", "rescans"),
        (r"\s+$", "search", "rescans"),
        (r'"(?:[^"\\]|\\.)*"', "search", "rescans"),
        (r'"(?>(?:[^"\\]+|\\.)*+)"', "search", "rescans"),
        (r"(?<=x)[^y]*y", "search", "rescans"),
        (r"(?m)^\s*#", "search", "rescans"),
        (r"a(?:[^c]*c)?", "search", "rescans"),
        (r"x(?=.*y)", "search", "rescans"),
        (r"a(?!.*b)", "search", "rescans"),
        # Of this package, once.
        (r'(?:[^,"]|"(?:[^"\\]|\\.)*")+', "search", "rescans"),
        (
            r'[ \t]*([^\s;=*"]+)((?:[ \t]*;[ \t]*[\w.-]+=(?:"[^"\\]*"|[^\s;"\'*%]+))*)[ \t]*;?[ \t]*',
            "fullmatch",
            "polynomial",
        ),
        (rb"[^\r]*\r\n(?:[ \t][^\r]*\r\n)*", "search", "rescans"),
        (r"(?<=[?&])([^=&]*)=([^&]*)", "search", "rescans"),
    ],
)
def test_a_slow_pattern_is_seen(pattern: str | bytes, use: Use, kind: Kind) -> None:
    compiled: Pattern = re.compile(pattern)
    found = slow(compiled, use)
    assert found
    assert found.kind == kind
    assert found.pump


@pytest.mark.parametrize(
    ("pattern", "use"),
    [
        (r"a*b", "match"),
        (r"a*a*", "match"),  # ends wherever it is
        (r"a*a*(?:b|)", "match"),
        (r"(?>a*)a*b", "match"),
        (r"a*+a*b", "match"),
        (r"(?:a|ab)*+c", "match"),
        (r"(?:ab|cd)*x", "match"),
        (r"(?:[0-9]+\.)*[0-9]+", "fullmatch"),
        (r"(?:[^;\"]|\"(?:[^\"\\]|\\.)*\")*+", "fullmatch"),
        (r"a{1,16}b", "search"),
        (r"(?:a(?=b))*", "match"),
        (r"(?:a(?:bc)?)*d", "match"),
        (r"(?!)", "search"),
        (r"[ \t]*(?:;[ \t]*)?", "fullmatch"),
        (r"\A[^<]*<", "search"),
        (r"^[^<]*<", "search"),
        (r"(?m)^[ ]*x", "search"),
        (r"<[^<>]*>", "search"),
        (r'"[^"]*"', "search"),
        (r"[^<]*", "search"),
        (r'"[^"]*(?:"|\Z)', "search"),
        (r'(?:[^,"]|"(?:[^"\\]|\\(?s:.?))*+(?:"|\Z))++', "search"),
        (r"(?<![a-z])[a-z]+@", "search"),
        (r"[a-z](?![a-z])", "search"),
        (r"a(?:[^c]*c)?", "match"),
        (r"(?:;[ ]*[a-z]+)*+", "onward"),
        (r"(a)?(?(1)b|c)", "match"),
        (rb"\n--mark(--)?[ \t]*+(?=\r?\n|\Z)", "search"),
    ],
)
def test_a_good_pattern_is_left_alone(pattern: str | bytes, use: Use) -> None:
    compiled: Pattern = re.compile(pattern)
    assert slow(compiled, use) is None


def test_a_text_is_told_that_makes_it_slow() -> None:
    found = slow(re.compile(r"x[ab]*[bc]*y"), "fullmatch")
    assert found
    assert (found.prefix, found.pump) == ("xb", "b")
    assert str(found).startswith("polynomial: 'xb' + n * 'b' + ")
    assert re.fullmatch(r"x[ab]*[bc]*y", found.prefix + 9 * found.pump + found.suffix) is None


# ---------------------------------------------------------------------- all of a package


def walked(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **modules: str) -> set[tuple[str, str, str, str]]:
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    for module, text in modules.items():
        (folder / name / f"{module}.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    found = patterns_used(name, {("samples", "word"): "sample"})
    return {(used.module, used.name, str(used.pattern.pattern), used.use) for used in found}


def test_patterns_are_found_wherever_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = walked(
        tmp_path, monkeypatch, "with_patterns",
        named="import re\nWORD = 'w+'\nONE = re.compile(rf'a{WORD}')\n"
              "def f(s): return ONE.sub('', s), ONE.match(s, 2)\n",
        importing="from with_patterns.named import ONE as THEIRS\nfound = list(map(THEIRS.fullmatch, []))\n",
        table="import re\nALL = {n: re.compile(f'<{n}') for n in 'pq'} | {'r': re.compile('r')}\n"
              "def f(s): return s in ALL and ALL[s].search(s)\n",
        inline="import re\ndef f(s):\n    line = 'x{%d}' % 3\n    return re.split(line, s, flags=re.I)\n",
        local="import re\ndef f(s):\n    own = re.compile('own')\n    return own.finditer(s)\n",
        handed="import re\ndef f(pattern, s): return re.fullmatch(pattern, s)\nf('p1', '')\nf(pattern='p2', s='')\n",
        samples="import re\ndef f(word): return re.match('s' + re.escape(word), '')\n",
    )  # fmt: skip
    assert found == {
        ("named", "ONE", "aw+", "search"),
        ("named", "ONE", "aw+", "onward"),
        ("named", "ONE", "aw+", "fullmatch"),
        ("table", "ALL", "<p", "search"),
        ("table", "ALL", "<q", "search"),
        ("table", "ALL", "r", "search"),
        ("inline", "f", "x{3}", "search"),
        ("local", "own", "own", "search"),
        ("handed", "f", "p1", "fullmatch"),
        ("handed", "f", "p2", "fullmatch"),
        ("samples", "f", "ssample", "match"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "from re import match\n",
        "import re as regular\n",
        "import re\nmatch = re.match\n",
        "import re\nfound = list(map(re.compile, ['a']))\n",
        "import re\nfound = re.template\n",
        "import re\nUNUSED = re.compile('a')\n",
        "import re\nONES = (re.compile('a'),)\nfound = [one.match('') for one in ONES]\n",
        "import re\nONE = re.compile('a')\ndef f(give): give(ONE)\n",
        "import re\ndef f(): return re.compile('a')\n",
        "import re\ndef f(read): return re.match(read(), '')\n",
        "import re\ndef f(parts):\n    for part in parts: re.match(part, '')\n",
        "import re\ndef f(s):\n    p = 'a'\n    p = p + s\n    return re.match(p, '')\n",
    ],
)
def test_what_cannot_be_told_is_no_pattern_less(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnresolvedError):
        walked(tmp_path, monkeypatch, tmp_path.name, odd=text)
