"""Which layers were sent in which rounds, where that changes, and the barriers that decided it."""

import pandas as pd

from fedsim.results.measured import CLUSTER, mean_gate_barriers
from fedsim.results.report.drawing.block_map import by_block
from fedsim.results.report.drawing.heat_maps import HeatMaps, Quantity
from fedsim.results.report.pages.pictured import pictured
from fedsim.results.report.pages.section import Section
from fedsim.results.result import Result


def schedule_sections(result: Result) -> list[Section]:
    """Return figures of the layers that clients sent, unless all rounds are alike, of a gate, and of adapters."""
    sections = []
    sent = sent_layers(result)
    if (sent.nunique(axis=1) > 1).any():
        text = (
            "Share of the round's clients that sent the layer. In rounds in which a gate measures, this includes all "
            "layers that it needs, whether they are averaged or not."
        )
        share = Quantity("share of the clients, %", 100, signed=False)
        sections.append(pictured("schedule", "Layers that clients sent", text, HeatMaps({"": sent}, share)))
    if len(gate := result.measured("gate")):
        gate = gate[gate[CLUSTER].fillna(0) == 0] if CLUSTER in gate else gate  # of all clients together
        means = pd.Series(mean_gate_barriers(gate, ["layer", "round"])).unstack()
        means = means.reindex(list(dict.fromkeys(gate["layer"]))).rename_axis(columns="round")
        text = (
            "Increase in a client's loss on validation data if its layer is replaced by the average; "
            "mean over the clients, weighted by training examples. Layers above the strategy's threshold are not "
            "averaged until the next measurement."
        )
        barrier = Quantity("barrier, loss per example")
        sections.append(
            pictured("gate", "Barriers that decided what is averaged", text, HeatMaps({"": means}, barrier))
        )
    if len(products := result.measured("products")):
        errors = products.pivot(index="layer", columns="round", values="aggregation_error")
        errors = errors.reindex(list(dict.fromkeys(products["layer"])))
        text = (
            "Distance of the new factors' product from the mean of the clients' products, as a share of that mean's "
            "length, by adapted layer and round. At 0, averaging has lost nothing of what clients have learnt."
        )
        share = Quantity("aggregation error, %", 100, signed=False)
        sections.append(pictured("products", "Aggregation error of adapters", text, HeatMaps({"": errors}, share)))
        last = errors.columns.max()
        if blocks := by_block(errors[last]):
            text = (
                "The repeated blocks of the model, from the input at the top to the output, by the modules in them. "
                f"Each cell is the aggregation error of the module's adapter in round {last}."
            )
            picture = HeatMaps(blocks, share, columns="module", rows="block")
            sections.append(pictured("products-blocks", "Aggregation error in the blocks", text, picture))
    return sections


def sent_layers(result: Result) -> pd.DataFrame:
    """Return the share of each round's senders, or of its trained clients, that sent each layer: layers by rounds."""
    rows = result.communication
    if rows.empty:
        return pd.DataFrame()
    rows = rows[(rows.get("set", "model") == "model") & (rows["up"] > 0)]
    trained = result.of("uploaded", "loss", "train").groupby("round")["client"].nunique()
    counts = rows.groupby(["layer", "round"])["client"].nunique().unstack()
    # A round's rows are in the order of the layers; a client that sends only some does not change that.
    order = {name: place for place, name in enumerate(rows["layer"].unique())}
    return (counts / trained).reindex(columns=trained.index).fillna(0.0).sort_index(key=lambda names: names.map(order))
