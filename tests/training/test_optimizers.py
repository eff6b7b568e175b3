"""Each optimiser is torch's: alone, over phases and rounds, in a cohort, and in half precision."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from fedsim.models.params import state_of
from fedsim.training import ClientRule, LocalPlan, LocalSettings, LocalTask, Phase, Ruled, train_, train_cohort
from fedsim.training.evaluation import evaluate
from fedsim.training.losses import Loss
from tests.training.torch_loop import optimizer_of, train_by_torch_

PHASES = LocalPlan((Phase("head", epochs=1), Phase("all", steps=5)))
OPTIMIZERS = {
    "sgd": LocalSettings(2, 5, 0.1, 0.9, 0.01, nesterov=True),
    "adam": LocalSettings(2, 5, 0.01, weight_decay=0.1, optimizer="adam", betas=(0.8, 0.95), eps=1e-6),
    "amsgrad": LocalSettings(2, 5, 0.01, optimizer="adam", amsgrad=True),
    "adamw": LocalSettings(2, 5, 0.01, weight_decay=0.1, optimizer="adamw"),
}
EACH = pytest.mark.parametrize("settings", OPTIMIZERS.values(), ids=OPTIMIZERS)


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        conv, head = nn.Conv2d(1, 4, 3), nn.Linear(16, 3)
        return nn.Sequential(conv, nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), head).to(dtype)


def data(client: int = 0, n: int = 23, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(client)
    inputs = torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs.to(dtype), torch.randint(0, 3, (n,), generator=generator)


def assert_equal(model: nn.Module, reference: nn.Module, tolerance: float) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=tolerance), name


@EACH
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_an_optimiser_is_torchs_over_two_phases_and_kept_over_two_rounds(
    settings: LocalSettings, dtype: torch.dtype, tolerance: float
) -> None:
    model, examples = net(dtype), data(dtype=dtype)
    reference, state = copy.deepcopy(model), {}
    train_by_torch_(reference, *examples, PHASES, settings, [np.random.default_rng(k) for k in (3, 4)])
    for k in (3, 4):
        state = train_(model, *examples, PHASES, settings, np.random.default_rng(k), state).optimizer_state
    assert_equal(model, reference, tolerance)
    if settings.optimizer != "sgd":
        # Five mini-batches of the head, then five of all layers, in two rounds.
        assert state["step/4.weight"] == 20
        assert state["step/0.weight"] == 10


@EACH
def test_without_a_state_each_round_begins_with_a_new_optimiser(settings: LocalSettings) -> None:
    model, examples = net(), data()
    reference = copy.deepcopy(model)
    for k in (3, 4):
        train_by_torch_(reference, *examples, PHASES, settings, [np.random.default_rng(k)])
        train_(model, *examples, PHASES, settings, np.random.default_rng(k))
    assert_equal(model, reference, 1e-12)


@EACH
def test_members_with_more_and_fewer_steps_behind_them_train_in_a_cohort_as_alone(settings: LocalSettings) -> None:
    # The third has taken part before and the second has not; two have equally many examples.
    sizes, start = (12, 12, 23, 4), state_of(net())
    before = train_(net(), *data(9), PHASES, settings, np.random.default_rng(9)).optimizer_state
    states = [{}, {}, before, before]
    wanted = []
    for k, (n, state) in enumerate(zip(sizes, states, strict=True)):
        model = net()
        training = train_(model, *data(k, n), PHASES, settings, np.random.default_rng(k), state)
        wanted.append((state_of(model), training.optimizer_state))
    tasks = [LocalTask(start, *data(k, sizes[k]), np.random.default_rng(k), states[k]) for k in range(4)]
    for (params, training), (alone, state) in zip(train_cohort(net(), tasks, PHASES, settings), wanted, strict=True):
        assert training.optimizer_state.keys() == state.keys()
        for one, other in ((params, alone), (training.optimizer_state, state)):
            for name, value in one.items():
                assert torch.allclose(value, other[name], rtol=0, atol=1e-12), name


@EACH
def test_a_set_has_an_optimiser_of_its_own_apart_from_the_models(settings: LocalSettings) -> None:
    model, examples = net(), data()
    start = {name: value.clone() for name, value in state_of(model).items()}
    plan = LocalPlan((Phase(epochs=1), Phase(epochs=1, trains="personal")))
    ruled = Ruled(ClientRule(model), {"personal": start})
    result = train_(model, *examples, plan, settings, np.random.default_rng(0), ruled=ruled)
    rng = np.random.default_rng(0)
    for found in (state_of(model), result.sets["personal"]):
        reference = net()
        train_by_torch_(reference, *examples, LocalPlan((Phase(epochs=1),)), settings, [rng])
        assert all(
            torch.allclose(found[name], value, rtol=0, atol=1e-12) for name, value in state_of(reference).items()
        )
    assert sum("personal/" in name for name in result.optimizer_state) * 2 == len(result.optimizer_state)


@EACH
def test_a_kept_state_and_gradients_may_have_other_strides_than_the_parameters(settings: LocalSettings) -> None:
    # Fused steps take for granted that they have the same.
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)).double()
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    inputs, targets = data(n=20)[0].repeat(1, 3, 1, 1), data(n=20)[1]
    states: list[dict] = [{}, {}]
    for k in range(2):
        for place, model in enumerate((plain, last)):
            state = train_(model, inputs, targets, LocalPlan(), settings, np.random.default_rng(k), states[place])
            states[place] = {name: value.contiguous() for name, value in state.optimizer_state.items()}
    assert not last[0].weight.is_contiguous()
    assert_equal(last, plain, 1e-12)


@EACH
def test_weights_of_bfloat16_are_rounded_as_torch_rounds_them(settings: LocalSettings) -> None:
    model, examples = net(torch.bfloat16), data(dtype=torch.bfloat16)
    reference = copy.deepcopy(model)
    train_by_torch_(reference, *examples, LocalPlan(), settings, [np.random.default_rng(0)])
    train_(model, *examples, LocalPlan(), settings, np.random.default_rng(0))
    assert_equal(model, reference, 0)


@EACH
def test_clipping_is_torchs_over_all_that_is_trained_in_two_phases(settings: LocalSettings) -> None:
    model, examples = net(), data()
    reference = copy.deepcopy(model)
    norms = []

    def clip(model: nn.Module) -> None:
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.2)))

    train_by_torch_(reference, *examples, PHASES, settings, [np.random.default_rng(0)], before=[clip])
    train_(model, *examples, PHASES, replace(settings, clip_norm=1.2), np.random.default_rng(0))
    assert_equal(model, reference, 1e-12)
    assert min(norms) < 1.2 < max(norms)


def test_clipping_acts_on_the_gradient_with_its_proximal_term() -> None:
    # The second step pulls by far more than 0.1 towards where the first one started.
    model, (inputs, targets) = net(), data(n=4)
    settings = LocalSettings(batch_size=4, lr=0.2, clip_norm=0.1)
    train_(model, inputs, targets, LocalPlan((Phase(steps=1),)), settings, np.random.default_rng(0))
    before, other = copy.deepcopy(model), net()
    plan = LocalPlan((Phase(steps=2, proximal=1000.0),))
    train_(other, inputs, targets, plan, settings, np.random.default_rng(0))
    moved = nn.utils.parameters_to_vector(other.parameters()) - nn.utils.parameters_to_vector(before.parameters())
    assert moved.norm().item() == pytest.approx(0.2 * 0.1, rel=1e-4)


@EACH
def test_members_of_a_cohort_have_gradients_norms_groups_and_smoothed_labels_of_their_own(
    settings: LocalSettings,
) -> None:
    settings = replace(
        settings, clip_norm=0.5, label_smoothing=0.2, lr_scale={"head": 10.0, "0": 0.1}, schedule="linear"
    )
    sizes, start = (12, 23, 4), state_of(net())
    tasks = [LocalTask(start, *data(k, sizes[k]), np.random.default_rng(k)) for k in range(3)]
    for k, (params, training) in enumerate(train_cohort(net(), tasks, PHASES, settings)):
        model = net()
        alone = train_(model, *data(k, sizes[k]), PHASES, settings, np.random.default_rng(k))
        assert training.loss == pytest.approx(alone.loss, rel=1e-12)
        for name, value in state_of(model).items():
            assert torch.allclose(params[name], value, rtol=0, atol=1e-12), name


@EACH
def test_scaled_layers_and_weights_that_decay_are_torchs_parameter_groups(settings: LocalSettings) -> None:
    settings = replace(settings, weight_decay=0.1)
    ours = replace(settings, lr_scale={"head | 1": 10.0, "0": 0.1}, weight_decay_on="weights", schedule="cosine")
    model, examples = net(), data()
    reference = copy.deepcopy(model)
    (conv, conv_bias), norm, (head, head_bias) = (list(reference[k].parameters()) for k in (0, 1, 4))
    groups = [(conv, 0.1, 0.1), (conv_bias, 0.1, 0), (norm, 10, 0), (head, 10, 0.1), (head_bias, 10, 0)]
    optimizer = optimizer_of(settings, reference.parameters())
    optimizer.param_groups.clear()
    for parameters, scale, decay in groups:
        optimizer.add_param_group(
            {"params": parameters, "lr": scale * settings.lr, "weight_decay": decay, "foreach": False}
        )
    scheduler = CosineAnnealingLR(optimizer, 10)
    rng = np.random.default_rng(0)
    train_by_torch_(reference, *examples, PHASES, settings, [rng], optimizer=optimizer, after=[scheduler.step])
    train_(model, *examples, PHASES, ours, np.random.default_rng(0))
    assert_equal(model, reference, 1e-12)


def test_factors_of_a_phase_come_on_top_of_those_of_the_run_and_act_on_sets_too() -> None:
    model, examples = net(), data()
    start = {name: value.clone() for name, value in state_of(model).items()}
    settings = LocalSettings(1, 5, 0.01, lr_scale={"head": 2.0})
    plan = LocalPlan((Phase(trains="personal", lr_scale={"head": 3.0, "0": 0.5}),))
    ruled = Ruled(ClientRule(model), {"personal": start})
    found = train_(model, *examples, plan, settings, np.random.default_rng(0), ruled=ruled).sets["personal"]
    train_(model, *examples, LocalPlan(), replace(settings, lr_scale={"head": 6.0, "0": 0.5}), np.random.default_rng(0))
    assert all(torch.equal(found[name], value) for name, value in state_of(model).items())


@pytest.mark.parametrize(
    ("lr_scale", "message"),
    [
        ({"hed": 2.0}, "lr_scale names 'hed': layer pattern 'hed' matches nothing; layers are: 0, 1, 4"),
        ({"none": 2.0}, "lr_scale names 'none', which holds no parameter to train; name other layers, of: 0, 1, 4"),
        ({"frozen": 2.0}, "lr_scale names 'frozen', which holds no parameter to train"),
        ({"all": 2.0, "head": 3.0}, "lr_scale names 4 in 'all' and in 'head'; each .* once, as by 'all - 4'"),
        ({"head": 2.0, "0 | 4": 3.0}, r"names 4 in 'head' and in '0 \| 4'; .* once, as by '\(0 \| 4\) - 4'"),
        ({"head": 2.0, "4": 3.0}, "lr_scale names 4 in 'head' and in '4'; each .* once, so remove one of these"),
    ],
)
def test_factors_that_name_nothing_or_a_layer_twice_are_one_line(lr_scale: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_(net(), *data(), LocalPlan(), LocalSettings(lr_scale=lr_scale), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"lr_scale = 0 for 'head' of a phase must be greater than 0"):
        Phase(lr_scale={"head": 0})


def test_smoothed_labels_are_in_the_training_loss_only() -> None:
    model, examples = net(), data()
    reference, settings = copy.deepcopy(model), LocalSettings(1, 5, 0.1)
    smoothed = replace(settings, label_smoothing=0.3)
    train_by_torch_(reference, *examples, PHASES, settings, [np.random.default_rng(0)], label_smoothing=0.3)
    train_(model, *examples, PHASES, smoothed, np.random.default_rng(0))
    assert_equal(model, reference, 1e-12)
    still = replace(smoothed, lr=1e-300, epochs=1)
    loss = train_(model, *examples, LocalPlan(), still, np.random.default_rng(0)).loss
    model.eval()
    assert loss == pytest.approx(cross_entropy(model(examples[0]), examples[1], label_smoothing=0.3).item())
    assert evaluate(model, *examples).loss == pytest.approx(cross_entropy(model(examples[0]), examples[1]).item())


def test_smoothing_leaves_ignored_targets_out() -> None:
    logits = torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([[0, 1, -100, 2, 2]] * 4)
    real = targets != -100
    wanted = cross_entropy(logits, targets, label_smoothing=0.3)
    assert Loss(label_smoothing=0.3).mean(logits, targets, real).item() == pytest.approx(wanted.item(), rel=1e-12)
    members = Loss(label_smoothing=0.3).of_members(logits.view(2, 2, 3, 5), targets.view(2, 2, 5), real.view(2, 2, 5))
    assert members.mean().item() == pytest.approx(wanted.item(), rel=1e-12)
