"""The server's evaluation has the same batches, and so the same bytes, with any number of threads."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedsim.config import Config
from fedsim.experiment.evaluation import ServerEvaluation
from fedsim.federation.federation import Federation, federation_of
from fedsim.training import evaluation
from fedsim.training.evaluation import evaluate


def batches_of(federation: Federation, n: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Return what the model takes at once, in the order of the examples, which are numbered."""
    inputs, targets = federation.data.test()
    found: list[Tensor] = []
    numbers = torch.arange(float(n)).view(-1, *[1] * (inputs.ndim - 1)).expand(n, *inputs.shape[1:])
    kind, call = type(federation.model()), nn.Module.__call__

    def seen(module: nn.Module, *arguments: Tensor) -> Tensor:
        if isinstance(module, kind):
            found.append(arguments[0].flatten(1)[:, 0])
        return call(module, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "__call__", seen)
        test = numbers, torch.zeros(n, dtype=targets.dtype)
        ServerEvaluation(federation, test, threads).metrics(federation.initial)
    return sorted(found, key=lambda batch: float(batch[0]))


@pytest.mark.parametrize("n", [1, 125, 126, 130, 251, 252])
def test_the_number_of_threads_changes_no_batch_and_no_byte(
    n: int, tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = federation_of(tiny(data__test_examples=n, evaluation={"metrics": ["macro-f1"]}))
    inputs, targets = federation.data.test()
    assert len(targets) == n
    alone = evaluate(federation.model(), inputs, targets, federation.criterion)
    batches = batches_of(federation, n, 1, monkeypatch)
    assert torch.equal(torch.cat(batches), torch.arange(float(n)))
    for threads in (1, 2, 3, 7):
        found = ServerEvaluation(federation, (inputs, targets), threads)._evaluate(federation.initial)
        assert torch.equal(found.losses, alone.losses)
        assert torch.equal(found.errors, alone.errors)
        again = batches_of(federation, n, threads, monkeypatch)
        assert [len(batch) for batch in again] == [len(batch) for batch in batches]


def test_threads_share_batches_of_another_size_as_an_accelerator_has(
    tiny: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "EVALUATION_BATCH", 200)
    federation = federation_of(tiny())
    for n, sizes in ((300, [200, 100]), (401, [200, 201]), (600, [200, 200, 200])):
        for threads in (1, 2, 3):
            assert [len(batch) for batch in batches_of(federation, n, threads, monkeypatch)] == sizes
