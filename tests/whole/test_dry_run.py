"""A dry run describes each method without training anything."""

from collections.abc import Callable

import pytest

from fedsim.config import Config
from fedsim.config.choices import CATALOGUES
from fedsim.experiment.dry_run import describe_run

OPTIONS = {"layer_set": {"shared": "body"}}
# Of these strategies the clients' rule sends or gets parameter sets, or trains in another way than the plan says.
MORE_THAN_LAYERS = {
    "apfl",
    "ditto",
    "drift_gated",
    "fedala",
    "fedas",
    "fedcac",
    "fedgucci",
    "fedma",
    "fedrod",
    "fedselect",
    "floco",
    "hierarchical_average",
    "llmc",
    "matched_average",
    "pfedme",
    "scaffold",
}


@pytest.mark.parametrize("name", CATALOGUES["strategies"].entries)
def test_a_dry_run_describes_every_strategy(name: str, tiny: Callable[..., Config]) -> None:
    norm = {"model": {"name": "resnet18", "norm": "batch", "width": 2}} if name == "fedbn" else {}
    text = describe_run(tiny(**norm, strategy={"name": name, **OPTIONS.get(name, {})}))
    assert "in all rounds: " in text
    assert "from round 1: " in text
    assert ("not counted: parameter sets" in text) == (name in MORE_THAN_LAYERS)


def test_bytes_are_those_of_the_layers_that_are_averaged_since_a_client_took_part(tiny: Callable[..., Config]) -> None:
    # fc1 has 64 x 12 weights and 12 biases of 4 bytes, fc2 12 x 10 and 10; all four clients take part in each round.
    fc1, fc2 = (64 * 12 + 12) * 4, (12 * 10 + 10) * 4
    whole = describe_run(tiny(rounds=3))
    assert f"in all rounds: {3 * 4 * (fc1 + fc2):,} bytes up, {2 * 4 * (fc1 + fc2):,} bytes down" in whole
    head = describe_run(tiny(rounds=3, strategy={"name": "layer_set", "shared": "head"}))
    assert f"from round 1: 4 clients send {fc2:,} bytes each: fc2" in head
    assert f"in all rounds: {3 * 4 * fc2:,} bytes up, {2 * 4 * fc2:,} bytes down" in head
