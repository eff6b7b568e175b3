"""Trains the backbone of the mixtures of experts on Fashion-MNIST. Call with a folder.

``python -m experiments.experts.backbone FOLDER`` writes ``vit.safetensors``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from experiments.experts.models import BACKBONE
from fedsim.data import DATA
from fedsim.models.architectures import MODELS
from fedsim.models.params import state_of
from fedsim.results.files import write_whole
from fedsim.training import LocalPlan, LocalSettings, train_

EXAMPLES, EPOCHS = 12_000, 6


def main(out: Path) -> None:
    """Write the weights."""
    out.mkdir(parents=True, exist_ok=True)
    data = DATA["fashion-mnist"]()
    examples = data.train[torch.arange(EXAMPLES)]
    torch.manual_seed(0)
    model = MODELS["vit"](data.shape, len(data.classes), **BACKBONE)
    settings = LocalSettings(epochs=EPOCHS, batch_size=64, lr=0.001, optimizer="adamw", schedule="cosine")
    rng = np.random.default_rng(0)
    train_(model, data.normalise(examples.inputs), examples.targets, LocalPlan(), settings, rng)
    write_whole(out / "vit.safetensors", save(state_of(model)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the backbone.")
    parser.add_argument("folder", type=Path, help="folder for vit.safetensors, such as $FEDSIM_DATA")
    main(parser.parse_args().folder)
