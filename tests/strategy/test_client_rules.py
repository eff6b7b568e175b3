"""What a method does on a client, through a whole run: what is kept, what travels, what it costs, what is refused."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fedsim.config import Config
from fedsim.errors import ConfigError, RunError
from fedsim.experiment import run as experiment
from fedsim.results.files import read_rows
from fedsim.results.folder import RunFolder
from strategies import STRATEGIES
from tests.strategies.agreement import assert_trains_alike
from tests.strategies.harness import Play

SOURCE = """
import torch
from fedsim.strategy import ClientRule, Finished, LocalPlan, Option, Phase, Strategy


class Sends(ClientRule):
    trained = ("offset",)

    set_name: str
    value: float
    upload: str
    type: str

    def start(self, local):
        sets = {"offset": {"shift": torch.zeros(10)}, **local.sets}
        return type(local)(**vars(local) | {"sets": sets})

    def loss(self, step):
        return step.cross_entropy(step.logits(step.params) + step.sets["offset"]["shift"])

    def finish(self, local, started):
        offset = local.sets["offset"]
        upload = {key: value for key, value in local.params.items() if key.startswith(self.upload)}
        sent = {self.set_name: {"shift": offset["shift"] * self.value, "fc2.bias": local.params["fc2.bias"]}}
        params = {key: value.to(getattr(torch, self.type)) for key, value in local.params.items()}
        return Finished(params, upload, kept={"offset": offset}, sent=sent)


class Own(Strategy):
    client_rule = Sends
    set_name: str = Option("told", "Name of the set that is sent.")
    value: float = Option(1.0, "Factor of what is sent.")
    upload: str = Option("", "Beginning of the keys that are sent.")
    trains: str = Option("all", "Layer group that is trained.")
    type: str = Option("float32", "Type of the model that the rule returns.")
    scaled: str = Option("all", "Layer group with twice the step size.")

    def local_plan(self, server_round):
        return LocalPlan((Phase(self.trains, lr_scale={} if self.scaled == "all" else {self.scaled: 2.0}),))

    def sets_for(self, server_round, client):
        return {"hint": {"number": torch.ones(3)}}


class Looks(ClientRule):
    def finish(self, local, started):
        layers = ("fc1", "fc2", "fc3")
        return Finished(local.params, metrics={name: float(name in local.shared) for name in layers})

    def personalised(self, local):
        # In an evaluation, what is shared in the next round.
        return {key: value * (key.partition(".")[0] in local.shared) for key, value in local.params.items()}


class Remembers(ClientRule):
    def loss(self, step):
        loss = step.loss_of(step.logits(step.params))
        if "before" in step.sets:  # not in the client's first round
            loss = loss + sum((step.params[key] - value).square().sum() for key, value in step.sets["before"].items())
        return loss

    def finish(self, local, started):
        memory = local.sets.get("memory", {"rounds": torch.zeros(1)})
        before = {key: local.params[key] for key in self.parameters}
        return Finished(local.params, kept={"before": before, "memory": {"rounds": memory["rounds"] + 1}})

    def personalised(self, local):
        rounds = local.sets["memory"]["rounds"] if local.sets else 0
        return {key: value + rounds for key, value in local.params.items()}


class Memory(Strategy):
    client_rule = Remembers


class Decorrelates(ClientRule):
    def loss(self, step):
        logits, features = step.logits_and_features(step.params, "fc3")
        features = features - features.mean(0)
        return step.loss_of(logits) + (features.T @ features / len(features)).square().mean()


class Decorrelated(Strategy):
    client_rule = Decorrelates


class InTurn(Strategy):
    client_rule = Looks

    def shared(self, server_round):
        return self.layers.group(f"fc{1 + server_round % 3}")
