import pytest
import torch
from torch import nn

from fedsim.params import combine, lerp, load_state_, state_of, weighted_mean


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


def test_lerp_is_exact_at_the_ends_and_leaves_integers() -> None:
    start, end = (
        {"w": torch.tensor([0.1, -3.0]), "n": torch.tensor(4)},
        {"w": torch.tensor([7.7, 1e-8]), "n": torch.tensor(9)},
    )
    assert torch.equal(lerp(start, end, 0.0)["w"], start["w"])
    assert torch.equal(lerp(start, end, 1.0)["w"], end["w"])
    assert torch.allclose(lerp(start, end, 0.25)["w"], 0.75 * start["w"] + 0.25 * end["w"])
    assert lerp(start, end, 0.75)["n"] == 4


def test_weighted_mean_by_hand_with_unequal_weights() -> None:
    members = [{"w": torch.tensor([1.0, 10.0])}, {"w": torch.tensor([4.0, -2.0])}]
    assert weighted_mean(members, [1, 3])["w"].tolist() == [3.25, 1.0]


def test_weighted_mean_accumulates_in_float64() -> None:
    # In float32, adding 1e-3 to 3e4 ten times loses half of each term.
    values = [3e4] + [1e-3] * 10
    mean = weighted_mean([{"w": torch.tensor([value])} for value in values], [1.0] * 11)["w"]
    assert mean.item() == torch.tensor(sum(map(float, torch.tensor(values).tolist())) / 11).item()
    assert mean.dtype == torch.float32


def test_integers_never_enter_an_average() -> None:
    assert list(weighted_mean([{"w": torch.ones(1), "n": torch.tensor(3)}], [2.0])) == ["w"]


@pytest.mark.parametrize(("members", "weights"), [([], []), ([{}], [1.0, 2.0]), ([{}, {}], [1.0, 0.0])])
def test_weights_that_do_not_fit_are_rejected(members: list, weights: list) -> None:
    with pytest.raises(ValueError, match="weights"):
        weighted_mean(members, weights)


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
