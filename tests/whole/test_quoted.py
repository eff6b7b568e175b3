"""Each number that README, findings and experiments quote is that of a committed table, rounded."""

import json
from collections.abc import Sequence

import pandas as pd
import pytest
from scipy import stats

from fedsim.results.report.comparing.statistics import holm
from tests.whole.quoted import ROOT, assert_near, assert_quoted, assert_row, is_shown, over_seeds, read, tables_of

REBASIN, LLFC, FINDINGS = "experiments/rebasin/README.md", "experiments/llfc/README.md", "docs/findings.md"
PERSONALISATION, LLMC = "experiments/personalisation/README.md", "experiments/llmc/README.md"
SHARING, ADAPTERS = "experiments/sharing/README.md", "experiments/adapters/README.md"
ASYMMETRY, SPAWNING = "experiments/asymmetry/README.md", "experiments/spawning/README.md"
EXPERTS = "experiments/experts/README.md"
ONE_ROUND, PAIRS = "| initialisation | average | MLP", "| barriers, own initialisation"
ROBUSTNESS = "| models, `hierarchical_average`"
MERGES, UNIVERSE = "| accuracy of the merge", "| barrier of the average"
PATHS, WIDTH = "experiments/paths/README.md", "experiments/width/README.md"
PERFORMANCE = "docs/performance.md"
TRANSFORMERS = "experiments/transformers/README.md"
# Methods of the study of the catalogue whose clients all have the server's model.
ONE_MODEL = (
    "fedadagrad",
    "fedadam",
    "fedavgm",
    "fedbabu",
    "fedgucci",
    "fedlama",
    "fedlp",
    "fedluar",
    "fedma",
    "fedpart",
)
ONE_MODEL += ("fedprox", "fedyogi", "full", "pfedla", "scaffold")
IN_SENTENCES = {
    (FINDINGS, "| experiment |"),
    (LLFC, "| file |"),
    (ASYMMETRY, "| file |"),
    (SPAWNING, "| file |"),
}  # whose numbers are tested one by one, or settings
RECORDED = {
    *((TRANSFORMERS, heading) for heading in ("| halfway between two models", "| average | ViT, round 1")),
    *(
        (REBASIN, heading)
        for heading in (ONE_ROUND, PAIRS, MERGES, UNIVERSE, "| average | accuracy", "| average | round 1", "| models |")
    ),
    (LLFC, "| | barrier | cosine"),
    (PATHS, "| the highest point"),
    (WIDTH, "| units | weight decay"),
    (REBASIN, ROBUSTNESS),
    (FINDINGS, "| method, features"),
    (FINDINGS, "| method, gates and trees"),
    (LLMC, "| shared | personalised"),
    (LLMC, "| shared, photographs"),
    (LLMC, "| two models | full"),
    (SHARING, "| method, pilot"),
    (SHARING, "| method, alpha 10"),
    (ADAPTERS, "| method, sentiment"),
    (ADAPTERS, "| method, sources"),
    (ADAPTERS, "| method, skew"),
    (ADAPTERS, "| adapter |"),
    (SHARING, "| method, alpha 3"),
    (SHARING, "| method, skewed inputs"),
    (SHARING, "| method, ResNet"),
    (SHARING, "| method, three epochs"),
    (ASYMMETRY, "| two models | own"),
    (ASYMMETRY, "| clients | round 1"),
    *((EXPERTS, heading) for heading in ("| barrier, experts in", "| barrier in text")),
    (SPAWNING, "| copies part"),
    (SPAWNING, "| network |"),
}
REPAIRED, ONLY_REPAIRED = "matched_average(repair=repair)", "matched_average(matching=none, repair=repair)"


PAGES = (
    REBASIN,
    LLFC,
    PATHS,
    WIDTH,
    FINDINGS,
    PERSONALISATION,
    LLMC,
    SHARING,
    ADAPTERS,
    ASYMMETRY,
    EXPERTS,
    SPAWNING,
    TRANSFORMERS,
)


@pytest.mark.parametrize("page", PAGES)
def test_each_table_with_numbers_is_recomputed(page: str) -> None:
    known = [start for each, start in RECORDED | IN_SENTENCES if each == page]
    unknown = [heading for heading in tables_of(page) if not heading.startswith(tuple(known))]
    assert not unknown, "add a committed table and a test for it"


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("own, plain (`full`)", "full"),
        ("own, plain, repaired", ONLY_REPAIRED),
        ("own, `hierarchical_average`", "hierarchical_average"),
        ("own, `matched_average`", "matched_average"),
        ("own, `matched_average`, repaired", REPAIRED),
    ],
)
def test_averages_of_independent_models_after_one_round(label: str, strategy: str) -> None:
    rows = read("rebasin/one_round.csv")
    rows = rows[(rows["model.initial"] == "own") & (rows["strategy"] == strategy)]
    values: list[float] = []
    for model in ("mlp", "lenet5"):
        own = rows[rows["model.name"] == model]
        values += [*over_seeds(own["accuracy"]), own["fgsm:0.05"].mean(), own["noise:0.5"].mean()]
    assert_row(REBASIN, ONE_ROUND, label, values)


def test_averages_of_models_that_start_alike() -> None:
    rows = read("rebasin/one_round.csv").query("`model.initial` == 'shared'")
    columns = [(model, column) for model in ("mlp", "lenet5") for column in ("accuracy", "fgsm:0.05", "noise:0.5")]
    means = [rows[rows["model.name"] == model].groupby("strategy")[column].mean() for model, column in columns]
    values = [end for each in means for end in (each.min(), each.max())]
    assert_row(REBASIN, ONE_ROUND, "shared, all of these", values)


@pytest.mark.parametrize(("label", "model"), [("MLP, 3 hidden layers of 256", "mlp"), ("LeNet-5", "lenet5")])
def test_barriers_of_independent_models(label: str, model: str) -> None:
    rows = read("rebasin/one_round.csv").query("`model.initial` == 'own' and strategy == 'matched_average'")
    own = rows[rows["model.name"] == model]
    columns = [f"barrier{matched}{layer}" for matched in ("", ", matched") for layer in ("", ", largest layer")]
    assert_row(REBASIN, PAIRS, label, [number for column in columns for number in over_seeds(own[column])])


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("plain", "full"),
        (
            'new statistics only (`matching = "none"`, `repair = "reset"`)',
            "matched_average(matching=none, repair=reset)",
        ),
        ("matching only", "matched_average"),
        ("matching and new statistics (`reset`)", "matched_average(repair=reset)"),
        ("matching and `repair`", REPAIRED),
    ],
)
def test_averages_with_batch_normalisation(label: str, strategy: str) -> None:
    rows = read("rebasin/batch_norm.csv").query("strategy == @strategy")
    values = [*over_seeds(rows["accuracy"]), rows["fgsm:0.05"].mean(), rows["noise:0.5"].mean()]
    assert_row(REBASIN, "| average | accuracy", label, values)


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("plain (`full`)", "full"),
        ("`hierarchical_average`", "hierarchical_average"),
        ("`matched_average`", "matched_average"),
        ("`matched_average`, repaired", REPAIRED),
    ],
)
def test_averages_over_many_rounds(label: str, strategy: str) -> None:
    rows = read("rebasin/rounds.csv").query("strategy == @strategy")
    first, last = (rows[rows["round"] == server_round] for server_round in (1, 6))
    values = [*over_seeds(first["accuracy"]), *over_seeds(last["accuracy"])]
    assert_row(REBASIN, "| average | round 1", label, [*values, last["fgsm:0.05"].mean(), last["barrier"].mean()])


@pytest.mark.parametrize("clients", [2, 4, 8, 16])
def test_averages_of_more_models(clients: int) -> None:
    rows = read("rebasin/number_of_models.csv").query("clients == @clients")
    values: list[float] = []
    for strategy in ("matched_average", "hierarchical_average"):
        own = rows[rows["strategy"] == strategy]
        values += [*over_seeds(own["accuracy"]), own["fgsm:0.1"].mean(), own["noise:1"].mean()]
    assert_row(REBASIN, "| models |", str(clients), [*values, rows["sum of norms"].mean()])


@pytest.mark.parametrize(("model", "file"), [("MLP", "mlp"), ("LeNet-5", "convolutional")])
@pytest.mark.parametrize("way", ["spawned", "independent", "matched by weights", "matched by activations"])
def test_features_of_averaged_models(model: str, file: str, way: str) -> None:
    rows = read(f"llfc/{file}.csv").query("way == @way")
    values = [rows["cosine"].min(), rows["commutativity"].mean(), rows["feature_distance"].mean()]
    values += [rows["additivity"].max(), 100 * rows["stitching_error"].max(), 100 * rows["stitching_error_ends"].mean()]
    # The barrier is of all layers together, and the table of each layer.
    assert_row(LLFC, "| | barrier | cosine", f"{model}, {way}", values, skipped=1)


