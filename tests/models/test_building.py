"""A newly built model is made ready, or refused in one line that names the tensor and says what helps."""

import copy
import re
import warnings
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from fedsim.models.building import initialise_lazy_, make_trainable_


def net(**tensors: Tensor | None) -> nn.Module:
    """Return a model with tensors of its own: parameters and buffers."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    for name, value in tensors.items():
        if isinstance(value, nn.Parameter):
            model.register_parameter(name, value)
        else:
            model.register_buffer(name, value)
    return model


def computed() -> nn.Module:
    model = net()
    model.scaled = model[0].weight * 2
    return model


def tied_by_data() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    return model


def view_of_a_part() -> nn.Module:
    model = net()
    model.column = nn.Parameter(model[0].weight.data[:, 0])
    return model


def in_a_list(layers: object, name: str = "layers") -> nn.Module:
    model = net()
    setattr(model, name, {"blocks": layers})
    vars(model)[name]["all"] = vars(model)[name]
    return model


def with_a_state(state: object) -> nn.Module:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> object:
            return state

    return Stateful(4, 2)


def hidden() -> nn.Module:
    class Hidden(nn.Linear):
        def state_dict(self, *args: object, **options: object) -> dict[str, Tensor]:  # type: ignore[override]
            return {key: value for key, value in super().state_dict(**options).items() if key != "bias"}

    return Hidden(4, 2)


def without_gradient(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def in_float8() -> nn.Module:
    return net(scale=nn.Parameter(torch.ones(3).to(torch.float8_e4m3fn)))


def hooked(register: str) -> nn.Module:
    model = net()
    getattr(model[0].weight, register)(lambda value: None)
    return model


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: net(scale=nn.Parameter(torch.ones(1, 3).expand(2, 3))), "'scale' has values that share memory"),
    (tied_by_data, "'1.weight' and '0.weight' share memory but are two tensors; tie them by giving both modules"),
    (view_of_a_part, "'0.weight' and 'column' share memory"),
    (computed, "the attribute 'scaled' is computed from parameters when the model is built"),
    (lambda: net(graph=torch.eye(3).to_sparse()), "'graph' is sparse_coo; register it as a buffer with persistent=F"),
    (lambda: net(empty=torch.empty(3, device="meta")), "'empty' is on the device 'meta' and has no values"),
    (lambda: net(extra=nn.UninitializedParameter()), "'extra' belongs to a lazy module that the forward pass does not"),
    (lambda: with_a_state({"step": 1}), "its state dict has '_extra_state', which is no parameter or buffer"),
    (lambda: with_a_state(torch.ones(2)), "its state dict has '_extra_state', which is no parameter or buffer"),
    (hidden, "the parameter 'bias' is not in its state dict"),
    (lambda: net(bad=nn.Parameter(torch.tensor([1.0, float("nan")]))), "'bad' has values that are not finite before"),
    (partial(hooked, "register_hook"), "'0.weight' has a hook for its gradient (register_hook), which copies"),
    (partial(hooked, "register_post_accumulate_grad_hook"), "'0.weight' has a hook for its gradient"),
    (lambda: in_a_list([nn.Linear(3, 3)]), "the dict 'layers' has parameters that torch does not see there, so that"),
    (lambda: in_a_list([nn.Linear(3, 3)], "_hidden"), "the dict '_hidden' has parameters that torch does not see"),
    (lambda: in_a_list({torch.ones(3, requires_grad=True)}), "the dict 'layers' has parameters that torch does not"),
    (in_float8, "'scale' is torch.float8_e4m3fn and trained, for which torch has no SGD"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_what_cannot_be_trained_by_name_is_refused_in_one_line(build: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make_trainable_(build())
    assert "\n" not in str(error.value)
    assert ";" in str(error.value)  # what helps comes last


def test_lists_of_registered_or_fixed_tensors_are_no_parameters() -> None:
    lstm = parametrizations.weight_norm(nn.LSTM(3, 2), "weight_hh_l0")
    for model in (in_a_list([nn.Linear(3, 3).requires_grad_(False)]), lstm, in_a_list({torch.ones(2)})):
        make_trainable_(model)


def test_a_script_is_refused_as_it_would_not_train() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.script(nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"script of torch\.jit, .* give the module itself"):
        make_trainable_(script)


def interleaved() -> nn.Module:
    """Two parameters that are rows of one tensor in turn: their ranges overlap, their elements do not."""
    both = torch.randn(4, 3)
    return net(even=nn.Parameter(both[::2]), odd=nn.Parameter(both[1::2]))


TAKEN: list[Callable[[], nn.Module]] = [
    interleaved,
    lambda: net(mask=torch.full((3, 3), float("-inf")).triu(1)),
    lambda: net(nothing=nn.Parameter(torch.empty(0, 4)), none=None),
    lambda: net(steps=without_gradient(torch.arange(3)), flags=torch.tensor([True, False])),
    lambda: net(scale=without_gradient(torch.ones(3).to(torch.float8_e4m3fn))),
    lambda: net(turned=nn.Parameter(torch.randn(3, 2).t())),
    lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    lambda: nn.LSTM(4, 3),
    lambda: in_a_list([nn.Linear(3, 3).requires_grad_(False)]),
    lambda: (model := net()).__setattr__("order", [model[1], model[0]]) or model,  # type: ignore[func-returns-value]
]


@pytest.mark.parametrize("build", TAKEN)
def test_other_tensors_stay_as_they_are(build: Callable[[], nn.Module]) -> None:
    model = build()
    before = model.state_dict(keep_vars=True)
    make_trainable_(model)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[key] is before[key] for key in before)


def test_an_expanded_buffer_gets_memory_of_its_own() -> None:
    model = net(scale=torch.tensor([0.5]).expand(3))
    make_trainable_(model)
    model.load_state_dict(model.state_dict() | {"scale": torch.tensor([1.0, 2.0, 3.0])})
    assert model.get_buffer("scale").tolist() == [1, 2, 3]


def test_lazy_modules_draw_from_the_global_stream_and_keep_their_mode_and_statistics() -> None:
    def built() -> nn.Module:
        torch.manual_seed(3)
        model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Dropout(), nn.LazyLinear(2))
        model[2].eval()
        initialise_lazy_(model, torch.ones(2, 4))
        return model

    model = built()
    assert [type(module) for module in model] == [nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.Linear]
    assert [module.training for module in model] == [True, True, False, True]
    assert torch.equal(model[1].running_mean, torch.zeros(3))
    assert model[1].num_batches_tracked == 0
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), built().parameters(), strict=True))


def older(name: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if name == "weight_norm":
            nn.utils.weight_norm(model[0])
        elif name == "spectral_norm":
            nn.utils.spectral_norm(model[0])
        elif name == "pruned":
            prune.l1_unstructured(model[0], "weight", 0.5)
        else:
            prune.random_unstructured(model[0], "weight", 0.3)
            prune.l1_unstructured(model[0], "bias", 1)
            prune.l1_unstructured(model[0], "weight", 0.3)
    return model


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm", "pruned", "pruned twice"])
def test_weights_that_older_hooks_compute_can_be_copied_and_trained_as_before(name: str) -> None:
    torch.manual_seed(0)
    plain = older(name)
    torch.manual_seed(0)
    ours = older(name)
    make_trainable_(ours)
    inputs = torch.randn(5, 4)
    for _ in range(3):
        ours = copy.deepcopy(ours)  # also right after a pass with gradients
        for model in (plain, ours):
            model(inputs).square().sum().backward()
            with torch.no_grad():
                for value in model.parameters():
                    value.sub_(0.1 * value.grad)
                    value.grad = None
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in ours.state_dict().items())
    with pytest.raises(TypeError):
        ours(inputs, inputs)  # the hook also runs after an error
    copy.deepcopy(ours)
