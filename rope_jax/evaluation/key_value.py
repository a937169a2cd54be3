"""Recall of a value from a long JSON object of random keys, after HELMET (Yen et al., arXiv 2410.02694).

The object is written as in the task's origin (Liu et al., "Lost in the Middle", arXiv 2307.03172), the question with
worked examples as in HELMET.
"""

import dataclasses
import itertools
import uuid
from collections.abc import Iterator
from random import Random

from rope_jax.evaluation.answers import contains
from rope_jax.evaluation.benchmark import DrawnQuestions
from rope_jax.evaluation.draft import Draft, SampleSpec, fitted_samples
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.sizing import spread

TASK = "json_kv"
MAX_NEW_TOKENS = 100
DEPTHS = 6  # Places of the wanted pair, from the first to the last, which samples take in turn, spread.
EXAMPLES = 2
TEMPLATE = (
    "JSON data:\n{{{pairs}}}\n\nExtract the value corresponding to the specified key in the JSON object below.\n\n"
    "{examples}Key: {key}\nCorresponding value:"
)


@dataclasses.dataclass(frozen=True)
class KeyValue(DrawnQuestions):
    """Recall of a value by its key; a multiple of 6 `samples` has every depth equally often."""

    title = "JSON key-value recall"
    note = "A value is asked for out of a long JSON object of random keys."
    tasks = (TASK,)

    @property
    def bins(self) -> int:
        return DEPTHS

    def draw(self, task: str, spec: SampleSpec) -> Iterator[Sample]:
        return key_value_samples(spec)

    def score(self, sample: Sample, prediction: str) -> float:
        """1 if a prediction contains the value, letter case, punctuation and blanks apart, else 0."""
        return float(contains(prediction, sample.references[0]))


def key_value_samples(spec: SampleSpec) -> Iterator[Sample]:
    """Generates samples; `details` holds the `depth` of the wanted pair (0: first, 1: last), `units` counts pairs."""
    return fitted_samples(_draft, itertools.count(), spec, benchmark=TASK, task=TASK, max_new_tokens=MAX_NEW_TOKENS)


def _draft(index: int, rng: Random) -> Draft:
    depth = spread(DEPTHS)[index % DEPTHS] / (DEPTHS - 1)

    def pair() -> tuple[str, str]:
        return _uuid(rng), _uuid(rng)

    key, value = pair()
    shown = [pair() for _ in range(EXAMPLES)]
    examples = "".join(f"Key: {k}\nCorresponding value: {v}\n\n" for k, v in shown)
    others: list[tuple[str, str]] = []

    def build(units: int) -> str:
        # Drawn as far as needed, so that fewer units are the first ones of more.
        others.extend(pair() for _ in range(units - EXAMPLES - 1 - len(others)))
        pairs = [*shown, *others[: units - EXAMPLES - 1]]
        Random(key).shuffle(pairs)
        pairs.insert(round(depth * len(pairs)), (key, value))
        written = ",\n ".join(f'"{k}": "{v}"' for k, v in pairs)
        return TEMPLATE.format(pairs=written, examples=examples, key=key)

    return Draft(build, (value,), least=EXAMPLES + 1, details={"depth": depth})


def _uuid(rng: Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
