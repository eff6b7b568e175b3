"""The training job of all simulators: 20 clients x 600 Fashion-MNIST examples x 1 epoch x batch 32.

It needs torch, torchvision and NumPy only, as it is imported in the peers' environments too.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from fedsim.models.architectures.cnn import cnn
from fedsim.models.architectures.mlp import mlp
from fedsim.models.architectures.resnet import resnet18

CLIENTS, EXAMPLES, BATCH = 20, 600, 32
LR, MOMENTUM = 0.05, 0.9
HELD, SERVER_EXAMPLES = 150, 10_000  # on which a job evaluates each client's model, and the server's
SHAPE, CLASSES = (1, 28, 28), 10
MEAN, STD = 0.2860, 0.3530  # statistics of Fashion-MNIST's training images
WHERE = "FEDSIM_BENCHMARK_JOB"  # a variable with the file of the images in the environment of a child process

MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": partial(mlp, SHAPE, CLASSES),
    "mlp-512": partial(mlp, SHAPE, CLASSES, hidden=(512, 512)),
    "cnn": partial(cnn, SHAPE, CLASSES),
    "resnet18": partial(resnet18, SHAPE, CLASSES, width=16, norm="group"),
}
# Fewer clients if each takes seconds on two cores.
CLIENTS_OF = {"resnet18": 4}


def make_model(name: str) -> nn.Module:
    """Return a model with the same initial weights in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[name]()


def settings_of(model: str) -> dict[str, Any]:
    """Return the settings of a run of fedsim that trains a model on such a job, and evaluates and saves nothing."""
    return {
        "clients": CLIENTS,
        "evaluate_every": 10**6,
        "checkpoint_every": 10**6,
        "device": "cpu",
        "barriers": {"every": 0},
        "data": {"name": "fashion-mnist", "train_examples": CLIENTS * (EXAMPLES + HELD)},
        "partition": {"scheme": "iid", "validation": 0.0, "test": 0.2},
        "model": {"name": model},
        "local": {"momentum": MOMENTUM},
    }


@dataclass(frozen=True)
class Job:
    """The images, uint8 [n, 28, 28], and labels of all clients, one client after the other."""

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def random(cls, clients: int) -> Self:
        """Generate bytes in the shape of Fashion-MNIST."""
        rng, n = np.random.default_rng(0), clients * EXAMPLES
        return cls(rng.integers(256, size=(n, 28, 28), dtype=np.uint8), rng.integers(CLASSES, size=n))

    @classmethod
    def read(cls, clients: int) -> tuple[Self, str]:
        """Return the real images and ``Fashion-MNIST``, or random ones and the reason if fedsim cannot read them."""
        try:
            from fedsim.data import DATA

            train = DATA["fashion-mnist"]().train
        except (ImportError, OSError, RuntimeError) as error:
            return cls.random(clients), f"random bytes ({error})"
        if len(train) < clients * EXAMPLES:
            return cls.random(clients), f"random bytes ({clients} clients need more than {len(train)} images)"
        order = np.random.default_rng(0).permutation(len(train))[: clients * EXAMPLES]
        return cls(train.inputs.numpy()[order, 0], train.targets.numpy()[order]), "Fashion-MNIST"

    def share(self, path: Path) -> None:
        """Write the job for child processes, which find it through the environment."""
        np.savez(path, images=self.images, labels=self.labels)
        os.environ[WHERE] = str(path)

    @classmethod
    def shared(cls) -> Self:
        """Read what the parent process wrote with `share`."""
        with np.load(os.environ[WHERE]) as arrays:
            return cls(arrays["images"], arrays["labels"])

    def part(self, client: int) -> slice:
        """Return the positions of a client's examples."""
        return slice(client * EXAMPLES, (client + 1) * EXAMPLES)

    def tensors(self, client: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Return a client's normalised images [n, 1, 28, 28] and labels, as a plain script keeps them."""
        images = torch.from_numpy(self.images[self.part(client)]).to(device).float().div_(255)
        return (images.unsqueeze(1) - MEAN) / STD, torch.from_numpy(self.labels[self.part(client)]).to(device)

    def channels_last(self, client: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        """Return the same with channels adjacent in memory, as in fedsim's data sets."""
        inputs, targets = self.tensors(client, device)
        channels, height, width = inputs.shape[1:]
        strides = (channels * height * width, 1, width * channels, channels)
        # torch's own conversion leaves images with one channel as they are, and convolutions are then slow.
        return torch.empty_strided(inputs.shape, strides, device=device).copy_(inputs), targets

    def loader(self, client: int, generator: torch.Generator | None = None) -> DataLoader[Any]:
        """Return the usual loader of a client's examples, which are converted one by one."""
        images = Images(self.images[self.part(client)], self.labels[self.part(client)])
        return DataLoader(images, batch_size=BATCH, shuffle=True, generator=generator)


class Images(Dataset[tuple[Tensor, int]]):
    """Images that become floats one by one, as with torchvision's ``ToTensor`` and ``Normalize``."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from torchvision.transforms import Compose, Normalize, ToTensor

        self.images, self.labels = images, labels
        self.transform = Compose([ToTensor(), Normalize((MEAN,), (STD,))])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def usual_loop_(model: nn.Module, loader: DataLoader[Any], device: str = "cpu") -> None:
    """Train for an epoch as most scripts do."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        cross_entropy(model(inputs.to(device)), targets.to(device)).backward()
        optimizer.step()


def plain_loop_(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    """Train for an epoch on tensors in memory."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    model.train()
    for batch in torch.randperm(len(targets), device=targets.device).split(BATCH):
        optimizer.zero_grad()
        cross_entropy(model(inputs[batch]), targets[batch]).backward()
        optimizer.step()


@cache
def _held_out() -> list[tuple[Tensor, Tensor]]:
    job = Job.shared()
    own = [tuple(values[:HELD] for values in job.tensors(client)) for client in range(CLIENTS)]
    return [*own, *(job.tensors(client) for client in range(SERVER_EXAMPLES // EXAMPLES))]


def evaluate_plainly(model: nn.Module) -> float:
    """Evaluate a model as often as a round of a job does: on 150 examples of each client, and on 9,600 more."""
    model.eval()
    with torch.inference_mode():
        return sum(float(cross_entropy(model(inputs), targets)) for inputs, targets in _held_out())


def flop_per_example(name: str) -> float:
    """Count the operations of one forward and backward pass, per example, as torch's own counter does."""
    from torch.utils.flop_counter import FlopCounterMode

    model, inputs = make_model(name), torch.randn(BATCH, *SHAPE)
    with FlopCounterMode(display=False) as counter:
        cross_entropy(model(inputs), torch.zeros(BATCH, dtype=torch.int64)).backward()
    return counter.get_total_flops() / BATCH
