"""Strategies have the same colour in all figures, and no two share one that can be mistaken."""

import subprocess
import sys
from itertools import combinations

import numpy as np
import pytest

from fedsim.results.report.palette import ALIGNED, AMOUNT, COLOURS, DIVERGING, Look, colour_at, looks

# Machado, Oliveira and Fernandes 2009: what light looks like without one kind of cone.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# Ottosson 2020, OKLab: distances of colours as they are seen.
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
NAMES = [f"method_{number}(option={number})" for number in range(40)]


def light(colour: str) -> np.ndarray:
    channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def seen(colour: str, vision: str) -> np.ndarray:
    return np.asarray(np.cbrt(np.clip(VISION[vision] @ light(colour), 0, 1) @ TO_CONES.T) @ TO_LAB.T)


def contrast(colour: str, background: str) -> float:
    low, high = sorted(float(light(each) @ [0.2126, 0.7152, 0.0722]) for each in (colour, background))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("vision", VISION)
def test_colours_differ_for_every_kind_of_vision(vision: str) -> None:
    apart = [np.linalg.norm(seen(a, vision) - seen(b, vision)) for a, b in combinations(COLOURS, 2)]
    assert min(apart) > 0.08  # Okabe and Ito's: 0.076


@pytest.mark.parametrize("background", ["#FFFFFF", "#14171C"])
def test_colours_can_be_told_from_a_light_and_a_dark_page(background: str) -> None:
    assert min(contrast(colour, background) for colour in COLOURS) > 2.4


def test_a_strategy_has_the_same_look_wherever_it_is_drawn() -> None:
    of_all = looks(["FedProx", "local", "FedPer", "FedAvg"])
    assert looks(["FedAvg", "FedPer", "local", "FedProx"]) == of_all
    assert looks(["fedper"])["fedper"] == of_all["FedPer"] == looks(["FedPer", *NAMES])["FedPer"]
    assert looks(reversed(NAMES)) == looks(NAMES)


def test_no_two_strategies_look_alike() -> None:
    for count in (2, 8, 9, 40):
        assert len(set(looks(NAMES[:count]).values())) == count
    assert len({each.colour for each in looks(NAMES[:8]).values()}) == 8
    assert all(each.dash == () for each in looks(NAMES[:8]).values())
    assert all(isinstance(each, Look) for each in looks([""]).values())


def test_red_is_the_colour_of_what_hurts_alone() -> None:
    def is_red(colour: str) -> bool:
        red, green, blue = light(colour)
        return bool(red > 1.5 * max(green, blue))

    assert is_red(DIVERGING[-1])
    assert not is_red(DIVERGING[0])
    for scale in (ALIGNED, AMOUNT):
        assert not any(is_red(colour_at(scale, share)) for share in np.linspace(0, 1, 21))
        brightness = [light(colour) @ [0.2126, 0.7152, 0.0722] for colour in scale]
        assert all(np.diff(brightness) < 0)


def test_a_scale_is_linear_between_its_stops() -> None:
    stops = ("#000000", "#FF0000", "#FFFF00")
    assert [colour_at(stops, share) for share in (-1, 0, 0.25, 0.5, 1, 2)] == [
        *("#000000", "#000000", "#800000", "#FF0000", "#FFFF00", "#FFFF00")
    ]


def test_the_palette_needs_no_plotting_library() -> None:
    code = "import sys, fedsim.results.report.palette; sys.exit('matplotlib' in sys.modules or 'altair' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
