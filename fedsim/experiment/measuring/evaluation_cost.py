"""The rounds in which models are evaluated and fine-tuned, and the cost of that."""

from dataclasses import dataclass

import numpy as np

from fedsim.config import Config
from fedsim.federation.federation import Federation
from fedsim.federation.participants import evaluated, participants, unseen

COUNTED = 10_000  # rounds whose participants are drawn to count passes; those of more rounds are as many on average


@dataclass(frozen=True)
class EvaluationCost:
    """The cost of the evaluation of a run that is not stopped early.

    Parameters
    ----------
    rounds, fine_tuned_rounds
        Rounds with an evaluation, and rounds in which clients fine-tune.
    client_passes
        Forward passes of one example by the clients, or for them on the server, at most: clients that take the whole
        global model, and so have no separate personalised one, need fewer.
    server_passes
        Forward passes of one example on the server's data.
    training_passes
        Examples that fine-tuning passes forward and backward.
    """

    rounds: int
    fine_tuned_rounds: int
    client_passes: int
    server_passes: int
    training_passes: int


def is_evaluated(config: Config, server_round: int) -> bool:
    """Return whether models are evaluated in a round."""
    # A model after fine-tuning is compared with the one before.
    due = server_round % config.evaluate_every == 0 or is_fine_tuned(config, server_round)
    return due or server_round == config.rounds


def is_fine_tuned(config: Config, server_round: int) -> bool:
    """Return whether clients fine-tune in a round, unless ``[stop]`` ends the run earlier."""
    if "fine-tuned" not in config.evaluation.models:
        return False
    every = config.evaluation.fine_tune_every
    return server_round == config.rounds or (every > 0 and server_round % every == 0)


def _perturbed_passes(config: Config) -> int:
    """Return how often an example is passed forward to measure a model on perturbed data, including the gradient."""
    return len(config.evaluation.perturbed) + bool(config.evaluation.sizes("fgsm"))


def evaluation_cost(federation: Federation) -> EvaluationCost:
    """Count the cost of the evaluation in all rounds of a run that is not stopped early."""
    config, split, server = federation.config, federation.data.split, len(federation.data.dataset.test)
    measured = np.array(evaluated(config), dtype=np.int64)
    is_unseen = np.isin(measured, unseen(config))
    trains, tests = split.train.sizes, split.test.sizes
    own = split.validation.sizes + tests + (server if "server" in config.evaluation.on else 0)
    own_all = int(own[measured[~is_unseen]].sum())
    test_all, unseen_test = int(tests[measured].sum()), int(tests[measured[is_unseen]].sum())
    train_all = int(trains[measured].sum())
    rounds = [r for r in range(1, config.rounds + 1) if is_evaluated(config, r)]
    tuned = [r for r in rounds if is_fine_tuned(config, r)]
    # The personalised model on everything, the global one on the own test data.
    passes = len(rounds) * (own_all + unseen_test + test_all) + len(tuned) * (own_all + unseen_test)
    if "trained" in config.evaluation.models:
        counted = rounds[:COUNTED]
        of_trained = sum(int(own[participants(config, r)].sum()) for r in counted)
        passes += of_trained * len(rounds) // len(counted)
    if "knn" in config.evaluation.models:
        passes += len(rounds) * (train_all + own_all + unseen_test)
    epochs = config.evaluation.fine_tune_epochs
    return EvaluationCost(
        rounds=len(rounds),
        fine_tuned_rounds=len(tuned),
        client_passes=passes,
        server_passes=len(rounds) * server * (1 + _perturbed_passes(config)),
        training_passes=len(tuned) * epochs * train_all,
    )
