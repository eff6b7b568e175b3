"""Trains a backbone of mixtures of experts. Call with its kind and a folder.

``python -m experiments.experts.backbone vit FOLDER`` writes ``vit.safetensors``, trained on Fashion-MNIST, and ``gpt``
instead of ``vit`` writes ``gpt.safetensors``, trained on Shakespeare's plays.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from experiments.experts.models import GPT, VIT
from fedsim.data import DATA
from fedsim.models.architectures import MODELS
from fedsim.models.params import state_of
from fedsim.results.files import write_whole
from fedsim.training import LocalPlan, LocalSettings, train_


@dataclass(frozen=True)
class Backbone:
    """What a backbone is, and what it is trained on."""

    sizes: dict[str, int]
    data: str
    options: dict[str, Any]
    examples: slice
    training: LocalSettings


BACKBONES = {
    "vit": Backbone(
        VIT,
        "fashion-mnist",
        {},
        slice(12_000),
        LocalSettings(epochs=6, batch_size=64, lr=0.001, optimizer="adamw", schedule="cosine"),
    ),
    "gpt": Backbone(
        GPT,
        "shakespeare",
        {"length": 32},
        slice(None, None, 3),  # of all speakers
        LocalSettings(epochs=6, batch_size=32, lr=0.005, optimizer="adamw", schedule="cosine"),
    ),
}


def main(kind: str, out: Path) -> None:
    """Write the weights."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = BACKBONES[kind]
    data = DATA[chosen.data](**chosen.options)
    examples = data.train[torch.arange(len(data.train))[chosen.examples]]
    torch.manual_seed(0)
    model = MODELS[kind](data.shape, len(data.classes), **chosen.sizes)
    rng = np.random.default_rng(0)
    train_(model, data.normalise(examples.inputs), examples.targets, LocalPlan(), chosen.training, rng)
    write_whole(out / f"{kind}.safetensors", save(state_of(model)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train a backbone.")
    parser.add_argument("kind", choices=BACKBONES, help="which backbone")
    parser.add_argument("folder", type=Path, help="folder for its weights, such as $FEDSIM_DATA")
    given = parser.parse_args()
    main(given.kind, given.folder)