@pytest.mark.parametrize(("file", "heading"), [("images", "| barrier, experts in"), ("text", "| barrier in text")])
@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("the first block, dense", (0, 0, 0)),
        ("the first block, top 2", (0, 2, 0)),
        ("the first block, top 2 and one shared", (0, 2, 1)),
        ("the last block, dense", (1, 0, 0)),
    ],
)
def test_barriers_between_mixtures_of_experts(label: str, options: tuple[int, ...], file: str, heading: str) -> None:
    own = read(f"experts/{file}.csv").set_index(["block", "top_k", "num_shared_experts"]).loc[options]
    ways = own.groupby("matching")["barrier"]
    found = {way: over_seeds(ways.get_group(way)) for way in ("none", "units", "gate", "gram", "weights")}
    share = 100 * found["weights"][0] / found["none"][0]
    assert_row(EXPERTS, heading, label, [*(end for each in found.values() for end in each), share])


def test_what_matching_experts_leaves() -> None:
    rows = read("experts/images.csv")
    runs = rows.pivot_table("barrier", ["block", "top_k", "num_shared_experts", "seed"], "matching")
    assert len(runs) == 12
    assert (runs["weights"] < runs["units"]).all()
    better = runs.index[runs["gram"] < runs["weights"]]
    assert list(better) == [(0, 2, 0, 0), (0, 2, 1, 1), (1, 0, 0, 0)]
    for _, own in runs.groupby(level=[0, 1, 2]):
        less = {way: over_seeds(own[way] - own["weights"]) for way in ("none", "gate", "gram")}
        assert {way: mean > half_width for way, (mean, half_width) in less.items()} == {
            "none": True,
            "gate": False,
            "gram": False,
        }
    means = runs.groupby(level=[0, 1, 2]).mean()
    first = means.loc[0, 2, 1]
    assert first.idxmin() == "gate"
    assert (means.drop(first.name).idxmin(axis=1) == "weights").all()
    assert_quoted(EXPERTS, "with a shared expert the gate is, by {} nats", first["weights"] - first["gate"])
    shares = 100 * means.loc[0]["weights"] / means.loc[0]["none"]
    assert_quoted(EXPERTS, "is not the paper's: {} to {} % in the first block", shares.min(), shares.max())
    assert_quoted(FINDINGS, "{} to {} % over three kinds of mixtures", shares.min(), shares.max())
    dense = runs.loc[0, 0, 0]
    text = "of {} ± {} nats {} ± {} are left once hidden units are matched, and {} ± {} once the experts are too"
    ways = ("none", "units", "weights")
    assert_quoted(FINDINGS, text, *(end for way in ways for end in over_seeds(dense[way])))
    assert [key for key, own in runs.groupby(level=[0, 1, 2]) if is_shown(own["units"] - own["weights"])] == [
        (0, 2, 0),
        (0, 2, 1),
    ]
    assert list(runs.index[runs["gate"] < runs["weights"]]) == [(0, 2, 0, 1), (0, 2, 1, 1), (0, 2, 1, 2)]


def test_what_matching_experts_leaves_in_text() -> None:
    runs = read("experts/text.csv").pivot_table("barrier", ["block", "top_k", "num_shared_experts", "seed"], "matching")
    assert len(runs) == 12
    assert (runs["units"] < runs["none"]).all()
    assert list(runs.index[runs["weights"] >= runs["units"]]) == [(0, 2, 1, 2)]
    assert runs.loc[0, 2, 1, 2]["weights"] == runs.loc[0, 2, 1, 2]["units"]
    for _, own in runs.groupby(level=[0, 1, 2]):
        assert not is_shown(own["units"] - own["weights"])
        assert is_shown(own["none"] - own["weights"])
    more = runs.sub(runs["weights"], axis=0).abs()
    *others, most = sorted([*more["gram"], *more["gate"]])
    assert_quoted(EXPERTS, "leave what two levels leave, to {} nats, except that the gate leaves {} more", 0.005, most)
    assert max(others) < 0.005
    assert more["gate"].idxmax() == (0, 2, 0, 2)
    shared = runs.loc[0, 2, 1]
    assert (shared["gate"] == shared["gram"]).all()
    assert list(shared.index[shared["gate"] == shared["weights"]]) == [0, 1]
    means = runs.groupby(level=[0, 1, 2]).mean()
    shares = 100 * means.loc[0]["weights"] / means.loc[0]["none"]
    last = means.loc[1, 0, 0]
    assert_quoted(EXPERTS, "What remains is {} to {} % in the first block, as in images", shares.min(), shares.max())
    text = "is not flat here: {} nats before matching, and {} % of that after"
    assert_quoted(EXPERTS, text, last["none"], 100 * last["weights"] / last["none"])
    assert_quoted(FINDINGS, "and {} to {} % between experts in a language model", shares.min(), shares.max())


def test_the_findings_on_measured_barriers() -> None:
    rows = read("gated/gated.csv").set_index("strategy")
    gated, lama, head = rows.loc["barrier_gated"], rows.loc["fedlama(warm_up=2)"], rows.loc["layer_set(shared=head)"]
    gap = 100 * (gated["personalised"] - lama["personalised"])
    values = [100 * gated["personalised"], 100 * gated["personalised_half_width"], gap]
    assert_quoted(FINDINGS, "`barrier_gated` has {} ± {} % personalised: {} ± 8.7 points above `fedlama`", *values)
    behind = [-100 * gated["difference"], 100 * gated["difference_half_width"]]
    assert_quoted(FINDINGS, "and {} ± {} below the best fixed group, the head", *behind)
    assert head["personalised"] == rows[rows.index.str.startswith("layer_set")]["personalised"].max()


def test_the_findings_on_mixing_by_barriers() -> None:
    rows = read("barrier_mix/comparison.csv").set_index(["method", "partition.alpha"])
    over, fixed = (read(f"barrier_mix/{name}.csv").set_index("method") for name in ("methods", "fixed"))
    means, mix = 100 * over["personalised"], "barrier_mix(personal_epochs=2)"
    best = means[mix] - 100 * fixed["difference"][mix]
    text = (
        "five alphas, {} %: FedRep has {} %, FedALA {} %, the best fixed group of each alpha {} %, `barrier_gated` {} %"
    )
    gated, rep = "barrier_gated(confidence=0.5, probe=False)", "FedRep(head_epochs=4)"
    assert_quoted(FINDINGS, text, means[mix], means[rep], means["FedALA"], best, means[gated])
    assert means.idxmax() == mix

    def behind(table: pd.DataFrame, *methods: str) -> list[float]:
        columns = table.loc[[*methods], ["difference", "difference_half_width"]].to_numpy()
        return (100 * abs(columns)).ravel().tolist()

    text = "`personal_epochs = 2` has {} ± {} % personalised, the best mean of nine methods"
    assert_quoted(FINDINGS, text, means[mix], 100 * over["personalised_half_width"][mix])
    assert len(over) == 9
    gains = [*behind(fixed, mix), *behind(over, "FedALA", rep, gated, "local")]
    text = "is {} ± {} points above the best fixed group of layers, chosen on validation data for each alpha"
    assert_quoted(FINDINGS, text, *gains[:2])
    text = "{} ± {} above FedALA, {} ± {} above FedRep, {} ± {} above `barrier_gated` and {} ± {} above local training."
    assert_quoted(FINDINGS, text, *gains[2:])
    p = over["p"].dropna()
    assert (p.idxmax(), len(p)) == (rep, 8)
    text = "the best fixed group (p = {}) and from each of the other methods (FedRep last, p = {})"
    assert_quoted(FINDINGS, text, fixed["p"][mix], p.max())
    assert_quoted(FINDINGS, "the one with one, which is {} ± {} below it,", *behind(over, "barrier_mix"))
    unseen, above = (read(f"barrier_mix/{name}_unseen.csv").set_index("method") for name in ("methods", "fixed"))
    assert set(unseen["seeds"]) == {7}
    values = [*behind(above, mix), above["p"][mix], *behind(unseen, "FedALA", rep), unseen["p"][rep]]
    text = "it is {} ± {} above the best fixed group (p = {}), {} ± {} above FedALA and {} ± {} above FedRep (p = {})"
    assert_quoted(FINDINGS, text, *values)
    text = "is {} ± {} points above the best fixed group of layers and {} ± {} above FedALA, over five degrees"
    assert_quoted("README.md", text, *values[:2], *values[3:5])
    more = read("barrier_mix/epochs.csv")
    fixed = more.loc[more.groupby("partition.alpha")["validation"].idxmax()]
    assert set(more["passes"]) == {75_600}
    assert over["passes"][mix] > 75_600
    ahead = 100 * fixed["personalised"].mean()
    assert_quoted(FINDINGS, "the best fixed group of each alpha by validation data has {} %, more than", ahead)
    assert_quoted("README.md", "fixed groups are ahead of it, with {} against {} %", ahead, means[mix])

    def at(method: str, alpha: float) -> list[float]:
        return [100 * rows[column][method, alpha] for column in ("personalised", "personalised_half_width")]

    assert_quoted(FINDINGS, "where clients are alike ({} ± {}, FedPer {} ± {})", *at(mix, 10.0), *at("FedPer", 10.0))
    assert_quoted(FINDINGS, "local training ({} ± {}, `barrier_mix` {} ± {})", *at("local", 0.1), *at(mix, 0.1))
    assert rows["personalised"].xs(0.1, level="partition.alpha").idxmax() == "local"
    passes = [over["passes"][name] for name in (mix, rep, "FedALA", "FedPer")]
    assert_quoted(
        FINDINGS,
        "It passes {} examples, FedRep {}, FedALA {}, and fixed groups {},",
        *[*passes[:2], round(passes[2], -2), passes[3]],
    )


