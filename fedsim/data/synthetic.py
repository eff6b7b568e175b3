"""Vectors labelled by a different linear model for each user, generated as in FedProx, q-FFL and pFedMe."""

from typing import Literal

import numpy as np
import torch

from fedsim.data.dataset import Dataset, Examples
from fedsim.memory import check_fits

FEATURES, CLASSES = 60, 10
# What the released codes multiply a user's number of examples by, and how many users they have.
RELEASES = {"fedprox": (1, 30), "q-ffl": (1, 100), "pfedme": (5, 100)}
# A tenth as many examples as a user's are drawn for the server's test set.
SHARE = 10
BYTES = 16 * FEATURES  # that an example takes while it is drawn: its inputs in float64, twice


def synthetic(
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    release: Literal["fedprox", "q-ffl", "pfedme"] = "fedprox",
    alike: Literal["none", "half", "all"] = "none",
    users: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Generate vectors by user, labelled by a different linear model for each user: Synthetic(alpha, beta).

    Its natural clients are the users, the id column ``user``. The 60 features are not normalised.

    Parameters
    ----------
    alpha
        Standard deviation between the users of the mean of their models' weights. It changes no label: a user's mean is
        in the weights of all classes, whose logits it moves by the same amount.
    beta
        Standard deviation between the users of the mean of their mean inputs.
    release
        Released code that is followed: that of ``fedprox`` has 30 users, those of ``q-ffl`` and ``pfedme`` have 100,
        and those of ``pfedme`` have five times as many examples.
    alike
        Users who share one model and one distribution of inputs: ``none`` of them, the first ``half``, which is q-FFL's
        hybrid data, or ``all``, which is the papers' IID data.
    users
        Number of users (default: that of the release).
    seed
        Seed of NumPy, independent of the run's; pFedMe's code sets 0, the others none.

    Raises
    ------
    ValueError
        If a number is out of range, or no release has such data.

    Notes
    -----
    The training set is what the released code generates from the same seed, number by number, of which ``[partition]
    test = 0.1`` holds out a tenth, as the papers do. The test set of the server is drawn afterwards: a tenth as many
    examples of each user. A label is the largest logit; the released codes take a softmax first, which overflows above
    709.

    References
    ----------
    Li et al. 2018, Federated optimization in heterogeneous networks (FedProx), arXiv 1812.06127; as changed in the code
    of Li et al. 2019 (q-FFL), arXiv 1905.10497, and Dinh et al. 2020 (pFedMe), arXiv 2006.08848.
    """
    multiple, usual = RELEASES[release]
    n = usual if users is None else users
    _check(alpha, beta, release, alike, n, seed)
    rng = np.random.RandomState(seed)  # the stream of `numpy.random.seed` and NumPy's global functions
    spread = 1 if release == "q-ffl" and alike != "none" else 2
    sizes = (rng.lognormal(4, spread, n).astype(np.int64) + 50) * multiple
    check_fits(BYTES * int(sizes.sum()), f"users = {n}")

    together = {"none": 0, "half": n // 2, "all": n}[alike]
    # FedProx's code for IID data draws nothing that it does not use.
    own = not (release == "fedprox" and alike == "all")
    slopes, centres = (rng.normal(0, alpha, n), rng.normal(0, beta, n)) if own else (np.zeros(n), np.zeros(n))
    means = [np.zeros(FEATURES) if user < together else rng.normal(centres[user], 1, FEATURES) for user in range(n)]
    common = [_linear_model(rng, 0.0)] * together if together else []
    covariance = np.diag(np.arange(1, FEATURES + 1) ** -1.2)
    models, parts = [], []
    for user, size in enumerate(sizes):
        drawn = [_linear_model(rng, slopes[user])] if own else []  # also where it is not used
        models.append((common[user : user + 1] or drawn)[0])
        parts.append(_labelled(rng.multivariate_normal(means[user], covariance, size), models[user]))
    tests = [
        _labelled(rng.multivariate_normal(mean, covariance, size // SHARE), model)
        for mean, model, size in zip(means, models, sizes, strict=True)
    ]
    names = tuple(f"class {label}" for label in range(CLASSES))
    return Dataset("synthetic", _joined(parts), _joined(tests), names, ids={"user": np.repeat(np.arange(n), sizes)})


def _check(alpha: float, beta: float, release: str, alike: str, users: int, seed: int) -> None:
    if users < 1 or not 0 <= seed < 2**32:
        raise ValueError(f"users = {users} must be at least 1, and seed = {seed} from 0 to {2**32 - 1}")
    if min(alpha, beta) < 0:
        raise ValueError(f"alpha = {alpha} and beta = {beta} must be at least 0, as they are standard deviations")
    if alike == "half" and release != "q-ffl":
        raise ValueError(f"alike = 'half' is in release = 'q-ffl' only, and release = {release!r}; change one of them")
    if alike == "all" and (alpha or beta):
        raise ValueError(f"alike = 'all' leaves nothing to differ by alpha = {alpha} and beta = {beta}; set both to 0")
    check_fits(8 * FEATURES * CLASSES * users, f"users = {users}")


def _linear_model(rng: np.random.RandomState, mean: float) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(mean, 1, (FEATURES, CLASSES)), rng.normal(mean, 1, CLASSES)


def _labelled(inputs: np.ndarray, model: tuple[np.ndarray, np.ndarray]) -> Examples:
    weights, bias = model
    return Examples(torch.from_numpy(inputs).float(), torch.from_numpy((inputs @ weights + bias).argmax(1)))


def _joined(parts: list[Examples]) -> Examples:
    return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))
