"""Every list of couriers is the table's, and what belongs to one courier is found by it."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tomllib
from pathlib import Path
from typing import get_args

import pytest

from opensend_milter.adapters import couriers
from opensend_milter.app import working
from opensend_milter.cli.records import domains
from opensend_milter.config import Config, Delivery
from opensend_milter.config.keys import BY_PATH, SECTIONS
from opensend_milter.core import counting
from opensend_milter.core.couriers import COURIER_SECTIONS, COURIERS, CourierName, CourierRow, carried_by
from opensend_milter.host.examining import machine

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "couriers.md"
NAMES = get_args(CourierName)
OURS = ROOT / "opensend_milter" / "adapters" / "schema" / "ours"
NOT_A_COURIER = {"smtp_session"}
"""Modules beside them that a courier is made of."""


def rows_of_table(page: str, head: str) -> list[list[str]]:
    """Return the cells of a page's table, row by row."""
    rows = (ROOT / "docs" / page).read_text().partition(head)[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def named_in_table(page: str, head: str) -> list[str]:
    """Return the names in its first column."""
    return [name for first, *_ in rows_of_table(page, head) for name in re.findall(r"`(\w+)`", first)]


def test_every_list_names_the_same_couriers() -> None:
    """A courier is added in its table; what else has to know it is named here."""
    lists = {
        "core/couriers.py": COURIERS,
        "carried_by": carried_by(eight_bit_relay=True),
        "app/working.py": working.WIRING,
        "docs/couriers.md": named_in_table("couriers.md", "| courier | section"),
        "docs/couriers.md, sections": re.findall(r"^## (\w+)$", PAGE.read_text(), re.MULTILINE),
        "metrics": counting.COURIER_PAUSED.labels["courier"],
        "domain set --courier": [name for name in get_args(domains.Way) if name != "configured"],
        "delivery.courier": BY_PATH["delivery.courier"].kind.expected.removeprefix("one of ").split(", "),
    }
    for place, names in lists.items():
        assert list(names) == list(NAMES), place
    assert sorted(named_in_table("delivery.md", "| courier | first pause")) == sorted(NAMES)
    assert set(machine.LOOKS) == {name for name, row in COURIERS.items() if row.has_next_hop}


def test_the_page_of_couriers_says_their_sections() -> None:
    """Whoever looks for `plunk` in the configuration finds `api`: names that people wrote are kept."""
    said = [
        (name.strip("`"), section.strip("`")) for name, section, *_ in rows_of_table(PAGE.name, "| courier | section")
    ]
    assert said == [(name, row.section or "") for name, row in COURIERS.items()]


def test_the_database_takes_each_courier() -> None:
    """The last migration that says so counts."""
    said = [
        names
        for path in sorted(OURS.glob("*.sql"))
        for names in re.findall(r"CHECK \(courier IN \(([^)]*)\)\)", path.read_text())
    ]
    assert re.findall(r"'(\w+)'", said[-1]) == list(NAMES)


@pytest.mark.parametrize(("name", "row"), COURIERS.items(), ids=COURIERS)
def test_module_section_and_name_belong_together(name: CourierName, row: CourierRow) -> None:
    module = importlib.import_module(f"opensend_milter.adapters.couriers.{row.module}")
    classes = [one for one in vars(module) if one.endswith("Courier") and one != "Courier"]
    assert classes == [f"{row.module.title()}Courier"]
    assert (row.leaves_by == "provider") == bool(row.provider)
    if row.section:
        assert row.section in SECTIONS
        section = type(getattr(Config(), row.section))
        assert (section.__name__.lower(), f"Courier `{name}`") == (
            row.section,
            (section.__doc__ or "").partition(":")[0],
        )
    if row.needs:
        assert BY_PATH[row.needs].section == row.section


def test_every_courier_there_is_can_be_used() -> None:
    modules = {found.name for found in pkgutil.iter_modules(couriers.__path__)}
    assert modules == {row.module for row in COURIERS.values()} | NOT_A_COURIER
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (apart,) = (one for one in contracts if one["name"].startswith("A courier knows no other courier"))
    of_couriers = {one.rpartition(".")[2] for one in apart["modules"] if ".couriers." in one}
    assert of_couriers in ({"*"}, {row.module for row in COURIERS.values()})


def test_sections_of_couriers_are_the_workers() -> None:
    assert working.READS.at_start >= COURIER_SECTIONS
    said = {section for section in SECTIONS if (type(getattr(Config(), section)).__doc__ or "").startswith("Courier `")}
    assert said == COURIER_SECTIONS


@pytest.mark.parametrize("name", NAMES)
def test_a_courier_that_needs_something_is_opened_only_with_it(name: CourierName) -> None:
    """Unless it is the configured one: then what is missing is to be said."""
    unset = Config()
    needed = COURIERS[name].needs
    assert working.is_set_up(unset, name) == (needed is None)
    assert working.is_set_up(Config(delivery=Delivery(courier=name)), name)


def test_a_relay_without_8bitmime_takes_that_from_one_courier_only() -> None:
    with_it, without = carried_by(eight_bit_relay=True), carried_by(eight_bit_relay=False)
    assert with_it == {name: row.carries for name, row in COURIERS.items()}
    assert [name for name in NAMES if with_it[name] != without[name]] == ["smtp"]
    assert not without["smtp"].eight_bit