@pytest.mark.parametrize(
    ("label", "method"),
    [
        *((name, name.strip("`")) for name in ("`local`", "FedAvg", "FedPer", "LG-FedAvg")),
        ("`barrier_gated`, own models, mean", "barrier_gated(confidence=0.5, probe=False)"),
        ("`barrier_gated`, own models, bound", "barrier_gated(probe=False)"),
        ("`barrier_gated`, probes, mean", "barrier_gated(confidence=0.5)"),
        ("`barrier_gated`, probes, bound", "barrier_gated"),
        ("`layer_tree` by distance", "layer_tree"),
        ("`layer_tree` by distance, every 5", "layer_tree(every=5)"),
        ("`layer_tree` by barrier", "layer_tree(by=barrier)"),
        ("`layer_tree` by barrier, every 5", "layer_tree(every=5, by=barrier)"),
    ],
)
def test_gates_and_trees(label: str, method: str) -> None:
    rows = read("gates_and_trees/comparison.csv").query("method == @method").set_index("partition.alpha")
    middle = rows.loc[1.0]
    values = [*(100 * rows["personalised"]), (middle["up"] + middle["down"]) / 1e6, middle["passes"]]
    assert_row(FINDINGS, "| method, gates and trees", label, values)


def test_the_global_models_of_gates_and_trees_with_equal_bytes() -> None:
    rows = read("gates_and_trees/comparison.csv").query("`partition.alpha` == 10").set_index("method")["global"]
    values = 100 * rows["barrier_gated"], 100 * rows["barrier_gated(probe=False)"]
    assert_quoted(FINDINGS, "(a global model of {} %, {} % without probes)", *values)
    longer = 100 * read("gates_and_trees/equal_bytes.csv").query("method == 'layer_tree'")["personalised"]
    assert_quoted(FINDINGS, "by distance has 15 rounds, and {}, {} and {} %", *longer)


@pytest.mark.parametrize(
    ("label", "method"),
    [
        ("all", "LLMC"),
        ("none", "local"),
        ("body", "LLMC(shared=body)"),
        ("head", "LLMC(shared=head)"),
        ("critical: `fc1`, `fc3`, `fc5`, `fc7`", "LLMC(shared=fc1 | fc3 | fc5 | fc7)"),
        ("all others: `fc2`, `fc4`, `fc6`", "LLMC(shared=fc2 | fc4 | fc6)"),
        ("middle: `fc3`, `fc4`, `fc5`", "LLMC(shared=fc3 | fc4 | fc5)"),
        ("one layer at a time", "layer_cycle"),
    ],
)
def test_personalisation_of_the_layer_wise_connectivity_paper(label: str, method: str) -> None:
    rows = read("llmc/personalisation.csv").query("method == @method").set_index("partition.scheme")
    assert_row(LLMC, "| shared | personalised", label, with_difference(rows, ("dirichlet", "shards")))


@pytest.mark.parametrize(
    ("label", "method"),
    [
        ("all", "LLMC"),
        ("none", "local"),
        ("body", "LLMC(shared=body)"),
        ("head", "LLMC(shared=head)"),
        ("`conv1`, `conv2`", "LLMC(shared=conv1 | conv2)"),
        ("`conv1`, `fc1`, `fc3`", "LLMC(shared=conv1 | fc1 | fc3)"),
        ("one layer at a time", "layer_cycle"),
    ],
)
def test_personalisation_with_photographs(label: str, method: str) -> None:
    rows = read("llmc/personalisation_cifar10.csv").query("method == @method").set_index("partition.alpha")
    assert_row(LLMC, "| shared, photographs", label, with_difference(rows, (0.1, 0.01)))


def with_difference(rows: pd.DataFrame, settings: Sequence[object]) -> list[float]:
    """Return the accuracy of a method in each setting and its difference from the baseline, both with intervals."""
    columns = ["personalised", "personalised_half_width", "difference", "difference_half_width"]
    return list(100 * pd.concat([rows.loc[setting, columns].astype(float) for setting in settings]).dropna())


@pytest.mark.parametrize(
    ("label", "file", "setting"),
    [
        ("same initialisation, different data order, lr 0.04", "data_order", ("local.lr", 0.04)),
        ("the same with lr 0.005", "data_order", ("local.lr", 0.005)),
        ("different initialisation, lr 0.005", "initialisation", ("model.initial", "own")),
        ("two clients, iid halves, never averaged, lr 0.02", "two_clients", ("partition.scheme", "iid")),
        ("the same with Dirichlet alpha 0.1", "two_clients", ("partition.scheme", "dirichlet")),
        ("the same with five classes each", "two_clients", ("partition.scheme", "shards")),
    ],
)
def test_barriers_of_two_models(label: str, file: str, setting: tuple[str, object]) -> None:
    rows = read(f"llmc/{file}.csv")
    rows = rows[rows[setting[0]] == setting[1]]
    full = rows[rows["group"] == "full"]
    means = rows.groupby("group")["loss_mean_ends"].mean()
    layers = means[means.index.str.startswith("fc")].sort_values()
    values = [means["full"], full["loss_mean_ends"].min(), full["loss_mean_ends"].max()]
    values += [layers.iloc[-1], layers.iloc[0], layers.iloc[-2]]
    values += [*means[["shallow:2", "shallow:5", "deep:2", "deep:5"]], 100 * full["error_mean_ends"].mean()]
    assert_row(LLMC, "| two models | full", label, values)


def test_errors_of_two_clients() -> None:
    errors = (
        100 * read("llmc/two_clients.csv").groupby(["partition.scheme", "group"])["error_mean_ends"].mean().unstack()
    )
    layers = errors[[f"fc{number}" for number in range(1, 8)]]
    alike, skewed = (layers.loc[scheme].sort_values(ascending=False) for scheme in ("iid", "dirichlet"))
    text = "all layers together cost {} points of error, and no layer except `fc1` ({}) more than {};"
    assert_quoted(LLMC, text, errors["full"]["iid"], *alike.iloc[:2])
    assert_quoted(LLMC, "layers `fc1` has {} points with Dirichlet 0.1, and no other more than {}.", *skewed.iloc[:2])


@pytest.mark.parametrize(
    ("study", "text"),
    [
        ("fashion_mnist", "{} % (`full`), {} % (body shared), {} % (head shared), {} % (`local`) after 20 rounds"),
        ("cifar10", "{} % (`full`), {} % (body shared), {} % (`local`) after 15 rounds"),
        (
            "shakespeare",
            "{} % (`full`), {} % (body shared, personal embeddings), {} % (all but `norm`), {} % (`local`)",
        ),
    ],
)
def test_studies_of_one_seed(study: str, text: str) -> None:
    assert_quoted(FINDINGS, text, *(100 * read(f"{study}/comparison.csv")["personalised"]))


