import numpy as np
import pytest
import torch
from torch import nn

from fedsim.analysis.spectra import principal_angles, spectra
from tests.analysis.cases import models


def one_layer() -> nn.Module:
    return nn.Linear(4, 3).double()


def test_ranks_of_a_known_spectrum() -> None:
    left = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    weight = left @ torch.tensor([[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]]).double()
    (row,) = spectra(one_layer(), [{"weight": weight, "bias": torch.ones(3).double()}]).to_dict("records")
    assert row["singular_values"] == pytest.approx([2, 1, 1])
    assert row["stable_rank"] == pytest.approx(6 / 4)
    # Shares of a half and two quarters: an entropy of one and a half bits.
    assert row["effective_rank"] == pytest.approx(2**1.5)
    assert row["spectral_norm"] == pytest.approx(2)
    assert row["frobenius_norm"] == pytest.approx(6**0.5)


def test_ranks_count_equal_directions_and_do_not_see_the_scale() -> None:
    states = [{"weight": value, "bias": torch.zeros(3).double()} for value in torch.zeros(3, 3, 4).double()]
    for number, state in enumerate(states[:2]):
        state["weight"][: number + 2, : number + 2] = torch.eye(number + 2) * 10.0 ** (9 * number)
    table = spectra(one_layer(), states)
    for column in ("stable_rank", "effective_rank"):
        assert table[column].tolist() == pytest.approx([2, 3, np.nan], nan_ok=True)
    assert table["frobenius_norm"][2] == 0


def test_every_matrix_has_a_row_for_each_state() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3, 4), nn.LSTM(4, 2))

    model, states, _, _ = models(2, make)
    table = spectra(model, states)
    names = ["0", "3", "4.weight_ih_l0", "4.weight_hh_l0"]
    assert table["layer"].tolist() == [name for name in names for _ in range(2)]
    assert table["base"].tolist() == [0, 1] * 4
    values = np.linalg.svd(states[1]["0.weight"].numpy().reshape(3, 8), compute_uv=False)
    assert table["singular_values"][1] == pytest.approx(values.tolist())


def turned(angle: float) -> torch.Tensor:
    """A matrix whose right singular vectors of the two largest values are the first axis and a turned second one."""
    right = torch.eye(4).double()
    right[1, 1:3] = torch.tensor([np.cos(angle), np.sin(angle)])
    right[2, 1:3] = torch.tensor([-np.sin(angle), np.cos(angle)])
    return torch.diag(torch.tensor([3.0, 2, 1, 0])).double()[:3] @ right


def test_angles_between_known_subspaces() -> None:
    states = [{"weight": turned(angle), "bias": torch.zeros(3).double()} for angle in (0.0, 0.4, -0.3)]
    table = principal_angles(one_layer(), states, pairs=[(0, 1), (2, 1)], k=2).set_index(["other", "base", "side"])
    assert table.loc[(1, 0, "right"), "angles"] == pytest.approx([0.4, 0], abs=1e-7)
    assert table.loc[(1, 2, "right"), "largest"] == pytest.approx(0.7)
    assert table.loc[(1, 2, "right"), "mean"] == pytest.approx(0.35, abs=1e-7)
    assert table.loc[(1, 2, "left"), "largest"] == pytest.approx(0, abs=1e-7)
    whole = principal_angles(one_layer(), states, k=9)
    assert whole[["base", "other"]].drop_duplicates().to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    assert (whole["k"] == 3).all()
    assert whole["largest"].max() < 1e-7


def test_wrong_arguments_are_named() -> None:
    model, states, _, _ = models(2)
    with pytest.raises(ValueError, match="there are no states"):
        spectra(model, [])
    broken = {key: torch.full_like(value, torch.nan) for key, value in states[0].items()}
    for measure in (spectra, principal_angles):
        with pytest.raises(ValueError, match=r"state 1 has 0\.weight with values that are not finite"):
            measure(model, [states[0], broken])
    with pytest.raises(ValueError, match="k = 0 must be at least 1"):
        principal_angles(model, states, k=0)
    with pytest.raises(ValueError, match=r"pair \(0, 5\)"):
        principal_angles(model, states, pairs=[(0, 5)])
