"""A model that is larger than the memory is refused before its tensors are made."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.experiment.run import prepare
from fedsim.models import fitting
from fedsim.models.architectures.checks import positive
from fedsim.models.fitting import FittingTensors


def test_the_tensors_of_a_model_are_counted_as_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda: 4 * (100 * 10 + 10))
    with FittingTensors():
        built = nn.Linear(100, 10)
        with pytest.raises(MemoryError, match=r"needs at least 4,044 bytes of memory, and 4,040 are free"):
            nn.Embedding(1, 1)
    torch.zeros(10**6)
    assert not built.weight.is_meta


@pytest.mark.parametrize("hidden", [[10**9], [10**4, 10**8], [2**40], [2**62], [10] * 50 + [10**12]])
def test_a_model_larger_than_memory_says_what_it_needs(tiny: Callable[..., Config], hidden: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"\[model\] the model needs at least [\d,]+ bytes|cannot be built for"):
        prepare(tiny(model={"name": "mlp", "hidden": hidden}))


def test_nothing_is_refused_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "free_bytes", lambda: None)
    with FittingTensors():
        assert torch.zeros(5, device="meta").is_meta
        assert torch.ones(3, out=torch.empty(3)).sum() == 3


def test_a_depth_has_an_end() -> None:
    positive(depth=1000)
    with pytest.raises(ValueError, match="depth = 1000000000 must be at most 1000"):
        positive(depth=10**9)


@pytest.mark.parametrize(
    "data",
    [{"name": "toy", "examples": 10**12}, {"name": "toy", "shape": [10**4] * 3}, {"name": "toy-text", "length": 2**50}],
)
def test_data_larger_than_memory_say_what_they_would_need(tiny: Callable[..., Config], data: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"\[data\] \w+ = \d+ needs [\d,]+ bytes of memory, and [\d,]+ are free"):
        prepare(tiny(data=data))
