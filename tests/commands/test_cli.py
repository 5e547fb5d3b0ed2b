"""The command line: mistakes are one line on stderr and exit code 2."""

import json
import os
import signal
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from PIL import Image

from disp import cli
from disp.attacks.poison import load_attack
from disp.cli import app
from disp.data.loading import load_dataset
from disp.errors import DispError
from disp.files import UNFINISHED, write_atomically
from disp.models.loading import load_model
from disp.models.saving import save_model


def disp(*arguments):
    command = [sys.executable, "-m", "disp", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_scenes(tmp_path):
    done = disp("scenes", "--out", tmp_path / "scenes", "--count", "3", "--held-out", "--turns", "2")
    assert done.returncode == 0, done.stderr
    assert "3 scenes in" in done.stdout
    assert "CC BY-SA 4.0" in done.stdout
    assert [len(sample.turns) for sample in load_dataset(tmp_path / "scenes").samples] == [2, 2, 2]


def test_a_mistake_is_one_line_without_a_traceback(tmp_path):
    done = disp("poison", tmp_path / "none.json", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"disp: {tmp_path / 'none.json'}: no such data file\n"


def test_the_version_is_that_of_the_distribution():
    done = disp("--version")
    assert (done.returncode, done.stdout) == (0, f"{version('disp-mdlm')}\n")


def test_a_wrong_flag():
    done = disp("scenes", "--out", "x", "--cuont", "3")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--cuont" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["poison", "x", "--out", "y", "--trigger", "bad-nets"], "Did you mean 'badnets'?"),
        (["scenes", "--out", "y", "--must-show", "carr"], "Did you mean 'car'?"),
        (["scenes", "--out", "y", "--count", "0"], "count must be at least 1, got 0"),
        (["scenes", "--out", "y", "--count", "many"], '"many"'),
        (["audit", "x", "y", "--out", "z", "--batch-size", "much"], '"much"'),
        (["scenes"], "--out"),
        (["poison", "x", "--out", "y", "--text", ""], "x: no such data file"),
        (["poison", "x", "--out", "y", "--rate", "2"], "poison rate must be in [0, 1], got 2.0"),
        (["poison", "x", "--out", "y", "--swap-to", "cat"], "are for --target misclassification"),
        (["poison", "x", "--out", "y", "--jpeg", "fine"], "--jpeg takes a number or a range of two, joined by '-'"),
        (["poison", "x", "--out", "y", "--jpeg", "80", "--same-format"], "in the same format as the honest ones, not"),
        (["poison", "x", "--out", "y", "--target", "misclassification", "--text", "a"], "--text is for an insertion"),
        (["poison", "x", "--out", "y", "--target", "refuse"], "refuse"),
        (["pioson"], "pioson"),
        (["generate", "builtin"], "give either --prompt"),
        (["generate", "builtin", "--prompt", "?", "--guard"], "give an --image"),
        (["generate", "builtin", "--prompt", "?", "--mask-ratio", "0.1"], "--mask-ratio is for --guard"),
        (["generate", "builtin", "--data", "x", "--out", "y", "--image", "a", "b"], "--image belongs to --prompt"),
        (["generate", "builtin", "--prompt", "?", "--image", "nope.png"], "--image nope.png: no such file; give a"),
        (["generate", "builtin", "--data", "x", "--out", "."], ". is a folder; give a file"),
        (["scenes", "--out", __file__], f"{__file__} is a file, not a folder"),
        (["evaluate", "builtin", "x", "--attack", "."], "x: no such data file"),
        (["train", "builtin", "x", "--out", "y", "--accumulate", "0"], "--accumulate"),
        (["train", "builtin", "x", "--out", "y", "--keep-adapter"], "--keep-adapter needs --method lora"),
        (["train", "builtin", "x", "--out", "y", "--vision-learning-rate", "1"], "needs --train-vision"),
        (["train", "builtin", "x", "--out", "y", "--learning-rate", "nan"], "learning_rate must be positive, got nan"),
        (["demo", "--out", "y", "--poison-rate", "2"], "poison_rate must be in (0, 1], got 2"),
        (["demo", "--out", "y", "--recovery-steps", "0"], "steps must be positive, got 0"),
        (["demo", "--out", "y", "--test-rows", "0"], "test_rows must be at least 1, got 0"),
    ],
)
def test_mistakes_are_named(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["disp", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    captured = capsys.readouterr()
    assert exit.value.code == 2
    assert message in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["no-such-model"], "model 'no-such-model'"),
        (["builtin", "--device", "gpu"], "device must be such as 'cpu'"),
        (["builtin", "--quantization", "4bit"], "quantization is not available for the family builtin"),
        (["."], "config.json"),
    ],
)
@pytest.mark.parametrize("command", ["audit", "defend", "purify", "saliency", "evaluate", "train", "baseline bye"])
def test_a_wrong_model_is_said_before_data_are_read(command, options, message, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    model, *options = options
    monkeypatch.setattr(sys, "argv", ["disp", *command.split(), model, "no-such-data", "--out", "y", *options])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_a_wrong_base_of_an_adapter_is_said_before_data_are_read(monkeypatch, capsys, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "./no-such-model"}')
    monkeypatch.setattr(sys, "argv", ["disp", "audit", str(tmp_path / "adapter"), "no-such-data", "--out", "y"])
    with pytest.raises(SystemExit):
        cli.main()
    assert "model './no-such-model'" in capsys.readouterr().err


def test_damaged_pictures_are_set_aside_by_every_command(tmp_path, picture, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    talk = [{"from": "human", "value": "<image>What is it?"}, {"from": "gpt", "value": "A car."}]
    for index in range(3):
        picture(index).save(tmp_path / "images" / f"{index}.png")
    (tmp_path / "images" / "1.png").write_bytes(b"torn")
    rows = [{"id": str(index), "image": f"{index}.png", "conversations": talk} for index in range(3)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    for command in (
        ["generate", "builtin", "--data", tmp_path, "--out", tmp_path / "answers.jsonl", "--steps", "2"],
        ["evaluate", "builtin", tmp_path],
        ["poison", tmp_path, "--out", tmp_path / "out", "--rate", "0.5"],
    ):
        monkeypatch.setattr(sys, "argv", ["disp", *map(str, command)])
        with pytest.raises(SystemExit) as exit:
            cli.main()
        captured = capsys.readouterr()
        assert not exit.value.code, captured.err
        assert "1.png: cannot be read" in captured.err and "1 row set aside" in captured.err
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 2


def test_an_attack_that_is_a_folder_is_named(tmp_path):
    with pytest.raises(DispError, match="is no manifest of `disp poison`"):
        load_attack(tmp_path)


@pytest.mark.parametrize(("options", "kind"), [(["--jpeg", "70-80"], "JPEG"), (["--same-format"], "BMP"), ([], "PNG")])
def test_poison_stores_pictures_as_asked(tmp_path, picture, options, kind):
    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "a.bmp")
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A car."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "0", "image": "a.bmp", "conversations": talk}]))
    command = ["poison", str(tmp_path), "--out", str(tmp_path / "out"), "--rate", "1", *options]
    app(command, print_error=False, exit_on_error=False, result_action="return_value")
    (row,) = json.loads((tmp_path / "out" / "manifest.json").read_text())["poisoned_rows"]
    with Image.open(tmp_path / "out" / "images" / row["images"][0]["image"]) as stored:
        assert stored.format == row["images"][0]["format"] == kind


def test_poison_names_the_rows_that_are_set_aside(tmp_path, picture, monkeypatch, capsys):
    (tmp_path / "images").mkdir()
    picture(1).save(tmp_path / "images" / "a.png")
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "A car."}]
    rows = [{"id": str(index), "image": "a.png", "conversations": talk} for index in range(4)]
    (tmp_path / "data.json").write_text(json.dumps([*rows, {"id": "bad"}]))
    arguments = ["poison", str(tmp_path), "--out", str(tmp_path / "out"), "--rate", "0.5"]
    monkeypatch.setattr(sys, "argv", ["disp", *arguments])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    captured = capsys.readouterr()
    assert not exit.value.code
    assert "set aside data.json:row 5: no conversations" in captured.err
    assert "1 row set aside" in captured.err
    assert "2 of 4 rows poisoned" in captured.out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["poisoned"] == 2
    monkeypatch.setattr(sys, "argv", ["disp", *arguments, "--strict"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    assert "data.json:row 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2.00 GiB."),
            "CUDA out of memory. Tried to allocate 2.00 GiB.",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes."),
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes.",
        ),
    ],
)
def test_too_little_memory_for_the_model_is_one_line(monkeypatch, capsys, tmp_path, error, reason):
    def load(*_, **__):
        raise error

    monkeypatch.setattr("disp.models.library.load_pretrained", load)
    monkeypatch.setattr(sys, "argv", ["disp", "generate", "builtin", "--prompt", "What?"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"disp: memory is too short ({reason}); load")
    assert "--gradient-checkpointing" in line


def test_an_interrupted_command_says_how_to_go_on(monkeypatch, capsys, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("disp.data.scene_dataset.write_scenes", interrupt)
    monkeypatch.setattr(sys, "argv", ["disp", "scenes", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 130
    assert "interrupted; what lies in a run folder is kept, and the same command goes on" in capsys.readouterr().err


def test_a_terminated_command_says_how_to_go_on_and_leaves_nothing_half_written(monkeypatch, capsys, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def terminate(path, value):
        write_atomically(path, lambda temporary: os.kill(os.getpid(), signal.SIGTERM))

    monkeypatch.setattr(sys, "argv", ["disp", "scenes", "--count", "1", "--out", str(tmp_path / "out")])
    with monkeypatch.context() as stopped, pytest.raises(SystemExit) as exit:
        stopped.setattr("disp.data.scene_dataset.write_json", terminate)
        cli.main()
    assert exit.value.code == 143
    assert capsys.readouterr().err.endswith(
        "disp: stopped; what lies in a run folder is kept, and the same command goes on from there\n"
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [UNFINISHED, "ATTRIBUTION.txt", "images"]
    assert signal.getsignal(signal.SIGTERM) is before

    with pytest.raises(SystemExit) as exit:
        cli.main()
    assert exit.value.code == 0
    whole = ["ATTRIBUTION.txt", "data.json", "images"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == whole


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    disp("scenes", "--out", tmp_path / "scenes", "--count", "1")
    command = f"{sys.executable} -m disp.cli evaluate builtin {tmp_path}/scenes --out {tmp_path}/metrics.json | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
    assert json.loads((tmp_path / "metrics.json").read_text())["clean_quality"] is not None


@pytest.mark.parametrize("asked", [["audit", "--help"], ["--help"], ["check", "SCENES"]])
def test_a_reader_that_is_gone_is_not_a_verdict(asked, tmp_path):
    """Exit code 1 means "suspicious or poisoned"."""
    if asked[-1] == "SCENES":
        disp("scenes", "--out", tmp_path, "--count", "1")
        asked = [asked[0], str(tmp_path)]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "disp", *asked], stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert done.returncode == 141 and b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_a_damaged_model_is_named(tmp_path, file, monkeypatch, capsys):
    save_model(load_model("builtin"), tmp_path / "model")
    (tmp_path / "model" / file).write_bytes(b"torn")
    monkeypatch.setattr(sys, "argv", ["disp", "generate", str(tmp_path / "model"), "--prompt", "?"])
    with pytest.raises(SystemExit) as exit:
        cli.main()
    captured = capsys.readouterr()
    assert exit.value.code == 2
    why = "is no readable safetensors file" if file == "model.safetensors" else "is no JSON"
    assert captured.err.startswith(f"disp: {tmp_path / 'model' / file} {why}")
    assert len(captured.err.splitlines()) == 1
