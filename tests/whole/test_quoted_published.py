"""What the page of published numbers says came out here is that of a committed table, rounded."""

import pandas as pd
import pytest
from scipy import stats

from tests.whole.quoted import RESULTS, assert_near, assert_quoted, assert_row, is_shown, over_seeds, read, tables_of

PAGE = "experiments/published/README.md"
PFEDME, NETWORK, THESIS = "| | published (unverified)", "| hidden layer", "| accuracy, %"
LOGISTIC = "| | published (unverified), 10 repetitions | released loops, by seed | fedsim, ten seeds |"
HEADING = "| accuracy, % | published | here, by seed | mean |"
SERVERS = "| server optimisers, accuracy"
NIID = "| Dirichlet(0.5), accuracy, % |"
OPTIMISERS, LABELS = "| global accuracy, % | FedAvg", "| global accuracy, % | i.i.d."


def ranking(name: str) -> pd.DataFrame:
    """Return a table that ``fedsim table --markdown`` wrote."""
    rows = [
        [cell.strip().replace("\\", "") for cell in line.strip("|\n").split("|")]
        for line in (RESULTS / "published" / f"{name}.md").read_text().splitlines()
    ]
    return pd.DataFrame(rows[2:], columns=rows[0]).set_index("strategy")


def test_each_table_is_recomputed() -> None:
    known = (PFEDME, NETWORK, THESIS, SERVERS, NIID, OPTIMISERS, LABELS)
    assert all(heading.startswith(known) for heading in tables_of(PAGE)), "add a committed table and a test for it"


@pytest.mark.parametrize(
    ("label", "method", "models", "strategy", "model"),
    [
        ("FedAvg", "fedavg", ("gm",), "experiments.published.pfedme:FedAvg", "global"),
        ("pFedMe, global", "pfedme", ("gm",), "experiments.published.pfedme:PFedMe", "global"),
        ("pFedMe, personal", "pfedme", ("pm", "theta"), "experiments.published.pfedme:PFedMe", "personalised"),
    ],
)
def test_pfedme(label: str, method: str, models: tuple[str, ...], strategy: str, model: str) -> None:
    released, here = read("published/pfedme_released.csv"), read("published/pfedme_logistic.csv")
    released = released[released["method"] == method].set_index("model")["maximum"]
    here = here[here["strategy"].str.startswith(strategy) & (here["model"] == model)]["maximum"]
    assert len(here) == 10
    loops = 100 * pd.concat([released[[each]] for each in models])
    assert_row(PAGE, PFEDME, label, [*loops, here.mean(), here.std()], skipped=2)
    published = float(tables_of(PAGE)[LOGISTIC][label][0].split()[0])
    assert abs(here.mean() - published) < 0.2


def test_clients_of_pfedme() -> None:
    rows = read("published/pfedme_logistic.csv").query("model == 'personalised'")
    names = rows["strategy"].str.extract(r":(\w+)", expand=False)
    of = rows.groupby(names)[["mean", "worst_tenth"]].mean()
    text = "{} % for FedAvg with a worst tenth of {} % and {} % for pFedMe's personal models with one of {} %"
    assert_quoted(PAGE, text, *of.loc["FedAvg"], *of.loc["PFedMe"])


def test_pfedme_with_a_hidden_layer() -> None:
    rows = read("published/pfedme_network.csv").set_index(["strategy", "model"])["maximum"]
    names = rows.index.get_level_values("strategy").str.extract(r":(\w+)", expand=False)
    published = {("FedAvg", "global"): 83.64, ("PFedMe", "global"): 84.17, ("PFedMe", "personalised"): 86.36}
    below, apart = [], []
    for label, ((name, model), mean) in zip(
        ("FedAvg", "pFedMe, global", "pFedMe, personal"), published.items(), strict=True
    ):
        here = rows[(names == name) & (rows.index.get_level_values("model") == model)]
        assert len(here) == 10
        assert_row(PAGE, NETWORK, label, [mean, here.mean(), here.std()])
        below.append(mean - here.mean())
        apart.append(below[-1] / here.std())
    assert_quoted(PAGE, "The means are {}, {} and {} points below", *below)
    assert_quoted(PAGE, "none by more than {} of our standard deviations", max(apart))


@pytest.mark.parametrize(
    ("strategy", "alpha", "model", "label"),
    [
        ("FedAvg", 0.5, "global on the server", "FedAvg, alpha 0.5, server's test data"),
        ("FedAvg", 0.5, "global", "FedAvg, alpha 0.5, clients' test data together"),
        ("FedAvg", 0.1, "global on the server", "FedAvg, alpha 0.1, server's test data"),
        ("FedPer", 0.5, "personalised", "FedPer, alpha 0.5, clients' test data together"),
        ("FedPer", 0.1, "personalised", "FedPer, alpha 0.1, clients' test data together"),
    ],
)
def test_a_flower_thesis(strategy: str, alpha: float, model: str, label: str) -> None:
    rows = read("published/thesis_fedavg.csv").query("strategy == @strategy and model == @model")
    here = rows[rows["partition.alpha"] == alpha]["pooled"]
    assert_row(PAGE, THESIS, label, [*here, here.mean()], skipped=2)
    published, deviation = (float(each) for each in tables_of(PAGE)[HEADING][label][:2])
    assert abs(here.mean() - published) <= deviation, "within one standard deviation, as the page says"


