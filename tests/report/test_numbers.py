import pytest

from disp.report import numbers


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.0%"), (1, "100.0%"), (0.0234, "2.3%"), (0.0004, "0.04%"), (None, "–"), (float("nan"), "–")],
)
def test_percent(value, shown):
    assert numbers.percent(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.500"),
        (0.001, "0.001"),
        (0.00096, "9.6 × 10⁻⁴"),
        (3.21e-12, "3.2 × 10⁻¹²"),
        (0.0, "< 10⁻³⁰⁰"),
        (None, "–"),
    ],
)
def test_p_value(value, shown):
    assert numbers.p_value(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.26, "0.3 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (7260, "2 h 1 min"), (None, "–")]
)
def test_duration(value, shown):
    assert numbers.duration(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(12345, "12,345"), (1.23456, "1.235"), (None, "–"), (True, "yes"), ("x", "x")]
)
def test_number(value, shown):
    assert numbers.number(value) == shown


def test_columns_are_a_union_in_order_and_intervals_join_their_value():
    rows = [
        {"name": "a", "asr": 0.5, "asr_interval": [0.4, 0.6], "quality": None},
        {"name": "b", "steps": 3, "loss": 0.25, "loss_interval": [0.2, 0.3], "alone_interval": "odd"},
    ]
    columns = numbers.table_columns(rows)
    assert columns == ["asr", "quality", "steps", "loss", "alone_interval"]
    assert [numbers.table_cell(rows[0], column) for column in columns] == ["50.0% [40.0%, 60.0%]", "–", "–", "–", "–"]
    assert [numbers.table_cell(rows[1], column) for column in columns] == ["–", "–", "3", "0.25 [0.2, 0.3]", "odd"]
    assert numbers.column_title("asr_keyword") == "ASR keyword"
