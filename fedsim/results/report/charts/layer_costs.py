"""What averaging a layer costs the clients: means with their intervals, the layers' sizes, and both in a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fedsim.analysis.mixing.names import AVERAGE
from fedsim.results.measured import UNMATCHED, scale_of
from fedsim.results.report.comparing.statistics import interval
from fedsim.results.report.comparing.units import how_many
from fedsim.results.result import Result
from fedsim.shortening import with_and

# The clients' own data tell what averaging costs them; other data stand in where those were not measured.
VIEWS = ("clients", "train", "server")
WHERE = {
    "clients": "their own test data",
    "train": "all clients' training data",
    "server": "the server's test data",
}
FULL = "full"
MOST_NAMES = 3  # in a sentence
THINNEST, WIDEST = 0.012, 0.06  # share of the width that a layer has at least, of many layers and of few


@dataclass(frozen=True)
class LayerCosts:
    """What averaging each layer costs, of runs that differ in their seed only.

    Parameters
    ----------
    rows
        Columns ``round, layer, mean, low, high, least, most, clients, lose, missing``: the mean over clients and seeds
        of the loss with the layer's average minus the client's own loss, its 95 % interval, the lowest and the highest
        client, number of clients, how many of them lose, and how many values are not finite; the last rounds' rows come
        last, and layers in order from input to output, all of them together as ``full``.
    view
        Name of the data: ``clients``, ``train`` or ``server``.
    seeds
        Number of seeds: intervals are over them where there are two or more, and else over the clients.
    sizes
        Bytes of each layer, from input to output; NaN where they are not known.
    head
        Names of the layers that give the logits.
    unit
        Unit of the loss.
    """

    rows: pd.DataFrame
    view: str
    seeds: int
    sizes: pd.Series
    head: tuple[str, ...]
    unit: str

    @property
    def over(self) -> str:
        """What the intervals are over, in words."""
        if self.seeds > 1:
            return f"{self.seeds} seeds"
        return f"{how_many(int(self.rows['clients'].max()), 'client')} of one seed"


def layer_costs(members: Sequence[Result], view: str | None = None) -> LayerCosts | None:
    """Return what averaging each layer costs in these runs; None if it was not measured.

    Parameters
    ----------
    members
        Runs that differ in their seed only.
    view
        Name of the data; by default the first of ``clients``, ``train`` and ``server`` that was measured.
    """
    tables = [(result.config.seed, result.barriers) for result in members if len(result.barriers)]
    if not tables:
        return None
    table = pd.concat([each.assign(seed=seed) for seed, each in tables], ignore_index=True)
    if "loss_own_base" not in table:
        return None
    known = set(table["data"])
    view = view or next((each for each in VIEWS if each in known), None)
    table = table[(table["data"] == view) & (table["other"] == AVERAGE) & (table["matching"] == UNMATCHED)]
    table = table[(table["t"] == table["t"].max()) & (table["path"] == members[0].config.barriers.path[0])]
    layers = _layers(members[0], table)
    table = table[table["group"].isin([*layers, FULL])]
    if view is None or not layers or table.empty:
        return None
    seeds = table["seed"].nunique()
    place = {name: number for number, name in enumerate([*layers, FULL])}
    rows = [
        {"round": server_round, "layer": layer} | _cost(of_layer, seeds)
        for (server_round, layer), of_layer in table.groupby(["round", "group"], sort=False)
        if of_layer["seed"].nunique() == seeds  # rounds that all seeds have
    ]
    if not rows:
        return None
    ordered = pd.DataFrame(rows).sort_values(["round", "layer"], key=lambda values: values.map(place).fillna(values))
    sizes = layer_bytes(members).reindex(layers)
    head = tuple(name for name in members[0].folder.read_model().get("head", ()) if name in layers)
    return LayerCosts(ordered.reset_index(drop=True), view, seeds, sizes, head, scale_of("loss", table)[1])


def _layers(result: Result, table: pd.DataFrame) -> list[str]:
    """Return the measured layers from input to output."""
    measured = dict.fromkeys(table["group"])
    layers = [name for name in result.folder.read_model().get("layers", ()) if name in measured]
    return layers or [name for name in measured if name != FULL and ":" not in name]


def _cost(rows: pd.DataFrame, seeds: int) -> dict[str, float]:
    values = rows["loss_own_base"].astype(float)
    finite = values[np.isfinite(values)]
    means = finite.groupby(rows["seed"]).mean() if seeds > 1 else finite
    found = interval(means.to_numpy()) if len(means) >= min(2, seeds) else interval([])
    return {
        "mean": found.mean,
        "low": found.mean - found.half_width,
        "high": found.mean + found.half_width,
        "least": float(finite.min()) if len(finite) else float("nan"),
        "most": float(finite.max()) if len(finite) else float("nan"),
        "clients": len(values),
        "lose": int((finite > 0).sum()),
        "missing": len(values) - len(finite),
    }


def layer_bytes(members: Sequence[Result]) -> pd.Series:
    """Return the bytes of each layer as far as they are known from the records.

    Distances tell the number of a layer's parameters, as they are also given over the square root of it, whether the
    layer travels or not. Else the size is the most that one client sent or received of the layer in a round.
    """
    sizes: dict[str, float] = {}
    for result in members:
        for name, size in {**_travelled(result), **_of_distances(result)}.items():
            sizes[name] = max(size, sizes.get(name, 0.0))
    return pd.Series(sizes, dtype=float)


def shares_of(sizes: pd.Series, widest: float = WIDEST, room: float = 0.3) -> np.ndarray:
    """Return the width of each layer, of a width of 1: by its bytes, but no layer is too thin to be seen.

    Parameters
    ----------
    widest
        Least width of a layer where there are few.
    room
        Share of the whole width that these may take together.
    """
    known = sizes.to_numpy(dtype=float)
    is_known = np.isfinite(known).all() and known.sum() > 0
    shares = known / known.sum() if is_known else np.full(len(known), 1 / len(known))
    least = max(min(THINNEST, 0.5 / len(known)), min(widest, room / len(known)))
    shares = np.maximum(shares, least)
    return np.asarray(shares / shares.sum())


def _of_distances(result: Result) -> dict[str, float]:
    rows, model = result.measured("distances"), result.folder.read_model()
    if rows.empty or not model.get("trainable"):
        return {}
    rows = rows[(rows["distance_rms"] > 0) & np.isfinite(rows["distance"])] if "distance_rms" in rows else rows[:0]
    counts = ((rows["distance"] / rows["distance_rms"]) ** 2).groupby(rows["group"]).median().round()
    return dict((counts * model["trainable_bytes"] / model["trainable"]).items())


def _travelled(result: Result) -> dict[str, float]:
    rows = result.communication
    if rows.empty:
        return {}
    rows = rows[rows["set"] == "model"] if "set" in rows else rows
    most = rows.groupby("layer")[["up", "down"]].max().max(axis=1)
    return {str(name): float(size) for name, size in most.items() if size > 0}


def cost_sentence(costs: LayerCosts, server_round: int | None = None) -> str:
    """Say in a sentence which layers' averaging costs the clients something in a round, the last one if not given.

    A cost, or a gain, is claimed only of layers whose interval excludes 0.
    """
    last = costs.rows["round"].max() if server_round is None else server_round
    return f"{cost_claims(costs, last)} ({level_of(costs)}, after round {last})."


def shows_anything(costs: LayerCosts, server_round: int) -> bool:
    """Tell whether the interval of any layer excludes 0 in a round."""
    rows = costs.rows[(costs.rows["round"] == server_round) & (costs.rows["layer"] != FULL)]
    return bool(((rows["low"] > 0) | (rows["high"] < 0)).any())


def level_of(costs: LayerCosts) -> str:
    """Return what the intervals of a sentence are."""
    return f"95 % intervals over {costs.over}, on {WHERE[costs.view]}"


def cost_claims(costs: LayerCosts, server_round: int, *, together: bool = True) -> str:
    """Return what `cost_sentence` says, without the level and the end of the sentence.

    Parameters
    ----------
    together
        Whether to name the cost of averaging all layers together, too.
    """
    rows = costs.rows[costs.rows["round"] == server_round].set_index("layer")
    full, rows = rows[rows.index == FULL], rows[rows.index != FULL]
    known = rows.dropna(subset=["low", "high"])
    if known.empty:
        few = "with one value there is no interval" if rows["mean"].notna().any() else "no value is finite"
        return f"What averaging a layer costs is not known: {few}"
    costly, gaining = known[known["low"] > 0], known[known["high"] < 0]
    unclear = known[(known["low"] <= 0) & (known["high"] >= 0)]
    whose = "clients" if costs.view == "clients" else "the clients' models"
    parts = []
    if len(costly):
        parts.append(f"averaging {_named(costly, costs)} costs {whose} {_span(costly)} {_unit(costly, costs)}")
    if len(gaining):
        lowered = f"lowers {_possessive(whose)} loss by {_span(-gaining[['low', 'high']])} {_unit(gaining, costs)}"
        parts.append(f"averaging {_named(gaining, costs)} {lowered}")
    if len(unclear):
        parts.append(_unclear(unclear, costs, alone=not parts))
    if together and full["low"].notna().any() and len(rows) > 1:
        low, high = float(full["low"].iloc[0]), float(full["high"].iloc[0])
        changes = "may change" if low <= 0 <= high else "changes"
        parts.append(
            f"averaging all layers together {changes} the loss by {_signed(low)} to {_signed(high)} {costs.unit}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}"


def _possessive(whose: str) -> str:
    return "clients'" if whose == "clients" else "the clients' models'"


def _unclear(rows: pd.DataFrame, costs: LayerCosts, *, alone: bool) -> str:
    worst = rows.sort_values("high").iloc[-1]
    if alone:
        return (
            f"no layer's averaging shows a cost or a gain: each interval includes 0 ({worst.name}: "
            f"{_signed(worst['low'])} to {_signed(worst['high'])} {costs.unit})"
        )
    each = " each" if len(rows) > 1 else ""
    return f"no cost is clear for {_named(rows, costs)} (at most {_number(worst['high'])} {costs.unit}{each})"


def _named(rows: pd.DataFrame, costs: LayerCosts) -> str:
    """Name a set of layers: as the head, the body or every layer where it is just that."""
    names, layers = [str(name) for name in rows.index], [str(name) for name in costs.sizes.index]
    body = [name for name in layers if name not in costs.head]
    if len(names) == len(layers) > 1:
        return "every layer"
    if costs.head and set(names) == set(costs.head):
        return f"the head ({names[0]})" if len(names) == 1 else "the head"
    if costs.head and set(names) == set(body):
        return "the body" if len(names) > 1 else f"the body ({names[0]})"
    ordered = [str(name) for name in rows["mean"].abs().sort_values(ascending=False).index]
    shown, more = ordered[:MOST_NAMES], len(ordered) - MOST_NAMES
    if more > 0:
        return f"{', '.join(shown)} and {how_many(more, 'more layer')}"
    return with_and(shown)


def _span(rows: pd.DataFrame) -> str:
    """Return the smallest and the largest end of the intervals."""
    ends = rows[["low", "high"]].to_numpy(dtype=float)
    return f"{_number(ends.min())} to {_number(ends.max())}"


def _unit(rows: pd.DataFrame, costs: LayerCosts) -> str:
    return f"{costs.unit} each" if len(rows) > 1 else costs.unit


def _number(value: float) -> str:
    """Return two digits, so that no positive number is shown as 0."""
    return f"{float(f'{value:.2g}'):g}"


def _signed(value: float) -> str:
    return f"{float(f'{value:.2g}'):+g}".replace("-", "\u2212") if value else "0"
