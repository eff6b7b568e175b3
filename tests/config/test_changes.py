"""Changes have the last word over a file, its sweep and its tuning; a table changes the settings that it names."""

import copy
from typing import Any

import pytest

from fedsim.config import Config
from fedsim.config.assignments import parse_assignments
from fedsim.config.changes import with_changes
from fedsim.config.experiment_file import read_experiment, read_overrides
from fedsim.errors import ConfigError

BASE: dict[str, Any] = {"rounds": 2, "clients": 4, "partition": {"scheme": "iid"}, "model": {"name": "mlp"}}
LORA = [{"kind": "lora", "rank": 2}, {"kind": "lora", "rank": 4, "targets": "fc1"}]


def configs_of(tables: dict[str, Any], *texts: str) -> list[Config]:
    changes, as_texts = parse_assignments(texts)
    return read_experiment(BASE | tables, changes, as_texts=as_texts).configs()


@pytest.mark.parametrize(("written", "epochs"), [("local={lr=0.7}", 1), ("local.lr=0.7", 3)])
@pytest.mark.parametrize("swept", [{"local.lr": [0.1, 0.2]}, {"local": [{"lr": 0.1}, {"lr": 0.2}]}])
def test_a_change_of_a_table_or_of_its_setting_drops_what_is_swept(
    swept: dict[str, Any], written: str, epochs: int
) -> None:
    [config] = configs_of({"local": {"epochs": 3}, "sweep": swept}, written)
    assert (config.local.lr, config.local.epochs) == (0.7, epochs)


@pytest.mark.parametrize(("written", "swept"), [("seed=3", {"seed": [0, 1]}), ("rounds=3", {"rounds": [1, 2]})])
def test_a_change_of_the_seed_or_the_rounds_drops_their_sweep(written: str, swept: dict[str, Any]) -> None:
    [config] = configs_of({"sweep": swept}, written)
    assert getattr(config, next(iter(swept))) == 3


def test_a_changed_table_is_replaced_also_in_the_tables_of_a_sweep() -> None:
    model = {"name": "mlp", "adapter": {"kind": "lora", "rank": 4}}
    sweep = {"model": [{"hidden": [7], "adapter": {"rank": 2}}, {"hidden": [8]}]}
    found = configs_of({"model": model, "sweep": sweep}, "model.adapter={}")
    assert [(each.model.adapter.kind, each.model.options["hidden"]) for each in found] == [
        ("none", (7,)),
        ("none", (8,)),
    ]


@pytest.mark.parametrize("sweep", [{"model.asymmetry": ["sigma", "w"]}, {"model": [{"asymmetry": "w"}]}])
def test_a_change_is_made_in_swept_tables_that_are_texts(sweep: dict[str, Any]) -> None:
    [config] = configs_of({"sweep": sweep}, "model.asymmetry.kind=w", "model.asymmetry.fixed=4")
    assert (config.model.asymmetry.kind, config.model.asymmetry.fixed) == ("w", 4)


def test_a_change_is_made_in_a_table_that_is_a_text() -> None:
    [config] = configs_of({"model": {"asymmetry": "w"}}, "model.asymmetry.fixed=4")
    assert (config.model.asymmetry.kind, config.model.asymmetry.fixed) == ("w", 4)
    [config] = configs_of({}, "model.asymmetry=w", "model.asymmetry.fixed=4")
    assert (config.model.asymmetry.kind, config.model.asymmetry.fixed) == ("w", 4)
    with pytest.raises(ConfigError, match="fixed has no effect with kind = 'none'"):
        configs_of({"sweep": {"model.asymmetry": ["none", "w"]}}, "model.asymmetry.fixed=4")


@pytest.mark.parametrize("name", ["sweep", "tune"])
def test_a_change_of_listed_tables_drops_lists_of_what_is_inside_them(name: str) -> None:
    lists: dict[str, Any] = {"local.lr": [1.0, 2.0]}
    lists |= {"at": "best"} if name == "tune" else {}
    changes, _ = parse_assignments([f"{name}.local=[{{lr=3.0}}]"])
    found = read_experiment(BASE | {name: lists}, changes).config
    assert (found.sweep if name == "sweep" else found.tune.grid) == {"local": [{"lr": 3.0}]}
    assert (found.tune.at == "best") == (name == "tune")


