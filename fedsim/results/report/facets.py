"""Settings of runs as panels of lines: one look per strategy, whatever else is swept."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedsim.errors import ConfigError
from fedsim.results.differences import short_key
from fedsim.results.report.comparing.groups import Group, check_setting
from fedsim.results.report.palette import DASHES, MARKERS, SHAPES, Look, looks

MOST_PANELS = 12  # that follow from a sweep by themselves


@dataclass(frozen=True)
class Line:
    """A group in a panel.

    Parameters
    ----------
    name
        Label of the strategy, with the settings that distinguish it from others of the same label in its panel.
    """

    name: str
    group: Group
    look: Look


@dataclass(frozen=True)
class Panel:
    """The groups that share the values of some settings, which are its title."""

    title: str
    lines: Sequence[Line]


def panels_of(groups: Iterable[Group], settings: Sequence[str] | None = None) -> list[Panel]:
    """Return the panels of groups, in their order.

    Parameters
    ----------
    settings
        Settings with a panel for each of their values; by default those that are swept, or the first ones of them if
        all are too many panels.

    Raises
    ------
    ConfigError
        If no run has one of the settings, or it is the seed.
    """
    groups = list(groups)
    chosen = _swept(groups) if settings is None else tuple(dict.fromkeys(settings))
    for key in chosen:
        _check(groups, key)
    while settings is None and len({_title(group, chosen) for group in groups}) > MOST_PANELS:
        chosen = chosen[:-1]
    titles = [_title(group, chosen) for group in groups]
    others = _others(groups, titles, chosen)
    colours = looks(group.label for group in groups)
    turns = {text: turn for turn, text in enumerate(dict.fromkeys(others))}
    lines = [
        Line(", ".join(filter(None, (group.label, other))), group, _turned(colours[group.label], turns[other]))
        for group, other in zip(groups, others, strict=True)
    ]
    return [
        Panel(title, [line for line, its in zip(lines, titles, strict=True) if its == title])
        for title in dict.fromkeys(titles)
    ]


def named(panels: Iterable[Panel]) -> dict[str, Group]:
    """Return all groups by unique names: that of the line, with the title of its panel."""
    lines = [(line, panel.title) for panel in panels for line in panel.lines]
    return {", ".join(filter(None, (line.name, title))): line.group for line, title in lines}


def lines_of(panels: Iterable[Panel]) -> dict[str, Line]:
    """Return one line of each name, in their order, as a legend names them."""
    found: dict[str, Line] = {}
    for line in (line for panel in panels for line in panel.lines):
        found.setdefault(line.name, line)
    return found


def _swept(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the settings of which a strategy has several values, and not those that only go with another strategy."""
    values: dict[tuple[str, str], set[str]] = {}
    for group in groups:
        for key, value in group.settings.items():
            values.setdefault((key, group.label), set()).add(str(value))
    return tuple(dict.fromkeys(key for (key, _), found in values.items() if len(found) > 1))


def _value(group: Group, key: str) -> object:
    return group.settings.get(key, group.members[0].shown_settings.get(key))


def _check(groups: Sequence[Group], key: str) -> None:
    if key == "seed":
        raise ConfigError("--facet seed: lines are means over the seeds; give another setting")
    check_setting([member for group in groups for member in group.members], key, "--facet")


def _title(group: Group, keys: Sequence[str]) -> str:
    return ", ".join(f"{short_key(key, keys)} = {_value(group, key)}" for key in keys)


def _others(groups: Sequence[Group], titles: Sequence[str], chosen: Sequence[str]) -> list[str]:
    """Return what distinguishes each group from others of its label and panel: nothing where there is no other."""
    alike: dict[tuple[str, str], list[Group]] = {}
    for group, title in zip(groups, titles, strict=True):
        alike.setdefault((title, group.label), []).append(group)
    others = []
    for group, title in zip(groups, titles, strict=True):
        same = alike[title, group.label]
        keys = [key for key in group.settings if key not in chosen and len({str(_value(g, key)) for g in same}) > 1]
        texts = [f"{short_key(key, keys)} = {_value(group, key)}" for key in keys]
        if len({tuple(str(_value(each, key)) for key in keys) for each in same}) < len(same):
            texts.append(group.members[0].setting)
        others.append(", ".join(texts) if len(same) > 1 else "")
    return others


def _turned(look: Look, turn: int) -> Look:
    """Return a look with other dashes and another marker, of the same colour."""
    if not turn:
        return look
    dash = DASHES[(DASHES.index(look.dash) + turn) % len(DASHES)]
    place = (MARKERS.index(look.marker) + turn) % len(MARKERS)
    return replace(look, dash=dash, marker=MARKERS[place], shape=SHAPES[place])