def test_niid_bench() -> None:
    rows = read("published/niid_bench.csv").query("model == 'global on the server' and round == 50")
    rows = rows.assign(strategy=rows["strategy"].replace(".*:Scaffold", "SCAFFOLD", regex=True))
    best, last = (rows.pivot(index="seed", columns="strategy", values=column) for column in ("maximum", "pooled"))
    published = {"FedAvg": (88.09, 0.29), "FedNova": (88.22, 0.12), "FedProx": (88.15, 0.42), "SCAFFOLD": (88.44, 0.25)}
    means, deviations = best.mean(), best.std()
    for name, numbers in published.items():
        assert_row(PAGE, NIID, name, [*numbers, *best[name], means[name], deviations[name], *last[name]])
    by_mean = ["FedAvg", "FedProx", "FedNova", "SCAFFOLD"]
    assert means.sort_values().index.tolist() == by_mean == sorted(published, key=lambda name: published[name])
    for name in ("FedAvg", "FedNova", "FedProx"):
        assert abs(means[name] - published[name][0]) < min(0.1, published[name][1])
    text = "SCAFFOLD's is {} above, more than the {} by which its seeds differ there and less than the {} here"
    above = means["SCAFFOLD"] - published["SCAFFOLD"][0]
    assert_quoted(PAGE, text, above, published["SCAFFOLD"][1], deviations["SCAFFOLD"])
    gains = best[by_mean[1:]].sub(best["FedAvg"], axis=0)
    order = ["FedNova", "FedProx", "SCAFFOLD"]
    text = "FedNova is {} ± {}, FedProx {} ± {} and SCAFFOLD {} ± {}, published {}, {} and {};"
    ours = [value for name in order for value in (gains[name].mean(), gains[name].std())]
    assert_quoted(PAGE, text, *ours, *(published[name][0] - published["FedAvg"][0] for name in order))
    assert (gains["SCAFFOLD"] > 0).all()
    assert_quoted(PAGE, "(paired t-test, p = {} at the least)", stats.ttest_1samp(gains, 0).pvalue.min())
    [alike] = read("published/niid_bench_iid.csv").query("model == 'global on the server'").itertuples()
    text = "FedAvg has {} % in its best round and {} % in the last (one seed;"
    assert_quoted(PAGE, text, alike.maximum, alike.pooled)
    assert_quoted(PAGE, "so we are {} above the highest", alike.maximum - 89.4)


@pytest.mark.parametrize("alpha", ["0.5", "0.1"])
def test_server_optimisers(alpha: str) -> None:
    rows = ranking("server_optimisers").query("`partition.alpha` == @alpha")
    methods = ["full", "fedavgm", "fedadam(server_lr=0.01)", "fedyogi"]
    values = [*rows["global"][methods].astype(float), float(rows["personalised"]["layer_set(shared=body)"])]
    assert_row(PAGE, OPTIMISERS, f"here, alpha {alpha}", values)


@pytest.mark.parametrize(("label", "strategy"), [("FedAvg", "full"), ("FedProx", "fedprox"), ("SCAFFOLD", "scaffold")])
def test_few_labels(label: str, strategy: str) -> None:
    [table] = [rows for heading, rows in tables_of(PAGE).items() if heading.startswith(LABELS)]
    here = table[f"{label}, published / here"][1::2]
    for text, value in zip(here, ranking("label_skew").loc[strategy, "global"], strict=True):
        assert_near(text, float(value), label)


def test_levels_of_the_thesis_in_the_findings() -> None:
    rows = (
        read("published/thesis_fedavg.csv")
        .query("`partition.alpha` == 0.5")
        .groupby(["strategy", "model"])["pooled"]
        .mean()
    )
    text = "come out (FedAvg {} % for 86.0 ± 0.5, FedPer {} % for 91.4 ± 0.8 at alpha 0.5)"
    assert_quoted("docs/findings.md", text, rows["FedAvg", "global on the server"], rows["FedPer", "personalised"])


@pytest.mark.parametrize("alpha", [0.5, 0.1])
def test_server_optimisers_of_the_thesis(alpha: float) -> None:
    tables = [read(f"published/thesis_{name}.csv") for name in ("fedavg", "optimisers")]
    rows = pd.concat(tables).query("model == 'global on the server' and `partition.alpha` == @alpha")
    of = {
        name: group.set_index("seed")["pooled"] for name, group in rows.groupby(rows["strategy"].str.split("(").str[0])
    }
    names = ("FedAvg", "FedAvgM", "FedAdam", "FedYogi")
    average, *published = (86.0, 87.0, 86.8, 87.1) if alpha == 0.5 else (81.5, 83.7, 83.0, 83.8)
    below, gains = [], []
    for name, mean in zip(names[1:], published, strict=True):
        gains.append(of[name] - of["FedAvg"])
        numbers = [mean, *of[name], of[name].mean(), mean - average, *over_seeds(gains[-1])]
        assert_row(PAGE, SERVERS, f"{name}, alpha {alpha}", numbers)
        below.append(mean - of[name].mean())
    if alpha == 0.5:
        assert_quoted(PAGE, "Their means are {}, {} and {} points below the thesis's at alpha 0.5", *below)
    else:
        assert_quoted(PAGE, "and {} below, {} above and {} below at alpha 0.1", below[0], -below[1], below[2])
    assert all((gain > 0).all() and is_shown(gain) == (alpha == 0.1) for gain in gains)
