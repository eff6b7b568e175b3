import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fedsim.results.report.drawing.heat_maps import NOT_MEASURED, HeatMaps, Quantity, colour_limit
from tests.results.report.cases import assert_drawn

LOSS = Quantity("loss barrier (nats)")


def table(values: np.ndarray) -> pd.DataFrame:
    names = ["full", *(f"layer{row}" for row in range(1, len(values)))]
    return pd.DataFrame(values, index=names, columns=range(1, values.shape[1] + 1))


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_colours_end_at_the_largest_value_whatever_its_sign() -> None:
    assert colour_limit([np.array([[0.5, -2.0]]), np.array([[1.5, np.nan]])]) == (2.0, False)


def test_an_outlier_does_not_take_the_colour_from_the_others() -> None:
    values = np.linspace(-1, 1, 200)
    values[7] = 1000.0
    assert colour_limit([values]) == (1.0, True)
    values[8] = 900.0
    assert colour_limit([values]) == (1.0, True)
    values[7:10] = 1000.0  # more than a hundredth of the cells is no outlier
    assert colour_limit([values]) == (1000.0, False)


@pytest.mark.parametrize("values", [np.zeros((3, 2)), np.full((3, 2), np.nan), np.zeros((0, 2))])
def test_without_a_value_there_is_still_a_scale(values: np.ndarray) -> None:
    assert colour_limit([values]) == (1.0, False)


@pytest.mark.parametrize("factor", [1.0, 100.0])
def test_zero_is_the_middle_of_the_colours(factor: float) -> None:
    figure = HeatMaps({"a": table(np.array([[0.1, -0.4], [0.2, 0.3]]))}, Quantity("x", factor)).figure()
    assert figure.axes[0].images[0].get_clim() == pytest.approx((-0.4 * factor, 0.4 * factor))
    unsigned = HeatMaps({"a": table(np.array([[0.1, 0.4], [0.2, 0.3]]))}, Quantity("x", factor, signed=False)).figure()
    assert unsigned.axes[0].images[0].get_clim() == pytest.approx((0.0, 0.4 * factor))


def test_wide_cells_hold_their_numbers_and_none_a_negative_zero() -> None:
    figure = HeatMaps({"a": table(np.array([[-0.0001, 1.0], [np.nan, -0.25]]))}, LOSS).figure()
    assert texts(figure) == ["0.00", "1.00", "-0.25"]
    assert to_hex(figure.axes[0].get_facecolor()).upper() == NOT_MEASURED


def test_narrow_cells_mark_what_is_clearly_negative() -> None:
    values = np.full((2, 40), 0.5)
    values[1, 3], values[0, 4] = -1.0, -0.01
    figure = HeatMaps({"a": table(values)}, LOSS).figure()
    assert texts(figure) == []
    [marks] = [each for each in figure.axes[0].collections if len(each.get_offsets())]
    assert np.asarray(marks.get_offsets()).tolist() == [[3, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (22, 11), (60, 90)])
def test_a_table_of_any_size_is_drawn_with_names_of_any_length(rows: int, columns: int) -> None:
    wide = table(np.random.default_rng(0).normal(size=(rows, columns)))
    wide.index = [f"transformer.encoder.layers.{row}.self_attention.out_proj" for row in range(rows)]
    wide.columns = [f"checkpoint-{column:05d}.safetensors" for column in range(columns)]
    assert_drawn(HeatMaps({"first": wide, "second": wide}, LOSS, across=2).figure())
