"""What a method declares and overrides: options that check themselves, hooks that exist, memory that is saved."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.errors import ConfigError, RunError
from fedsim.models.layers import LayerGroup
from fedsim.models.params import Params
from fedsim.strategy import ClientRule, ClientUpdate, Hooks, Local, NonNegative, Option, Received, Strategy
from fedsim.strategy.hooks import HOOKS
from strategies import STRATEGIES


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))


class Declared(Strategy, shared="body"):
    """A method with an option of each kind."""

    pull: NonNegative = Option(0.5, "Weight of the pull.")
    decay: Annotated[float, Ge(0), Lt(1)] = Option(0.9, "Decay of the pull.")
    order: Literal["first", "last"] = Option("first", "Layers that come first.")
    groups: tuple[str, ...] = Option((), "Groups in turn.")


class Other(Declared, shared="head"):
    """The same with other defaults."""

    pull = 2.0


def test_options_are_attributes_with_their_defaults_or_what_is_given() -> None:
    strategy = Declared(net(), decay=0.0, groups=["0"], participation=0.5)
    assert (strategy.pull, strategy.decay, strategy.order, strategy.groups) == (0.5, 0.0, "first", ("0",))
    assert (strategy.participation, strategy.seed) == (0.5, 0)


def test_a_subclass_changes_defaults_by_plain_values() -> None:
    assert (Other(net()).pull, Other(net()).decay) == (2.0, 0.9)
    assert (Declared(net()).group.layers, Other(net()).group.layers) == (("0",), ("1",))
    assert Other(net(), shared="all").shared(1).layers == ("0", "1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pull": -1.0}, r"pull = -1.0 must be at least 0 \(Weight of the pull\)"),
        ({"decay": 1.0}, r"decay = 1.0 must be at least 0 and less than 1 \(Decay of the pull\)"),
        ({"order": "middle"}, r"order = \"middle\" must be 'first' or 'last'"),
        ({"shared": "hed"}, "'hed' matches nothing"),
        ({"participation": 0.0}, "participation = 0.0 must be greater than 0 and at most 1"),
        ({"unseen": 1.0}, "unseen = 1.0 must be at least 0 and less than 1"),
        ({"min_available_nodes": 0}, "min_available_nodes = 0 must be at least 1"),
    ],
)
def test_a_bad_option_is_named_with_the_whole_rule(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Declared(net(), **options)


def test_an_unknown_option_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(TypeError, match="Declared has no option 'decai'; did you mean 'decay'"):
        Declared(net(), decai=0.1)


def test_a_method_without_the_keyword_has_no_option_shared() -> None:
    class Plain(Strategy):
        pass

    assert Plain(net()).shared(1).layers == ("0", "1")
    with pytest.raises(TypeError, match="no option 'shared'"):
        Plain(net(), shared="body")


def test_parameters_of_a_constructor_are_options_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Config]
) -> None:
    (tmp_path / "by_constructor.py").write_text(
        "from fedsim.strategy import Strategy\n\n\n"
        "class Mine(Strategy):\n"
        "    def __init__(self, model, strength: float = 1.0, **settings):\n"
        "        super().__init__(model, **settings)\n"
        "        self.strength = strength\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = tiny(strategy={"name": "by_constructor:Mine"})
    assert config.strategy.options == {"strength": 1.0}
    with pytest.raises(ConfigError, match=r'strategy\.strength = "much"'):
        tiny(strategy={"name": "by_constructor:Mine", "strength": "much"})


def test_a_misspelt_hook_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r"Own\.agregate is no hook; did you mean 'aggregate'\?"):

        class Own(Strategy):
            def agregate(self, server_round: int, updates: list[ClientUpdate]) -> Params:
                return {}

    with pytest.raises(ConfigError, match=r"Rule\.personalized is no hook; did you mean 'personalised'\?"):

        class Rule(ClientRule):
            def personalized(self, local: Local) -> Params:
                return local.params


def test_all_methods_that_strategies_override_are_checked_as_hooks() -> None:
    methods = {name for name, value in vars(Hooks).items() if inspect.isfunction(value) and name[0] != "_"}
    strategies = {cls for name in STRATEGIES for cls in STRATEGIES[name].__mro__} - {*Strategy.__mro__}
    assert {name for cls in strategies for name in vars(cls)} & methods <= {*HOOKS}


def test_a_hook_with_other_arguments_is_refused_with_those_it_must_take() -> None:
    with pytest.raises(ConfigError, match=r"Own.aggregate\(self, updates\) must take \(self, server_round, updates\)"):

        class Own(Strategy):
            def aggregate(self, updates):  # type: ignore[no-untyped-def, override]
                return {}


def test_methods_and_arguments_of_the_user_are_no_hooks() -> None:
    class Own(Strategy):
        def shared(self, server_round: int, deeper: int = 0) -> LayerGroup:
            return self.layers.group(f"first:{1 + deeper}")

        def schedule(self) -> float:
            return 1.0

        def _aggregated(self) -> Params:
            return {}

    assert Own(net()).shared(1).layers == ("0",)


def test_a_rule_gets_the_options_that_it_annotates() -> None:
    class Rule(ClientRule):
        pull: float

    class Own(Declared):
        client_rule = Rule

    assert Own.make_rule(net(), pull=3.0).pull == 3.0  # type: ignore[attr-defined]
    assert Own.make_rule(net()).parameters == ("0.weight", "0.bias", "1.weight", "1.bias")

    class Wrong(ClientRule):
        pul: float

    with pytest.raises(
        ConfigError, match="Wrong reads the option 'pul', which WithWrong does not declare; did you mean"
    ):

        class WithWrong(Declared):
            client_rule = Wrong


def test_a_method_that_builds_its_rule_is_told_to_name_the_class() -> None:
    with pytest.raises(
        ConfigError, match=r"Own\.client_rule must be the class .*, as in client_rule = MyRule, and is a func"
    ):

        class Own(Strategy):
            def client_rule(self) -> ClientRule:  # type: ignore[override]
                return ClientRule()


def test_memory_is_saved_and_taken_back() -> None:
    class Remembers(Strategy):
        def aggregate(self, server_round: int, updates: list[ClientUpdate]) -> Params:  # type: ignore[override]
            average = self.average(updates)
            self.memory.setdefault("past", {})[str(server_round)] = dict(average)
            return average

    def update(value: float) -> ClientUpdate:
        return ClientUpdate(0, {key: torch.full_like(tensor, value) for key, tensor in net().state_dict().items()}, 1.0)

    first, second = Remembers(net()), Remembers(net())
    for strategy in (first, second):
        strategy.set_global_model(dict(net().state_dict()))
    first.step(1, Received([update(1.0)]))
    state = first.state()
    assert set(state) == {f"past/1/{key}" for key in net().state_dict()}
    second.load_state(state)
    for strategy in (first, second):
        strategy.step(2, Received([update(2.0)]))
    assert {path: float(value.sum()) for path, value in first.state().items()} == {
        path: float(value.sum()) for path, value in second.state().items()
    }


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ({"seen": {3: torch.ones(1)}}, r"Hooks\.memory\['seen'\] has the key 3; it must be text"),
        ({"a/b": torch.ones(1)}, r"has the key 'a/b'; it must be text without '/'"),
        ({"rounds": 3}, r"Hooks\.memory\['rounds'\] is an int; it must be a tensor"),
    ],
)
def test_memory_that_a_checkpoint_would_not_give_back_is_refused(memory: dict, message: str) -> None:
    strategy, model = Hooks(net()), dict(net().state_dict())
    strategy.set_global_model(model)
    strategy.memory = memory
    with pytest.raises(RunError, match=message):
        strategy.state()
    with pytest.raises(RunError, match=message):
        strategy.step(1, Received([ClientUpdate(0, model, 1.0)]))


def test_server_and_updates_meet_on_the_device_of_the_updates() -> None:
    devices: set[torch.device] = set()

    class Looks(Hooks):
        def aggregate(self, server_round: int, updates: list[ClientUpdate]) -> Params:  # type: ignore[override]
            devices.update(value.device for value in (*self.global_model.values(), self.memory["a"]["b"]))
            return updates[0].shared

    strategy = Looks(net())
    strategy.set_global_model(dict(net().state_dict()))
    strategy.memory = {"a": {"b": torch.ones(2)}}
    away: dict[str, Tensor] = {key: value.to("meta") for key, value in net().state_dict().items()}
    with pytest.raises(RuntimeError, match="meta"):  # a device without values, so that they cannot be checked
        strategy.step(1, Received([ClientUpdate(0, away, 1.0)]))
    assert devices == {torch.device("meta")}


@pytest.mark.slow
def test_hooks_work_where_flower_is_not_installed() -> None:
    script = (
        "import sys; sys.modules['flwr'] = None\n"
        "import torch\n"
        "from fedsim.strategy.hooks import Hooks\n"
        "from fedsim.strategy.updates import ClientUpdate, Received\n"
        "class Largest(Hooks, shared='body'):\n"
        "    def aggregate(self, server_round, updates):\n"
        "        return max(updates, key=lambda update: update.num_examples).shared\n"
        "model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1))\n"
        "method = Largest(model)\n"
        "method.set_global_model(dict(model.state_dict()))\n"
        "updates = [ClientUpdate(k, {'0.weight': torch.tensor([[float(k)]])}, k + 1) for k in range(3)]\n"
        "method.step(1, Received(updates))\n"
        "print(method.global_model['0.weight'].item())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("2.0\n", "")


def test_an_option_has_a_type_and_a_name_that_no_part_of_a_method_has() -> None:
    taken = {name for name in vars(Strategy(net())) if not name.startswith("_")}
    for name in (*taken, "shared", "average", "dtype", "option_schema", "configure_train"):
        with pytest.raises(ConfigError, match=f"^Own declares an option '{name}', which every method has; rename"):
            type("Own", (Strategy,), {name: Option(1.0, "Weight."), "__annotations__": {name: float}})
    with pytest.raises(
        ConfigError, match=r"^Own declares an option 'pull' without a type; write one, as in pull: float"
    ):
        type("Own", (Strategy,), {"pull": Option(1.0, "Weight.")})
    again = type("Own", (Declared,), {"pull": Option(0.7, "Weight.")})
    assert again(net()).pull == 0.7  # type: ignore[attr-defined]
