"""The numbers on the page of the experiments with transformers are those of the committed tables, rounded."""

import pandas as pd
import pytest

from tests.whole.quoted import assert_quoted, assert_row, over_seeds, read

PAGE = "experiments/transformers/README.md"
PAIRS, FEDERATION = "| halfway between two models", "| average | ViT, round 1"


def halfway(name: str, matching: str, tied: bool | None = None) -> list[float]:
    rows = read(f"transformers/{name}.csv").query("t == 0.5 and matching == @matching")
    column = next((each for each in ("model.tied", "tied") if each in rows), "")
    return over_seeds(rows["barrier"] if tied is None else rows[rows[column] == tied]["barrier"])


@pytest.mark.parametrize(
    ("label", "matching"),
    [
        ("as they are", "none"),
        ("permutations", "weights"),
        ("and rotations within heads", "head-rotations"),
        ("and of the residual stream", "rotations"),
    ],
)
def test_barriers_by_the_symmetries_that_are_used(label: str, matching: str) -> None:
    tied = [] if matching == "rotations" else halfway("gpt", matching, tied=True)
    assert_row(PAGE, PAIRS, label, [*halfway("vit", matching), *halfway("gpt", matching, tied=False), *tied])


def test_barriers_of_learned_rotations() -> None:
    values = [*halfway("vit_learned", "learned"), *halfway("gpt_learned", "learned")]
    assert_row(PAGE, PAIRS, "learned rotations", values)


def test_barriers_up_to_invertible_matrices() -> None:
    found = [("vit", None), ("gpt", False), ("gpt", True)]
    values = [end for name, tied in found for end in halfway(f"{name}_invertible", "invertible", tied)]
    assert_row(PAGE, PAIRS, "and invertible matrices within heads", values)
    changes, lower = [], []
    for name, tied in found:
        rows = read(f"transformers/{name}_invertible.csv").query("t == 0.5")
        own = (rows if tied is None else rows[rows["tied"] == tied]).pivot(columns="matching", index="seed")["barrier"]
        changes += over_seeds(own["invertible"] - own["rotations"])
        lower.append(bool((own["invertible"] < own["rotations"]).all()))
    assert_quoted(
        PAGE, "change the barrier of rotations by {} ± {} nats for the ViTs, where it is lower in each", *changes[:2]
    )
    assert_quoted(PAGE, "and by {} ± {} and {} ± {} for the GPTs", *changes[2:])
    assert lower == [True, False, False]


def test_tied_embeddings_leave_nothing_to_rotate_but_heads() -> None:
    for column in ("barrier", "loss"):
        rows = read("transformers/gpt.csv").query("`model.tied` and matching in ['head-rotations', 'rotations']")
        both = rows.pivot(index=["seed", "t"], columns="matching", values=column)
        pd.testing.assert_series_equal(both["rotations"], both["head-rotations"], check_names=False)


@pytest.mark.parametrize(
    ("label", "strategy"),
    [
        ("plain (`full`)", "FedAvg"),
        ("permutations", "matched_average"),
        ("and rotations within heads", "matched_average(symmetries=head-rotations)"),
        ("and of the residual stream", "matched_average(symmetries=rotations)"),
    ],
)
def test_averages_of_transformers(label: str, strategy: str) -> None:
    rows = read("transformers/vit_federation.csv").query("strategy == @strategy")
    values = [each for number in (1, 2, 3) for each in over_seeds(rows[rows["round"] == number]["accuracy"])]
    own = read("transformers/gpt_federation.csv").query("strategy == @strategy")
    assert_row(PAGE, FEDERATION, label, values + (over_seeds(own["accuracy"]) if len(own) else []))