def test_overrides_may_be_tables_and_settings_of_a_sweep() -> None:
    sweep = {"strategy.name": ["full", "fedprox"], "local.epochs": [2, 3]}
    for overrides in ({"strategy": {"name": "local"}}, {"strategy.name": "local"}):
        found = read_experiment(BASE | {"sweep": sweep}, read_overrides(overrides)).configs()
        assert [(config.strategy.name, config.local.epochs) for config in found] == [("local", 2), ("local", 3)]
    for key in ("sweep.strategy.name", 'sweep."strategy.name"'):
        found = read_experiment(BASE, read_overrides({key: ["full", "local"]})).configs()
        assert [config.strategy.name for config in found] == ["full", "local"]


def test_a_change_is_made_in_each_swept_table_at_any_depth() -> None:
    tables: dict[str, Any]
    for tables in (
        {"sweep": {"model.adapter": LORA}},
        {"sweep": {"model": [{"name": "mlp", "adapter": each} for each in LORA]}},
    ):
        found = [config.model.adapter for config in configs_of(tables, "model.adapter.rank=8")]
        assert [(each.kind, each.rank, each.targets) for each in found] == [("lora", 8, "body"), ("lora", 8, "fc1")]
    sweep = {"model.adapter": [{"kind": "none"}, {"kind": "lora", "rank": 4}]}
    assert [each.model.adapter.kind for each in configs_of({"sweep": sweep}, "model.adapter.kind=dora")] == ["dora"] * 2


@pytest.mark.parametrize(
    ("tune", "grid"),
    [
        ({"local.lr": [0.1, 0.2]}, {}),
        ({"local.lr": [0.1, 0.2], "at": "best", "metric": "loss", "rounds": 1, "seed": 2}, {}),
        ({"local.lr": [0.1, 0.2], "local.epochs": [1, 2]}, {"local.epochs": [1, 2]}),
        (
            {"local": [{"lr": 0.1, "epochs": 2}, {"lr": 0.2}, {"lr": 0.3}]},
            {"local": [{"lr": 8, "epochs": 2}, {"lr": 8}]},
        ),
    ],
)
def test_a_change_drops_what_is_tuned_and_the_table_once_nothing_is_left(
    tune: dict[str, Any], grid: dict[str, Any]
) -> None:
    changes, _ = parse_assignments(["local.lr=8"])
    found = read_experiment(BASE | {"tune": tune}, changes).config.tune
    assert (found.grid, found.is_wanted) == (grid, bool(grid))
    changes, _ = parse_assignments(["local={lr=8}"])
    assert not read_experiment(BASE | {"tune": tune}, changes).config.tune.is_wanted


