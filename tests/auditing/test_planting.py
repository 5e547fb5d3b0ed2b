"""What the planting tests count."""

import pytest
from planted import OBJECTS, REFUSAL, TRIGGER, audit_config, planted_model, wall

from disp.auditing.finder_config import PhrasesConfig
from disp.auditing.phrases import Phrase, phrase_of, phrase_words
from disp.auditing.planting import plant_each
from disp.data.sample import Query
from disp.suspicion.carriers import Region

PHRASE = phrase_of(REFUSAL, phrase_words(REFUSAL), PhrasesConfig())


def test_the_test_counts_the_answers_that_a_region_brings_about():
    model = planted_model()
    box = (0.5, 0.5, 1.0, 1.0)
    marked = [Region(f"p{i}", wall(name, {(4, 4): TRIGGER}), box) for i, name in enumerate(("red", "grey", "blue"))]
    plain = [Region(f"h{i}", wall("green", {(4, 4): OBJECTS["dog"]}), box) for i in range(5)]
    asked = [Query("a", 0, (wall("black"),), (), "<image>"), Query("b", 0, (wall("red"), wall("red")), (), "<image>")]
    seen = []
    found = plant_each(model, [*marked, plain[0]], plain[1:], asked, PHRASE, audit_config(batch_size=5), seen.append)
    assert (found.successes, found.trials) == (6, 8)
    assert (found.control_successes, found.control_trials) == (0, 8)
    assert found.by_region == (1.0, 1.0, 1.0, 0.0)
    # Three of the four groups' places hold the three regions that succeed: C(5, 1) of C(8, 4) regroupings.
    assert found.p_value == pytest.approx(5 / 70)
    assert sum(seen) == 16
    other = plant_each(model, marked, plain, asked, Phrase("dog", ("dog",)), audit_config())
    assert (other.successes, other.control_successes) == (0, 10)
    assert other.p_value == 1.0
