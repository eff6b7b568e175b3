"""Halves the speakers of tiny Shakespeare, and trains a small GPT on one half. Call with the text and a folder.

``python -m experiments.adapters.speakers tinyshakespeare.txt FOLDER`` writes ``seen.txt`` and ``new.txt``, each in the
format of the text, and ``gpt.safetensors``.
"""

import sys
from pathlib import Path

import numpy as np
from safetensors.torch import save
from torch import manual_seed

from fedsim.data import DATA
from fedsim.data.shakespeare import SPEECH
from fedsim.models.architectures import MODELS
from fedsim.models.params import state_of, under_all_names
from fedsim.results.files import write_whole
from fedsim.training import LocalPlan, LocalSettings, train_

MODEL = {"depth": 4, "heads": 4, "width": 64}
EPOCHS = 2


def halves(text: str) -> tuple[str, str]:
    """Return the speeches of every other speaker, in the order of their first ones, and those of the others."""
    speeches = SPEECH.findall(text)
    place = {speaker: k for k, speaker in enumerate(dict.fromkeys(speaker for speaker, _ in speeches))}
    # Too short to be an example, it gives both halves the characters of the whole.
    alphabet = f"Alphabet:\n{''.join(sorted(set(text) - {chr(10)}))}"
    parts = ([f"{speaker}:\n{said}" for speaker, said in speeches if place[speaker] % 2 == k] for k in (0, 1))
    seen, new = ("\n\n".join([*part, alphabet]) + "\n" for part in parts)
    return seen, new


def main(text: Path, out: Path) -> None:
    """Write both halves, and the weights."""
    out.mkdir(parents=True, exist_ok=True)
    for name, half in zip(("seen", "new"), halves(text.read_text(encoding="utf-8")), strict=True):
        write_whole(out / f"{name}.txt", half)
    data = DATA["shakespeare"](path=str(out / "seen.txt"))
    manual_seed(0)
    model = MODELS["gpt"](data.train.inputs.shape[1:], len(data.classes), **MODEL)
    settings = LocalSettings(epochs=EPOCHS, batch_size=16, lr=0.002, optimizer="adam", schedule="cosine")
    train_(model, data.train.inputs, data.train.targets, LocalPlan(), settings, np.random.default_rng(0))
    write_whole(out / "gpt.safetensors", save(under_all_names(model, state_of(model))))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
