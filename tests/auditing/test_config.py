"""Every number that decides something is a setting, which a run's folder and its report keep."""

import re
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path

import pytest
from planted import audit_config, summary

import disp.auditing
from disp.auditing.config import AuditConfig, RatioConfig
from disp.errors import DispError
from disp.report.html import write_report
from disp.suspicion.config import SaliencyConfig, ScoringConfig

MODULES = sorted(Path(disp.auditing.__file__).parent.rglob("*.py"))
# Numbers that decide nothing: how a map is drawn, what is timed or shown, where a loop stops, what is read at once.
DECIDE_NOTHING = {"MAP_SIDE", "TIMED_PASSES", "UNFLAGGED_SHOWN", "MANY", "PART"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_no_number_that_decides_stands_in_a_module(module):
    named = re.findall(r"^([A-Z][A-Z_]+)\b[^=]*= \(?-?[\d.]", module.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(named) <= DECIDE_NOTHING


def test_all_settings_are_written_and_shown(honest):
    out, _, _ = honest
    config = audit_config()
    settings = summary(out)["settings"]
    for field in fields(AuditConfig):
        value = getattr(config, field.name)
        if is_dataclass(value):
            assert settings[field.name].keys() == asdict(value).keys()
    page = write_report(out).read_text(encoding="utf-8")
    for name in ("proof.donors", "copies.windows.least_corner", "extension.ratios", "false_alarm_rate"):
        assert f'<dt><bdi class="data">{name}</bdi></dt>' in page


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"false_alarm_rate": 1.0}, "false_alarm_rate must be in"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"regroupings": 0}, "regroupings must be at least 1"),
        ({"scoring": ScoringConfig(saliency=SaliencyConfig(separators=True))}, "an audit masks visual tokens alone"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(DispError, match=message):
        audit_config(**change)


def test_ratios_grow():
    """The smallest that does is taken: others are not tried."""
    for ratios in (RatioConfig().ratios, AuditConfig().extension.ratios):
        assert list(ratios) == sorted(set(ratios)) and 0 < ratios[0] and ratios[-1] <= 1
