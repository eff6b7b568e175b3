from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsim.analysis.suite import MEASURES
from fedsim.config import Config
from fedsim.errors import ConfigError
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from fedsim.results.measured import read_measured
from fedsim.results.report import read_result, write_run
from fedsim.results.report.comparing.groups import Group
from fedsim.results.report.drawing import companions
from fedsim.results.report.drawing.style import save
from fedsim.results.report.pages.analysis import SECTIONS, analysis_sections
from fedsim.results.report.pages.comparison_barriers import barrier_sections
from tests.conftest import unseal
from tests.results.report import cases


@pytest.fixture
def run(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> RunFolder:
    """Play a run in which nothing but one round's barriers is measured."""
    return unseal(play(tiny(clients=2, rounds=1, barriers={"every": 1, "pairs": 0, "examples": 20, "measures": []})))


def write(folder: RunFolder, name: str, number: int, table: pd.DataFrame) -> None:
    path = folder.path / name / f"round-{number:05d}.parquet"
    path.parent.mkdir(exist_ok=True)
    table.drop(columns="round", errors="ignore").to_parquet(path)


def test_a_section_appears_only_if_it_was_measured(run: RunFolder) -> None:
    names = [section.name for section in analysis_sections(read_result(run))]
    assert names == ["barriers-loss", "barriers-error"]


def test_a_caption_says_how_the_examples_were_drawn_and_what_bands_hold_for(run: RunFolder) -> None:
    assert "20 of the server's test examples, stratified by class" in analysis_sections(read_result(run))[0].text
    path = [(other, t) for other in (0, 1) for t in (0.0, 0.5, 1.0)]
    write(run, "barriers", 1, cases.barriers([1], ends=path, groups=["full"]).assign(sampling="free"))
    result = read_result(run)

    def caption(level: float) -> str:
        config = result.config.model_copy(
            update={"barriers": result.config.barriers.model_copy(update={"bands": level})}
        )
        [section] = [each for each in analysis_sections(replace(result, config=config)) if each.name == "paths-loss"]
        return section.text

    assert "90 % confidence bands of the barrier, which hold for all of its rows together" in caption(0.9)
    assert "1.96 standard errors of the barrier, which hold for each point by itself" in caption(0.0)
    assert caption(0.9).endswith("50 of the server's test examples.")


@pytest.mark.slow
def test_everything_that_was_measured_is_drawn_by_the_data_it_was_measured_on(run: RunFolder) -> None:
    paths = [(other, t) for other in (0, 1) for t in (0.0, 0.5, 1.0)]
    groups = [*cases.GROUPS, "shallow:1", "deep:1", "random:1", "windows:2:conv1"]
    for number in (1, 3):
        server = cases.barriers([number], ends=[(-1, 1.0), *paths], groups=groups)
        write(run, "barriers", number, pd.concat([server, cases.barriers([number], data="train")]))
        for name, table in cases.companions(number).items():
            write(run, name, number, table)
    sections = {section.name: section for section in analysis_sections(read_result(run))}
    both = ("barriers", "pairs", "cumulative", "windows", "paths", "robustness")
    single = ("robustness-rounds", "criticality", "interaction", "unexplained", "similarity", "distances", "cosines")
    expected = {f"{name}-{metric}" for name in both for metric in ("loss", "error")}
    assert set(sections) == expected | {"barriers-loss-train", "barriers-error-train", *single}
    assert "50 of the union of the clients' training examples" in sections["barriers-loss-train"].text
    assert "50 of the server's test examples" in sections["barriers-loss"].text
    for name in (
        "paths-loss",
        "robustness-error",
        "similarity",
        "unexplained",
    ):  # heat maps are drawn in their own tests
        assert save(sections[name].figure, "svg").startswith(b"<?xml"), name


def test_the_page_has_a_section_for_each_measure() -> None:
    assert set(SECTIONS) == {*MEASURES, "matching"}


def test_the_loss_of_numbers_is_in_no_nats() -> None:
    rows = cases.companions(1)["interaction"].assign(round=1)
    assert companions.unexplained(rows).y == "loss (nats)"
    assert companions.unexplained(rows.assign(error_unit="squared")).y == "loss (per example)"


@pytest.mark.slow
def test_robustness_starts_at_the_model_itself_and_is_of_the_last_round(run: RunFolder) -> None:
    for number in (1, 3):
        table = cases.companions(number)["robustness"]
        pairs = table.assign(other=1, loss_own_base=9.0)
        write(run, "robustness", number, pd.concat([table, pairs]))
    figure = next(each.figure for each in analysis_sections(read_result(run)) if each.name == "robustness-loss")
    [average, *_] = figure.axes[0].lines
    assert average.get_xdata() == pytest.approx([0.0, 0.5, 1.0])
    assert average.get_ydata() == pytest.approx([0.0, 0.6, 0.6])


def test_tables_have_their_round_and_are_of_unmatched_models_on_the_servers_data_unless_they_say_so(
    tmp_path: Path,
) -> None:
    tables = (2, {"a": [1]}), (11, {"a": [2], "data": ["clients"], "matching": ["weights"]})
    for number, table in tables:
        pd.DataFrame(table).to_parquet(tmp_path / f"round-{number:05d}.parquet")
    table = read_measured(tmp_path)
    expected = {"a": [1, 2], "data": ["server", "clients"], "matching": ["none", "weights"], "round": [2, 11]}
    expected["path"] = ["factors", "factors"]
    assert table.to_dict(orient="list") == expected
    assert read_measured(tmp_path / "absent").empty


def test_a_damaged_table_is_named(run: RunFolder) -> None:
    path = run.path / "distances" / "round-00001.parquet"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ConfigError, match=r"distances/round-00001\.parquet is damaged"):
        analysis_sections(read_result(run))