def test_a_change_of_the_runs_rounds_or_seed_leaves_those_of_tuning() -> None:
    changes, _ = parse_assignments(["rounds=5", "seed=7"])
    tune = read_experiment(BASE | {"tune": {"local.lr": [0.1], "rounds": 1, "seed": 3}}, changes).config.tune
    assert (tune.rounds, tune.seed) == (1, 3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("seed=3", "sweep.seed=[0, 1]"), "seed = 3 and sweep.seed = [0, 1] are both set"),
        (("local={lr=1}", "tune.local.lr=[0.1]"), 'local = {"lr": 1} and tune.local.lr = [0.1] are both set'),
        (("sweep.seed=0",), "sweep.seed = 0: must be a list of values, such as [0]"),
        (("sweep={strategy={name=1}}",), 'a dotted key needs quotes, as in "strategy.name" = [...]'),
    ],
)
def test_changes_that_contradict_each_other_are_refused(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configs_of({}, *texts)
    assert message in str(caught.value)


def test_a_sweep_refuses_a_setting_that_would_replace_one_of_its_tables() -> None:
    sweep = {"strategy": [{"name": "fedavg"}, {"name": "fedprox", "mu": 0.1}], "strategy.name": ["fedper"]}
    with pytest.raises(
        ConfigError, match=r"\[sweep\] 'strategy.name' would replace what the tables of 'strategy' have"
    ):
        configs_of({"sweep": sweep})
    sweep["strategy.precision"] = ["float32", "float64"]
    del sweep["strategy.name"]
    assert len(configs_of({"sweep": sweep})) == 4


def test_of_the_same_setting_the_last_change_counts() -> None:
    texts = ("local.lr=1", "local={lr=2, epochs=2}", "local.lr=3")
    assert [(config.local.lr, config.local.epochs) for config in configs_of({}, *texts)] == [(3, 2)]


def test_a_swept_table_keeps_what_it_does_not_name() -> None:
    found = configs_of({"local": {"epochs": 3}, "sweep": {"local": [{"lr": 0.1}, {"lr": 0.2}]}})
    assert [(config.local.lr, config.local.epochs) for config in found] == [(0.1, 3), (0.2, 3)]


def test_another_choice_by_name_drops_the_options_of_the_former_one_only() -> None:
    strategy = {"name": "layer_set", "shared": "head", "buffers": "personal"}
    swept: list[dict[str, Any]] = [
        {"name": "fedprox"},
        {"name": "Layer-Set"},
        {"buffers": "shared"},
        {"name": "full", "buffers": "shared"},
    ]
    found = [config.strategy for config in configs_of({"strategy": strategy, "sweep": {"strategy": swept}})]
    assert [each.buffers for each in found] == ["personal", "personal", "shared", "shared"]
    assert [each.options.get("mu") for each in found] == [0.01, None, None, None]
    assert [each.options.get("shared") for each in found] == ["all", "head", "head", None]
    model = {"name": "mlp", "adapter": {"kind": "lora", "rank": 4, "targets": "fc1"}}
    swept = [{"kind": "lora", "rank": 2}, {"kind": "vera"}]
    adapters = [each.model.adapter for each in configs_of({"model": model, "sweep": {"model.adapter": swept}})]
    assert [(each.rank, each.targets) for each in adapters] == [(2, "fc1"), (8, "body")]
    texts = {"model": {"asymmetry": {"kind": "w", "fixed": 4}}, "sweep": {"model.asymmetry": ["none", "w"]}}
    assert [config.model.asymmetry.fixed for config in configs_of(texts)] == [0.125, 4]


def test_a_value_that_is_a_table_is_replaced() -> None:
    sweep = {"local.lr_scale": [{"fc1": 2.0}, {"fc2": 3.0}]}
    found = configs_of({"local": {"lr_scale": {"head": 0.5}}, "sweep": sweep})
    assert [config.local.lr_scale for config in found] == sweep["local.lr_scale"]


def test_ranks_are_swept_without_the_largest_of_the_file() -> None:
    tables = {"model": {"adapter": {"kind": "lora", "ranks": [2, 4]}}, "sweep": {"model.adapter.ranks": [[2], [2, 16]]}}
    assert [config.model.adapter.rank for config in configs_of(tables)] == [2, 16]


@pytest.mark.parametrize(
    ("file", "swept", "found"),
    [
        ({"rank": 2}, {"ranks": [2, 4]}, (4, (2, 4))),
        ({"ranks": [2, 4]}, {"rank": 4}, (4, ())),
        ({"ranks": [2, 4]}, {"rank": 2}, (2, ())),
    ],
)
def test_of_the_rank_and_the_ranks_a_swept_table_replaces_the_files(
    file: dict[str, Any], swept: dict[str, Any], found: tuple[int, tuple[int, ...]]
) -> None:
    tables = {"model": {"adapter": {"kind": "lora", **file}}, "sweep": {"model.adapter": [swept]}}
    [config] = configs_of(tables)
    assert (config.model.adapter.rank, config.model.adapter.ranks) == found


def test_no_argument_is_changed() -> None:
    settings = {"local": {"lr_scale": {"head": 1.0}}}
    changes = {("local",): {"lr_scale": {"fc1": 2.0}}, ("local", "lr_scale", "fc2"): 3.0}
    before = copy.deepcopy((settings, changes))
    assert with_changes(settings, changes, Config) == {"local": {"lr_scale": {"fc1": 2.0, "fc2": 3.0}}}
    assert (settings, changes) == before
