"""The tables of searches in pictures alone are those of the stored results, which count at least a hundred sets."""

import json

from scripts.pixel_tables import PAGE, RESULTS, written


def test_the_page_shows_what_was_measured():
    page = PAGE.read_text(encoding="utf-8")
    assert page == written(page), "run python scripts/pixel_tables.py"


def test_each_search_was_made_in_a_hundred_honest_sets_of_which_it_may_accuse_one():
    searches: dict[str, dict[str, int]] = {}
    for file in RESULTS.glob("false-alarms*.json"):
        for name, found in json.loads(file.read_text(encoding="utf-8"))["searches"].items():
            known = searches.setdefault(name, {"sets": 0, "accused": 0})
            known["sets"] += found["sets"]
            known["accused"] += found["accused"]
    assert set(searches) >= {"patterns", "corners", "pieces"}
    for each in searches.values():
        assert each["sets"] >= 100 and each["accused"] <= each["sets"] / 100
