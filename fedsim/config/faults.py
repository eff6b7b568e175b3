"""``[faults]``: faults that are given to clients, for studies of what a strategy makes of them."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from fedsim.config.records import Table

Probability = Annotated[float, Field(ge=0, le=1)]
# In this order: a client is hit by the first one only. The last three are of clients that train, or did before.
KINDS = ("drop_out", "crash", "exception", "nan", "explode", "stale", "duplicate")
LATE = "late"


class FaultsConfig(Table):
    """``[faults]``: faults that hit clients in training, each with its probability per client and round.

    If several hit a client at once, the first in this order happens. The others train as if there were none.

    Parameters
    ----------
    drop_out
        Probability that the client does not reply.
    crash
        Probability that its worker dies.
    exception
        Probability that it raises an exception.
    nan
        Probability that it sends NaN for all values.
    explode
        Probability that its update is scaled up.
    explode_factor
        Factor by which it is.
    stale
        Probability that it sends again what it sent before.
    duplicate
        Probability that it sends its reply twice.
    seconds_per_example
        Simulated seconds of training per example and epoch for a client of median speed; 0 for no simulated time.
    speed_spread
        Standard deviation of the logarithm of the clients' speeds.
    round_spread
        Standard deviation of the logarithm of a client's speed from round to round.
    deadline
        Simulated seconds after which a client is left out of its round (default: no limit).
    clients
        Clients that may be hit (default: all); others have the median speed and are never late.
    rounds
        Rounds in which they may be hit (default: all).
    """

    drop_out: Probability = 0.0
    crash: Probability = 0.0
    exception: Probability = 0.0
    nan: Probability = 0.0
    explode: Probability = 0.0
    explode_factor: Annotated[float, Field(gt=0)] = 1e6
    stale: Probability = 0.0
    duplicate: Probability = 0.0
    seconds_per_example: Annotated[float, Field(ge=0)] = 0.0
    speed_spread: Annotated[float, Field(ge=0, le=10)] = 0.0
    round_spread: Annotated[float, Field(ge=0, le=10)] = 0.0
    deadline: Annotated[float, Field(gt=0)] | None = None
    clients: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)] = ()
    rounds: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _have_a_unit_of_time(self) -> Self:
        for name in ("deadline", "speed_spread", "round_spread"):
            if (value := getattr(self, name)) and not self.seconds_per_example:
                raise ValueError(f"{name} = {value:g} is in simulated time; set seconds_per_example to more than 0")
        return self

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The probability of each of `KINDS`."""
        return tuple(getattr(self, kind) for kind in KINDS)

    @property
    def is_wanted(self) -> bool:
        """Whether there are any faults, or simulated time."""
        return any(self.probabilities) or self.seconds_per_example > 0

    def may_hit(self, server_round: int, client: int) -> bool:
        """Return whether faults may hit a client in a round."""
        return (not self.clients or client in self.clients) and (not self.rounds or server_round in self.rounds)