"""


@pytest.fixture(autouse=True)
def _own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rule.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def own(tiny: Callable[..., Config], **options: object) -> Config:
    return tiny(strategy={"name": "own_rule:Own", **options}, barriers={"every": 0})


def test_sets_are_kept_trained_sent_and_counted(tiny: Callable[..., Config], play: Callable[..., RunFolder]) -> None:
    folder = play(own(tiny))
    states = [load_file(path) for path in (folder.checkpoints / "clients").glob("*-round-00002.safetensors")]
    assert len(states) == 4
    assert all(set(state) == {"offset/shift"} and state["offset/shift"].abs().max() > 0 for state in states)
    traffic = read_rows(folder.communication)
    sizes = traffic[traffic["set"] != "model"].groupby(["set", "layer"])[["down", "up"]].max()
    # What is an entry of a layer counts there: ten floats each. The server's hint has three.
    assert sizes.to_dict("index") == {
        ("hint", "-"): {"down": 12, "up": 0},
        ("told", "-"): {"down": 0, "up": 40},
        ("told", "fc2"): {"down": 0, "up": 40},
    }


def test_new_clients_and_those_that_have_kept_sets_train_as_one_after_the_other() -> None:
    # Of four clients two are new in round 2, one of them with the most examples, which is the first of a cohort.
    sizes, absent = (5, 8, 3, 6), {1: (1, 3), 2: 0}
    alone, together = (Play("own_rule:Memory", sizes=sizes, absent=absent, cohort=cohort) for cohort in (1, 4))
    assert_trains_alike(alone, together, range(4))


def test_a_loss_over_a_mini_batch_sees_no_padding_in_a_cohort() -> None:
    alone, together = (Play("own_rule:Decorrelated", sizes=(5, 8, 4, 7), cohort=cohort) for cohort in (1, 4))
    assert_trains_alike(alone, together, range(4))


def test_a_rule_sees_which_layers_are_shared_in_the_round_and_in_the_next_one() -> None:
    play = Play("own_rule:InTurn", absent={})
    for server_round in (1, 2, 3):
        play.round(server_round)
        shared, following = (f"fc{1 + each % 3}" for each in (server_round, server_round + 1))
        for update in play.received.updates:
            assert {name for name in ("fc1", "fc2", "fc3") if update.metrics[name]} == {shared}
        own = play.personalised(0)
        assert {key.partition(".")[0] for key, value in own.items() if value.abs().sum()} == {following}


def test_passes_forward_and_back_are_counted_by_client(
    tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    rows = read_rows(play(tiny(strategy={"name": "ditto"}, barriers={"every": 0})).metrics).query("split == 'train'")
    counts = rows.pivot_table(index=["round", "client"], columns="metric", values="value")
    n = rows.groupby(["round", "client"])["n"].first()
    assert (counts["forward_examples"] == 2 * n).all()
    assert (counts["backward_examples"] == 2 * n).all()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"value": 1e300}, "its told has values that are not finite"),
        ({"upload": "fc2"}, r"it sent the entries \['fc2.bias', 'fc2.weight'\], not"),
        ({"type": "float64"}, "its rule returns a model in which fc1.weight has the type float64, not float32"),
        ({"set_name": "probe"}, "a rule's set is called 'probe', which messages use already"),
    ],
)
def test_what_a_client_must_not_send_leaves_it_out(
    options: dict, reason: str, tiny: Callable[..., Config], play: Callable[..., RunFolder]
) -> None:
    with pytest.raises(RunError, match=reason):
        play(own(tiny, **options))


def test_a_phase_that_trains_nothing_is_refused_before_anything_is_written(
    tiny: Callable[..., Config], play: Callable[..., RunFolder], tmp_path: Path
) -> None:
    for trains, message in (
        ("none", "'none', which holds no parameter; name a group"),
        ("fc9", "'fc9' matches nothing"),
    ):
        with pytest.raises(ConfigError, match=message):
            play(own(tiny, trains=trains))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("setting", ["momentum", "weight_decay", "clip_norm"])
def test_a_method_for_plain_sgd_refuses_anything_else(setting: str, tiny: Callable[..., Config]) -> None:
    config = tiny(strategy={"name": "scaffold"}, local={"lr": 0.1, setting: 0.1})
    with pytest.raises(ConfigError, match=f"'SCAFFOLD' is defined for plain SGD.*{setting} = 0.1; leave it out"):
        experiment.prepare(config)
    adam = tiny(strategy={"name": "scaffold"}, local={"optimizer": "adamw", "lr_scale": {"head": 2}})
    with pytest.raises(ConfigError) as caught:
        experiment.prepare(adam)
    assert str(caught.value) == (
        "strategy.name = 'SCAFFOLD' is defined for plain SGD, and local.optimizer = \"adamw\", "
        'local.weight_decay = 0.01, local.lr_scale = {"head": 2.0}; leave them out, or choose another strategy'
    )
    experiment.prepare(tiny(strategy={"name": "scaffold"}, local={"schedule": "cosine", "label_smoothing": 0.1}))


def test_the_page_on_training_names_every_method_for_plain_sgd() -> None:
    plain = {name for name, strategy in STRATEGIES.items() if strategy.client_rule.plain_sgd}
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    [named] = re.findall(r"Methods that are defined for plain SGD \((.*?)\)", page)
    assert {name.strip("`") for name in named.split(", ")} == plain


def test_factors_of_the_step_size_that_name_no_layer_are_refused_before_anything_is_written(
    tiny: Callable[..., Config],
) -> None:
    with pytest.raises(ConfigError, match=r"^local\.lr_scale names 'hed': .* matches nothing; layers are: fc1, fc2"):
        experiment.prepare(tiny(local={"lr_scale": {"hed": 2.0}}))
    with pytest.raises(ConfigError, match=r"round 1: a phase's lr_scale names 'fc9': .* matches nothing"):
        experiment.prepare(own(tiny, scaled="fc9"))


def test_options_that_do_not_exist_are_named_with_those_that_do(tiny: Callable[..., Config]) -> None:
    with pytest.raises(ConfigError, match=r"'strategy.lamda' for 'ditto'.*known are: .*proximal"):
        tiny(strategy={"name": "ditto", "lamda": 1.0})
    with pytest.raises(ConfigError, match=r"proximal = -1.0 must be at least 0"):
        experiment.prepare(tiny(strategy={"name": "ditto", "proximal": -1.0}))


def test_a_head_that_cannot_be_determined_is_asked_for_by_name(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "headless.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.body = nn.Conv2d(1, 4, 3)\n"
        "        self.left, self.right = (nn.Conv2d(4, classes, 6) for _ in range(2))\n"
        "    def forward(self, x):\n"
        "        x = self.body(x).tanh()\n"
        "        return (self.left(x) + self.right(x)).flatten(1)\n"
        "def make(shape, classes):\n"
        "    return Two(classes)\n"
    )
    for name in ("fedrep", "fedbabu", "fedrod", "fedalt", "fedas", "floco"):
        with pytest.raises(
            ConfigError,
            match=r"the logits come from left and right; give \[model\] head = .*; layers are: body, left, right",
        ):
            experiment.prepare(tiny(strategy={"name": name}, model={"name": "headless:make"}))
    experiment.prepare(tiny(strategy={"name": "fedrep", "head": "right"}, model={"name": "headless:make"}))
    named = {"name": "headless:make", "head": "left | right"}
    assert experiment.prepare(tiny(strategy={"name": "fedrep"}, model=named))[1].group.layers == ("body",)
