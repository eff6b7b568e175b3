"""Names of entries in any spelling, and hints that never point to another method."""

import pytest

from fedsim.config import Config
from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES, resolve
from fedsim.config.names import meant
from fedsim.config.naming import run_name
from fedsim.errors import ConfigError

STRATEGIES: Catalogue = CATALOGUES["strategies"]
ELSEWHERE = [
    *("feddyn", "fednova", "fedsam", "fedlc", "fedmd", "fedpac", "fedproto", "fedgen", "fedrs", "fedsgd", "fedadamw"),
    *("fedcr", "fedpm", "fedopt", "fedsm", "moon", "perfedavg", "fedhn", "fedphp", "fedgh", "fedkd", "fedtp"),
    *("fedrc", "feddc", "fedcm", "fedamp", "fedawa"),
]


def config_of(name: str) -> Config:
    return resolve(
        Config.parse({"rounds": 1, "clients": 2, "partition": {"scheme": "iid"}, "strategy": {"name": name}}, "")
    )


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("FedProx", "fedprox"),
        ("Layer-Set", "layer_set"),
        ("FLWR:fedavg", "flwr:FedAvg"),
        ("Fed-Avg", "fedavg"),
        ("LG-FedAvg", "lg_fedavg"),
        ("LGFedAvg", "lg_fedavg"),
    ],
)
def test_case_and_hyphens_do_not_matter_and_the_run_is_the_same(typed: str, name: str) -> None:
    assert config_of(typed) == config_of(name)
    assert config_of(typed).strategy.name == name
    assert run_name(config_of(typed)) == run_name(config_of(name))


def test_no_two_entries_differ_in_spelling_only() -> None:
    for catalogue in CATALOGUES.values():
        assert [catalogue.canonical(name) for name in catalogue.entries] == list(catalogue.entries)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_method_that_is_not_here_is_taken_for_no_other(name: str) -> None:
    assert meant(name, set(STRATEGIES.entries) - {name}) is None


def test_no_entry_is_taken_for_another_if_it_were_not_here() -> None:
    for kind, catalogue in CATALOGUES.items():
        for name in catalogue.entries:
            others = set(catalogue.entries) - {name}
            assert meant(name, others) is None, (kind, name)


@pytest.mark.parametrize(
    ("typed", "name"),
    [("fulll", "full"), ("scafold", "scaffold"), ("fedpox", "fedprox"), ("matched_averag", "matched_average")],
)
def test_a_misspelling_is_recognised(typed: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy.name = '{typed}' is unknown; did you mean '{name}'"):
        STRATEGIES.check_name(typed)


def test_a_message_says_which_entries_have_an_option() -> None:
    settings = {"rounds": 1, "clients": 2, "partition": {"scheme": "iid", "alpha": 0.1}}
    with pytest.raises(ConfigError, match=r"unknown key 'partition.alpha' for 'iid'.*; 'dirichlet', .* have it"):
        resolve(Config.parse(settings, ""))