def test_what_bfloat16_costs() -> None:
    rows = read("precision/comparison.csv")
    text = "all four ways have {} to {} % on the server's test data and {} to {} % on the clients', with"
    means = [100 * rows[key] for key in ("global", "personalised")]
    widths = pd.concat([100 * rows[f"{key}_half_width"] for key in ("global", "personalised")])
    ends = [end for each in means for end in (each.min(), each.max())]
    assert_quoted(FINDINGS, text + " intervals of {} to {} points;", *ends, widths.min(), widths.max())
    sent = rows.groupby("method")["up"].mean() / 1e9
    assert_quoted(FINDINGS, "uploads in bfloat16 halve the {} GB sent up", sent["FedAvg"])
    assert sent["FedAvg"] == 2 * sent["FedAvg(upload_precision=bfloat16)"]


def test_the_pilot_of_sharing_on_cifar10() -> None:
    for row in read("sharing/pilot.csv").itertuples():
        values = [100 * row.validation, 100 * row.personalised, row.passes / 1000]
        assert_row(SHARING, "| method, pilot", row.method.replace("|", "&#124;"), values)


@pytest.mark.parametrize(
    ("file", "heading"), [("alpha3", "alpha 3"), ("alpha10", "alpha 10"), ("rotated", "skewed inputs")]
)
def test_sharing_on_cifar10(file: str, heading: str) -> None:
    for row in read(f"sharing/{file}.csv").itertuples():
        values = [
            100 * row.personalised,
            100 * row.personalised_half_width,
            100 * row.worst,
            row.passes / 1000,
            100 * row.at_passes,
        ]
        assert_row(SHARING, f"| method, {heading}", row.method, values)


RESNET = ("resnet", "resnet_seed1", "resnet_seed2")
COLUMNS = ["personalised", "worst", "global", "passes", "at_passes"]


def test_sharing_with_a_resnet() -> None:
    *seeds, small = (100 * read(f"sharing/{name}.csv").set_index("method")[COLUMNS] for name in (*RESNET, "alpha10"))
    means = sum(seeds) / len(seeds)
    for name, row in means.iterrows():
        _, half_width = over_seeds([seed["personalised"][name] for seed in seeds])
        values = [row["personalised"], half_width, row["worst"], row["global"], row["passes"] / 1e5, row["at_passes"]]
        assert_row(SHARING, "| method, ResNet", name, values)
    less = (small["personalised"] - means["personalised"]).dropna()
    assert_quoted(SHARING, "The means are {} to {} points lower than with LeNet-5", less.min(), less.max())
    orders = [each["personalised"][means.index].sort_values().index.tolist() for each in (means, small)]
    assert orders[0] == orders[1]
    for seed in seeds:
        assert set(seed["at_passes"].nlargest(2).index) == {"FedDBE", "FedPer"}


def test_what_barrier_mix_gains_with_a_resnet() -> None:
    seeds = [100 * read(f"sharing/{name}.csv").set_index("method")[COLUMNS] for name in RESNET]
    gains = [seed.loc["barrier_mix(personal_epochs=2)"] - seed for seed in seeds]

    def quoted(column: str, *names: str) -> list[float]:
        return [value for name in names for value in over_seeds([each[column][name] for each in gains])]

    text = "`barrier_mix` is {} ± {} points above the best fixed group, again FedPer, {} ± {} above FedDBE"
    others = ("FedPer", "FedDBE", "local", "FedAvg")
    values = quoted("personalised", *others)
    assert_quoted(SHARING, f"{text}, {{}} ± {{}} above local training and {{}} ± {{}} above FedAvg", *values)
    p = holm([stats.ttest_1samp([each["personalised"][name] for each in gains], 0).pvalue for name in others])
    text = "it is shown to beat local training and FedAvg (p = {}), and not FedDBE or FedPer (p = {})"
    assert_quoted(SHARING, text, p[2], p[0])
    assert (p[0], p[2]) == (p[1], p[3])
    values = [abs(value) for value in quoted("at_passes", "FedDBE", "FedPer")] + quoted("at_passes", "local")
    text = "`barrier_mix` is {} ± {} points below FedDBE, {} ± {} below FedPer, and level with local training ({} ± {}"
    assert_quoted(SHARING, text, *values)
    first = pd.concat([read(f"sharing/{name}.csv") for name in ("resnet", "resnet_others")]).set_index("method")
    names = ("FedALA", "FedRep(head_epochs=1)", "barrier_mix(personal_epochs=2)", "FedPer")
    text = "{} and {} % personalised, where `barrier_mix` has {} and FedPer {} %"
    assert_quoted(SHARING, text, *(100 * first["personalised"][list(names)]))


@pytest.mark.parametrize(
    ("alpha", "first", "last"),
    [
        (10, "FedPer (chosen on validation data)", "FLAYER is {} ± {} above"),
        (3, "again FedPer", "FLAYER is first here too, {} ± {} above"),
    ],
)
def test_what_barrier_mix_gains_on_cifar10(alpha: int, first: str, last: str) -> None:
    rows = read(f"sharing/alpha{alpha}_paired.csv").set_index("method")
    gains = [
        value
        for name in ("FedPer", "FedRep(head_epochs=1)", "FedALA", "Ditto")
        for value in (-100 * rows["difference"][name], 100 * rows["difference_half_width"][name])
    ]
    text = (
        "`barrier_mix` is {} ± {} points above the best fixed group, FIRST, {} ± {} above FedRep, {} ± {} above FedALA"
    )
    assert_quoted(SHARING, f"{text.replace('FIRST', first)} and {{}} ± {{}} above Ditto", *gains)
    best = rows.loc["FLAYER"]
    values = 100 * best["difference"], 100 * best["difference_half_width"], best["p"]
    assert_quoted(SHARING, f"{last} `barrier_mix` (p = {{}})", *values)


def test_what_barrier_mix_gains_where_inputs_are_skewed() -> None:
    rows, paired = (
        read("sharing/rotated.csv").set_index("method"),
        read("sharing/rotated_paired.csv").set_index("method"),
    )
    better = 100 * (rows["personalised"]["FedAvg"] - rows["personalised"]["FedPer"])
    assert_quoted(SHARING, "all layers, FedAvg, which is {} points above FedPer", better)
    gains = [
        value
        for name in ("FedAvg", "FedPer", "FedALA", "FedRep(head_epochs=1)", "Ditto")
        for value in (-100 * paired["difference"][name], 100 * paired["difference_half_width"][name])
    ]
    text = "it is {} ± {} points above FedAvg, {} ± {} above FedPer, {} ± {} above FedALA, {} ± {} above FedRep"
    assert_quoted(SHARING, f"{text} and {{}} ± {{}} above Ditto", *gains)
    second = (
        -100 * paired["difference"]["FLAYER"],
        100 * paired["difference_half_width"]["FLAYER"],
        paired["p"]["FLAYER"],
    )
    assert_quoted(SHARING, "is second here, {} ± {} below `barrier_mix` (p = {})", *second)
    p = [paired["p"][name] for name in ("FedAvg", "FedALA", "FedRep(head_epochs=1)", "FLAYER", "FedDBE")]
    assert_quoted(SHARING, "not FedAvg (p = {}), FedALA ({}), FedRep ({}), FLAYER ({}) or FedDBE ({}).", *p)
    assert set(paired.index[paired["p"] < 0.05]) == {"local", "FedPer", "LG-FedAvg", "Ditto", "FedPAC"}
    means = [
        100 * rows[key][name]
        for name in ("barrier_mix(personal_epochs=2)", "FedAvg", "FLAYER")
        for key in ("personalised", "personalised_half_width")
    ]
    text = "`barrier_mix` has {} ± {} against FedAvg's {} ± {} (p = {}) and FLAYER's {} ± {}:"
    assert_quoted(FINDINGS, text, *means[:4], p[0], *means[4:])
    [longer] = read("sharing/rotated_epochs.csv").itertuples()
    level = 100 * longer.personalised, 100 * longer.personalised_half_width
    assert_quoted(FINDINGS, "and where inputs differ FedAvg has {} ± {}.", *level)
    text = "which are {} k passes for as many bytes, FedAvg has {} ± {} % personalised and {} % for the worst tenth"
    assert_quoted(SHARING, text, longer.passes / 1000, *level, 100 * longer.worst)
    assert longer.passes < rows["passes"]["barrier_mix(personal_epochs=2)"]
    assert longer.up == rows["up"]["FedAvg"]


