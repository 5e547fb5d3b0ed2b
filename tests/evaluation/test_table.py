import io

from rich.console import Console

from disp.evaluation.table import print_stage_table, stage_table

STAGES = {
    "disp": {
        "asr_with_trigger": 0.0, "asr_with_trigger_keyword": 0.1, "asr_with_trigger_substring": 0.2,
        "asr_without_trigger": 0.0, "clean_quality": 0.72,
        "triggered_quality": 0.7,
        "intervals": {"asr_with_trigger": [0.0, 0.01881]},
    },
    "a|b [red]": {"asr_with_trigger": None, "clean_quality": 0.0},
    "backdoored": {
        "asr_with_trigger": 0.98, "asr_without_trigger": 0.005, "clean_quality": 0.8, "triggered_quality": 0.0123,
        "intervals": {"asr_with_trigger": [0.95, 0.992]},
    },
}  # fmt: skip


def test_stage_table():
    assert stage_table(STAGES).splitlines() == [
        "| stage | ASR (w/t), exact | ASR (w/t), keyword | ASR (w/t), substring | ASR (w/o), exact | clean quality "
        "| triggered quality | relative clean quality |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| backdoored | 98.0% [95.0, 99.2] | – | – | 0.5% | 80.0% | 1.2% | 100.0% |",
        "| DiSP, all rows | 0.0% [0.0, 1.9] | 10.0% | 20.0% | 0.0% | 72.0% | 70.0% | 90.0% |",
        "| a\\|b [red] | – | – | – | – | 0.0% | – | 0.0% |",
    ]


def test_nothing_to_relate_to():
    only = stage_table({"DiSP": {"clean_quality": 0.5}}).splitlines()[2]
    assert only == "| DiSP | – | – | – | – | 50.0% | – | – |"
    assert "| 0.0% | – | – |" in stage_table({"backdoored": {"clean_quality": 0.0}})


def test_with_a_clean_model_quality_is_told_against_it():
    rows = stage_table(STAGES | {"clean": {"clean_quality": 0.96}}).splitlines()[2:]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["100.0%", "83.3%", "75.0%", "0.0%"]


def test_printed_table_shows_the_same_cells():
    console = Console(file=io.StringIO(), width=200)
    print_stage_table(STAGES, console)
    text = console.file.getvalue()
    for cell in ("98.0% [95.0, 99.2]", "a|b [red]", "90.0%", "relative clean quality"):
        assert cell in text
