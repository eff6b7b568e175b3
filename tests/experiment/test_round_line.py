"""The line of a round in the log."""

from fedsim.experiment.round_line import describe_round
from fedsim.results.folder import metric_row


def test_a_round_is_a_line_with_every_metric_as_a_mean_over_the_clients() -> None:
    rows = [
        metric_row(3, 0, "train", "uploaded", "loss", 0.5, 10),
        metric_row(3, 0, "train", "uploaded", "forward_examples", 20.0, 10),
        metric_row(3, 0, "test", "personalised", "accuracy", 0.5, 4),
        metric_row(3, 1, "test", "personalised", "accuracy", 1.0, 40),
        metric_row(3, 0, "test", "personalised", "loss", 2.0, 4),
        metric_row(3, 1, "test", "personalised", "loss", float("nan"), 40),
        metric_row(3, 0, "test", "personalised", "accuracy:cat", 0.5, 4),
        metric_row(3, None, "test", "global", "accuracy", 0.25, 100),
        metric_row(3, None, "test", "average", "loss", float("inf"), 100),
    ]
    assert describe_round(3, 30, rows, {"train": 1.2345, "evaluate": 0.5}) == (
        "round 3 of 30 done; uploaded, train, clients: loss 0.5; personalised, test, clients: accuracy 75.0%, "
        "loss 2 (1 missing); global, test, server: accuracy 25.0%; average, test, server: loss - (1 missing); "
        "train 1.23 s, evaluate 0.50 s"
    )
