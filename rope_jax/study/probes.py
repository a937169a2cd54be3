"""Rows that every model and scale vector is measured on, and what is kept of a measurement.

A row has L' tokens, with BOS. Texts are scored by position; so are those below L, which is what a longer window costs
short texts. Recall is scored by the distance between a question and the place that answers it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.data.recall import Symbols, asked_at_the_end, facts
from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Inputs, forward, head_kernel, logits
from rope_jax.rope.embedding import ScaleVector

# Tokens that are scored at a time.
BATCH_TOKENS = 8192
# Tokens of a text to each fact in it.
SPARSE = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Probes:
    """The rows of one original and one extended context.

    Attributes:
        original: L, tokens.
        rows: int32 `[N, L']`: texts, then texts with facts that are asked for at random places, then texts with
            facts that are asked for at the end, then the same without the facts.
        documents: int `[texts]`, the document of each text row.
        distances: int32 `[facts + asked, L']`, of the recall rows with answers; 0 where nothing is asked.
        facts: number of texts with facts that are asked for at random places.
        asked: number of texts with questions at the end.
    """

    original: int
    rows: np.ndarray
    documents: np.ndarray
    distances: np.ndarray
    facts: int
    asked: int

    @property
    def target(self) -> int:
        return self.rows.shape[1]


@dataclasses.dataclass(frozen=True)
class ProbeSizes:
    """Numbers of rows: `windows` texts of each document, and texts with `facts` asked for anywhere and at the end."""

    windows: int = 1
    facts: int = 8
    asked: int = 8


def make_probes(
    documents: Sequence[np.ndarray], contexts: tuple[int, int], symbols: Symbols, bos_id: int, sizes: ProbeSizes
) -> Probes:
    """Draws the rows, the same for every model and vector.

    Args:
        documents: int32 `[n]` held-out texts; those too short for their windows are left out.
        contexts: original and extended context, tokens.
        symbols: ids of recall rows.
        bos_id: begins every row.
        sizes: numbers of rows.

    Raises:
        InputError: if no document is long enough.
    """
    original, target = contexts
    rng = np.random.default_rng((target, len(documents)))
    held = target - 1
    places, texts = [], []
    for i, document in enumerate(documents):
        gap = len(document) // sizes.windows
        if gap < held:
            continue
        for window in range(sizes.windows):
            start = window * gap + int(rng.integers(gap - held + 1))
            texts.append(document[start : start + held])
            places.append(i)
    if not texts:
        longest = max(map(len, documents), default=0)
        raise InputError(
            f"`documents` has none of {sizes.windows} windows of {target} tokens; the longest has {longest} tokens",
            field="documents",
        )

    def text(number):
        document = documents[places[number % len(places)]]
        start = int(rng.integers(len(document) - held + 1))
        return document[start : start + held]

    count = min(held // SPARSE, symbols.keys)
    recalls = [facts(rng, text(i), symbols, count) for i in range(sizes.facts)]
    asked = [asked_at_the_end(rng, text(i), symbols, count) for i in range(sizes.asked)]
    recalls += [recall for recall, _ in asked]
    without = [same for _, same in asked]
    rows = np.stack([*texts, *(recall.tokens for recall in recalls), *without])
    distances = np.stack([recall.distances for recall in recalls])
    rows = np.pad(rows, ((0, 0), (1, 0)), constant_values=bos_id).astype(np.int32)
    return Probes(original, rows, np.array(places), np.pad(distances, ((0, 0), (1, 0))), sizes.facts, sizes.asked)


def measure(params: Any, config: LlamaConfig, rope: ScaleVector, probes: Probes) -> dict:
    """Scores all rows under a scale vector.

    Returns:
        JSON-able. `position`: mean NLL in nats of texts in steps of L / 8. `documents`: for each, in order, mean NLL at
        positions below L / 2 and from there to L, and beyond L and in the last quarter of L'. `facts` and `asked`: by
        distance in steps of L / 4, and for each row within and beyond L, counts, hits and summed NLL; of `asked` also
        the NLL without the answers in context.
    """
    nll, hits = scores(params, config, rope, probes.rows)
    texts, (stated, asked) = len(probes.documents), (probes.facts, probes.asked)
    first, second, third = texts, texts + stated, texts + stated + asked
    without = nll[third:]
    return {
        "position": _rounded(_by_position(nll[:texts], probes)),
        "documents": _rounded(_by_document(nll[:texts], probes)),
        "facts": _recall(nll[first:second], hits[first:second], probes.distances[:stated], probes),
        "asked": _recall(nll[second:third], hits[second:third], probes.distances[stated:], probes, without),
    }


def scores(params: Any, config: LlamaConfig, rope: ScaleVector, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """NLL in nats of each token after the first, float32 `[N, T - 1]`, and whether it is the most likely one, bool."""
    size = max(BATCH_TOKENS // rows.shape[1], 1)
    padded = np.concatenate([rows, np.zeros((-len(rows) % size, rows.shape[1]), rows.dtype)])
    parts = [_score(params, rope, padded[i : i + size], config=config) for i in range(0, len(rows), size)]
    nll, hits = (np.concatenate(list(map(np.asarray, part)))[: len(rows)] for part in zip(*parts))
    return nll, hits


@partial(jax.jit, static_argnames="config")
def _score(params, rope, tokens, *, config):
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    states = forward(params, config, rope, Inputs(tokens, positions, jnp.ones_like(tokens))).states
    of_all, targets = logits(states[:, :-1], head_kernel(params, config)), tokens[:, 1:]
    found = jnp.take_along_axis(of_all, targets[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(of_all, axis=-1) - found, found >= jnp.max(of_all, axis=-1)


def _by_position(nll, probes):
    step = probes.original // 8
    # Column t scores the token at position t + 1; the first range has one token less.
    edges = np.arange(0, probes.target, step)
    return np.add.reduceat(nll.mean(axis=0), np.maximum(edges - 1, 0)) / np.diff(
        [*np.maximum(edges - 1, 0), nll.shape[1]]
    )


def _by_document(nll, probes):
    original, target = probes.original, probes.target
    ranges = ((1, original // 2), (original // 2, original), (original, target), (target - target // 4, target))
    means = np.stack([nll[:, first - 1 : end - 1].mean(axis=1) for first, end in ranges], axis=1)
    documents = dict.fromkeys(probes.documents.tolist())
    return np.stack([means[probes.documents == document].mean(axis=0) for document in documents])


def _recall(nll, hits, distances, probes, without=None) -> dict:
    distances = distances[:, 1:]
    step = probes.original // 4
    bins = np.where(distances > 0, (distances - 1) // step, -1)
    values = {"count": np.ones_like(nll), "hits": hits, "nll": nll} | ({} if without is None else {"without": without})
    found: dict[str, Any] = {}
    for name, value in values.items():
        by_bin = [value[bins == i].sum() for i in range(probes.target // step)]
        near, far = distances > 0, distances > probes.original
        by_row = np.stack([np.where(near & ~far, value, 0).sum(axis=1), np.where(far, value, 0).sum(axis=1)], axis=1)
        found[name] = {"distance": _rounded(by_bin), "rows": _rounded(by_row)}
    return found


def _rounded(values) -> list:
    """Nested lists of numbers with five digits."""
    return np.vectorize(lambda x: float(f"{x:.5g}"))(np.asarray(values, np.float64)).tolist()


def ratio(recall: Mapping, over: str, under: str = "count") -> np.ndarray:
    """Per row, within and beyond L: `[rows, 2]`, such as hits over counts; NaN where nothing was asked."""
    top, bottom = (np.asarray(recall[name]["rows"], np.float64) for name in (over, under))
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