def test_three_epochs_a_round_on_cifar10() -> None:
    rows = read("sharing/labels_epochs.csv").set_index(["method", "partition.alpha"])
    levels = 100 * rows[["personalised", "personalised_half_width", "worst"]]
    for name in ("FedDBE", "FedPer", "local", "FedAvg"):
        values = [*levels.loc[name, 10], *levels.loc[name, 3], rows["passes"][name, 10] / 1000]
        assert_row(SHARING, "| method, three epochs", name, values)
        assert rows["passes"][name, 10] == rows["passes"][name, 3]
    once = {alpha: read(f"sharing/alpha{alpha}.csv").set_index("method") for alpha in (10, 3)}
    names = ("barrier_mix(personal_epochs=2)", "FLAYER")
    mix, flayer = ([100 * each["personalised"][name] for each in once.values()] for name in names)
    longer = {name: [levels["personalised"][name, alpha] for alpha in once] for name in ("FedPer", "FedDBE")}
    lost = [best - own for best, own in zip(mix, longer["FedPer"], strict=True)]
    text = "FedPer's mean is {} points (alpha 10) and {} points (alpha 3) below that of `barrier_mix` with {} k"
    assert_quoted(SHARING, text, *lost, once[10]["passes"]["barrier_mix(personal_epochs=2)"] / 1000)
    gains = [own - other for others in (mix, flayer) for own, other in zip(longer["FedDBE"], others, strict=True)]
    assert_quoted(SHARING, "highest of all: {} and {} points above `barrier_mix`, {} and {} above FLAYER", *gains)
    more = [
        own - 100 * each["personalised"]["FedDBE"] for own, each in zip(longer["FedDBE"], once.values(), strict=True)
    ]
    for gain in more:
        assert_quoted(SHARING, "at each client, gains {} points from them", gain)
    values = [value for name in longer for alpha in once for value in levels.loc[(name, alpha)].iloc[:2]]
    text = "stays below it where labels differ ({} ± {} and {} ± {}), while FedDBE is above it ({} ± {} and {} ± {})"
    assert_quoted(FINDINGS, text, *values)


def test_where_sharing_matters() -> None:
    names = ("barrier_mix(personal_epochs=2)", "local", "FedAvg")
    for alpha, text in (
        (10, "`barrier_mix` has {} ± {} % personalised, local training {} ± {} and FedAvg {} ± {}"),
        (3, "labels differ more (alpha 3) they have {} ± {}, {} ± {} and {} ± {}"),
    ):
        rows = read(f"sharing/alpha{alpha}.csv").set_index("method")
        means = [100 * rows[key][name] for name in names for key in ("personalised", "personalised_half_width")]
        assert_quoted(FINDINGS, text, *means)
    ten, three = (read(f"sharing/alpha{alpha}_paired.csv").set_index("method").loc["FedPer"] for alpha in (10, 3))
    gains = -100 * ten["difference"], -100 * three["difference"], ten["p"], three["p"]
    assert_quoted(FINDINGS, "by {} and {} points over the best, FedPer (Holm's p = {} and {}:", *gains)
    megabytes = [(rows["up"] + rows["down"]) / 1e6 for rows in map(read, ("sharing/alpha3.csv", "sharing/alpha10.csv"))]
    sent = pd.concat(megabytes).sort_values().unique()
    assert_quoted(SHARING, "all methods send {} to {} MB, except LG-FedAvg ({} MB)", sent[2], sent[-1], sent[1])


@pytest.mark.parametrize("study", ["sentiment", "sources"])
def test_methods_for_adapters(study: str) -> None:
    errors = read(f"adapters/{study}_errors.csv").groupby("method")["error"].mean()
    rows = read(f"adapters/{study}.csv").set_index("method")
    for name, row in rows.iterrows():
        values = [100 * row[key] for key in ("personalised", "personalised_half_width", "worst")]
        values += [(row["up"] + row["down"]) / 1e6, *([100 * errors[name]] if name in errors else [])]
        assert_row(ADAPTERS, f"| method, {study}", name, values)
    assert rows["difference"]["layer_tree(by=barrier)"] == rows["difference_half_width"]["layer_tree(by=barrier)"] == 0
    assert errors[["FedEx-LoRA", "FFA-LoRA", "RoLoRA"]].max() < 3e-6


def test_adapters_shared_by_the_sources_of_sentences() -> None:
    rows, heads = read("adapters/sources.csv").set_index("method"), read("adapters/heads.csv")
    errors = read("adapters/sources_errors.csv").groupby("method")["error"].mean()
    means, apart = 100 * rows["personalised"], rows["difference"].abs() > rows["difference_half_width"]
    assert_quoted(ADAPTERS, "all lie between {} and {} %. FFA-LoRA", means.min(), means.max())
    ffa = rows.loc["FFA-LoRA"]
    differs = -100 * ffa.difference, 100 * ffa.difference_half_width, ffa.p
    assert_quoted(ADAPTERS, "FFA-LoRA is {} ± {} points below FedIT (p = {} without", *differs)
    assert list(rows.index[apart]) == ["FFA-LoRA"]
    text = "FedRot-LoRA's error is {} times FedIT's. By distance, `layer_tree` has an error of {} %"
    assert_quoted(ADAPTERS, text, errors["FedRot-LoRA"] / errors["FedIT"], 100 * errors["layer_tree"])
    alone = heads.set_index(["method", "partition.scheme"])[["personalised", "personalised_half_width"]] * 100
    quoted = [alone.loc[method, scheme] for method in ("FedAvg", "local") for scheme in ("domain", "client_dirichlet")]
    text = "has {} ± {} % on the sources and {} ± {} % with skewed signs, and a personal head "
    text += "{} ± {} and {} ± {} %"
    assert_quoted(
        ADAPTERS, f"{text}, for {{}} MB at most", *pd.concat(quoted), (heads["up"] + heads["down"]).max() / 1e6
    )
    best = alone["personalised"].groupby("partition.scheme").max()
    skewed = 100 * read("adapters/sentiment.csv")["personalised"].max() - best["client_dirichlet"]
    text = "is {} points above the best with the head alone on the sources and {} with skewed signs"
    assert_quoted(ADAPTERS, text, means.max() - best["domain"], skewed)


def test_sharing_adapters_under_other_skew() -> None:
    tables = [read(f"adapters/{name}.csv").set_index("method") for name in ("skew", "skew10")]
    heads = [read(f"adapters/{name}_heads.csv").set_index("method") for name in ("skew", "skew10")]
    labels = {name: [table.loc[name] for table in tables] for name in tables[0].index}
    labels["personal head alone"], labels["averaged head alone"] = (
        [table.loc[name] for table in heads] for name in ("local", "FedAvg")
    )
    for label, rows in labels.items():
        values = pd.concat([100 * row[["personalised", "personalised_half_width", "worst"]] for row in rows])
        assert_row(ADAPTERS, "| method, skew", label, values.tolist())
    shares = 100 * read("adapters/skew_classes.csv").set_index("alpha")["share"]
    largest = [value for alpha in (0.1, 10.0) for value in over_seeds(shares[alpha])]
    assert_row(ADAPTERS, "| method, skew", "each client's more frequent sign", largest)
    strong, weak, alone = tables[0].loc["FedSA-LoRA"], tables[1].loc["FedSA-LoRA"], tables[1].loc["local"]
    text = "gains over FedIT, {} ± {} points (p = {} without a correction for four comparisons)"
    assert_quoted(ADAPTERS, text, 100 * strong.difference, 100 * strong.difference_half_width, strong.p)
    text = "At alpha 10 FedSA-LoRA is {} ± {} points above FedIT (p = {} without a correction), and local training"
    values = [100 * each for each in (weak.difference, weak.difference_half_width)]
    values += [weak.p, 100 * alone.difference, 100 * alone.difference_half_width]
    assert_quoted(ADAPTERS, text + " {} ± {};", *values)


def test_sharing_adapters_on_sentiment() -> None:
    errors = read("adapters/sentiment_errors.csv").groupby("method")["error"].mean()
    rows = read("adapters/sentiment.csv").set_index("method")
    for text, name in (
        ("FedSA-LoRA against FedIT: {} ± {} points", "FedSA-LoRA"),
        ("FedEx-LoRA differs by {} ± {} points", "FedEx-LoRA"),
        ("by distance {} ± {} points against FedIT", "layer_tree"),
    ):
        assert_quoted(ADAPTERS, text, *(100 * rows.loc[name, ["difference", "difference_half_width"]]))
    assert_quoted(ADAPTERS, "three seeds do not establish (p = {})", rows["p"]["FedSA-LoRA"])
    assert_quoted(ADAPTERS, "is between them with {} %", 100 * rows["personalised"]["layer_tree"])
    assert_quoted(ADAPTERS, "FedIT's, but {} times as large", errors["FedRot-LoRA"] / errors["FedIT"])


