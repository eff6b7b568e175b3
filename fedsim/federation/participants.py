"""Who takes part in a run, by its config."""

from fedsim.config import Config
from fedsim.strategy.participants import draw_evaluated, draw_participants, draw_unseen


def participants(config: Config, server_round: int) -> list[int]:
    """Return the clients that train in a round, in ascending order."""
    return draw_participants(config.seed, server_round, config.clients, config.participation, config.unseen)


def unseen(config: Config) -> list[int]:
    """Return the clients that never train, in ascending order."""
    return draw_unseen(config.seed, config.clients, config.unseen)


def evaluated(config: Config) -> list[int]:
    """Return the clients that are evaluated, in ascending order."""
    return draw_evaluated(config.seed, config.clients, config.evaluate_clients, config.unseen)
