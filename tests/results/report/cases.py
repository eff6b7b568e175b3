"""Tables as the analysis writes them, with values that say what they are of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from fedsim.config import Config
from fedsim.config.naming import run_name
from fedsim.data.heterogeneity import Heterogeneity
from fedsim.results.folder import RunFolder
from fedsim.results.report.drawing.style import save
from fedsim.results.result import Result
from partitions import LabelCounts


class Finished(RunFolder):
    """The folder of a run that has ended, which need not be there."""

    done = Path(__file__)


GROUPS = ("conv1", "fc1", "full")


def barriers(
    rounds: Sequence[int] = (2, 10),
    bases: int = 2,
    ends: Sequence[tuple[int, float]] = ((-1, 1.0),),
    groups: Sequence[str] = GROUPS,
    data: str = "server",
) -> pd.DataFrame:
    """Return rows whose loss barrier is 100 times the round and 10 times the base, plus t and the group's place."""
    rows = []
    for number in rounds:
        for place, group in enumerate(groups):
            for base in range(bases):
                for other, t in ends:
                    if other == base:
                        continue
                    value = 100 * number + 10 * base + t + 0.01 * place
                    row = {"group": group, "base": base, "other": other, "t": t, "n": 50, "round": number, "data": data}
                    row |= {"loss": 3 + value, "error": 0.5}
                    for name in ("mean_ends", "swap_ends", "own_base", "chord"):
                        row |= {f"loss_{name}": value, f"loss_{name}_se": 0.5}
                        row |= {f"error_{name}": -value / 1e4, f"error_{name}_se": 0.01}
                    rows.append(row)
    return pd.DataFrame(rows)


def assert_drawn(figure: Figure) -> None:
    """Check that a figure can be written, and that each of its panels has room within it."""
    assert save(figure, "png").startswith(b"\x89PNG")
    for axes in figure.axes:
        box = axes.get_position()
        assert box.width > 0
        assert box.height > 0
        assert 0 <= box.x0 < box.x1 <= 1
        assert 0 <= box.y0 < box.y1 <= 1


def companions(number: int) -> dict[str, pd.DataFrame]:
    """Return the other tables of a round by their folders."""
    common = {"base": 0, "n": 50, "loss": 1.0, "error": 0.1, "data": "server"}
    spread = {"loss_spread": 0.1, "error_spread": 0.01}
    own = {"loss_own_base": 0.2 * number, "error_own_base": 0.02}
    at = [(group, t) for group in GROUPS for t in (0.5, 1.0)]
    return {
        "robustness": pd.DataFrame(
            common | own | {"group": group, "other": -1, "t": t, "direction": direction, "draws": 5} | each
            for group, t in at
            for direction, each in (("average", dict.fromkeys(spread, np.nan)), ("random", spread))
        ),
        "distances": pd.DataFrame(
            {
                "group": group,
                "base": base,
                "other": -1,
                "distance_relative": 0.3,
                "cosine": 0.9,
                "cosine_from_start": -0.1,
            }
            for group in GROUPS
            for base in (0, 1)
        ),
        "criticality": pd.DataFrame(common | own | {"group": group} for group in GROUPS),
        "interaction": pd.DataFrame(
            common | {"first": a, "second": b, "t": 1.0, "loss_interaction": 0.1, "loss_interaction_se": 0.01}
            for a, b in (("conv1", "fc1"), ("", ""))
        ),
        "similarity": pd.DataFrame([common | {"other": 1, "same_class": 0.8, "same_probability": 0.2}]),
    }


def result(
    config: Config,
    accuracy: ArrayLike,
    *,
    validation: ArrayLike | None = None,
    up: ArrayLike | None = None,
    examples: tuple[ArrayLike, ArrayLike] | None = None,
    more: Sequence[tuple[Any, ...]] = (),
    experiment: Path = Path("made-up"),
    finished: bool = True,
    test_examples: int | Sequence[int] = 100,
) -> Result:
    """Return a run whose records are known.

    Parameters
    ----------
    accuracy, validation
        Of the personalised models, shape [rounds, clients]; NaN for a client that was not evaluated. Losses are 1 minus
        these.
    up
        Bytes per round, shape [rounds]; as many go down.
    examples
        Passed forward and backward per round, each of shape [rounds]; half of them by either of two clients.
    more
        Further rows of metrics: round, client, split, model, metric, value.
    finished
        Whether the run has ended, however many rounds it has.
    test_examples
        Number of examples of each client, or of all alike, that its values are means over.
    """
    rows = list(more)
    for split, values in (("test", accuracy), ("validation", validation)):
        for (at, client), value in np.ndenumerate(np.zeros((0, 0)) if values is None else np.asarray(values)):
            if not np.isnan(value):
                rows.append((at + 1, client, split, "personalised", "accuracy", value))
                rows.append((at + 1, client, split, "personalised", "loss", 1 - value))
    rounds = len(np.asarray(accuracy))
    rows += [(at + 1, None, "test", "global", "accuracy", at / 10) for at in range(rounds)]
    for direction, counts in zip(("forward", "backward"), examples or (), strict=False):
        for at, count in enumerate(np.asarray(counts)):
            rows += [(at + 1, k, "train", "uploaded", f"{direction}_examples", count / 2) for k in (0, 1)]
    metrics = pd.DataFrame(rows, columns=["round", "client", "split", "model", "metric", "value"])
    sizes = np.broadcast_to(test_examples, int(metrics["client"].max()) + 1)
    metrics["n"] = [100 if np.isnan(client) else sizes[int(client)] for client in metrics["client"]]
    traffic = [] if up is None else np.asarray(up)
    sent = [{"round": at + 1, "client": 0, "layer": "fc1", "down": n, "up": n} for at, n in enumerate(traffic)]
    timing = pd.DataFrame({"round": range(1, rounds + 1), "train": 1.5, "evaluate": 0.5})
    nobody = Heterogeneity(np.zeros(0), LabelCounts(np.zeros(1, dtype=int), np.zeros(0), np.zeros(0), 2), ("a", "b"))
    folder = (Finished if finished else RunFolder)(experiment / run_name(config))
    return Result(folder, config, metrics, pd.DataFrame(sent), timing, pd.DataFrame(), nobody)
