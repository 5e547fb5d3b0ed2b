"""accelerate reads the files that docs/scale.md names, and they say what their names say."""

from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "docs" / "accelerate"
EXPECTED = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero2": "DEEPSPEED"}


def test_every_file_is_known():
    assert {path.stem for path in FOLDER.iterdir()} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_is_read(name):
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    assert config.distributed_type.value == EXPECTED[name]
    assert not config.use_cpu
    assert config.fsdp_config.get("fsdp_version") == (2 if name == "fsdp2" else None)
    assert config.deepspeed_config.get("zero_stage") == (2 if name == "zero2" else None)
