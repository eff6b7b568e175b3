from collections.abc import Callable

import numpy as np
import pytest
import torch

from fedsim.config import Config
from fedsim.data import DATA, Dataset
from fedsim.errors import ConfigError
from fedsim.experiment.run import prepare

SMALL = 1699  # of the first 3,000 seeds, one of those whose four users have the fewest examples


def released(alpha: float, beta: float, users: int, multiple: int, spread: int, alike: str) -> list[tuple]:
    """Generate the data of `generate_synthetic.py`, of q-FFL's `generate_iid.py` and of its `generate_hybrid.py`."""
    np.random.seed(SMALL)
    samples_per_user = (np.random.lognormal(4, spread, users).astype(int) + 50) * multiple
    mean_w = np.random.normal(0, alpha, users)
    b = np.random.normal(0, beta, users)
    mean_x = np.zeros((users, 60))
    together = {"none": 0, "half": users // 2, "all": users}[alike]
    for i in range(together, users):
        mean_x[i] = np.random.normal(b[i], 1, 60)
    if alike != "none":
        w_global, b_global = np.random.normal(0, 1, (60, 10)), np.random.normal(0, 1, 10)
    found = []
    for i in range(users):
        w, bias = np.random.normal(mean_w[i], 1, (60, 10)), np.random.normal(mean_w[i], 1, 10)
        if i < together:
            w, bias = w_global, b_global
        found.append(labelled(mean_x[i], samples_per_user[i], w, bias))
    return found


def released_iid_of_fedprox(users: int) -> list[tuple]:
    np.random.seed(SMALL)
    samples_per_user = np.random.lognormal(4, 2, users).astype(int) + 50
    w, bias = np.random.normal(0, 1, (60, 10)), np.random.normal(0, 1, 10)
    return [labelled(np.zeros(60), n, w, bias) for n in samples_per_user]


def labelled(mean: np.ndarray, n: int, w: np.ndarray, bias: np.ndarray) -> tuple:
    covariance = np.zeros((60, 60))
    for j in range(60):
        covariance[j, j] = np.power(j + 1, -1.2)
    x = np.random.multivariate_normal(mean, covariance, n)
    exponentials = [np.exp(np.dot(row, w) + bias) for row in x]
    return x, [int(np.argmax(each / each.sum())) for each in exponentials]


def of_user(data: Dataset, user: int) -> tuple[np.ndarray, list[int]]:
    chosen = torch.from_numpy(data.ids["user"] == user)
    return data.train.inputs[chosen].numpy(), data.train.targets[chosen].tolist()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"alpha": 1.0, "beta": 0.5}, lambda: released(1, 0.5, 4, 1, 2, "none")),
        ({"alpha": 0.5, "beta": 2.0, "release": "pfedme"}, lambda: released(0.5, 2, 4, 5, 2, "none")),
        ({"alpha": 0, "beta": 0, "alike": "all"}, lambda: released_iid_of_fedprox(4)),
        ({"alpha": 0, "beta": 0, "alike": "all", "release": "pfedme"}, lambda: released(0, 0, 4, 5, 2, "all")),
        ({"alpha": 0, "beta": 0, "alike": "all", "release": "q-ffl"}, lambda: released(0, 0, 4, 1, 1, "all")),
        ({"alike": "half", "release": "q-ffl"}, lambda: released(1, 1, 4, 1, 1, "half")),
    ],
)
def test_users_have_the_numbers_of_the_released_code(options: dict, expected: Callable[[], list[tuple]]) -> None:
    state = np.random.get_state()[1].copy()
    data = DATA["synthetic"](users=4, seed=SMALL, **options)
    assert np.array_equal(np.random.get_state()[1], state), "NumPy's global stream is nobody's to move"
    for user, (inputs, targets) in enumerate(expected()):
        ours, labels = of_user(data, user)
        assert labels == targets
        assert np.allclose(ours, inputs, rtol=1e-6, atol=1e-6)
    assert len(data.test) == sum(len(targets) // 10 for _, targets in expected())


def test_the_release_of_q_ffl_has_a_hundred_users() -> None:
    data = DATA["synthetic"](release="q-ffl", alpha=0, beta=0, alike="all")
    assert np.unique(data.ids["user"]).tolist() == list(range(100))


def test_alpha_moves_all_logits_of_an_example_alike_and_so_changes_nothing() -> None:
    one, other = (DATA["synthetic"](users=4, seed=SMALL, alpha=alpha) for alpha in (0, 3))
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(one.train.targets, other.train.targets)


def test_each_user_is_one_client_and_a_tenth_is_held_out(tiny: Callable[..., Config]) -> None:
    config = tiny(
        data={"name": "synthetic", "users": 4, "seed": SMALL},
        partition={"scheme": "natural", "test": 0.1, "validation": 0.0},
        clients=4,
        model={"name": "mlp", "hidden": []},
    )
    sizes = np.bincount(DATA["synthetic"](users=4, seed=SMALL).ids["user"])
    split = prepare(config)[0].data.split
    assert split.test.sizes.tolist() == np.rint(0.1 * sizes).tolist()
    assert (split.train.sizes + split.test.sizes).tolist() == sizes.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"users": 0}, "users = 0 must be at least 1"),
        ({"seed": -1}, "seed = -1 from 0 to 4294967295"),
        ({"alpha": -0.5}, "alpha = -0.5 and beta = 1.0 must be at least 0"),
        ({"alike": "half"}, "alike = 'half' is in release = 'q-ffl' only"),
        ({"alike": "all"}, "alpha = 1.0 and beta = 1.0; set both to 0"),
        ({"users": 10**12}, "users = 1000000000000 needs [0-9,]+ bytes"),
        ({"release": "leaf"}, 'release = "leaf": must be'),
        ({"alpha": float("nan")}, "alpha"),
    ],
)
def test_a_bad_option_is_one_line(tiny: Callable[..., Config], options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        prepare(tiny(data={"name": "synthetic"} | options, partition={"scheme": "natural"}, clients=4))
    assert "\n" not in str(caught.value)
