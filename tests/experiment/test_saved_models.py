import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedsim.analysis.calibration import calibrated
from fedsim.analysis.cka import cka
from fedsim.analysis.connectivity import connectivity
from fedsim.analysis.spectra import spectra
from fedsim.analysis.stitching import stitching
from fedsim.config import Config
from fedsim.data import DATA
from fedsim.data.dataset import stratified
from fedsim.errors import ConfigError
from fedsim.experiment.saved_models.comparison import compare_checkpoints, comparison_config, names_of, write_compared
from fedsim.federation.federation import federation_of
from fedsim.models.architectures import MODELS
from fedsim.models.params import Params, state_of
from fedsim.models.saved import read_checkpoint
from fedsim.results.folder import RunFolder
from fedsim.results.measured import examples
from fedsim.results.report.drawing.checkpoints import (
    barriers_table,
    feature_pictures,
    features_table,
    matching_table,
    peaks_table,
    short_names,
    uncertainty_note,
    what_differs,
)
from fedsim.results.report.drawing.heat_maps import HeatMaps
from fedsim.results.report.pages.checkpoint_page import _sentence
from fedsim.seeds import rng
from fedsim.training.evaluation import evaluate
from tests.conftest import Command

SMALL = {("model", "hidden"): [4]}


def small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS["mlp"]((1, 8, 8), 10, hidden=(4,))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 3, bias=False)
        self.head.weight = self.embed.weight


def prefixed(state: Params, prefix: str) -> Params:
    return {prefix + key: value for key, value in state.items()}


WRITERS: dict[str, Callable[[Params, Path], None]] = {
    "plain": torch.save,
    "old format": lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    "under state_dict": lambda state, path: torch.save({"epoch": 3, "state_dict": state, "lr": 0.1}, path),
    "under model_state_dict": lambda state, path: torch.save({"model_state_dict": state, "best": 0.9}, path),
    "under model, twice": lambda state, path: torch.save({"model": {"state_dict": state}}, path),
    "data parallel": lambda state, path: torch.save({"model": prefixed(state, "module.")}, path),
    "data parallel and compiled": lambda state, path: torch.save(prefixed(state, "module._orig_mod."), path),
    "double precision": lambda state, path: torch.save(
        {key: value.double() if value.is_floating_point() else value for key, value in state.items()}, path
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_torch_file_gives_the_weights_however_they_were_saved(
    write: Callable[[Params, Path], None], tmp_path: Path
) -> None:
    model = Tied()
    write(model.state_dict(), tmp_path / "a.pt")
    assert_equal(read_checkpoint(tmp_path / "a.pt", Tied(), "tied"), state_of(model))


@pytest.mark.parametrize("dropped", ["head.weight", "embed.weight", "norm.num_batches_tracked"])
def test_one_name_of_a_tied_tensor_is_enough(dropped: str, tmp_path: Path) -> None:
    model = Tied()
    state = {key: value.clone() for key, value in model.state_dict().items() if key != dropped}
    save_file(state, tmp_path / "a.safetensors")
    assert_equal(read_checkpoint(tmp_path / "a.safetensors", Tied(), "tied"), state_of(model))


def test_a_model_whose_own_keys_begin_with_module_keeps_them(tmp_path: Path) -> None:
    model = nn.ModuleDict({"module": nn.Linear(2, 1)})
    torch.save(model.state_dict(), tmp_path / "a.pt")
    assert_equal(read_checkpoint(tmp_path / "a.pt", model, "own"), state_of(model))


def assert_equal(got: Params, expected: Params) -> None:
    assert list(got) == list(expected)
    for key, value in expected.items():
        assert got[key].dtype == value.dtype
        assert torch.equal(got[key], value), key


class Flag:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def changed(**values: Tensor | None) -> Params:
    state = Tied().state_dict() | {key.replace("__", "."): value for key, value in values.items()}
    return {key: value for key, value in state.items() if value is not None}


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda path: None, "does not exist; give a checkpoint"),
    "folder": (Path.mkdir, "is a folder; give a checkpoint"),
    "code": (
        lambda path: torch.save({"a": Flag(path.parent / "flag")}, path),
        "more than tensors.*never run; save model",
    ),
    "whole model": (lambda path: torch.save(Tied(), path), "never run; save model.state_dict"),
    "empty": (Path.touch, r"is damaged or not a torch file \(EOFError\)"),
    "text": (lambda path: path.write_text("hello"), "is damaged or not a torch file"),
    "list": (lambda path: torch.save([torch.zeros(1)], path), "holds a list and no state dict"),
    "no state dict": (lambda path: torch.save({"epoch": 3}, path), "a dict with 'epoch' and no state dict"),
    "unexpected": (
        lambda path: torch.save(changed(fc__weight=torch.zeros(1)), path),
        "does not fit the model 'tied': 'fc.weight' is not in the model, which has 'embed.weight', ",
    ),
    "lacking": (
        lambda path: torch.save(changed(norm__bias=None, norm__weight=None), path),
        "does not fit the model 'tied': it lacks 'norm.weight', 'norm.bias'; choose the model",
    ),
    "shape": (
        lambda path: torch.save(changed(norm__bias=torch.zeros(3)), path),
        r"'norm.bias' has shape \(3,\) and must be \(2,\)",
    ),
    "kind": (
        lambda path: torch.save(changed(norm__bias=torch.zeros(2, dtype=torch.int8)), path),
        "'norm.bias' is torch.int8 and must be torch.float32",
    ),
    "not finite": (
        lambda path: torch.save(changed(norm__bias=torch.tensor([1.0, torch.nan])), path),
        "'norm.bias' has values that are not finite",
    ),
    "tied apart": (
        lambda path: torch.save(changed(head__weight=torch.ones(3, 2)), path),
        "'head.weight' is tied to 'embed.weight' and has other values",
    ),
}


