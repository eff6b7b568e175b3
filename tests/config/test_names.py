"""Names of entries in any spelling, and hints that never point to another method."""

import re

import pytest

from fedsim.config import Config
from fedsim.config.catalogue import Catalogue
from fedsim.config.choices import CATALOGUES, resolve
from fedsim.config.names import canonical, meant
from fedsim.config.naming import run_name
from fedsim.errors import ConfigError
from fedsim.lazy import Named
from fedsim.options import as_toml
from strategies import NAMES

STRATEGIES: Catalogue = CATALOGUES["strategies"]
ELSEWHERE = [
    *("feddyn", "fednova", "fedsam", "fedlc", "fedmd", "fedpac", "fedproto", "fedgen", "fedrs", "fedsgd", "fedadamw"),
    *("fedcr", "fedpm", "fedopt", "fedsm", "moon", "perfedavg", "fedhn", "fedphp", "fedgh", "fedkd", "fedtp"),
    *("fedrc", "feddc", "fedcm", "fedamp", "fedawa"),
]


def config_of(name: str, **options: object) -> Config:
    strategy = {"name": name, **options}
    return resolve(Config.parse({"rounds": 1, "clients": 2, "partition": {"scheme": "iid"}, "strategy": strategy}, ""))


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("FedProx", "fedprox"),
        ("Layer-Set", "layer_set"),
        ("FLWR:fedavg", "flwr:FedAvg"),
        ("Fed-Avg", "full"),
        ("SCAFFOLD", "scaffold"),
        ("pFedMe", "pfedme"),
        ("FED PROX", "fedprox"),
        (" p fed\u2011me ", "pfedme"),
    ],
)
def test_case_spaces_and_hyphens_do_not_matter_and_the_run_is_the_same(typed: str, name: str) -> None:
    assert config_of(typed) == config_of(name)
    assert config_of(typed).strategy.name == name
    assert run_name(config_of(typed)) == run_name(config_of(name))


def test_a_minus_in_an_option_is_no_hyphen() -> None:
    labels = ["FedX(mu=1)", "FedX(mu=-1)"]
    assert [canonical(each, labels) for each in ("fed-x(MU = 1)", "FEDX(mu=-1)")] == labels


@pytest.mark.parametrize(
    ("typed", "shown", "shared"),
    [
        ("FedPer", "FedPer", "body"),
        ("fed_per", "FedPer", "body"),
        ("lg-fedavg", "LG-FedAvg", "head"),
        ("LGFedAvg", "LG-FedAvg", "head"),
        ("lg fed avg", "LG-FedAvg", "head"),
        ("FED PER", "FedPer", "body"),
        ("Fed-Per", "FedPer", "body"),
        ("FedBN", "FedBN", "!norm"),
    ],
)
def test_a_name_in_the_literature_is_the_same_run_as_what_it_stands_for(typed: str, shown: str, shared: str) -> None:
    named, meant_by_it = config_of(typed), config_of("layer_set", shared=shared)
    assert named == meant_by_it == config_of(typed, shared=shared)
    assert run_name(named) == run_name(meant_by_it)
    assert named.to_toml() == meant_by_it.to_toml()
    for config in (named, meant_by_it):
        assert STRATEGIES.label(config.strategy) == shown
        assert STRATEGIES.registered_label(config.strategy) == f"layer_set(shared={shared})"
    assert STRATEGIES.label(config_of(typed, buffers="personal").strategy) == f"{shown}(buffers=personal)"


@pytest.mark.parametrize("value", ["head", "all", 3, ["body"]])
def test_an_option_that_contradicts_a_name_is_one_clear_line(value: object) -> None:
    line = re.escape(f"'FedPer' stands for layer_set with shared = \"body\", which strategy.shared = {as_toml(value)}")
    with pytest.raises(ConfigError, match=line):
        config_of("FedPer", shared=value)


@pytest.mark.parametrize(("name", "named"), NAMES.items())
def test_every_name_is_shown_for_what_it_stands_for_and_nothing_else(name: str, named: Named) -> None:
    assert STRATEGIES.canonical(name) == named.entry
    assert STRATEGIES.label(config_of(name).strategy) == name
    # What is fixed is not the default, unless other names fix other values of it.
    defaults = {key: info.default for key, info in STRATEGIES.schema(named.entry).model_fields.items()}
    others = [each for each in NAMES.values() if each.entry == named.entry]
    for option, value in named.options.items():
        assert defaults[option] != value or len({each.options.get(option) for each in others}) > 2
    if named.place:  # the class of that name does what the options say
        fixed = named.place.load().option_schema().model_fields
        assert {option: fixed[option].default for option in named.options} == named.options


def test_what_has_no_name_in_the_literature_is_shown_by_its_own() -> None:
    for name, options in (("layer_set", {}), ("layer_set", {"shared": "fc1"}), ("local", {}), ("flwr:FedAvg", {})):
        choice = config_of(name, **options).strategy
        assert STRATEGIES.label(choice) == STRATEGIES.registered_label(choice)
    assert STRATEGIES.label(config_of("fedprox", mu=0.5).strategy) == "FedProx(mu=0.5)"


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
    [("fulll", "full"), ("scafold", "SCAFFOLD"), ("fedpox", "FedProx"), ("matched_averag", "matched_average")],
)
def test_a_misspelling_is_recognised(typed: str, name: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy.name = '{typed}' is unknown; did you mean '{name}'"):
        STRATEGIES.check_name(typed)


@pytest.mark.parametrize(("typed", "example"), [("net", "net:NAME"), ("net.py", "net:NAME"), ("a/net", "my_file:NAME")])
def test_a_message_says_how_a_part_of_a_file_is_named(typed: str, example: str) -> None:
    with pytest.raises(
        ConfigError, match=f"'{typed}' is unknown; known are: mlp, .*; your own is named as in '{example}'"
    ):
        CATALOGUES["models"].check_name(typed)


def test_a_message_says_which_entries_have_an_option() -> None:
    settings = {"rounds": 1, "clients": 2, "partition": {"scheme": "iid", "alpha": 0.1}}
    have = r"unknown key 'partition.alpha' for 'iid'.*; 'dirichlet', .* have it; in a sweep, set it for these alone: "
    with pytest.raises(ConfigError, match=have + r"partition = \[\{ scheme = 'dirichlet', alpha = \.\.\. \}, \.\.\.\]"):
        resolve(Config.parse(settings, ""))


def measured_on(**barriers: object) -> str:
    return run_name(
        resolve(Config.parse({"rounds": 1, "clients": 2, "partition": {"scheme": "iid"}, "barriers": barriers}, ""))
    )


def test_the_default_data_of_barriers_name_a_run_and_the_former_default_renames_none() -> None:
    of_server = measured_on(on=["server"])
    assert of_server == "e0376e98-s0"  # as it was named when this was the default
    assert len({of_server, measured_on(), measured_on(on=["clients"]), measured_on(on=["server", "clients"])}) == 4
    assert measured_on() == measured_on(on=["clients", "server"])
    assert measured_on(every=0) == measured_on(every=0, on=["server"])
