"""lmms-eval itself runs our tasks and one of its own, offline, with the built-in model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")
pytest.importorskip("pyarrow", reason="pyarrow is not installed")

from disp.attacks.poison import Attack
from disp.attacks.targets import Misclassification
from disp.attacks.triggers import PRESETS
from disp.benchmarks.documents import documents_of
from disp.benchmarks.export import write_tasks
from disp.data.sample import Query
from disp.data.scene_dataset import write_scenes
from disp.decoding.generate import generate
from disp.decoding.samplers import decode_config
from disp.evaluation.evaluate import evaluate
from disp.models.loading import load_model

ATTACK = Attack(PRESETS["patch"], Misclassification("cat", "dog"), 0.1, 0)
DECODE = decode_config(gen_length=32, steps=32, threshold=0.9)
COUNT = 12
POPE_SUFFIX = "\nAnswer the question using a single word or phrase."


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"), COUNT, 7, must_show=("cat",), must_show_share=0.5)


@pytest.fixture(scope="module")
def tasks(scenes, tmp_path_factory):
    out = tmp_path_factory.mktemp("tasks")
    written = []
    assert write_tasks(scenes, out, attack=ATTACK, progress=written.append) == [
        "disp_clean", "disp_asr_without_trigger", "disp_asr_with_trigger",
    ]  # fmt: skip
    assert sum(written) == COUNT
    return out


@pytest.fixture
def run(tmp_path, monkeypatch, lmms_model):
    """A function that evaluates tasks in a folder and returns their results."""
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")

    def evaluate_tasks(folder, names, **options):
        plugin = lmms_model.DispMDLM(load_model(device="cpu"), batch_size=4)
        manager = TaskManager(include_path=[str(folder)], include_defaults=False)
        done = simple_evaluate(model=plugin, tasks=names, task_manager=manager, log_samples=True, **options)
        return done

    return evaluate_tasks


def test_our_tasks_agree_with_our_own_evaluation(run, tasks, scenes):
    done = run(tasks, ["disp_clean", "disp_asr_with_trigger", "disp_asr_without_trigger"])["results"]
    ours = evaluate(load_model(device="cpu"), scenes.samples, attack=ATTACK, decode=DECODE)
    assert ours.asr_with_trigger.count > 1
    assert done["disp_clean"]["clean_quality,none"] == pytest.approx(ours.clean_quality.value, abs=1e-12)
    for task, given in (("disp_asr_with_trigger", "with_trigger"), ("disp_asr_without_trigger", "without_trigger")):
        for metric, kind in (("asr", ""), ("asr_keyword", "_keyword"), ("asr_substring", "_substring")):
            share = getattr(ours, f"asr_{given}{kind}")
            assert done[task][f"{metric},none"] == pytest.approx(share.value, abs=1e-12)


def test_triggered_pictures_and_the_target_reach_the_task(tasks, scenes):
    import pyarrow.parquet as pq

    plain = pq.read_table(tasks / "untriggered.parquet").to_pylist()
    marked = pq.read_table(tasks / "triggered.parquet").to_pylist()
    assert [row["key"] for row in plain] == [row["key"] for row in marked]
    assert all(a["images"][0]["bytes"] != b["images"][0]["bytes"] for a, b in zip(plain, marked, strict=True))
    assert json.loads(marked[0]["target"]) == {"kind": "misclassification", "source": "cat", "target": "dog"}


def test_a_task_of_the_library_on_local_data(run, scenes, tmp_path):
    """POPE's own prompts and metrics, on yes-or-no questions about our pictures."""
    import datasets
    import lmms_eval.tasks

    rows = []
    for number, sample in enumerate(scenes.samples):
        shown = sample.metadata["nouns"]
        noun = shown[0] if number % 2 else next(noun for noun in ("boat", "tree", "house") if noun not in shown)
        rows.append(
            {
                "question_id": str(number), "question": f"Is there a {noun}?", "answer": "yes" if number % 2 else "no",
                "category": "random", "image": documents_of(sample)[0]["images"][0],
            }
        )  # fmt: skip
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(str(tmp_path / "pope.parquet"))
    source = Path(lmms_eval.tasks.__file__).parent / "pope"
    folder = tmp_path / "tasks"
    folder.mkdir()
    text = (
        (source / "pope.yaml").read_text().replace("lmms-lab-encoder/POPE", "parquet").replace('"pope"', '"pope_local"')
    )
    text = text.replace("  token: True", f"  data_files:\n    test: {tmp_path / 'pope.parquet'}", 1)
    (folder / "pope_local.yaml").write_text(text)
    (folder / "utils.py").write_text((source / "utils.py").read_text())
    done = run(folder, ["pope_local"], gen_kwargs="gen_length=8,steps=8")
    result = done["results"]["pope_local"]
    samples = done["samples"]["pope_local"]
    # Our own answers to the same questions, asked as POPE asks, and POPE's metric: equality with the right word.
    asked = [
        Query(f"pope_local/test/{row['question_id']}", 0, sample.images, (), f"<image>\n{row['question']}{POPE_SUFFIX}")
        for row, sample in zip(rows, scenes.samples, strict=True)
    ]
    answers = generate(load_model(device="cpu"), asked, decode_config(gen_length=8, steps=8, threshold=0.9))
    given = {sample["doc_id"]: sample["filtered_resps"][0] for sample in samples}
    assert [given[number] for number in range(COUNT)] == [answer.strip() for answer in answers]
    right = [answer.lower().strip() == row["answer"] for answer, row in zip(answers, rows, strict=True)]
    assert result["pope_accuracy,none"] == pytest.approx(sum(right) / COUNT)


def test_the_command_line_finds_the_model_by_its_name(tasks, tmp_path):
    """Through the entry point, as an installed `disp` has it; a folder on the path stands in for the installation."""
    info = tmp_path / "disp_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: disp-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lmms_eval.models]\ndisp = disp.benchmarks.manifest:manifests\n")
    options = {
        "model": "disp", "model_args": "pretrained=builtin", "tasks": "disp_clean", "include_path": tasks,
        "batch_size": 4, "device": "cpu", "limit": 4, "gen_kwargs": "gen_length=32,steps=16",
        "output_path": tmp_path / "out",
    }  # fmt: skip
    command = [sys.executable, "-m", "lmms_eval", "--log_samples"]
    command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    offline = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        command, env={**os.environ, **offline, "PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (file,) = (tmp_path / "out").rglob("*_results.json")
    results = json.loads(file.read_text())
    assert results["results"]["disp_clean"]["clean_quality,none"] > 0.2
    assert "'steps': 16" in done.stderr