@pytest.mark.parametrize(("write", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_bad_file_is_one_line_that_names_it(write: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    write(tmp_path / "bad.pt")
    with pytest.raises(ConfigError, match=message) as error:
        read_checkpoint(tmp_path / "bad.pt", Tied(), "tied")
    assert str(error.value).startswith(str(tmp_path / "bad.pt"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "flag").exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_truncated_file_is_damaged(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(state_of(small(0)), path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ConfigError, match="damaged"):
        read_checkpoint(path, small(0), "mlp")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "a.pt", tmp_path / "b.safetensors"]
    torch.save({"state_dict": prefixed(small(1).state_dict(), "module.")}, paths[0])
    save_file(small(2).state_dict(), paths[1])
    return paths


def config() -> Config:
    return comparison_config("mlp", "digits", SMALL)


def test_its_barriers_are_those_of_the_mixed_models(files: list[Path]) -> None:
    compared = compare_checkpoints(files, config(), weights=[3, 1])
    dataset = DATA["digits"]()
    inputs, targets = dataset.normalise(dataset.test.inputs), dataset.test.targets
    states = [small(1).state_dict(), small(2).state_dict()]

    def loss(state: Params) -> float:
        model = small(0)
        model.load_state_dict(state)
        with torch.no_grad():
            return float(cross_entropy(model(inputs).double(), targets))

    ends = 0.75 * loss(states[0]) + 0.25 * loss(states[1])
    for base, state in enumerate(states):
        average = {key: 0.75 * states[0][key] + 0.25 * states[1][key] for key in state}
        mixed = state | {key: value for key, value in average.items() if key.startswith("fc1.")}
        rows = compared.barriers.query(f"base == {base} and group == 'fc1'")
        assert rows["loss_mean_ends"].item() == pytest.approx(loss(mixed) - ends, abs=1e-5)
        assert rows["n"].item() == len(targets)
        assert rows["base_name"].item() == files[base].name
        apart = compared.distances.query(f"base == {base} and group == 'fc1'")["distance"].item()
        keys = ("fc1.weight", "fc1.bias")
        squares = [float((state[key] - average[key]).double().square().sum()) for key in keys]
        assert apart == pytest.approx(sum(squares) ** 0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": ["fc9"]}, "'fc9' matches nothing; layers are: fc1, fc2"),
        ({"ts": [0.0, 2.0]}, "each must be from 0 to 1"),
        ({"weights": [1.0]}, "--weights has .*a positive number for each of 2 checkpoints"),
        ({"weights": [1.0, -1.0]}, "--weights has .*a positive number"),
        ({"weights": [1e308, 1e308]}, "--weights has .* checkpoints, with a finite sum"),
        ({"tolerance": 0.0}, "--tolerance 0 must be positive and finite"),
        ({"tolerance": float("nan")}, "--tolerance nan must be positive"),
        (
            {"path": "product", "measures": ["spectra", "calibrated"]},
            "--path product: calibrated mixes factor by factor",
        ),
        ({"examples": 356}, "--examples 356: 'digits' has 355 test examples"),
    ],
)
def test_a_wrong_argument_is_named(files: list[Path], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compare_checkpoints(files, config(), **arguments)


def test_bfloat16_without_a_tolerance_is_refused_before_any_file_is_read() -> None:
    with pytest.raises(ConfigError, match=r"^--precision bfloat16 needs a tolerance; add --tolerance 0\.01$"):
        compare_checkpoints([Path("no.pt"), Path("none.pt")], config(), precision="bfloat16")


def test_texts_say_that_models_were_evaluated_in_bfloat16(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsim.analysis.samples.tolerance.gains_from_bfloat16", lambda device: True)
    rows = compare_checkpoints(files, config(), tolerance=0.05, precision="bfloat16").barriers
    low, high = rows["n_float32"].min(), rows["n_float32"].max()
    assert low < 355
    count = f"{low} to {high}" if low < high else str(low)
    text = f"evaluated in bfloat16, corrected by float32 on {count} of these"
    assert f"\nprecision: {text}" in uncertainty_note(rows)
    assert examples(rows, "server").endswith(f", {text}")
    for plain in (rows.assign(n_float32=rows["n"]), rows.drop(columns="n_float32")):
        assert "bfloat16" not in uncertainty_note(plain) + examples(plain, "server")


def test_one_checkpoint_is_not_enough_and_a_runs_setting_is_of_no_use(files: list[Path]) -> None:
    with pytest.raises(ConfigError, match=r"a\.pt is one checkpoint; give at least two"):
        compare_checkpoints(files[:1], config())
    with pytest.raises(ConfigError, match=r"--set local\.lr has no effect without a run"):
        comparison_config("mlp", "digits", {("local", "lr"): 0.1})


def test_checkpoints_of_one_name_are_told_apart_by_their_paths(files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    torch.save(small(3).state_dict(), tmp_path / "other" / "a.pt")
    paths = [files[0], tmp_path / "other" / "a.pt"]
    assert compare_checkpoints(paths, config(), groups=["full"], examples=20).names == tuple(map(str, paths))


def test_statistics_are_recomputed_on_training_data(tmp_path: Path) -> None:
    tables = {("data",): {"train_examples": 100}, ("model",): {"width": 1}}  # which keep the names of the arguments
    given = comparison_config("resnet20", "fashion-mnist", tables)
    assert (given.data.name, given.data.train_examples, given.model.name) == ("fashion-mnist", 100, "resnet20")
    config = comparison_config("resnet20", "digits", {("model", "norm"): "batch", ("model", "width"): 1})
    paths = [tmp_path / f"{seed}.pt" for seed in (0, 1)]
    for path in paths:
        torch.save(MODELS["resnet20"]((1, 8, 8), 10, norm="batch", width=1).state_dict(), path)
    compared = compare_checkpoints(paths, config, normalisation="recompute", groups=["full"], examples=20)
    assert set(compared.barriers["normalisation"]) == {"recompute"}
    assert np.isfinite(compared.barriers["loss_mean_ends"]).all()


@pytest.mark.slow
def test_pairs_have_their_paths_drawn(files: list[Path], tmp_path: Path) -> None:
    compared = compare_checkpoints(files, config(), against="pairs", groups=["full"], part="train", examples=30)
    assert set(compared.barriers["t"]) == {0.0, 0.5, 1.0}
    page = write_compared(compared, tmp_path / "out", "fedsim barriers 'a <b>.pt'").read_text()
    first, second, third = (page.index(title) for title in ("Largest barrier over t", "at each t", "Settings and"))
    assert first < second < third
    assert "fedsim barriers &#39;a &lt;b&gt;.pt&#39;" in page
    row = compared.peaks.nlargest(1, "loss_chord_max").iloc[0]
    assert f"The largest loss barrier is {row['loss_chord_max']:.3g} nats" in page
    drawn = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert drawn == {"barriers-loss.png", "barriers-error.png", "paths-loss.png", "paths-error.png"}


def test_pairs_are_shown_above_the_chord_with_the_largest_barrier_of_each_path_first(files: list[Path]) -> None:
    compared = compare_checkpoints(files, config(), against="pairs", ts=(0, 0.25, 0.5, 1), examples=60)
    table, largest = compared.barriers, compared.peaks
    paths = table.groupby(["group", "base", "other"], sort=False)["loss_chord"]
    assert list(largest["loss_chord_max"]) == list(paths.max())
    assert list(largest["loss_chord_max_t"]) == list(table.loc[paths.idxmax(), "t"])
    assert (largest["loss_chord_max_low"] <= largest["loss_chord_max"]).all()
    ends = table[(table["group"] == "full") & table["t"].isin([0, 1])]["loss_chord"]
    assert len(ends) == 4
    assert not ends.any()
    shown = barriers_table(table, compared.names)
    barriers = [float(row[4].split()[0]) for row in shown.rows]
    assert barriers == pytest.approx(list(table["loss_chord"]), abs=1e-4)


def test_one_example_gives_no_band(files: list[Path]) -> None:
    compared = compare_checkpoints(files, config(), examples=1)
    tables = barriers_table(compared.barriers, compared.names), peaks_table(compared.peaks, compared.names)
    assert all(row[4].endswith("± -") for row in tables[0].rows)
    assert all(row[3].endswith("(-)") for row in tables[1].rows)
    assert not any("nan" in cell for table in tables for row in table.rows for cell in row)
    assert ", 1 example;" in uncertainty_note(compared.barriers)
    sentence = _sentence(compared.peaks, compared.names)
    assert re.match(r"The largest loss barrier is \S+ nats: layers ", sentence)
    assert sentence.endswith("So few examples give no band, so that chance cannot be told from a cost.")


@pytest.mark.slow
def test_other_measures_are_those_of_the_analysis(files: list[Path]) -> None:
    wanted = ["connectivity", "stitching", "cka", "spectra", "exponential", "calibrated"]
    settings: dict[str, Any] = {"against": "pairs", "ts": [0.0, 0.25, 1.0], "groups": ["full"], "examples": 40}
    compared = compare_checkpoints(files, config(), measures=wanted, **settings)
    dataset = DATA["digits"]()
    chosen = torch.from_numpy(stratified(dataset.test.labels.numpy(), 40, rng(0, "evaluation sample")))
    inputs, targets = dataset.normalise(dataset.test[chosen].inputs), dataset.test[chosen].targets
    states = [small(1).state_dict(), small(2).state_dict()]
    average = {key: (states[0][key] + states[1][key]) / 2 for key in states[0]}
    expected = {
        "connectivity": connectivity(small(0), states, inputs, against="pairs", ts=[0.25]),
        "stitching": stitching(small(0), states, inputs, targets, against="pairs"),
        "cka": cka(small(0), states, inputs),
        "spectra": spectra(small(0), [average, *states]).assign(base=[-1, 0, 1] * 2),
        "exponential": connectivity(small(0), states, inputs, against="pairs", ts=[0.25], exponential=True)[
            ["layer", "base", "other", "t", "exponential", "exponential_shuffled", "reciprocal"]
        ],
        "calibrated": calibrated(small(0), states, inputs, targets, against="pairs", ts=[0.0, 0.25, 1.0]),
    }
    assert list(compared.others) == wanted
    for name, table in compared.others.items():
        pd.testing.assert_frame_equal(table[expected[name].columns], expected[name], rtol=1e-6)
        assert set(table["base_name"]) <= {"a.pt", "b.safetensors", "average"}
    assert set(feature_pictures(compared.others)) == {*wanted, "stable-rank"}


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (["c0.safetensors", "c1.safetensors"], ["c0", "c1"]),
        (["run_client-0.pt", "run_client-10.pt", "run_client-20.pt"], ["0", "10", "20"]),
        (["seed1/c.pt", "seed2/c.pt"], ["seed1", "seed2"]),
        (["a.pt", "b.safetensors"], ["a.pt", "b.safetensors"]),
        (["round-1.pt", "round-1-1.pt"], ["round-1.pt", "round-1-1.pt"]),
        (["a.pt"], ["a.pt"]),
    ],
)
def test_a_column_of_a_pair_has_what_differs_in_the_names_of_files(names: list[str], kept: list[str]) -> None:
    assert what_differs(names) == kept


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["a.pt", "b.pt"], ["a.pt", "b.pt"]),
        ([f"a-long-name-of-client-{number}.pt" for number in (3, 4)], ["3", "4"]),
        (["a.pt", "a-name-that-is-too-long-for-a-column.pt"], ["model 1", "model 2"]),
    ],
)
def test_names_that_are_too_long_for_tables_are_short_there_and_whole_in_files(
    names: list[str], short: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.results.report.pages.html.save", lambda figure, kind: b"")  # figures take a second
    assert short_names(names) == short
    for seed, name in enumerate(names):
        torch.save(small(seed).state_dict(), tmp_path / name)
    paths = [tmp_path / name for name in names]
    compared = compare_checkpoints(paths, config(), groups=["full"], examples=20, measures=["spectra"])
    assert list(compared.shown.names) == short
    assert set(compared.shown.others["spectra"]["base_name"]) <= {*short, "average"}
    page = write_compared(compared, tmp_path / "out").read_text()
    assert all(name in page for name in names)
    assert set(pd.read_parquet(tmp_path / "out" / "barriers.parquet")["base_name"]) == set(names)


def test_pairs_of_files_and_their_predicted_barriers_are_told_apart() -> None:
    names = [f"client-{number}.safetensors" for number in range(2)] + ["average"]
    rows = [
        {"layer": "fc", "base_name": base, "other_name": other, "loss_swap_ends": 0.1, "loss_predicted": 0.2}
        for base, other in ((names[0], names[1]), (names[1], names[0]), (names[0], "average"))
    ]
    picture = feature_pictures({"prediction": pd.DataFrame(rows)})["prediction"]
    assert isinstance(picture, HeatMaps)
    assert [list(table) for table in picture.tables.values()] == [["0, 1", "0, average", "1, 0"]] * 2


@pytest.mark.parametrize("matching", ["none", "weights", "c2m3", "activations"])
def test_matching_puts_a_permuted_checkpoint_in_the_places_of_the_first(matching: Any, tmp_path: Path) -> None:
    state, order = small(1).state_dict(), torch.tensor([2, 0, 1, 3])
    moved = {"fc1.weight": state["fc1.weight"][order], "fc1.bias": state["fc1.bias"][order]}
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    torch.save(state, paths[0])
    torch.save(state | moved | {"fc2.weight": state["fc2.weight"][:, order]}, paths[1])
    compared = compare_checkpoints(paths, config(), matching=matching, groups=["full"], examples=100)
    if matching == "none":
        assert compared.others == {}
        assert compared.distances["distance"].min() > 0.1
        return
    assert compared.distances["distance"].max() == pytest.approx(0.0, abs=1e-6)
    assert compared.barriers["loss_mean_ends"].abs().max() == pytest.approx(0.0, abs=1e-6)
    table = compared.others["matching"]
    assert table["moved"].tolist() == [0.0, 0.75]
    assert matching_table(table).rows == (("fc1", "b.pt", "4", "75.0"),)


def test_the_printed_table_has_a_line_by_layer() -> None:
    common = {"layer": ["fc2", "fc1"]}
    tables = {
        "connectivity": pd.DataFrame(
            {"layer": ["fc2", "fc1", "fc2", "fc2"], "base": [0, 0, 1, -1], "t": [0.5, 0.5, 0.5, 1.0]}
            | {"cosine": [0.9, 0.5, 0.7, 0.0], "cosine_ends": 0.2, "ratio": 0.25, "coefficient": 1.0}
        ),
        "spectra": pd.DataFrame({"layer": ["fc1", "fc1", "fc1"], "base": [-1, 0, 1], "stable_rank": [1.5, 2.0, 4.0]}),
        "cka": pd.DataFrame(common | {"base": 0, "other": 1, "cka": [0.5, 0.25]}),
        "stitching": pd.DataFrame(common | {"base": 0, "other": -1, "error": [0.5, 0.75], "error_ends": 0.125}),
    }
    table = features_table(tables)
    assert table is not None
    rows = [dict(zip(table.headings, row, strict=True)) for row in table.rows]
    assert [row["layer"] for row in rows] == ["fc2", "fc1"]
    assert (rows[0]["1 - cosine"], rows[0]["the two models'"], rows[0]["ratio"]) == ("0.2000", "0.8000", "0.2500")
    assert (rows[1]["stitched error (%)"], rows[1]["the models' error (%)"], rows[1]["CKA"]) == (
        "75.0000",
        "12.5000",
        "0.2500",
    )
    assert (rows[1]["stable rank"], rows[1]["the average's stable rank"], rows[0]["stable rank"]) == (
        "3.0000",
        "1.5000",
        "-",
    )
    assert features_table({}) is None


@pytest.fixture
def fedsim(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)
    return partial(command, "barriers")


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_tables_and_heat_maps(
    fedsim: Any, play: Callable[..., RunFolder], tiny: Callable[..., Config], tmp_path: Path
) -> None:
    play(tiny(rounds=1, barriers={"every": 0}, model={"name": "mlp", "hidden": [4]}))
    ours = "run/checkpoints/round-00001/global.safetensors"
    (tmp_path / "my_net.py").write_text(
        "from fedsim.models.architectures.mlp import mlp\n\n\n"
        "def net(shape, classes):\n    return mlp(shape, classes, hidden=(4,))\n"
    )
    torch.save(small(1).state_dict(), tmp_path / "a.pt")
    settings = ["--data", "digits", "--examples", "40", "--groups", "full", "--groups", "layers", "--out", "out"]
    more = ["--measure", "cka", "--matching", "weights"]
    code, out, err = fedsim(
        *("a.pt", ours, "--model", "my_net:net", *settings, "--ts", "0.25,1", "--weights", "1,2"), *more
    )
    assert code == 0, err
    assert "page, tables and figures: out/report.html" in err
    assert "sample: stratified: 40 of 355; intervals are for the population of the data set" in err
    *lines, first, second, units = [
        line.split() for line in out.splitlines() if line.strip().startswith(("full", "fc"))
    ]
    table = pd.read_parquet(tmp_path / "out" / "barriers.parquet")
    alike = pd.read_parquet(tmp_path / "out" / "cka.parquet")
    assert [float(first[1]), float(second[1])] == pytest.approx(list(alike["cka"]), abs=1e-4)
    assert units[:3] == ["fc1", "global.safetensors", "4"]
    largest, lines = lines[: 3 * 2], lines[3 * 2 :]
    assert [line[0] for line in largest] == ["full", "full", "fc1", "fc1", "fc2", "fc2"]
    over_t = table.groupby(["group", "base"], sort=False)["loss_mean_ends"].max()
    assert [float(line[4]) for line in largest] == pytest.approx(list(over_t), abs=1e-4)
    assert [line[0] for line in lines] == list(table["group"])
    assert len(lines) == 3 * 2 * 2
    assert float(lines[0][5]) == pytest.approx(table["loss_mean_ends"][0], abs=1e-4)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"{name}.{kind}" for name in ("barriers-loss", "barriers-error", "cka", "matching") for kind in ("pdf", "png")
    } | {f"{name}.parquet" for name in ("barriers", "peaks", "distances", "cka", "matching")} | {"report.html"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.pt", "b.safetensors", "--model", "mlp"], r"'fc1.weight' has shape \(4, 64\) and must be \(200, 64\)"),
        (["a.pt", "nope.pt", "--model", "mlp", "--set", "model.hidden=[4]"], "nope.pt does not exist"),
        (["a.pt", "b.safetensors", "--model", "mpl"], "'mpl' is unknown; did you mean 'mlp'"),
        (["a.pt", "b.safetensors", "--model", "mlp", "--ts", "0,half"], "--ts '0,half' must be numbers"),
        (["a.pt", "b.safetensors", "--model", "mlp", "--measure", "ck"], "'--measure': 'ck' is not one of 'connecti"),
        (["a.pt", "b.safetensors", "--model", "mlp", "--matching", "names"], "'--matching': 'names' is not one of"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    fedsim: Any, files: list[Path], arguments: list[str], message: str, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    code, out, err = fedsim(*arguments, "--data", "digits")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(message, err), err
    assert sorted(tmp_path.rglob("*")) == before


def test_files_of_one_name_are_told_apart_by_their_folders() -> None:
    assert names_of([Path("a/x.pt"), Path("b/y.pt")]) == ("x.pt", "y.pt")
    assert names_of([Path("runs/one/round-1/g.pt"), Path("runs/two/round-1/g.pt")]) == ("one", "two")
    assert names_of([Path("g.pt"), Path("two/g.pt")]) == ("g.pt", "two/g.pt")
    assert names_of([Path("same.pt"), Path("same.pt")]) == ("same.pt", "same.pt")


def base_and_head(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Return a model with a frozen layer, which is drawn anew each time."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, classes))
    model[1].requires_grad_(False)
    return model


def test_frozen_layers_are_those_of_the_checkpoints(tmp_path: Path) -> None:
    settings = comparison_config(f"{__name__}:base_and_head", "digits", {})
    one, two, other = (base_and_head((1, 8, 8), 10) for _ in range(3))
    two[1].load_state_dict(one[1].state_dict())
    paths = [tmp_path / f"{name}.pt" for name in ("one", "two", "other", "head")]
    states = [each.state_dict() for each in (one, two, other)]
    head = {key: value for key, value in states[1].items() if key.startswith("3")}  # as fedsim's own checkpoints are
    for path, state in zip(paths, [*states, head], strict=True):
        torch.save(state, path)
    whole, without = (compare_checkpoints(given, settings).barriers for given in (paths[:2], [paths[0], paths[3]]))
    assert set(whole["group"]) == {"3", "full"}
    assert whole["loss"].tolist() == without["loss"].tolist()
    inputs, targets = federation_of(settings).data.test()
    expected = [evaluate(each, inputs, targets).loss for each in (one, two)]
    full = whole[whole["group"] == "full"]
    assert (full["loss"] - full["loss_own_base"]).tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(
        ConfigError, match=r"checkpoints: .*other.pt and .*one.pt differ in '1.weight', which is frozen"
    ):
        compare_checkpoints([paths[0], paths[2]], settings)
