"""Which worker each client is on, so that its data and its state need not travel."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

PLACES = 1024  # among which many clients are shared out; few have a place each
Home = TypeVar("Home", bound=Hashable)


class Homes(Generic[Home]):
    """The homes of the clients: the clients k, k + n, k + 2 n, ... are at place k of n, each of which has one home.

    Parameters
    ----------
    homes
        To which the places are dealt in turn, at least one.
    clients
        Number of clients.
    """

    def __init__(self, homes: Sequence[Home], clients: int) -> None:
        count = len(homes)
        places = clients if clients <= PLACES else count * -(-PLACES // count)
        self._places = [homes[place % count] for place in range(places)]

    def of(self, client: int) -> Home:
        """Return the home of a client."""
        return self._places[client % len(self._places)]

    def leave(self, gone: Home, left: Sequence[Home]) -> None:
        """Deal the places of a home that is gone to those that are left, first to those that have the fewest."""
        has = Counter({home: self._places.count(home) for home in left})
        for place, home in enumerate(self._places):
            if home == gone:
                self._places[place] = min(left, key=has.__getitem__)
                has[self._places[place]] += 1

    def join(self, new: Home) -> None:
        """Give a new home its share of the places, from those that have the most; all other places stay."""
        has = Counter(self._places)
        for _ in range(len(self._places) // (len(has) + 1)):
            most = max(has, key=has.__getitem__)
            self._places[self._places.index(most)] = new
            has[most] -= 1
