"""What the pages of the studies say in sentences is what their committed tables carry, by intervals and seeds."""

from collections import Counter
from collections.abc import Iterable

import pandas as pd
import pytest

from fedsim.config import Config, read_toml
from fedsim.config.expectation import Expectation
from fedsim.results.check.bounds import Bounds, of_mean, of_ratio
from fedsim.results.check.settings import matches
from tests.whole.quoted import ROOT, assert_quoted, is_shown, over_seeds, read

TRANSFORMERS, EXPERTS, FINDINGS = (
    "experiments/transformers/README.md",
    "experiments/experts/README.md",
    "docs/findings.md",
)
REBASIN, ADAPTERS = "experiments/rebasin/README.md", "experiments/adapters/README.md"
ASYMMETRY, SPAWNING = "experiments/asymmetry/README.md", "experiments/spawning/README.md"
PATHS, WIDTH = "experiments/paths/README.md", "experiments/width/README.md"


def verdicts(file: str, found: Iterable[tuple[int, Bounds]]) -> dict[str, Counter[str]]:
    """Count the verdicts, by intervals and by means, of bounds on the numbered expectations of an experiment's file."""
    path = ROOT / "experiments" / file
    expected = [Expectation.model_validate(each) for each in read_toml(path)["expect"]]
    pairs = [(expected[number], bounds) for number, bounds in found]
    assert {number for number, _ in enumerate(expected)} == {expected.index(each) for each, _ in pairs}
    return {
        "intervals": Counter(each.verdict(bounds.low, bounds.high) for each, bounds in pairs),
        "means": Counter(each.verdict(bounds.value, bounds.value) for each, bounds in pairs),
    }