def test_barriers_and_gains_of_single_adapters() -> None:
    rows = read("adapters/layers.csv")
    means = rows.groupby("layer")[["barrier", "loss", "accuracy"]].mean()
    for name, (barrier, loss, accuracy) in means.iterrows():
        assert_row(ADAPTERS, "| adapter |", name, [1000 * barrier, 1000 * loss, 100 * accuracy])
    by_seed = [own["barrier"].corr(own["loss"], "spearman") for _, own in rows.groupby("seed")]
    text = "is {}, {} and {}, {} ± {} on average, so that three seeds do not establish it; of the means over seeds"
    overall = means["barrier"].corr(means["loss"], "spearman")
    assert_quoted(ADAPTERS, text + " it is {}", *by_seed, *over_seeds(by_seed), overall)


def test_speakers_adapt_alike() -> None:
    values = 100 * read("adapters/speakers.csv").set_index("method")["personalised"]
    text = "have {} to {} % of the next characters right, local training {} %"
    assert_quoted(ADAPTERS, text, values.min(), values.max(), values["local"])
    errors = read("adapters/speakers_errors.csv").groupby("method")["error"].mean()
    ratio = errors["FedRot-LoRA"] / errors["FedIT"]
    assert_quoted(ADAPTERS, "FedIT's {} %, and FedRot-LoRA's {} times that", 100 * errors["FedIT"], ratio)


def test_what_matching_and_repair_give() -> None:
    rows = read("rebasin/one_round.csv").query("`model.name` == 'mlp'")
    own = rows[rows["model.initial"] == "own"].groupby("strategy")["accuracy"]
    plain, matched, repaired = (over_seeds(own.get_group(name)) for name in ("full", "matched_average", REPAIRED))
    alike = over_seeds(rows.query("`model.initial` == 'shared' and strategy == 'full'")["accuracy"])
    text = "8 MLPs have {} ± {} % plain, {} ± {} % matched, {} ± {} % matched and repaired, and {} ± {} % where they"
    assert_quoted(FINDINGS, text, *plain, *matched, *repaired, *alike)
    text = "the average of 8 independent MLPs from {} to {} %, with repair to {} %"
    assert_quoted("README.md", text, plain[0], matched[0], repaired[0])


@pytest.fixture
def study() -> pd.DataFrame:
    """Percentages of the study of the catalogue by method, at each alpha and with two classes."""
    rows = read("personalisation/study.csv")
    by_kind = rows.assign(kind=rows["partition.alpha"].where(rows["partition.scheme"] != "shards", "two"))
    return 100 * by_kind.groupby(["strategy", "kind"])[["personalised", "fine_tuned"]].mean().unstack()


def test_the_study_of_the_catalogue(study: pd.DataFrame) -> None:
    received = study["personalised"]
    gains = received["10.0"] - received.loc["local", "10.0"]
    text = "(alpha 10): by `fedala` ({}), `fedrep` ({}), `fedalt` ({}), `fedrod` ({}) and the shared body ({})"
    methods = ("fedala", "fedrep(head_epochs=4)", "fedalt", "fedrod", "layer_set(shared=body)")
    assert_quoted(PERSONALISATION, text, *(gains[method] for method in methods))
    assert set(gains[gains > 2].index) == set(methods)
    full, tuned = received.loc["full"], study["fine_tuned"].loc["full", "0.1"]
    text = "FedAvg's model has {} % at alpha 0.1 ({} % before)"
    assert_quoted(PERSONALISATION, text, tuned, full["0.1"])
    values = [received.loc[method, kind] for kind in ("0.1", "two") for method in ("full", "fedprox")]
    assert_quoted(
        PERSONALISATION, "here {} and {} after 12 rounds; 80.4 and 78.1 % with two classes, here {} and {})", *values
    )
    few = [received.loc[method, kind] for method in ("floco(whole_rounds=5)", "fedcac") for kind in ("0.1", "two")]
    assert_quoted(PERSONALISATION, "except `floco` ({}, {}), `llmc` (93, 76) and `fedcac` ({}, {});", *few)
    one = received.loc[[method for method in received.index if method.partition("(")[0] in ONE_MODEL], ["0.1", "two"]]
    ends = one.min().min(), one.max().max()
    assert_quoted(PERSONALISATION, "methods with one model for all have {} to {} %", *ends)
    assert_quoted(
        "README.md",
        "methods with one model for all clients {} to {} %, local training {} %",
        *ends,
        received.loc["local", "0.1"],
    )


def test_the_quickstarts_table() -> None:
    rows = read("quickstart/comparison.csv").set_index("method")
    lines = [
        line for line in (ROOT / "README.md").read_text().splitlines() if " MB" in line or line.startswith(" local")
    ]
    for name in ("FedAvg", "FedPer", "LG-FedAvg", "local"):
        [shown] = [line.split() for line in lines if line.startswith(f" {name} ")]
        own = rows.loc[name]
        values = [own["seeds"], own["rounds"], *(100 * own[key] for key in ("personalised", "std", "worst", "global"))]
        for text, value in zip(shown[1:7], values, strict=True):
            assert_near(text, value, name)
        assert f"{own['passes'] / 1000:.1f} k" in " ".join(shown)