def test_matched_models_have_sections_of_their_own_and_no_angles_to_a_start(run: RunFolder) -> None:
    table = cases.companions(1)["distances"]
    write(run, "distances", 1, pd.concat([table.assign(matching="none"), table.assign(matching="weights")]))
    path = run.path / "distances" / "round-00001.parquet"
    read = pd.read_parquet(path)
    read.loc[read["matching"] == "weights", "cosine_from_start"] = np.nan
    read.to_parquet(path)
    drawn = {each.name: len(each.figure.axes) for each in analysis_sections(read_result(run)) if "cosine" in each.name}
    assert drawn == {"cosines": 3, "cosines-weights": 2}  # with the scale of colours


def test_a_comparison_draws_each_kind_of_data_and_of_matching_and_the_clients_first(run: RunFolder) -> None:
    own = cases.barriers([1], data="clients").assign(matching="none", loss_own_base=0.6, loss_mean_ends=-1.0)
    ways = [cases.barriers([1]).assign(matching=way) for way in ("none", "weights")]
    ways[1]["loss_mean_ends"] = 0.0
    write(run, "barriers", 1, pd.concat([*ways, own]))
    result = read_result(run)
    sections = barrier_sections({"a": Group("a", {}, [result]), "b": Group("b", {}, [result])})
    assert {each.name: each.title for each in sections} == {
        "barriers": "Layer-wise barriers, on each client's own test examples",
        "barriers-server": "Layer-wise barriers, on the server's test examples",
        "barriers-server-weights": "Layer-wise barriers, on the server's test examples, after matching by weights",
    }
    drawn = [np.asarray(each.figure.axes[0].images[0].get_array())[0] for each in sections]
    assert [values.item() for values in drawn] == pytest.approx([0.6, 106.02, 0.0])  # of bases 0 and 1
    assert [list(each.figure.axes[1].get_title()) for each in sections] == [["b"]] * 3
    assert "minus the loss of the client's own model" in sections[0].text
    assert not any(each in sections[0].text for each in ("a reference", "all classes"))


def test_a_setting_without_barriers_on_some_data_is_not_in_its_figure(run: RunFolder) -> None:
    write(run, "barriers", 1, cases.barriers([1]))
    result = read_result(run)
    both = replace(
        result,
        barriers=pd.concat(
            [result.barriers, cases.barriers([1], data="clients").assign(matching="none", path="factors")]
        ),
    )
    sections = barrier_sections({"server only": Group("a", {}, [result]), "both": Group("b", {}, [both])})
    assert [[axes.get_title() for axes in each.figure.axes[:-1] if axes.get_visible()] for each in sections] == [
        ["both"],
        ["server only", "both"],
    ]
    unmeasured = Group("c", {}, [replace(result, barriers=pd.DataFrame())])
    assert barrier_sections({"unmeasured": unmeasured}) == []


def test_a_page_shows_the_clients_own_data_first_minus_their_own_loss(run: RunFolder) -> None:
    write(run, "barriers", 1, pd.concat([cases.barriers([1]), cases.barriers([1], data="clients")]))
    sections = {each.name: each for each in analysis_sections(read_result(run))}
    assert [name for name in sections if name.startswith("barriers-loss")] == ["barriers-loss", "barriers-loss-server"]
    titles = [axes.get_title() for axes in sections["barriers-loss"].figure.axes if axes.get_title()]
    assert titles
    assert all(title.endswith("minus its own loss") for title in titles)


def test_captions_of_sets_of_layers_name_the_reference_and_what_was_measured(run: RunFolder) -> None:
    groups = ["full", "shallow:1", "windows:2:conv1"]
    write(
        run, "barriers", 1, pd.concat([cases.barriers([1], groups=groups, data=each) for each in ("server", "clients")])
    )
    texts = {each.name: each.text for each in analysis_sections(read_result(run))}
    references = {"": "the loss of the client's own model", "-server": "the models' mean loss"}
    for data, reference in references.items():
        assert "layers: first k layers. Each cell" in texts[f"cumulative-loss{data}"]
        for name in ("cumulative", "windows"):
            assert f"minus {reference}, shown separately" in texts[f"{name}-loss{data}"]


@pytest.mark.slow
def test_the_page_says_what_the_analysis_cost(run: RunFolder, tmp_path: Path) -> None:
    seconds = read_rows(run.timing)["barriers"].sum()
    total = float(np.nansum(read_rows(run.timing).drop(columns="round").to_numpy()))
    page = write_run(read_result(run), tmp_path / "out").read_text()
    assert f"<strong>{seconds:.3g} s, {seconds / total:.0%}</strong>wall time of the analysis" in page
