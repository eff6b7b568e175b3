"""The states of which mixed models are made, by the path that leads from one model with LoRA to another."""

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from numpy.typing import NDArray
from torch import nn

from fedsim.alignment.frames import in_frame_of
from fedsim.analysis.mixing.mixed_models import MixedModels
from fedsim.analysis.mixing.mixes import Mix, Part, Recipe, Source, recipe_of, source_of
from fedsim.analysis.mixing.names import AVERAGE, FACTORS, PathName
from fedsim.models.adapters import Factors, factors_of
from fedsim.models.averaging import weighted_mean
from fedsim.models.params import Params


def check_path(model: nn.Module, path: str) -> None:
    """Check that models can be mixed along a path.

    Raises
    ------
    ValueError
        If the path is unknown, or needs LoRA of one rank and the model has none.
    """
    if path not in get_args(PathName):
        raise ValueError(f"path = {path!r} must be one of {', '.join(get_args(PathName))}")
    if path != FACTORS and not factors_of(model):
        raise ValueError(
            f"path = {path!r} needs adapters of LoRA, and the model has none; add [model.adapter] kind = 'lora', or "
            "use path = 'factors'"
        )
    if path != FACTORS and any(each.ranks for each in factors_of(model)):
        raise ValueError(
            f"path = {path!r} needs factors of one rank, and [model.adapter] ranks gives clients several; set rank, or "
            "use path = 'factors'"
        )


class MixingPath:
    """How mixes of states are made along a path.

    Along ``product``, the scaled product of a layer's factors is ``(1 - t) B A`` of the base plus ``t B A`` of the
    other; it is written with factors of the ranks' sum, ``[(1 - t) B, t B]`` and ``[A; A]``, so that no weight is made.
    Along ``aligned``, factors are mixed after those of the other have been turned into the base's frame, and an average
    is that of the factors in the base's frame. Where only one factor of a layer moves, the product is linear in it, and
    ``product`` mixes that factor. Layers that are no factors are mixed as along ``factors``.

    Parameters
    ----------
    mixed
        Mixes of states and, last, their average.
    shares
        Share of each state in the average.

    Raises
    ------
    ValueError
        As from `check_path`.
    """

    def __init__(
        self, mixed: MixedModels, states: Sequence[Params], shares: NDArray, model: nn.Module, path: PathName
    ) -> None:
        check_path(model, path)
        self._mixed, self._states, self._average = mixed, list(states[:-1]), states[-1]
        self._own, self._shares, self._path = len(self._states), shares, path
        self._made: dict[tuple[object, ...], int] = {}
        # A frozen factor is the same for all models and stays in its frame; its layer is mixed by the other factor.
        pairs = [] if path == FACTORS else [_parts_of(each, mixed.parts) for each in factors_of(model)]
        self._factors = [pair for pair in pairs if pair is not None]

    @property
    def mixed(self) -> MixedModels:
        """Mixes of all states that recipes have named so far."""
        return self._mixed if len(self._states) == self._own else self._mixed.of([*self._states, self._average])

    def recipe(self, mix: Mix, t: float | None = None) -> Recipe:
        """Return the source of each part, at another ``t`` if given; equal models have equal recipes."""
        t, parts = mix.t if t is None else t, self._mixed.parts
        recipe = list(recipe_of(mix, parts, t))
        if t == 0 or mix.base == mix.other:
            return tuple(recipe)
        for first, second in self._factors:
            moving = [place for place in (first, second) if parts[place].layer in mix.layers]
            if len(moving) == 2 and t == 1 and mix.other != AVERAGE:
                continue
            if self._path == "aligned":
                end = self._aligned(mix.base, mix.other)
                recipe = [source_of(mix.base, end, t) if k in moving else each for k, each in enumerate(recipe)]
            elif len(moving) == 2:
                recipe[first], recipe[second] = self._product(mix.base, mix.other, t)
        return tuple(recipe)

    def _product(self, base: int, other: int, t: float) -> tuple[Source, Source]:
        """Return the sources of A, which has the rows of all members, and of B, whose other members' columns are 0."""
        members = tuple(range(self._own)) if other == AVERAGE else tuple(sorted((base, other)))
        start = self._widened(members, base)
        end = self._widened(members, other)
        return self._widened(members, members[0]), source_of(start, end, t)

    def _widened(self, members: tuple[int, ...], model: int) -> int:
        shares = dict(enumerate(self._shares)) if model == AVERAGE else {model: 1.0}

        def made() -> Params:
            state = dict(self._average if model == AVERAGE else self._states[model])
            for first, second in self._keys():
                of_all = [(self._states[k][first], self._states[k][second]) for k in members]
                state[first] = torch.cat([a for a, _ in of_all])
                state[second] = torch.cat(
                    [b * shares.get(k, 0.0) for k, (_, b) in zip(members, of_all, strict=True)], 1
                )
            return state

        return self._position(("product", members, model), made)

    def _aligned(self, base: int, other: int) -> int:
        def made() -> Params:
            if other != AVERAGE:
                return self._turned(other, base)
            turned = [self._turned(k, base) for k in range(self._own)]
            keys = [key for pair in self._keys() for key in pair]
            return dict(self._average) | weighted_mean(
                [{key: state[key] for key in keys} for state in turned], list(self._shares)
            )

        return self._position(("aligned", base, other), made)

    def _turned(self, state: int, base: int) -> Params:
        """Return a state whose factors are in the frame of those of another."""
        turned, like = dict(self._states[state]), self._states[base]
        if state != base:
            for first, second in self._keys():
                turned[first], turned[second] = in_frame_of(turned[first], turned[second], like[first], like[second])
        return turned

    def _position(self, name: tuple[object, ...], made: Callable[[], Params]) -> int:
        if name not in self._made:
            self._made[name] = len(self._states)
            self._states.append(made())
        return self._made[name]

    def _keys(self) -> list[tuple[str, str]]:
        parts = self._mixed.parts
        return [(parts[first].keys[0], parts[second].keys[0]) for first, second in self._factors]


def _parts_of(factors: Factors, parts: Sequence[Part]) -> tuple[int, int] | None:
    """Return the positions of the parts that are the two factors of a layer; None if one of them is frozen."""
    place = {key: k for k, part in enumerate(parts) for key in part.keys}
    if factors.first not in place or factors.second not in place:
        return None
    return place[factors.first], place[factors.second]
