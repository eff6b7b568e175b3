"""Names that a user types: which entry is meant, and which misspelling is one beyond doubt."""

import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from fedsim.options import suggest

# What many methods begin with, so that it says nothing about which one is meant.
COMMON = ("flwr:", "fed")
# What names may have between their parts: spaces, underscores, and hyphens and dashes of any length.
BETWEEN = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")


# What other simulators, or other tables here, call a setting.
ELSEWHERE = {
    "alpha": "partition.alpha",
    "batchsize": "local.batch_size",
    "data.dataset": "data.name",
    "dataset": "data.name",
    "features.name": "features.skew",
    "fraction_fit": "participation",
    "fraction_train": "participation",
    "global_epoch": "rounds",
    "global_rounds": "rounds",
    "gpu": "device",
    "join_ratio": "participation",
    "learning_rate": "local.lr",
    "local_epoch": "local.epochs",
    "local_epochs": "local.epochs",
    "local_learning_rate": "local.lr",
    "num_workers": "engine.workers",
    "partition.name": "partition.scheme",
    "partition.type": "partition.scheme",
    "seeds": "sweep.seed",
    "train": "local",
    "training": "local",
}


def known_elsewhere(key: str, settings: Iterable[str], known: Iterable[str]) -> str:
    """Return what follows an unknown dotted key in a message: the setting that is meant, and the known ones.

    Parameters
    ----------
    settings
        Dotted names of all settings of tables, one of which may have the key's last part.
    known
        Names in the table in which the key was looked for.
    """
    last = key.rpartition(".")[2]
    alike = [each for each in settings if each.rpartition(".")[2] == last]
    found = ELSEWHERE.get(key) or ELSEWHERE.get(last) or (alike[0] if len(alike) == 1 else "")
    return f"; did you mean {found!r}? known are: {', '.join(known)}" if found else suggest(last, known)


def own_name(name: str) -> str:
    """Return what follows an unknown name in a message that may be that of a file of the user's."""
    module = name.removesuffix(".py")
    return f"; your own is named as in '{module if module.isidentifier() else 'my_file'}:NAME'"


def canonical(name: str, known: Iterable[str]) -> str:
    """Return the known name that differs in case, spaces, hyphens and underscores only; else the name as it is.

    Of options in parentheses behind a name, only case and spaces are free: a hyphen may be a minus.
    """
    return {_spelled(each): each for each in known}.get(_spelled(name), name)


def meant(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that a name misspells, if it can hardly be the name of something else.

    Names of methods and models are short and close to each other: fedavgm is not fedavg, vgg13 is not vgg11. So the
    digits must be the same, a letter more at either end is another name unless it is typed twice, and the shorter a
    name is, the fewer letters may differ.
    """
    close = [each for each in known if _misspells(_folded(name), _folded(each))]
    return close[0] if len(close) == 1 else None


@lru_cache(maxsize=1024)  # each look-up spells all names of a table
def _spelled(name: str) -> str:
    name, *options = name.lower().partition("(")
    return BETWEEN.sub("", name) + "".join("".join(options).split())


def _folded(name: str) -> str:
    return BETWEEN.sub("_", name.strip().lower())


def _misspells(name: str, known: str) -> bool:
    if Counter(filter(str.isdigit, name)) != Counter(filter(str.isdigit, known)):
        return False
    for start in COMMON:
        if name.startswith(start) and known.startswith(start):
            name, known = name.removeprefix(start), known.removeprefix(start)
    shorter, longer = sorted((name, known), key=len)
    if not shorter or shorter[0] != longer[0]:  # emnist is not kmnist
        return False
    if len(longer) < 8 and name[:-1] == known[:-1]:  # fedavgx is not fedavgm
        return False
    if len(longer) < 8 and (longer.startswith(shorter) or longer.endswith(shorter)):
        return len(longer) == len(shorter) + 1 and longer in (shorter + shorter[-1:], shorter[:1] + shorter)
    swapped = sorted(name) == sorted(known)
    allowed = 2 if len(longer) >= 7 else 1 if len(longer) >= 4 or swapped else 0
    return _distance(name, known) <= allowed


def _distance(one: str, other: str) -> int:
    """Return the number of letters to insert, remove or replace, or of neighbours to swap."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, above, row = row, before, [i]
        for j, theirs in enumerate(other, start=1):
            least = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != theirs))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == theirs:
                least = min(least, above[j - 2] + 1)
            row.append(least)
    return row[-1]
