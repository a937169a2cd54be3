"""`analyze --usage`: how much a model uses its frequency pairs and distances, from one pass over a few texts."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from rope_jax.commands.reporter import Reporter
from rope_jax.commands.run import Corpus
from rope_jax.commands.source import Source, read_params
from rope_jax.data.source import TextSource
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.answering import with_bos
from rope_jax.model.usage import measure_usage
from rope_jax.model.usage_file import Usage


@dataclasses.dataclass(frozen=True, eq=False)
class UsageJob:
    """What is measured: the first `texts` documents of at least `tokens` tokens, cut there. `corpus` names them."""

    source: Source
    tokenizer: Tokenizer
    documents: TextSource
    corpus: Corpus
    mesh: Mesh
    texts: int
    tokens: int


def measure(job: UsageJob, folder: Path, reporter: Reporter) -> Usage:
    """Measures a model with its own scaling, and writes `usage.json` to `folder`."""
    rows = _long_texts(job)
    params = read_params(job.source.folder, job.source.model, job.mesh, reporter)
    about = {"model": job.source.name, "data": str(job.corpus), "split": job.corpus.split}
    with jax.set_mesh(job.mesh):
        usage = measure_usage(params, job.source.model, job.source.own, reporter.bar("measuring")(rows), about)
    usage.write(folder / "usage.json")
    weights, distances = np.asarray(usage.pair_weights()), usage.distances()
    mass = np.cumsum(distances.mass) / np.sum(distances.mass)
    within = {share: distances.edges[int(np.searchsorted(mass, share)) + 1] for share in (0.5, 0.9)}
    reporter.say(
        f"{job.source.name}: {job.texts} texts of {job.tokens:,} tokens\n"
        f"  energy of the pairs, the mean being 1: {weights.min():.2f} to {weights.max():.2f}, the most in pair "
        f"{weights.argmax()}\n"
        f"  half of the attention beyond the first token within {within[0.5]:,} tokens, nine tenths within "
        f"{within[0.9]:,}\n"
        f"usage    {folder / 'usage.json'}"
    )
    return usage


def _long_texts(job: UsageJob) -> list[np.ndarray]:
    rows: list[np.ndarray] = []
    for index in range(len(job.documents)):
        tokens = with_bos(job.tokenizer, job.documents[index]["text"])
        if len(tokens) >= job.tokens:
            rows.append(tokens[: job.tokens])
        if len(rows) == job.texts:
            return rows
    raise InputError(
        f"`texts` is {job.texts}, and {len(rows)} of the {len(job.documents)} documents hold {job.tokens:,} tokens: "
        "lower it or `tokens`, or give longer texts"
    )
