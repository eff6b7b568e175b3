"""How different the clients' data are, in numbers and as text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fedsim.shortening import cut, printable
from partitions import LabelCounts

SHOWN_CLIENTS = 30
SHOWN_CLASSES = 12
LONGEST_ORIGIN = 24  # letters of a name


def mean_of(values: np.ndarray) -> float:
    """Return the mean of the values that are defined, of shape [clients]; NaN if none is."""
    found = values[~np.isnan(values)]
    return float(found.mean()) if len(found) else float("nan")


def of_origin(origins: Sequence[str], client: int) -> str:
    """Return a client's origin as it follows its number: in parentheses and short, or nothing if it has none."""
    return f" ({cut(printable(origins[client]), LONGEST_ORIGIN)})" if origins else ""


@dataclass(frozen=True)
class Heterogeneity:
    """Sizes and labels of all clients.

    Parameters
    ----------
    sizes
        Examples of each client, shape [clients].
    counts
        Labels of each client; for sequences, all their targets.
    classes
        Names of the classes.
    origins
        Name of each client's origin, such as its hospital; empty if they have none.
    """

    sizes: np.ndarray
    counts: LabelCounts
    classes: tuple[str, ...]
    origins: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def by_client(self) -> dict[str, np.ndarray]:
        """Measures of each client by name, NaN for one without labels except of its size; each of shape [clients]."""
        return {
            "examples": self.sizes,
            "effective number of classes": self.counts.effective_classes(),
            "share of the largest class": self.counts.largest_shares(),
            "total variation": self.counts.total_variation(),
            "Jensen-Shannon divergence, nats": self.counts.jensen_shannon(),
        }

    @property
    def unlabelled(self) -> int:
        """Number of clients without labels, as where no label of several is positive."""
        return int((self.counts.totals == 0).sum())

    def summary(self) -> Iterator[str]:
        """Yield one line per measure: mean, smallest, median and largest value over the clients that have one."""
        notes = {
            "effective number of classes": f"of {len(self.classes)}",
            "share of the largest class": "with one label each, the accuracy of always predicting it",
            "total variation": "from the pooled labels, 0 to 1",
            "Jensen-Shannon divergence, nats": "from the pooled labels, 0 to 0.693",
        }
        yield f"{'':31} {'mean':>9} {'smallest':>9} {'median':>9} {'largest':>9}"
        for name, every in self.by_client.items():
            values = every[~np.isnan(every)]
            four = (values.mean(), values.min(), np.median(values), values.max()) if len(values) else (np.nan,) * 4
            line = f"{name:31} " + " ".join(f"{value:>9.4g}" for value in four)
            yield f"{line}  {notes[name]}" if name in notes else line
        if self.unlabelled:
            yield f"clients without labels, for which these are undefined: {self.unlabelled:,}"

    def table(self) -> Iterator[str]:
        """Yield one line per client with its labels; where there are many clients, only the first ones."""
        few, shown = len(self.classes) <= SHOWN_CLASSES, min(len(self), SHOWN_CLIENTS)
        largest = (shown - 1, self.sizes[:shown].max(), self.counts.counts.max(initial=0))
        wide_client, wide_size, wide_count = (len(str(number)) for number in largest)
        whose = [f"client {client:>{wide_client}}{of_origin(self.origins, client)}:" for client in range(shown)]
        wide = max(map(len, whose))
        for client in range(shown):
            row = slice(*self.counts.offsets[client : client + 2])
            labels, counts = self.counts.labels[row], self.counts.counts[row]
            if few:
                full = np.zeros(len(self.classes), dtype=np.int64)
                full[labels] = counts
                text = " ".join(f"{count:>{wide_count}}" for count in full)
            else:
                most = np.argsort(-counts, kind="stable")[:5]
                text = f"{len(labels):>4} classes" + ", most: " * bool(len(labels))
                text += ", ".join(f"{self.classes[labels[i]]} {counts[i]}" for i in most)
            yield f"{whose[client]:{wide}} {self.sizes[client]:>{wide_size}} examples | {text}"
        if len(self) > SHOWN_CLIENTS:
            yield f"and {len(self) - SHOWN_CLIENTS:,} more clients"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Read what earlier versions wrote of a run: lists, with only those labels that a client has."""
        rows: Sequence[dict[str, int]] = content["label_counts"]
        counts = LabelCounts(
            offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]),
            labels=np.array([int(label) for row in rows for label in row], dtype=np.int64),
            counts=np.array([count for row in rows for count in row.values()], dtype=np.int64),
            classes=len(content["classes"]),
        )
        return cls(np.array(content["sizes"]), counts, tuple(content["classes"]))
