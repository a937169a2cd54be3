"""What a study varies, and where each of its records lies."""

import dataclasses
import re
from collections.abc import Iterator

from rope_jax.errors import InputError

# How a model comes to its scale vector: not trained with it, trained at the extended context, or trained at the
# original one with positions that skip.
ZERO_SHOT, TUNED, SKIPPED = "zero_shot", "tuned", "skipped"
LEARNED = "learned"
STAGES = (ZERO_SHOT, TUNED, SKIPPED)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A size of model: blocks, and the width of its states."""

    layers: int
    width: int

    def __str__(self) -> str:
        return f"{self.layers}x{self.width}"


def parse_model(text: str) -> tuple[Shape, int, int]:
    """Shape, original context and pre-training tokens, from a text such as '4x256:512:3000000'."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*):([1-9]\d*):([1-9]\d*)", text)
    if not found:
        raise InputError(
            f"`models` has {text!r}: write layers x width : context : tokens, such as '4x256:512:3000000'",
            field="models",
        )
    layers, width, context, tokens = map(int, found.groups())
    return Shape(layers, width), context, tokens


@dataclasses.dataclass(frozen=True)
class Setup:
    """One pre-trained model of a study, whose original context is `context` tokens; pre-trained on `tokens`."""

    shape: Shape
    context: int
    seed: int
    tokens: int

    @property
    def folder(self) -> str:
        return f"models/{self.shape}-{self.context}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Design:
    """What a study varies.

    Attributes:
        models: shape, original context and pre-training tokens, in the order in which they are studied.
        seeds: models of each, which differ in initial weights and data order.
        extensions: extension factors s.
        methods: names of methods that are compared in every stage.
        zero_shot: further methods, compared without training.
        shares: share of dimensions that DPRoPE interpolates, for each extension factor.
        n_hats: numbers of dimensions that it interpolates, compared without training.
        intervals: numbers of intervals for DPRoPE, compared without training.
        random: random vectors, compared without training.
        tune_share: tokens of a fine-tuning, as a share of the pre-training's.
    """

    models: tuple[tuple[Shape, int, int], ...]
    seeds: int
    extensions: tuple[int, ...]
    methods: tuple[str, ...]
    zero_shot: tuple[str, ...]
    shares: tuple[float, ...]
    n_hats: tuple[int, ...]
    intervals: tuple[int, ...]
    random: int
    tune_share: float

    def __post_init__(self):
        if len(self.shares) != len(self.extensions):
            raise InputError(
                f"`shares` is {self.shares}: give one for each of the extension factors {self.extensions}",
                field="shares",
            )

    def share(self, extension: int) -> float:
        return self.shares[self.extensions.index(extension)]

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of all vectors that need no model, random ones apart."""
        ablations = (*(f"dprope_n{n}" for n in self.n_hats), *(f"dprope_argmin_b{b}" for b in self.intervals))
        return tuple(name for name in dict.fromkeys((*self.methods, *self.zero_shot, *ablations)) if name != LEARNED)

    def setups(self) -> Iterator[Setup]:
        """All models, those of one shape and context one after the other."""
        for shape, context, tokens in self.models:
            yield from (Setup(shape, context, seed, tokens) for seed in range(self.seeds))
