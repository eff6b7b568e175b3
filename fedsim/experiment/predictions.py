"""What the final models of a run predict, example by example, so that any other metric can be computed later."""

import logging
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fedsim.experiment.kept_round import KeptRound, kept_round
from fedsim.experiment.restored import global_model, make_personalised
from fedsim.federation.client.evaluation import load_for_evaluation
from fedsim.federation.client.state import GLOBAL, PERSONALISED
from fedsim.federation.data import InputsAndTargets
from fedsim.federation.federation import Federation
from fedsim.models.params import Params, fit, load_state_
from fedsim.results.files import write_parquet
from fedsim.results.folder import RunFolder
from fedsim.training.evaluation import evaluate

NOTED_BYTES = 2 * 10**9
logger = logging.getLogger(__name__)


def predictions_note(federation: Federation) -> Iterator[str]:
    """Yield how large the file will be, if it is wanted and larger than one would expect."""
    if not federation.config.evaluation.save_predictions:
        return
    model, inputs = federation.model(), federation.data.test(2)[0]
    load_state_(model, federation.initial)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        each = model(inputs).numel() // len(inputs)
    examples = len(federation.data.tested) + int(federation.data.split.test.sizes.sum())
    if (size := 4 * each * examples) > NOTED_BYTES:
        yield (
            f"evaluation.save_predictions = true writes about {size / 1e9:.0f} GB at the end, from as much memory: "
            f"{each:,} outputs for each of {examples:,} examples; leave it out, or test on fewer examples"
        )


def write_predictions(folder: RunFolder, federation: Federation) -> None:
    """Write what the models after the last round predict for the test examples, as one table.

    Raises
    ------
    ConfigError
        If the models of the last round are damaged.
    """
    write_parquet(folder.predictions, predictions(kept_round(folder), federation))


def predictions(kept: KeptRound, federation: Federation) -> pd.DataFrame:
    """Return what models predict: the global one for the server's test data, each personalised one for its client's.

    Returns
    -------
    pandas.DataFrame
        One row per model and example: ``model``; ``client``, missing for the server; ``example``, its position in the
        data set's test set (server) or training set (clients); ``target``; ``prediction``, a class, 0 or 1, a label or
        a number; and the model's ``outputs``, such as logits. Sequences and several labels have lists.
    """
    tables: list[pd.DataFrame] = []
    calibration = federation.calibration
    params = fit(federation.model(), global_model(kept), "the checkpoint")
    outputs = _outputs(federation, params, federation.data.test(), calibration)
    tables.append(_table(federation, GLOBAL, None, federation.data.tested, federation.data.test()[1], outputs))

    def use(client: int, own: Params) -> None:
        data = federation.data.client(client)
        found = _outputs(federation, own, data.test, lambda: data.train[0], own=True)
        examples = federation.data.split.test[client]
        tables.append(_table(federation, PERSONALISED, client, examples, data.test[1], found))

    failed = make_personalised(federation, kept, range(kept.config.clients), use)
    for client, reason in failed.items():
        logger.warning("no predictions of client %d: %s", client, reason)
    return pd.concat(tables, ignore_index=True)


def _outputs(
    federation: Federation,
    params: Params,
    examples: InputsAndTargets,
    calibration: Callable[[], Tensor],
    *,
    own: bool = False,
) -> Tensor:
    model = load_for_evaluation(federation, params, calibration, own=own)
    outputs = evaluate(model, *examples, federation.criterion, keep_outputs=True).outputs
    assert outputs is not None
    return outputs


def _table(
    federation: Federation, model: str, client: int | None, examples: np.ndarray, targets: Tensor, outputs: Tensor
) -> pd.DataFrame:
    targets = targets.cpu()
    if federation.task.of_indices:
        predicted = outputs.argmax(1)
    else:
        if targets.shape[1:] == (1,):
            targets = targets[:, 0]
        predicted = outputs.reshape(targets.shape)
        if federation.task.name != "regression":
            predicted, targets = (predicted > 0).long(), targets.long()
    numbers = outputs.float().cpu().numpy()  # which take 4 bytes each, and 32 in lists
    rows = list(numbers.reshape(len(numbers), -1)) if numbers.ndim < 3 else list(map(list, numbers))
    return pd.DataFrame(
        {
            "model": model,
            "client": pd.array([client] * len(targets), dtype="Int64"),
            "example": np.asarray(examples, dtype=np.int64),
            "target": targets.tolist(),
            "prediction": predicted.tolist(),
            "outputs": rows,
        }
    )
