import numpy as np
import pytest
import torch
from torch import nn

from fedsim.models.params import (
    Params,
    as_flat,
    combine,
    empty_flat,
    flat_copy,
    flatten,
    is_finite,
    lerp,
    load_state_,
    state_of,
    unflatten,
)


def test_combine_replaces_entries_and_keeps_the_order_of_the_base() -> None:
    base = {"a": torch.ones(2), "b": torch.zeros(1), "c": torch.tensor(3)}
    combined = combine(base, {"c": torch.tensor(4), "a": torch.zeros(2)})
    assert list(combined) == ["a", "b", "c"]
    assert combined["a"].tolist() == [0, 0]
    assert combined["b"] is base["b"]
    assert combined["c"] == 4


def test_combine_rejects_an_entry_that_the_model_lacks() -> None:
    with pytest.raises(KeyError, match="'x'"):
        combine({"a": torch.ones(1)}, {"x": torch.ones(1)})


@pytest.mark.parametrize("separator", ["/", "::"])
def test_unflattening_a_flat_tree_gives_the_tree_back(separator: str) -> None:
    tree = {"models": {"3": {"a.weight": torch.ones(2)}, "1": {"a.weight": torch.zeros(2)}}, "known": torch.tensor(4)}
    flat = flatten(tree, separator)
    assert list(flat) == [
        separator.join(path) for path in (("models", "3", "a.weight"), ("models", "1", "a.weight"))
    ] + ["known"]
    assert unflatten(flat, separator) == tree
    assert unflatten(flat, separator)["models"]["1"]["a.weight"] is tree["models"]["1"]["a.weight"]


def test_numbers_become_text_and_empty_branches_disappear() -> None:
    tree = {"models": {3: {"a": torch.ones(1)}, 4: {}}, "masks": {}}
    assert unflatten(flatten(tree)) == {"models": {"3": {"a": torch.ones(1)}}}
    assert flatten({}) == unflatten({}) == {}


def test_a_path_is_split_at_as_many_separators_as_asked_for() -> None:
    value = torch.ones(1)
    assert unflatten({"own/block/w": value}, levels=1) == {"own": {"block/w": value}}
    assert unflatten({"own/block/w": value}, levels=0) == {"own/block/w": value}
    assert unflatten({"own/block/w": value}, levels=5) == {"own": {"block": {"w": value}}}


@pytest.mark.parametrize(
    "tree", [{"a": {"b": torch.ones(1)}, "a/b": torch.ones(1)}, {1: torch.ones(1), "1": torch.ones(1)}]
)
def test_two_tensors_with_the_same_path_are_an_error(tree: dict) -> None:
    with pytest.raises(ValueError, match=r"two entries have the path '(a/b|1)'"):
        flatten(tree)


@pytest.mark.parametrize("paths", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_a_path_to_a_tensor_and_to_a_branch_is_an_error(paths: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="leads to a tensor"):
        unflatten(dict.fromkeys(paths, torch.ones(1)))


def test_lerp_is_exact_at_the_ends_and_leaves_integers() -> None:
    start, end = (
        {"w": torch.tensor([0.1, -3.0]), "n": torch.tensor(4)},
        {"w": torch.tensor([7.7, 1e-8]), "n": torch.tensor(9)},
    )
    assert torch.equal(lerp(start, end, 0.0)["w"], start["w"])
    assert torch.equal(lerp(start, end, 1.0)["w"], end["w"])
    assert torch.allclose(lerp(start, end, 0.25)["w"], 0.75 * start["w"] + 0.25 * end["w"])
    assert lerp(start, end, 0.75)["n"] == 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embedding.weight


def test_a_tied_tensor_is_in_the_state_once_and_reaches_all_its_places() -> None:
    model = Tied()
    state = {key: value.clone() for key, value in state_of(model).items()}
    assert "embedding.weight" in state
    assert "head.weight" not in state
    other = Tied()
    load_state_(other, state)
    assert other.head.weight is other.embedding.weight
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_a_stale_copy_of_a_tied_tensor_does_not_win() -> None:
    whole = {key: value.clone() for key, value in Tied().state_dict().items()}
    whole["embedding.weight"] = torch.full((5, 3), 7.0)
    model = Tied()
    load_state_(model, whole)
    assert (model.head.weight == 7).all()


def test_a_state_that_lacks_an_entry_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"norm.bias"):
        load_state_(Tied(), {key: value for key, value in state_of(Tied()).items() if key != "norm.bias"})


