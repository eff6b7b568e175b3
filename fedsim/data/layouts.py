"""Which split, site and class each image of a tree of folders belongs to."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from fedsim.data.dataset import Spacing, set_aside
from fedsim.seeds import rng

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Of pictures that are not read, which a note names so that nobody misses them.
UNKNOWN = (".avif", ".dcm", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".svg")
Layout = Literal["auto", "split/class", "site/split/class", "split/site/class", "site/class", "class"]
UNDERSTOOD = (
    "layouts are split/class/file and site/split/class/file, and, with [data] layout, split/site/class, site/class and "
    "class"
)


@dataclass(frozen=True)
class Origin:
    """Where an image lies: its split, its class, and its site, if there are sites."""

    split: str
    label: str
    site: str = ""


@dataclass(frozen=True)
class Sorted:
    """The images of a tree.

    Parameters
    ----------
    train, test
        Origin of each image by its name, in the order of the names.
    classes
        Names of all classes, sorted: one list for all sites.
    note
        Which images are not used; empty if all are.
    """

    train: Mapping[str, Origin]
    test: Mapping[str, Origin]
    classes: tuple[str, ...]
    note: str = ""

    @property
    def sites(self) -> list[str]:
        """Site of each training image; empty if there are no sites."""
        sites = [origin.site for origin in self.train.values()]
        return sites if any(sites) else []


def sorted_images(
    names: Sequence[str], place: Path, *, layout: Layout, splits: tuple[str, str], tests: tuple[float, Spacing]
) -> Sorted:
    """Find the split, site and class of each image.

    Parameters
    ----------
    names
        Names of all files, and of all folders with a trailing slash.
    place
        Where they are, for messages.
    layout
        Meaning of the folders; with ``auto`` it is found from the names of the splits, if it is beyond doubt.
    splits
        Names of the folders with the training and the test images.
    tests
        Share of the images of each site and class that are the test set, where there are no splits, and where they lie.

    Raises
    ------
    FileNotFoundError
        If a split has no image.
    ValueError
        If the layout is in doubt, or a class has no training image.
    """
    tree = _Tree(names, place, splits, 0 if layout == "auto" else len(layout.split("/")))
    levels = (tree.layout() if layout == "auto" else layout).split("/")
    found = {name: origin for name, origin in tree.origins(levels) if not name.endswith("/")}
    note = tree.check_rest(levels, found)
    if "split" in levels:
        parts = [{name: each for name, each in found.items() if each.split == split} for split in splits]
    else:
        parts = _cut(found, *tests)
    for split, part in zip(splits, parts, strict=True):
        if not part:
            raise tree.missing(levels, split)
    folders = {origin.label for _, origin in tree.origins(levels, folders=True) if origin.label}
    every = folders | {origin.label for part in parts for origin in part.values()}
    if empty := every - {origin.label for origin in parts[0].values()}:
        raise ValueError(f"{place}: class {min(empty)!r} has no training image; add some, or remove the class")
    _check_spelling(found.values(), place)
    return Sorted(parts[0], parts[1], tuple(sorted(every)), note)


class _Tree:
    """The names of images and folders as parts, without a folder that holds all others and is none of the levels."""

    def __init__(self, names: Sequence[str], place: Path, splits: tuple[str, str], levels: int) -> None:
        self._place, self._splits = place, splits
        parts = {name: PurePosixPath(name).parts for name in names}
        # Archives made on a Mac hold a hidden copy of each file.
        seen = {n: p for n, p in parts.items() if not any(each.startswith((".", "__MACOSX")) for each in p)}
        self._images = {n: p for n, p in seen.items() if n.lower().endswith(SUFFIXES)}
        self._others = [n for n in seen if n.lower().endswith(UNKNOWN)]
        tops = {p[0] for p in self._images.values()}
        has_around = len(tops) == 1 and not tops & set(splits) and all(len(p) > 1 for p in self._images.values())
        around = int(has_around and any(len(p) > 1 + levels for p in self._images.values()))
        self._images = {n: p[around:] for n, p in self._images.items()}
        self._folders = {n: p[around:] for n, p in seen.items() if n.endswith("/")}

    def layout(self) -> str:
        """Return the layout that the names of the splits tell."""
        at = {depth: name for name, p in self._images.items() if (depth := self._depth_of_split(p)) is not None}
        if not at:
            raise self.missing(["split", "class"], self._splits[0])
        if len(at) > 1:
            raise ValueError(
                f"{self._place} has {' or '.join(self._splits)} both above the sites ({at[0]}) and below ({at[1]}); "
                "choose one of them for all"
            )
        [depth] = at
        with_split = [p for p in self._images.values() if self._depth_of_split(p) == depth]
        if deeper := next((p for p in with_split if len(p) - 1 > depth + 2), None):
            above = "site/" * depth
            other = f", 'split/site/class' if {deeper[1]!r} is a site" if depth == 0 else ""
            raise ValueError(
                f"{self._place} has images such as {'/'.join(deeper)}, with more folders than {above}split/class/file; "
                f"set [data] layout = '{above}split/class' if {deeper[depth + 1]!r} is a class{other}"
            )
        one_site = depth == 1 and len({p[0] for p in with_split}) == 1
        if one_site:
            self._images = {n: p[1:] if self._depth_of_split(p) == 1 else p for n, p in self._images.items()}
            self._folders = {n: p[1:] if self._depth_of_split(p) == 1 else p for n, p in self._folders.items()}
        return "split/class" if depth == 0 or one_site else "site/split/class"

    def origins(self, levels: Sequence[str], *, folders: bool = False) -> Iterator[tuple[str, Origin]]:
        """Yield the name and the origin of each image, or of each folder of a class."""
        for name, parts in (self._folders if folders else self._images).items():
            if len(parts) < len(levels) + (not folders):
                continue
            at = dict(zip(levels, parts, strict=False))
            if "split" not in at or at["split"] in self._splits:
                yield name, Origin(at.get("split", ""), at["class"], at.get("site", ""))

    def check_rest(self, levels: Sequence[str], found: Mapping[str, Origin]) -> str:
        """Check that no site is left out, and return which images are."""
        rest = {name: parts for name, parts in self._images.items() if name not in found}
        if levels[0] == "site":
            sites = {origin.site for origin in found.values()}
            if odd := [name for name, parts in rest.items() if len(parts) > 2 and parts[0] not in sites]:
                raise ValueError(
                    f"{self._place}: {odd[0]} is in no folder {' or '.join(self._splits)} of a site, as others are; "
                    f"{UNDERSTOOD}"
                )
        notes, place = [], self._place
        if rest and found:
            folders = "/".join(" or ".join(self._splits) if level == "split" else level for level in levels)
            notes.append(
                f"{len(rest):,} images of {place} are not used, as they are not in the folders of {folders}/file: "
                f"{next(iter(rest))} is one"
            )
        if self._others:
            notes.append(
                f"{len(self._others):,} pictures of {place} are not used, as {self._others[0]} is of a kind that is "
                "not read; save them as .png or .jpg"
            )
        return "; ".join(notes)

    def missing(self, levels: Sequence[str], split: str) -> FileNotFoundError:
        """Return the error for a split without images."""
        pattern = "/".join(split if level == "split" else f"<{level}>" for level in levels)
        return FileNotFoundError(
            f"{self._place} has no image {pattern}/<file> (one of {', '.join(SUFFIXES)}); name the folders of the "
            f"splits with [data] train and test; {UNDERSTOOD}"
        )

    def _depth_of_split(self, parts: tuple[str, ...]) -> int | None:
        return next((depth for depth, part in enumerate(parts[:-1][:2]) if part in self._splits), None)


def _cut(found: Mapping[str, Origin], share: float, spacing: Spacing) -> list[dict[str, Origin]]:
    """Return training and test images: of each site's images of a class, a share of every stretch is the test set."""
    if not 0 < share < 1:
        raise ValueError(f"test_share = {share} must be more than 0 and less than 1")
    alike: dict[Origin, list[str]] = {}
    for name, origin in found.items():
        alike.setdefault(origin, []).append(name)
    draws = rng(0, "test share")
    is_test = {
        name: mark
        for names in alike.values()
        for name, mark in zip(names, set_aside(len(names), share, spacing, draws), strict=True)
    }
    return [{name: origin for name, origin in found.items() if is_test[name] == part} for part in (False, True)]


def _check_spelling(origins: Iterable[Origin], place: Path) -> None:
    """Check that sites do not spell a class differently: a site with both spellings tells them apart."""
    by_site: dict[str, set[str]] = {}
    for origin in origins:
        by_site.setdefault(origin.site, set()).add(origin.label)
    every = sorted(set().union(*by_site.values()))
    spelt: dict[str, str] = {}
    for label in every:
        other = spelt.setdefault(label.casefold(), label)
        if other != label and not any({label, other} <= labels for labels in by_site.values()):
            raise ValueError(
                f"{place}: one site has the class {other!r} and another {label!r}; rename one, so that they are alike"
            )
