"""Experiments of papers' findings: well formed, and the findings at the smallest scale."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsim.config import Config, choices, read_toml
from fedsim.config.expectation import Expectation
from fedsim.config.making import check_steps, strategy_class
from fedsim.results.check.check import check
from fedsim.results.check.settings import matches, reference_config
from fedsim.results.folder import RunFolder
from fedsim.results.report import read_result

ROOT = Path(__file__).parents[2] / "experiments"
LLMC, LLFC, REBASIN, ASYMMETRY, EXPERTS = (ROOT / name for name in ("llmc", "llfc", "rebasin", "asymmetry", "experts"))
FOLDERS = (
    LLMC,
    LLFC,
    REBASIN,
    ASYMMETRY,
    EXPERTS,
    ROOT / "transformers",
    ROOT / "width",
    ROOT / "paths",
    ROOT / "spawning",
)
FILES = sorted(path for folder in FOLDERS for path in folder.rglob("*.toml"))
names = pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
LAYERS = {"mlp": ("fc1", "fc7"), "resnet18": ("conv1", "fc")}


def test_there_is_a_file_for_each_finding_and_one_for_a_gpu() -> None:
    here = {path.name for path in LLMC.glob("*.toml")}
    of_the_paper = {"data_order.toml", "initialisation.toml", "two_clients.toml", "personalisation.toml"}
    assert {path.name for path in (LLMC / "gpu").glob("*.toml")} == of_the_paper
    assert here == of_the_paper | {"personalisation_cifar10.toml"}


@names
def test_it_begins_with_its_question_and_what_is_expected(path: Path) -> None:
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert first.endswith("?")
    assert second.startswith("# Expected: ")


@names
def test_each_expectation_is_about_a_run_of_the_sweep_that_measures_it(path: Path) -> None:
    configs = [choices.resolve(each) for each in Config.parse(read_toml(path), str(path)).runs(str(path))]
    assert configs[0].expect
    for expectation in configs[0].expect:
        about = [config for config in configs if matches(config, expectation.where)]
        assert about, expectation
        for config in about:
            if expectation.other_settings:
                assert reference_config(expectation, config, configs) in configs
            if expectation.measure:
                assert expectation.measure in (*config.barriers.measures, "matching")
            if expectation.barrier or expectation.measure:
                assert expectation.matching in config.barriers.matching
                assert config.barriers.every
                assert config.rounds % config.barriers.every == 0


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(ROOT.rglob("*.toml")) if path.name != "pyproject.toml"],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_its_methods_are_defined_for_its_steps(path: Path) -> None:
    for config in Config.parse(read_toml(path), str(path)).runs(str(path)):
        check_steps(config, strategy_class(config).client_rule)


def copies(tiny: Callable[..., Config], **changes: Any) -> Config:
    """A run of two clients with the same digits that never average."""
    settings = {
        "rounds": 1,
        "clients": 2,
        "data": {"name": "digits"},
        "partition": {"scheme": "copies", "validation": 0.0, "test": 0.05},
        "model": {"name": "mlp", "hidden": [64, 64, 64]},
        "local": {"lr": 0.02, "momentum": 0.9, "batch_size": 16, "epochs": 12},
        "strategy": {"name": "local"},
        "barriers": {"every": 1, "groups": ["layers", "full"], "on": ["train"], "examples": 355},
    }
    return tiny(**settings | changes)


@pytest.mark.slow
def test_models_of_different_initialisation_have_a_barrier_and_those_of_one_have_none(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    expected = tomllib.loads((LLMC / "initialisation.toml").read_text())["expect"]
    model = {"name": "mlp", "hidden": [64, 64, 64]}
    results = [
        read_result(play(copies(tiny, model=model | {"initial": initial}), initial)) for initial in ("own", "shared")
    ]
    checks = list(check(results, [Expectation.model_validate(each) for each in expected], means=True))
    assert len(checks) == 3
    assert all(each.verdict == "ok" for each in checks), "\n".join(map(str, checks))


@pytest.mark.slow
def test_features_average_after_spawning_and_after_matching_and_not_between_independent_runs(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    expected = tomllib.loads((LLFC / "mlp.toml").read_text())["expect"]
    measured = {
        "every": 1,
        "groups": ["full"],
        "pairs": 1,
        "examples": 355,
        "measures": ["connectivity", "stitching"],
        "matching": ["none", "weights"],
    }
    model = {"name": "mlp", "hidden": [128, 128, 128]}
    results = [
        read_result(play(copies(tiny, model=model | {"initial": initial}, barriers=measured), initial))
        for initial in ("own", "shared")
    ]
    checks = list(check(results, [Expectation.model_validate(each) for each in expected], means=True))
    assert len(checks) == 15
    assert all(each.verdict == "ok" for each in checks), "\n".join(map(str, checks))


def test_spawned_models_are_one_model_until_they_part(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    strategy = {"name": "experiments.llfc.spawning:Spawning", "spawn_round": 2}
    partition = {"scheme": "copies", "validation": 0.0, "test": 0.2}
    folder = play(tiny(rounds=3, clients=2, partition=partition, strategy=strategy, model__initial="own"))
    rows = read_result(folder).of("personalised", "loss").set_index(["round", "client"])["value"].unstack()
    assert (rows.loc[:2, 0] == rows.loc[:2, 1]).all()
    assert rows.loc[3, 0] != rows.loc[3, 1]
    trained = read_result(folder).of("uploaded", "loss", "train").set_index(["round", "client"])["value"].unstack()
    assert (trained[0] != trained[1]).all()


@pytest.mark.slow
def test_a_matched_average_survives_initialisations_of_their_own_and_a_plain_one_does_not(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    accuracy = {}
    model = {"name": "mlp", "hidden": [64, 64, 64], "initial": "own"}
    for name in ("full", "matched_average"):
        folder = play(copies(tiny, clients=4, model=model, strategy={"name": name}), name)
        accuracy[name] = float(read_result(folder).on_server("global").iloc[-1])
    assert accuracy["full"] < 0.5 < 0.9 < accuracy["matched_average"]


@pytest.mark.slow
def test_a_plain_average_survives_them_where_clients_share_fixed_entries(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    accuracy = {}
    model = {"name": "experiments.asymmetry.models:normed_mlp", "hidden": [64, 64, 64], "initial": "own"}
    for kind in ("none", "w"):
        folder = play(copies(tiny, clients=4, model=model | {"asymmetry": kind}, strategy={"name": "full"}), kind)
        accuracy[kind] = float(read_result(folder).on_server("global").iloc[-1])
    assert accuracy["none"] < 0.75 < 0.85 < accuracy["w"]