def benchmark(name: str) -> pd.DataFrame:
    """Return the rows of a benchmark's results."""
    return pd.DataFrame(json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"])


def test_how_long_whole_jobs_take() -> None:
    rows = benchmark("jobs")
    jobs = rows[rows["part"] == "jobs"].set_index(["model", "strategy", "simulator"])
    sweeps = rows[rows["part"] == "sweep"].set_index("simulator")
    labels = ("fedsim", "Flower's own simulation", "fluke 0.8.1", "FedLab 1.3.0", "BlazeFL 2.0.3, threads")
    for label, name in zip(labels, ("fedsim", "flower", "fluke", "fedlab", "blazefl"), strict=True):
        mlp, cnn, whole = jobs.loc["mlp", "fedavg", name], jobs.loc["cnn", "fedavg", name], sweeps.loc[name]
        times = [[each["seconds"], each["times_fedsim"]][: 1 if name == "fedsim" else 2] for each in (mlp, whole, cnn)]
        memory = [each["peak_mb"] / 1000 for each in (mlp, cnn)]
        assert_row(PERFORMANCE, "| FedAvg, 20 rounds", label, [*times[0], memory[0], *times[1], *times[2], memory[1]])
    of_fedper = (jobs.loc[model, "fedper", "fedsim"]["seconds"] for model in ("mlp", "cnn"))
    assert_quoted(PERFORMANCE, "A job of FedPer takes fedsim {} s (`mlp`) and {} s (`cnn`)", *of_fedper)
    assert sweeps["times_fedsim"].nsmallest(2).iloc[1] > 2, "twice as fast as the best peer"


def test_how_long_barriers_take() -> None:
    [shown] = [rows for heading, rows in tables_of(PERFORMANCE).items() if heading.startswith("| | mixed models")]
    measured = benchmark("barriers")[["mixed_models", "examples", "plain_seconds", "seconds", "faster_by"]]
    assert len(shown) <= len(measured)
    for (label, texts), values in zip(shown.items(), measured.to_numpy(), strict=False):
        assert len(texts) == len(values)
        for text, value in zip(texts, values, strict=True):
            assert_near(text, value, label)


def test_how_long_barriers_of_adapters_take() -> None:
    part, every = benchmark("barriers-adapters").to_dict("records")
    text = "with {} texts it takes {} s instead of {} s, {} of the time"
    assert_quoted(PERFORMANCE, text, part["examples"], part["seconds"], part["plain_seconds"], 1 / part["faster_by"])
    text = "which there are three times as many, {} s instead of {} s, {} ("
    assert_quoted(PERFORMANCE, text, every["seconds"], every["plain_seconds"], 1 / every["faster_by"])
    assert every["mixed_models"] == 3 * part["mixed_models"]


def test_how_long_barriers_in_two_precisions_take() -> None:
    rows = benchmark("precisions")
    cnn, resnet = (
        (row["bfloat16_seconds"], row["float32_seconds"], row["faster_by"]) for row in rows.to_dict("records")
    )
    text = "take {} instead of {} processor seconds on one thread (`cnn`, {} times as fast)"
    assert_quoted(PERFORMANCE, text, *cnn)
    assert_quoted(PERFORMANCE, "and {} instead of {} (`resnet18`, {} times)", *resnet)
    assert_quoted(PERFORMANCE, "and {} examples in float32", *set(rows["n_float32"]))
    assert (rows["bfloat16_se"] / rows["float32_se"] - 1).abs().max() < 0.01


def test_how_long_training_takes() -> None:
    rows = benchmark("training").set_index(["variant", "model"])
    labels = {"BlazeFL 2.0.3, threads": "blazefl-threads", "FedLab 1.3.0": "fedlab", "fluke 0.8.1": "fluke"}
    labels |= {"DataLoader loop": "DataLoader loop", "Flower's own simulation, without its start": "flower"}
    models = ["mlp", "mlp-512", "cnn", "resnet18"]
    for label, variant in labels.items():
        assert_row(PERFORMANCE, "| | `mlp`", label, rows.loc[variant]["fedsim_is_faster_by"][models].tolist())
    loops = rows["fedsim_is_faster_by"].unstack()
    peers = loops.loc[["flower", "blazefl-threads", "fedlab", "fluke"], models].to_numpy()
    assert_quoted("README.md", "training is {} to {} times as fast as Flower's", peers.min(), peers.max())
    plain = loops.loc[["plain loop", "plain loop, one thread"], models].min()
    assert_row(PERFORMANCE, "| | `mlp`", "plain loop, data in memory", plain.tolist())
    own = rows.loc["fedsim"].loc[models]
    assert_row(PERFORMANCE, "| | `mlp`", "fedsim", own["seconds"].tolist())
    assert_row(PERFORMANCE, "| | `mlp`", "share of the limit", (100 * own["of_limit"]).tolist())
    text = "fedsim computes at {} and {} % of the limit"
    assert_quoted(PERFORMANCE, text, *(100 * own["of_limit"][["cnn", "resnet18"]]))
    halved = rows.loc["bfloat16 in fedsim"]["fedsim_is_faster_by"][models]
    assert_row(PERFORMANCE, "| | `mlp`", 'fedsim, `precision = "bfloat16"`', halved.tolist())
    text = "bfloat16 is {} times as fast as float32 for `cnn` (goal 1.7) and {} for `resnet18` (goal 1.5), {}"
    text += " times as fast as the DataLoader loop"
    loader = loops.loc["DataLoader loop", "cnn"] / halved["cnn"]
    assert_quoted(PERFORMANCE, text, *(1 / halved[["cnn", "resnet18"]]), loader)


@pytest.mark.parametrize(
    ("label", "variant"),
    [
        ("float64, the default", "fedsim, float64"),
        ("float64, as updates arrive", "fedsim, float64, streaming"),
        ("float32", "fedsim, float32"),
        ("Flower's `aggregate_arrayrecords`", "Flower's aggregate_arrayrecords"),
    ],
)
def test_how_long_averaging_takes(label: str, variant: str) -> None:
    rows = benchmark("aggregation").query("variant == @variant").sort_values("models")
    values = [each for row in rows.to_dict("records") for each in (row["seconds"], row["best_kernel_is_faster_by"])]
    assert_row(PERFORMANCE, "| | 10 models", label, [*values, rows["peak_models"].max()])


def test_what_a_round_and_a_whole_run_cost() -> None:
    rows = benchmark("overhead")
    messages = rows[rows["part"] == "messages"].set_index(["payload", "clients", "engine"])["seconds"].sort_index()
    labels = {"10": ("tiny", 10), "100": ("tiny", 100), "1,000": ("tiny", 1000), "10,000": ("tiny", 10_000)}
    labels |= {"100 of 100,000": ("tiny", 100_000), "10, with 11 million parameters each": ("large", 10)}
    for label, key in labels.items():
        engines = [engine for engine in ("local", "ray", "flower") if engine in messages[key].index]
        assert_row(PERFORMANCE, "| clients in a round", label, messages[key][engines].tolist())
    full, body = (100 * value for value in rows.query("part == 'run' and engine == 'local'")["wall_overhead"])
    text = "the same two threads: {} % more time with all layers shared and {} % with the body shared"
    assert_quoted(PERFORMANCE, text, full, body)
    assert_quoted(PERFORMANCE, "and hold {} and {} GB.", *(rows.query("part == 'scale'")["peak_mb"] / 1000))


def test_what_a_million_clients_cost() -> None:
    rows = benchmark("million")
    [dry], run, resumed = (rows[rows["part"] == part].to_dict("records") for part in ("dry run", "run", "resumed"))
    memory = [[row["memory_mb"] / 1000 for row in part[1:]] for part in (run, resumed)]
    first, last = run[1], run[-1]
    used = (last["cpu_seconds"] - first["cpu_seconds"]) / (last["rounds"] - first["rounds"])
    text = "the first round is done after {} s, and memory is {} to {} GB from round 100 on. A round takes {} s"
    assert_quoted(PERFORMANCE, text, run[0]["seconds"], min(memory[0]), max(memory[0]), used)
    text = "the run does its next round {} s after the same command is given, and holds {} to {} GB to its end"
    assert_quoted(PERFORMANCE, text, resumed[0]["seconds"], min(memory[1]), max(memory[1]))
    assert_quoted(PERFORMANCE, "divides ten million examples, takes {} s", dry["seconds"])


@pytest.mark.parametrize("workers", [2, 8, 64])
def test_what_a_client_costs_the_driver(workers: int) -> None:
    rows = benchmark("scale").query("workers == @workers").sort_values("clients")
    assert_row(PERFORMANCE, "| driver, of a round with", f"{workers} workers", rows["driver_ms"].tolist())


def test_how_long_partitions_take() -> None:
    rows = benchmark("partitions")
    own = rows.query("what == 'dirichlet'").set_index("clients")
    ends = [end for key in ("seconds", "peak_mb") for end in (own[key].min(), own[key].max())]
    text = "takes {} to {} s and {} to {} MB from 10 to 100,000 clients, {} to {} times one stable sort"
    assert_quoted(PERFORMANCE, text, *ends, own["argsorts"].min(), own["argsorts"].max())
    ratios = [
        rows[rows["what"] == loop].set_index("clients")["seconds"][clients] / own["seconds"][clients]
        for loop in ("per_class_loop", "list_of_lists_loop")
        for clients in (1000, 10_000)
    ]
    text = "takes {} times as long at 1,000 clients and {} times at 10,000, a loop with Python lists {} and {} times"
    assert_quoted(PERFORMANCE, text, *ratios)
    slow = rows.query("what == 'client_dirichlet' and clients == 100_000")["seconds"]
    assert_quoted(PERFORMANCE, "except `client_dirichlet` with {} s", *slow)


def test_how_long_matching_takes() -> None:
    rows = benchmark("alignment")
    copy, other = (row for row in rows.to_dict("records") if row["case"].startswith("resnet18, width 64"))
    text = "matched in {} s (a permuted copy, which is recovered) and {} s (another initialisation): {} and {} times"
    assert_quoted(PERFORMANCE, text, copy["seconds"], other["seconds"], copy["faster_by"], other["faster_by"])
    better = 100 * (other["objective"] / other["plain_objective"] - 1)
    assert_quoted(PERFORMANCE, "with an objective that is as good and {} % better", better)
    many = rows["seconds_per_sweep_and_member"]
    assert_quoted(PERFORMANCE, "takes {} to {} s for each model and sweep", many.min(), many.max())


def test_how_long_starting_takes() -> None:
    seconds = benchmark("startup").set_index("command")["cpu_seconds"]
    heading = "| | seconds | goal |"
    several = [seconds[f"fedsim {name}"] for name in ("--help", "--version", "list strategies")]
    assert_row(PERFORMANCE, heading, "`fedsim --help`, `--version`, `list strategies`", [*several, 0.5])
    for label, name, goal in (("`import fedsim`", "import fedsim", 0.1), ("a wrong setting", "a wrong setting", 0.5)):
        assert_row(PERFORMANCE, heading, label, [seconds[name], goal])
    assert_quoted(PERFORMANCE, "`import torch` alone takes {} s", seconds["import torch"])


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("plain", "FedAvg"),
        ("plain, variance given back", "matched_average(repair=variance, matching=none)"),
        ("`hierarchical_average`", "hierarchical_average"),
        ("`matched_average`", "matched_average"),
        ("`matched_average`, `c2m3`", "matched_average(matching=c2m3)"),
        ("`c2m3`, variance given back", "matched_average(repair=variance, matching=c2m3)"),
        ("`c2m3`, repaired", "matched_average(repair=repair, matching=c2m3)"),
    ],
)
def test_many_models_merged_at_once(label: str, strategy: str) -> None:
    rows = read("rebasin/c2m3.csv")
    own = rows[rows["strategy"] == strategy].groupby("clients")["accuracy"]
    assert_row(REBASIN, MERGES, label, [number for _, group in own for number in over_seeds(group)])


