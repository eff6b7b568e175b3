"""What the columns of a comparison mean, for who asks."""

from collections.abc import Sequence

from fedsim.results.report.comparing.columns import Column

SPREAD = "± is the half-width of the 95 % confidence interval (Student's t) over the seeds."
TALLY = "Clients that are better / equal / worse, over all seeds and for the same partition and seed, than"
FEW_TEXT = "*: some have fewer than 10 test examples."
UNTIL = (
    "until the running mean on validation data reaches the target; ~: interpolated between two rounds; -: a seed never "
    "does."
)
EXPLAINED = {
    "rounds": "The evaluated round whose values are shown; a mean where the seeds differ.",
    "personalised": f"Each client's own model on its own test data, mean over the clients. {SPREAD}",
    "weighted": "The same with each client weighted by its number of test examples.",
    "validation": "The same models on the clients' validation data, by which settings and baselines are chosen.",
    "std": "Standard deviation of the personalised models over the clients, mean over the seeds.",
    "worst": "Mean over the worst tenth of the clients, rounded up.",
    "jain": "Jain's fairness index: 1 if all clients have the same value, 1/n if one of n has all.",
    "global": f"The server's model on the server's test data. {SPREAD}",
    "global_clients": "The server's model on each client's test data, mean over the clients.",
    "fine_tuned": "Personalised models after further training on each client, on its own test data.",
    "unseen": "Personalised models of clients that never take part in training.",
    "unseen_fine_tuned": "The same after further training on each of these clients.",
    "left_out": "Number of updates left out of every average; the lines below the table say why.",
    "gain_local": f"{TALLY} with local training only. {FEW_TEXT}",
    "gain_full": f"{TALLY} with plain averaging of all layers. {FEW_TEXT}",
    "gain_baseline": f"{TALLY} in the baseline's runs. {FEW_TEXT}",
    "difference": f"Mean difference from the baseline's runs with the same partition and seed. {SPREAD}",
    "p": "P-value of a paired t-test over the seeds, against the baseline or else the best of the setting.",
    "p_at_bytes": "The same of the values at this budget of bytes.",
    "p_at_passes": "The same of the values at this budget of training passes.",
    "pairs": "Number of seeds with runs of both.",
    "up": "Bytes that all clients sent up to the round shown. Only what a strategy shares travels.",
    "down": "Bytes that all clients received up to the round shown.",
    "passes": "A third of the examples passed forward plus two thirds of those passed backward in local training, "
    "which is the number of training examples for plain training.",
    "seconds": "Wall time of the rounds up to the round shown.",
    "simulated": "Simulated seconds of the rounds, as [faults] gives them.",
    "at_bytes": "Personalised value when the run has spent this budget of bytes; ~: interpolated between two rounds.",
    "at_passes": "Personalised value when the run has spent this budget of training passes; ~: interpolated between "
    "two rounds.",
    "rounds_to_target": f"Rounds {UNTIL}",
    "bytes_to_target": f"Bytes {UNTIL}",
    "passes_to_target": f"Training passes {UNTIL}",
    "seconds_to_target": f"Wall time {UNTIL}",
}
SEEDS = "Number of seeds; runs with the same settings and another seed are one line."


def hints(columns: Sequence[Column]) -> dict[str, str]:
    """Return the explanation of each column, by its heading."""
    known = {column.heading: EXPLAINED[column.key] for column in columns if column.key in EXPLAINED}
    return {"seeds": SEEDS, **known}
