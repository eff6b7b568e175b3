"""Two rounds of models with unusual tensors are federated averaging in plain torch, on every engine."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import Tensor

from fedsim.config import Config
from fedsim.experiment.restored import restored_model
from fedsim.federation.federation import federation_of
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result
from tests.federation.plain_fedavg import plain_fedavg

# Names of the models in tests.models.tensors.
ODD = ("float8_buffer", "float8_frozen", "infinite_mask")
HALF = ("bfloat16_buffer", "bfloat16_block", "bfloat16_norm", "bfloat16", "float16_block")
OTHERS = (
    "boolean_buffer",
    "channels_last",
    "empty",
    "expanded_buffer",
    "float64_block",
    "integer_parameter",
    "lazy",
    "not_contiguous",
    "older_weight_norm",
    "outside_the_state",
    "pruned",
    "scalar",
    "sparse_embedding",
    "tied",
    "viewed",
    "weight_norm",
)
ONCE = {"barriers__every": 0}
ENGINES: dict[str, dict[str, Any]] = {
    "local": ONCE,
    "with barriers": {},
    "cohort": {"engine__cohort": 3, **ONCE},
    "ray": {"engine__name": "ray", "engine__workers": 2, **ONCE},
}
CASES = [
    *(pytest.param("with barriers", name, 1e-5) for name in (*HALF, *ODD)),
    pytest.param("with barriers", "viewed", 1e-5),
    *(pytest.param("local", name, 1e-5) for name in OTHERS),
    # Steps of half precision amplify another order of sums.
    *(pytest.param("cohort", name, 0.05 if name in HALF else 1e-4) for name in (*HALF, *ODD, *OTHERS)),
    pytest.param("ray", "bfloat16_norm", 1e-5, marks=pytest.mark.ray),
]


@pytest.mark.parametrize(("engine", "name", "tolerance"), CASES)
def test_two_rounds_are_federated_averaging_in_plain_torch(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], engine: str, name: str, tolerance: float
) -> None:
    config = tiny(clients=3, model={"name": f"tests.models.tensors:{name}"}, **ENGINES[engine])
    start, expected = federation_of(config).model().state_dict(), plain_fedavg(config)
    folder = play(config)
    found = restored_model(folder).state_dict()
    assert {key: value.dtype for key, value in found.items()} == {key: each.dtype for key, each in expected.items()}
    assert _distance(found, expected) <= tolerance * _distance(start, expected)
    result = read_result(folder)
    assert result.faults.empty
    if engine == "with barriers":
        assert result.barriers["loss_mean_ends"].notna().all()


def _distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    floating = [key for key, value in other.items() if value.is_floating_point()]
    squares = ((one[key].double() - other[key].double()).square().nansum() for key in floating)  # masks are infinite
    return math.sqrt(sum(map(float, squares)))
