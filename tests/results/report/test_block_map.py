"""The map of a transformer's blocks: which names make one, and what its cells are."""

import pandas as pd
import pytest

from fedsim.results.report.drawing.block_map import block_map, by_block, short_names

BERT = [
    f"bert.encoder.layer.{block}.{module}"
    for block in range(2)
    for module in ("attention.self.query", "attention.output.dense", "output.dense")
]
GPT2 = [f"h.{block}.{module}" for block in range(11) for module in ("attn.c_attn", "mlp.0", "mlp.2")]


def rows_of(groups: list[str], t: float = 1.0) -> pd.DataFrame:
    values = {"t": t, "other": -1, "data": "server", "loss": 1.0}
    rows = [
        {"group": group, "base": base, "round": r, "loss_mean_ends": 10 * r + k + base} | values
        for r in (1, 2)
        for k, group in enumerate(groups)
        for base in range(3)
    ]
    return pd.DataFrame(rows)


def test_cells_are_the_mean_barriers_of_the_last_round_at_their_places() -> None:
    found = block_map(rows_of(["full", "embeddings", *BERT, "shallow:2", "classifier"]), "loss")
    assert found is not None
    [(title, table)] = found.tables.items()
    assert title == "layers,\nminus the models' mean loss"
    assert list(table.columns) == ["query", "attention.output.dense", "output.dense"]
    assert list(table.index) == [0, 1]
    assert table.to_numpy().tolist() == [[23.0, 24.0, 25.0], [26.0, 27.0, 28.0]]


def test_blocks_are_in_the_order_of_their_numbers_and_modules_are_no_mere_numbers() -> None:
    found = block_map(rows_of(GPT2), "loss")
    assert found is not None
    [table] = found.tables.values()
    assert list(table.index) == list(range(11))
    assert list(table.columns) == ["c_attn", "mlp.0", "mlp.2"]


def test_adapters_have_a_map_for_each_factor_and_one_for_both() -> None:
    paths = BERT[:2] + BERT[3:5]
    factors = [f"{path}.{factor}.default" for path in paths for factor in ("lora_A", "lora_B")]
    found = block_map(rows_of([*factors, *paths, "*lora_A*", "adapters:2", "head"]), "loss")
    assert found is not None
    assert [title.partition(",\n")[0] for title in found.tables] == [
        "both factors",
        "first factors, A",
        "second factors, B",
    ]
    assert [table.shape for table in found.tables.values()] == 3 * [(2, 2)]
    assert list(found.tables.values())[1].to_numpy().tolist() == [[21.0, 23.0], [25.0, 27.0]]


def test_values_of_whole_adapters_have_one_map_in_which_a_missing_module_is_empty() -> None:
    found = by_block(pd.Series({"head": 9.0} | {path: float(place) for place, path in enumerate(BERT[:-1])}))
    assert list(found) == [""]
    assert found[""].loc[0].tolist() == [0.0, 1.0, 2.0]
    assert found[""].loc[1].fillna(-1.0).tolist() == [3.0, 4.0, -1.0]
    assert by_block(pd.Series({"fc1": 1.0, "fc2": 2.0})) == {}


@pytest.mark.parametrize(
    "groups",
    [
        ["full", "conv1", "conv2", "fc1"],
        ["0", "2", "4"],
        ["features.0", "features.3", "classifier.1"],
        ["0.lora_A.default", "0.lora_B.default", "2.lora_A.default", "2.lora_B.default"],
        [f"layer{stage}.{block}.{name}" for stage in (1, 2, 3) for block in (0, 1) for name in ("conv1", "bn1")],
        ["h.0.fc1", "h.0.fc2"],
        ["h.*", "h.0.*|h.1.*", "<b>.0.$x$"],
        [],
    ],
)
def test_other_models_have_no_map(groups: list[str]) -> None:
    assert block_map(rows_of(["full", *groups]), "loss") is None


def test_hostile_names_are_names() -> None:
    names = [f"<b>{{}}.{block}.{module}" for block in (0, 1) for module in ("$\\frac$", "<script>")]
    found = block_map(rows_of(names), "loss")
    assert found is not None
    assert list(next(iter(found.tables.values())).columns) == ["$\\frac$", "<script>"]
    assert found.figure().axes


def test_short_names_tell_modules_apart() -> None:
    assert short_names(["a.x", "b.x", "a.b.x", "c"]) == {"a.x": "a.x", "b.x": "b.x", "a.b.x": "a.b.x", "c": "c"}