def by(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Return the rows by these keys and their seed."""
    return rows.set_index([*keys, "seed"]).sort_index()


def test_when_copies_that_part_have_barriers() -> None:
    parted = by(read("spawning/butterfly.csv"), "noise", "noise_kind", "steps")
    other = by(read("spawning/other_batches.csv"), "steps")
    noise, gradient = parted.loc[0.01, "gaussian"], parted.loc[0.01, "gradient"]
    above = noise.loc[0]["error_barrier"] - other.loc[0]["error_barrier"]
    assert_quoted(
        SPAWNING, "has a barrier whose mean is {} ± {} points above that of other batches", *over_seeds(above)
    )
    lower = [each.loc[0] - each.loc[500] for each in (noise, gradient, other)]
    assert all((each["error_barrier"] > 0).all() for each in lower)
    assert not any(is_shown(each[column]) for each in lower for column in ("error_barrier", "barrier"))
    text = "by {} ± {} points with noise, {} ± {} with a gradient and {} ± {} with other batches"
    assert_quoted(SPAWNING, text, *(end for each in lower for end in over_seeds(each["error_barrier"])))
    more = gradient.loc[500]["error_barrier"] - noise.loc[500]["error_barrier"]
    assert_quoted(SPAWNING, "is open, too ({} ± {} points)", *over_seeds(more))


def test_what_is_expected_of_copies_that_part() -> None:
    parted = by(read("spawning/butterfly.csv"), "noise", "noise_kind", "steps")["barrier"]
    found = [
        (number, of_mean(parted.loc[noise, kind, steps]))
        for number, noise, steps in ((0, 0.01, 0), (1, 0.0, 0), (1, 0.0, 500), (2, 0.01, 500))
        for kind in (("gaussian", "gradient") if noise else ("gaussian",))
    ]
    other = by(read("spawning/other_batches.csv"), "steps")["barrier"]
    ends = [(0, of_mean(other.loc[0])), (1, of_ratio(other.loc[500], other.loc[0]))]
    first, second = verdicts("spawning/butterfly.toml", found), verdicts("spawning/other_batches.toml", ends)
    assert first["means"] + second["means"] == {"ok": 8}
    counted = first["intervals"] + second["intervals"]
    text = (
        "All 8 checks of the first two files hold by their means (`fedsim check --means`); by their intervals {} hold"
    )
    assert_quoted(SPAWNING, f"{text} and {{}} are undecided", counted["ok"], counted["undecided"])
    assert counted.total() == 8


def test_networks_that_differ_in_one_thing() -> None:
    rows = by(read("spawning/disentangling.csv"), "optimizer", "lr", "model")
    trained = {"slow": rows.loc["sgd", 0.01], "fast": rows.loc["sgd", 0.05], "adamw": rows.loc["adamw", 0.001]}
    networks = list(rows.index.unique("model"))
    for column in ("barrier", "error_barrier"):
        for name, each in trained.items():
            means = {network: over_seeds(each.loc[network][column]) for network in networks}
            assert not [network for network in networks if means[network][0] > means[network][1]], name
            pairs = [(a, b) for a in networks for b in networks if a < b]
            assert not [pair for pair in pairs if is_shown(each.loc[pair[0]][column] - each.loc[pair[1]][column])], name
        rises = trained["fast"][column] - trained["slow"][column]
        assert [network for network in networks if is_shown(rises.loc[network])] == ["6 layers"]
    deep = (trained["fast"] - trained["slow"]).loc["6 layers"]
    values = [*over_seeds(deep["barrier"]), *over_seeds(deep["error_barrier"])]
    assert_quoted(SPAWNING, "raise it for six layers, by {} ± {} nats and {} ± {} points", *values)
    shallow = over_seeds(trained["fast"].loc["2 layers"]["error_barrier"])
    assert_quoted(SPAWNING, "for two layers they leave {} ± {} points, undecided", *shallow)
    found = [(0, of_mean(trained["slow"].loc[network]["barrier"])) for network in networks]
    found += [(1, of_mean(trained["fast"].loc[network]["barrier"])) for network in ("2 layers", "6 layers")]
    counted = verdicts("spawning/disentangling.toml", found)
    assert counted == {"intervals": {"ok": 4, "undecided": 2}, "means": {"ok": 4, "FAILED": 2}}


def test_what_fixed_entries_do_to_two_models() -> None:
    alone, matched = (
        by(read("asymmetry/independent.csv"), "model"),
        by(read("asymmetry/matched.csv"), "matching", "model"),
    )
    for fixed, standard in (("normed_mlp, w", "normed_mlp"), ("mlp, w 0.125", "mlp"), ("mlp, w 0.5", "mlp")):
        assert not is_shown(alone.loc[fixed]["own"] - alone.loc[standard]["own"])
    distances = {
        fixed: over_seeds(alone.loc[fixed]["distance"] - matched.loc["weights", standard]["distance"])[0]
        for fixed, standard in (("normed_mlp, w", "normed_mlp"), ("mlp, w 0.125", "mlp"), ("mlp, w 0.5", "mlp"))
    }
    assert distances.pop("mlp, w 0.5") < -3
    assert all(abs(each) < 2 for each in distances.values())
    larger = alone.loc["normed_mlp, sigma"]["barrier"] - alone.loc["normed_mlp"]["barrier"]
    assert_quoted(
        ASYMMETRY, "in normalised models it is {} ± {} nats larger than in standard ones", *over_seeds(larger)
    )
    eighth, half = (over_seeds(alone.loc[f"mlp, w {share}"]["error_barrier"]) for share in (0.125, 0.5))
    text = "keep a barrier of {} ± {} points of error; with half of all entries fixed it is {} ± {}"
    assert_quoted(ASYMMETRY, text, *eighth, *half)


def test_what_is_expected_of_two_models() -> None:
    alone = by(read("asymmetry/independent.csv"), "model")["barrier"]
    about = ((0, "normed_mlp"), (0, "mlp"), (1, "normed_mlp, w"), (2, "mlp, w 0.125"), (2, "mlp, w 0.5"))
    found = [(number, of_mean(alone.loc[model])) for number, model in (*about, (3, "normed_mlp, sigma"))]
    assert verdicts("asymmetry/independent.toml", found)["intervals"] == {"ok": 5, "undecided": 1}
    matched = by(read("asymmetry/matched.csv"), "model", "matching")["barrier"]
    ratios = [
        (0, of_ratio(matched.loc[model, "weights"], matched.loc[model, "none"])) for model in ("mlp", "normed_mlp")
    ]
    assert verdicts("asymmetry/matched.toml", ratios)["intervals"] == {"ok": 2}


def test_a_federation_with_and_without_asymmetry() -> None:
    rows = by(read("asymmetry/federation.csv"), "model", "initial", "round")
    alike, apart = rows.loc["normed_mlp", "shared"], rows.loc["normed_mlp", "own"]
    fixed = rows.loc["normed_mlp, w", "own"]
    gained = [over_seeds(each.loc[1]["average"] - each.loc[1]["own"]) for each in (fixed, alike)]
    text = "that started apart is {} ± {} points above their own models, that of clients of one initialisation {} ± {}"
    assert_quoted(ASYMMETRY, text, *gained[0], *gained[1])
    lost = over_seeds(apart.loc[1]["own"] - apart.loc[1]["average"])
    assert_quoted(ASYMMETRY, "of standard clients that started apart it is {} ± {} below", *lost)
    left = over_seeds(alike.loc[3]["average"] - apart.loc[3]["average"])
    assert_quoted(ASYMMETRY, "After three rounds {} ± {} points are left between standard clients", *left)
    below = over_seeds(alike.loc[3]["average"] - fixed.loc[3]["average"])
    assert_quoted(ASYMMETRY, "fixed entries are {} ± {} below one initialisation, undecided", *below)
    found = [(0, apart.loc[1]), (1, fixed.loc[1]), (2, fixed.loc[3])]
    counted = verdicts(
        "asymmetry/federation.toml", [(number, of_mean(each["average"] / 100)) for number, each in found]
    )
    assert counted["means"] == {"ok": 3}
    assert_quoted(
        ASYMMETRY, "By this table {} of the 3 expectations hold with their intervals", counted["intervals"]["ok"]
    )


def test_how_high_walks_go_above_their_ends() -> None:
    rows = by(read("paths/peaks.csv"), "way")
    ends = rows.loc[["start", "end"]].groupby("seed").max()
    trained, straight = rows.loc["with both"], rows.loc["straight line, halfway"]
    ratios = [each["train_loss"] / ends["train_loss"] for each in (trained, straight)]
    text = "its peak is {} to {} times the loss of the higher end, where the middle of the straight line has {} to {}"
    assert_quoted(PATHS, text, *(end for each in ratios for end in (each.min(), each.max())))
    assert (trained["test_loss"] == ends["test_loss"]).all()
    assert_quoted(PATHS, "the highest one measured is that of an end ({}, {} and {})", *ends["test_loss"])
    above = 100 * (trained["test_error"] - ends["test_error"])
    assert_quoted(PATHS, "The highest error is {} to {} points above that of the higher end", above.min(), above.max())
    walks = read("paths/walks.csv").query("way == 'with both'").groupby("seed")
    for way, tick in (("start", 0), ("end", -1)):
        reached = walks.nth(tick).set_index("seed")
        assert (reached[["train_loss", "test_error"]] == rows.loc[way][["train_loss", "test_error"]]).all(axis=None)


@pytest.fixture
def width() -> pd.DataFrame:
    """Return the networks of the study of widths, by weight decay, width and seed."""
    return by(read("width/width.csv"), "weight_decay", "width")


def test_calibrated_barriers_fall_with_the_width(width: pd.DataFrame) -> None:
    calibrated = width["barrier_all"]
    falls = [calibrated.loc[decay, 128] - calibrated.loc[decay, 2048] for decay in (0, 1e-4, 3e-3)]
    assert all((each > 0).all() and not is_shown(each) for each in falls)
    text = "by {} ± {} nats without weight decay, {} ± {} with 1e-4 and {} ± {} with 3e-3"
    assert_quoted(WIDTH, text, *(end for each in falls for end in over_seeds(each)))
    later = [calibrated.loc[decay, 512] - calibrated.loc[decay, 2048] for decay in (0, 1e-4, 3e-3)]
    assert not any(map(is_shown, later))
    text = "from there on it falls by {} ± {}, {} ± {} and {} ± {}, nothing that is shown"
    assert_quoted(WIDTH, text, *(end for each in later for end in over_seeds(each)))
    last = [end for decay in (3e-3, 1e-4, 0) for end in over_seeds(calibrated.loc[decay, 2048])]
    assert_quoted(WIDTH, "barrier is {} ± {} nats with 3e-3, {} ± {} with 1e-4 and {} ± {} without", *last)


def test_cosines_against_the_control(width: pd.DataFrame) -> None:
    wide = width.loc[3e-3, 2048]
    assert_quoted(
        WIDTH, "{} ± {} at 2,048 units and 3e-3 against {}", *over_seeds(wide["cosine"]), wide["control"].iloc[0]
    )
    layers = [wide[f"cosine_fc{number}"] for number in (1, 2, 3, 4)]
    text = "By layer it is {} ± {}, {} ± {}, {} ± {} and {} ± {} from `fc1` to `fc4`"
    assert_quoted(WIDTH, text, *(end for each in layers for end in over_seeds(each)))
    beyond = [each - wide["control"] for each in layers]
    assert all(map(is_shown, beyond))
    assert [each.mean() > 0 for each in beyond] == [False, False, True, True]
    assert (width["cosine"] - width["cosine_shuffled"] > 0.2).all()


def test_what_is_expected_of_wide_networks(width: pd.DataFrame) -> None:
    strong, none = width.loc[3e-3], width.loc[0]
    found = [
        strong.loc[2048]["barrier_all"] - strong.loc[128]["barrier_all"],
        strong.loc[2048]["barrier_all"],
        none.loc[2048]["barrier_all"],
        strong.loc[2048]["cosine"],
        none.loc[2048]["cosine"],
        strong.loc[2048]["reciprocal"] - none.loc[2048]["reciprocal"],
    ]
    counted = verdicts("width/width.toml", enumerate(map(of_mean, found)))
    values = counted["means"]["ok"], counted["intervals"]["ok"], counted["intervals"]["undecided"]
    assert_quoted(WIDTH, "By the means {} of 6 expectations hold", values[0])
    assert_quoted(WIDTH, "by the intervals {} hold, {} are undecided and the third fails", *values[1:])
    assert of_mean(found[2]).high < 0.1


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("images", "{} of all 19 hold, and {} are undecided"),
        ("text", "{} of the 19 expectations of `text.toml` hold, and {} are undecided"),
    ],
)
def test_what_is_expected_of_mixtures_of_experts(file: str, text: str) -> None:
    runs = read(f"experts/{file}.csv").pivot_table(
        "barrier", ["block", "top_k", "num_shared_experts", "seed"], "matching"
    )
    found = []
    for _, own in runs.loc[[0]].groupby(level=[1, 2]):
        bounds = [of_mean(own["none"]), of_ratio(own["units"], own["none"]), of_ratio(own["weights"], own["none"])]
        bounds += [of_mean(own["weights"] - own["units"]), of_mean(own["gate"] - own["weights"])]
        found += list(enumerate([*bounds, of_mean(own["gram"] - own["weights"])]))
    found.append((6, of_ratio(runs.loc[1, 0, 0]["none"], runs.loc[0, 0, 0]["none"])))
    counted = verdicts(f"experts/{file}.toml", found)["intervals"]
    assert_quoted(EXPERTS, text, counted["ok"], counted["undecided"])


def halfway(name: str) -> pd.DataFrame:
    """Return the barriers halfway between two transformers, a column for each matching."""
    rows = read(f"transformers/{name}.csv").query("t == 0.5")
    keys = ["model.tied", "seed"] if "model.tied" in rows else ["seed"]
    return rows.pivot_table("barrier", keys, "matching")


def test_what_is_expected_of_two_transformers() -> None:
    vit, gpt = halfway("vit"), halfway("gpt")
    ratios = [of_ratio(vit["rotations"], vit[way]) for way in ("none", "weights", "head-rotations")]
    first = verdicts("transformers/vit.toml", enumerate([of_mean(vit["none"]), *ratios]))
    untied, tied = gpt.loc[False], gpt.loc[True]
    found = [(0, of_mean(untied["none"])), (0, of_mean(tied["none"]))]
    found += [(1, of_ratio(untied["rotations"], untied["weights"])), (2, of_ratio(tied["rotations"], tied["none"]))]
    second = verdicts("transformers/gpt.toml", found)
    assert first["means"] + second["means"] == {"ok": 8}
    assert first["intervals"] == {"undecided": 4}
    assert second["intervals"] == {"ok": 3, "undecided": 1}
    assert_quoted(TRANSFORMERS, "have more than 0.5 nats ({} ± {})", *over_seeds(untied["none"]))
    heads = [over_seeds(each["weights"] - each["head-rotations"]) for each in (untied, tied)]
    text = "add {} ± {} and {} ± {} nats to permutations, not shown to be more than 0"
    assert_quoted(TRANSFORMERS, text, *heads[0], *heads[1])
    means = vit.mean()
    text = (
        "permutations leave {} of {} nats and are worse than nothing in one pair, and rotations of the stream leave {}"
    )
    assert_quoted(TRANSFORMERS, text, means["weights"], means["none"], means["rotations"])
    assert (vit["weights"] > vit["none"]).sum() == 1
    assert (vit.idxmin(axis=1) == "rotations").all()
    learned = read("transformers/gpt_learned.csv").query("t == 0.5")["barrier"]
    text = "of {} ± {} nats between two GPTs permutations leave {} ± {}, rotations of the residual stream {} ± {}, and "
    values = [*(untied[way] for way in ("none", "weights", "rotations")), learned]
    assert_quoted(FINDINGS, text + "learned ones {} ± {}", *(end for each in values for end in over_seeds(each)))


def test_what_is_expected_of_federations_of_transformers() -> None:
    vit = by(read("transformers/vit_federation.csv"), "strategy", "round")["accuracy"]
    gpt = by(read("transformers/gpt_federation.csv"), "strategy")["accuracy"]
    rotated, matched = "matched_average(symmetries=rotations)", "matched_average"
    gains = {number: vit.loc[rotated, number] - vit.loc["FedAvg", number] for number in (1, 2, 3)}
    found = [gains[1], vit.loc[rotated, 1] - vit.loc[matched, 1], gains[2]]
    first = verdicts("transformers/vit_federation.toml", enumerate(of_mean(each / 100) for each in found))
    others = [gpt.loc[rotated] - gpt.loc[each] for each in ("FedAvg", matched)]
    second = verdicts("transformers/gpt_federation.toml", enumerate(of_mean(each / 100) for each in others))
    assert first["means"] + second["means"] == {"ok": 5}
    assert first["intervals"] + second["intervals"] == {"ok": 3, "undecided": 2}
    text = "5 points over the plain average in round 1 ({} ± {}) and their head start in round 2 ({} ± {})"
    assert_quoted(TRANSFORMERS, text, *over_seeds(gains[1]), *over_seeds(gains[2]))
    alone = over_seeds(vit.loc[matched, 1] - vit.loc["FedAvg", 1])
    assert_quoted(TRANSFORMERS, "permutations alone are not shown to help the ViTs ({} ± {} points)", *alone)
    assert_quoted(TRANSFORMERS, "nothing is shown to be left in round 3 ({} ± {})", *over_seeds(gains[3]))


def test_c2m3_against_other_merges() -> None:
    rows = by(read("rebasin/c2m3.csv").query("clients == 8"), "strategy")
    own, pairs = rows.loc["matched_average(matching=c2m3)"]["accuracy"], rows.loc["hierarchical_average"]["accuracy"]
    repaired = rows.loc["matched_average(repair=repair, matching=c2m3)"]["accuracy"]
    less = over_seeds(rows.loc["matched_average"]["accuracy"] - own)
    assert_quoted(REBASIN, "Against the expectation its mean accuracy is {} ± {} points lower with 8 models", *less)
    assert_quoted(FINDINGS, "with 8 models it has {} ± {} points less", *less)
    assert_quoted(REBASIN, "from merging in pairs either ({} ± {} points higher)", *over_seeds(own - pairs))
    plain, barriers = rows.loc["FedAvg"], rows.loc["FedAvg"]["barrier, c2m3"] - rows.loc["FedAvg"]["barrier, matched"]
    varied = rows.loc["matched_average(repair=variance, matching=none)"]["accuracy"]
    found = [plain["accuracy"] / 100, varied / 100, (own - plain["accuracy"]) / 100, (own - pairs) / 100]
    found += [barriers, (repaired - own) / 100]
    counted = verdicts("rebasin/c2m3.toml", enumerate(map(of_mean, found)))
    assert counted == {"intervals": {"ok": 2, "undecided": 4}, "means": {"ok": 6}}


def test_what_is_expected_of_single_adapters() -> None:
    rows, path = read("adapters/layers.csv"), ROOT / "experiments/adapters/layers.toml"
    rows["block"] = rows["layer"].str.split(".").str[0].astype(int)
    found = [
        [own[column].corr(own["loss"], "spearman") for _, own in rows.groupby("seed")]
        for column in ("barrier", "block")
    ]
    text = "the rank correlation of the block and the loss is {}, {} and {}, {} ± {} on average"
    assert_quoted(ADAPTERS, text, *found[1], *over_seeds(found[1]))
    configs = Config.parse(read_toml(path), str(path)).runs(str(path))
    for expectation, correlations in zip(configs[0].expect[1:], found, strict=True):
        assert sum(matches(config, expectation.where) for config in configs) == len(rows)
        bounds = of_mean(correlations)
        assert expectation.verdict(bounds.low, bounds.high) == "undecided"


def test_the_findings_on_studies(width: pd.DataFrame) -> None:
    rows = by(read("asymmetry/federation.csv"), "model", "initial", "round")["average"]
    alike = rows.loc["normed_mlp", "shared", 1]
    below = [over_seeds(alike - rows.loc[model, "own", 1]) for model in ("normed_mlp, w", "normed_mlp")]
    text = "the first average is {} ± {} points below that of clients who started alike, without them {} ± {} (3 seeds)"
    assert_quoted(FINDINGS, text, *below[0], *below[1])
    ends = [over_seeds(width.loc[decay, 2048]["barrier_all"]) for decay in (3e-3, 0)]
    assert_quoted(FINDINGS, "is {} ± {} nats with strong weight decay and {} ± {} without", *ends[0], *ends[1])
    peaks = by(read("paths/peaks.csv"), "way")["train_loss"]
    ratio = peaks.loc["with both"] / peaks.loc[["start", "end"]].groupby("seed").max()
    assert_quoted(FINDINGS, "peaks at {} to {} times that of the higher end", ratio.min(), ratio.max())
    deep = by(read("spawning/disentangling.csv"), "model", "optimizer", "lr")["barrier"].loc["6 layers", "sgd"]
    assert_quoted(
        FINDINGS, "raise the barrier of six layers by {} ± {} nats", *over_seeds(deep.loc[0.05] - deep.loc[0.01])
    )