def odd_shapes() -> Params:
    """Return entries of many shapes: no number of elements is a multiple of the padding."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv": (5, 3, 2, 2), "scalar": (), "none": (0, 3), "bias": (7,)}
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def test_a_flat_copy_has_equal_entries_in_one_buffer_for_each_dtype() -> None:
    params = odd_shapes() | {"steps": torch.tensor(3), "half": torch.ones(3, dtype=torch.bfloat16)}
    params["conv"] = params["conv"].to(memory_format=torch.channels_last)
    copy = flat_copy(params)
    assert list(copy) == list(params)
    assert all(torch.equal(copy[key], value) and copy[key].dtype == value.dtype for key, value in params.items())
    storages = {key: value.untyped_storage().data_ptr() for key, value in copy.items()}
    assert storages["conv"] == storages["scalar"] == storages["bias"]
    assert len({storages["conv"], storages["steps"], storages["half"], params["conv"].data_ptr()}) == 4


def test_entries_of_a_flat_copy_start_at_64_bytes() -> None:
    copies = [flat_copy(odd_shapes()) for _ in range(8)]  # all alive, so that each lies elsewhere
    assert all(value.data_ptr() % 64 == 0 for copy in copies for value in copy.values())


def test_the_buffer_of_a_flat_model_is_its_entries_and_zeros_between_them() -> None:
    copy = flat_copy(odd_shapes())
    buffer = as_flat(copy)
    assert buffer is not None
    assert buffer.sum(dtype=torch.float64).item() == pytest.approx(sum(v.double().sum().item() for v in copy.values()))
    buffer.fill_(2)
    assert all((value == 2).all() for value in copy.values())


def test_consecutive_entries_of_a_flat_model_are_a_flat_model() -> None:
    copy = flat_copy(odd_shapes())
    buffer = as_flat({"scalar": copy["scalar"], "bias": copy["bias"]})
    assert buffer is not None
    assert buffer.tolist() == [copy["scalar"].item(), *[0.0] * 15, *copy["bias"].tolist()]


def test_an_empty_flat_model_has_the_dtypes_that_it_is_given() -> None:
    wide = empty_flat(odd_shapes(), dict.fromkeys(odd_shapes(), torch.float64))
    buffer = as_flat(wide)
    assert buffer is not None
    assert buffer.dtype == torch.float64
    assert {key: value.shape for key, value in wide.items()} == {key: v.shape for key, v in odd_shapes().items()}


FLAT = flat_copy({"a": torch.ones(3), "b": torch.ones(2, 2), "c": torch.ones(3)})
# Two storages that lie side by side by chance.
SIDE_BY_SIDE = np.zeros(32, dtype=np.float32)


@pytest.mark.parametrize(
    "params",
    [
        {},
        odd_shapes(),
        FLAT | {"b": torch.ones(2, 2)},
        FLAT | {"b": FLAT["b"].T},
        FLAT | {"c": FLAT["c"].view(torch.int32)},
        {key: value for key, value in FLAT.items() if key != "b"},
        dict(reversed(FLAT.items())),
        {"a": torch.from_numpy(SIDE_BY_SIDE[:16]), "b": torch.from_numpy(SIDE_BY_SIDE[16:])},
    ],
)
def test_what_is_not_flat_has_no_buffer(params: Params) -> None:
    assert as_flat(params) is None


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_value_makes_a_model_not_finite(flat: bool, dtype: torch.dtype, bad: float) -> None:
    params = {key: value.to(dtype) for key, value in odd_shapes().items()} | {"steps": torch.tensor(3)}
    params = flat_copy(params) if flat else params
    assert is_finite(params)
    params["bias"][6] = bad
    assert not is_finite(params)
    params["bias"][5] = -bad  # their sum would be NaN
    assert not is_finite(params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_finite_values_whose_sum_overflows_are_finite(dtype: torch.dtype) -> None:
    largest = torch.full((9,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite({"w": largest})
    assert is_finite(flat_copy({"w": largest, "b": -largest}))


def test_what_lies_between_entries_does_not_matter() -> None:
    copy = flat_copy(odd_shapes())
    buffer = as_flat(copy)
    assert buffer is not None
    values = {key: value.clone() for key, value in copy.items()}
    buffer.fill_(float("nan"))
    for key, value in values.items():
        copy[key].copy_(value)
    assert buffer.isnan().any()
    assert is_finite(copy)