def test_barriers_of_many_models() -> None:
    rows = read("rebasin/c2m3.csv").query("strategy == 'FedAvg'")
    labels = {"barrier": "unmatched", "barrier, c2m3": "`c2m3`"}
    labels |= {"barrier, matched": "`weights`: each with the mean of the others"}
    for column, label in labels.items():
        values = [number for _, group in rows.groupby("clients")[column] for number in over_seeds(group)]
        assert_row(REBASIN, UNIVERSE, label, values)
    eight = rows[rows["clients"] == 8]
    change = eight["barrier, c2m3"] - eight["barrier, matched"]
    assert (change < 0).all()
    assert_quoted(REBASIN, "With 8 models C2M3 changes the barrier by {} ± {} nats", *over_seeds(change))
    means = read("rebasin/c2m3.csv").groupby(["strategy", "clients"])["accuracy"].mean().unstack("clients")
    gained = means.loc["matched_average(repair=variance, matching=c2m3)"] - means.loc["matched_average(matching=c2m3)"]
    assert_quoted(REBASIN, "gains {} to {} points after C2M3", gained.min(), gained.max())


def test_walks_between_independent_models() -> None:
    rows = read("paths/peaks.csv")
    for way, group in rows.groupby("way"):
        values = [
            number
            for part in ("train", "test")
            for metric, factor in (("loss", 1), ("error", 100))
            for number in over_seeds(factor * group[f"{part}_{metric}"])
        ]
        assert_row(PATHS, "| the highest point", str(way), values)
    assert_quoted(PATHS, "A walk has {} to {} ticks", rows["tick"].min(), rows["tick"].max())


@pytest.mark.parametrize("width", [128, 256, 512, 1024, 2048])
@pytest.mark.parametrize("decay", ["0", "0.0001", "0.003"])
def test_barriers_of_wide_networks(width: int, decay: str) -> None:
    rows = read("width/width.csv")
    own = rows[(rows["width"] == width) & (rows["weight_decay"] == float(decay))]
    columns = ("accuracy", "barrier", "barrier_all", "error_barrier", "cosine", "reciprocal")
    values = [number for column in columns for number in over_seeds(own[column])]
    values += [own["cosine_shuffled"].mean(), own["stable_rank_fc2"].mean()]
    assert_row(WIDTH, "| units | weight decay", f"{width}, {decay}", values)


def test_each_folder_of_results_has_the_commands_that_made_it() -> None:
    page = (ROOT / "experiments" / "results" / "README.md").read_text()
    folders = [path.name for path in (ROOT / "experiments" / "results").iterdir() if path.is_dir()]
    assert not [name for name in folders if f"`{name}`" not in page]


@pytest.mark.parametrize(
    ("label", "method"),
    [
        ("`local`", "local"),
        ("FedAvg", "FedAvg"),
        ("FedPer", "FedPer"),
        ("FedRep, one epoch of the head", "FedRep(head_epochs=1)"),
        ("FedProto", "FedProto"),
        ('FedProto, `predict = "means"`', "FedProto(predict=means)"),
        ("FedPAC", "FedPAC"),
        ("FedPAC, `combine = false`", "FedPAC(combine=False)"),
        ("FedCP", "FedCP"),
        ("FedCP, `mmd = 0`", "FedCP(mmd=0.0)"),
    ],
)
def test_methods_that_work_on_features(label: str, method: str) -> None:
    rows = read("features/comparison.csv")
    [value] = 100 * rows.loc[rows["method"] == method, "personalised"]
    assert_row(FINDINGS, "| method, features", label, [value])


@pytest.mark.parametrize("models", [1, 2, 4, 8, 16])
def test_robustness_of_averages_of_more_models(models: int) -> None:
    columns = ["accuracy", *(f"fgsm:{step}" for step in (0.1, 0.2, 0.3, 0.4, 0.5))]
    means = read("rebasin/number_of_models_robustness.csv").groupby("clients")[columns].mean()
    values = [*means.loc[models]]
    if models > 1:  # up to FGSM 0.3 with the ratio to the single model
        ratios = [*(means.loc[models] / means.loc[1])]
        values = [end for pair in zip(values[:4], ratios, strict=False) for end in pair] + values[4:]
    assert_row(REBASIN, ROBUSTNESS, str(models), values)


TWO_MODELS = {
    "normalised, standard": ("independent", "normed_mlp", "none"),
    "normalised, standard, matched": ("matched", "normed_mlp", "weights"),
    "normalised, gates": ("independent", "normed_mlp, sigma", "none"),
    "normalised, fixed entries of the paper": ("independent", "normed_mlp, w", "none"),
    "plain, standard": ("independent", "mlp", "none"),
    "plain, standard, matched": ("matched", "mlp", "weights"),
    "plain, gates": ("independent", "mlp, sigma", "none"),
    "plain, an eighth fixed": ("independent", "mlp, w 0.125", "none"),
    "plain, half fixed": ("independent", "mlp, w 0.5", "none"),
}


@pytest.mark.parametrize("label", TWO_MODELS)
def test_independent_models_with_and_without_asymmetry(label: str) -> None:
    file, model, matching = TWO_MODELS[label]
    rows = read(f"asymmetry/{file}.csv")
    rows = rows[(rows["model"] == model) & (rows["matching"] == matching)]
    columns = ("own", "average", "error_barrier", "barrier")
    values = [number for column in columns for number in over_seeds(rows[column])]
    assert_row(ASYMMETRY, "| two models | own", label, [*values, rows["distance"].mean()])


@pytest.mark.parametrize(
    ("label", "model", "initial"),
    [
        ("standard, one initialisation", "normed_mlp", "shared"),
        ("standard, own initialisations", "normed_mlp", "own"),
        ("gates, own initialisations", "normed_mlp, sigma", "own"),
        ("fixed entries, own initialisations", "normed_mlp, w", "own"),
    ],
)
def test_federations_with_and_without_asymmetry(label: str, model: str, initial: str) -> None:
    rows = read("asymmetry/federation.csv").query("model == @model and initial == @initial")
    values: list[float] = []
    for server_round in (1, 2, 3):
        values += over_seeds(rows[rows["round"] == server_round]["average"])
    first = rows[rows["round"] == 1]
    assert_row(ASYMMETRY, "| clients | round 1", label, [*values, first["own"].mean(), *over_seeds(first["barrier"])])


PARTED = {
    "other batches": ("other_batches", None, None),
    "nothing": ("butterfly", 0.0, "gaussian"),
    "noise of 0.01": ("butterfly", 0.01, "gaussian"),
    "a batch's gradient of 0.01": ("butterfly", 0.01, "gradient"),
}


@pytest.mark.parametrize("label", PARTED)
def test_barriers_of_copies_that_part(label: str) -> None:
    file, noise, kind = PARTED[label]
    rows = read(f"spawning/{file}.csv")
    if noise is not None:
        rows = rows[(rows["noise"] == noise) & (rows["noise_kind"] == kind)]
    values: list[float] = []
    for steps in (0, 500):
        own = rows[rows["steps"] == steps]
        values += [*over_seeds(own["error_barrier"]), *over_seeds(own["barrier"])]
    assert_row(SPAWNING, "| copies part", label, values)


@pytest.mark.parametrize("network", ["2 layers", "6 layers", "unshared filters", "shared filters"])
def test_barriers_of_networks_that_differ_in_one_thing(network: str) -> None:
    rows = read("spawning/disentangling.csv").query("model == @network")
    values: list[float] = []
    for optimizer, lr in (("sgd", 0.01), ("sgd", 0.05), ("adamw", 0.001)):
        own = rows[(rows["optimizer"] == optimizer) & (rows["lr"] == lr)]
        values += [own["own"].mean(), *over_seeds(own["error_barrier"]), *over_seeds(own["barrier"])]
    assert_row(SPAWNING, "| network |", network, values)


def test_memory_of_clients_with_adapters() -> None:
    many, few = benchmark("adapters").to_dict("records")
    text = "hold {} MB, and 2 clients {} MB, with a base of {} MB and {} MB for each adapter"
    assert_quoted(PERFORMANCE, text, many["held_mb"], few["held_mb"], many["base_mb"], many["adapter_mb"])
