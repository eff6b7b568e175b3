import json
from pathlib import Path

import pytest

from fedsim.errors import ConfigError
from fedsim.results.seals import write_sealed
from fedsim.results.tuning import read_choices

CHOICES = [{"chosen": {"local.lr": 0.1}, "scores": []}]


def test_a_choice_that_was_changed_by_hand_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    write_sealed(path, {"choices": CHOICES})
    assert read_choices(path) == CHOICES
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(ConfigError, match=r"tuning.json differs from what was written; remove it and give"):
        read_choices(path)


def test_a_choice_of_an_earlier_version_has_no_seal(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(json.dumps({"choices": CHOICES}))
    assert read_choices(path) == CHOICES
