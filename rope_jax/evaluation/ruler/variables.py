"""RULER's variable tracking: which variables come to have a value, through a chain of assignments."""

import string
from collections.abc import Callable
from itertools import pairwise
from random import Random

from rope_jax.evaluation.draft import Draft
from rope_jax.evaluation.ruler.needles import NOISE
from rope_jax.evaluation.sizing import largest_fit

TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\nQuestion: Find "
    "all variables that are assigned the value {value} in the text above. Answer: According to the chain(s) of "
    "variable assignment in the text above, {count} variables are assigned the value {value}, they are: "
)
HOPS = 4
NAME = 5  # Letters of a variable.
EXAMPLE_NAME = 3  # Letters of a variable of the worked example.
EXAMPLE_TOKENS = 500  # That the worked example may take.
EXAMPLE_LINES = 5  # Its fewest lines of noise.


def variables_draft(rng: Random, count_tokens: Callable[[str], int]) -> Draft:
    """Draws a chain and a worked example, whose length tokens decide; units are lines of noise."""
    used = {"VAR"}
    example, names = _chain(rng, EXAMPLE_NAME, used)
    lines = largest_fit(lambda n: count_tokens(example(n)), EXAMPLE_TOKENS, EXAMPLE_LINES) or EXAMPLE_LINES
    # The example's question ends in a blank and its answer begins with one, as RULER has it.
    shown = f"{example(lines)} {' '.join(names)}\n\n"
    build, names = _chain(rng, NAME, used)
    return Draft(lambda units: shown + build(units), tuple(names), least=HOPS + 1)


def _chain(rng: Random, letters: int, used: set[str]) -> tuple[Callable[[int], str], list[str]]:
    def draw(make: Callable[[], str]) -> str:
        while (text := make()) in used:
            pass
        used.add(text)
        return text

    names = [draw(lambda: "".join(rng.choices(string.ascii_uppercase, k=letters))) for _ in range(HOPS + 1)]
    value = draw(lambda: str(rng.randint(10000, 99999)))
    chain = [f"VAR {names[0]} = {value}"]
    # The blank at the end of these lines is RULER's.
    chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
    place_seed = rng.random()

    def build(units: int) -> str:
        lines = [NOISE] * units
        for shift, place in enumerate(sorted(Random(place_seed).sample(range(units), len(chain)))):
            lines.insert(place + shift, chain[shift])
        return TEMPLATE.format(context="\n".join(lines), value=value, count=len(names))

    return build, names
