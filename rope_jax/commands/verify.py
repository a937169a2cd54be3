"""The command `verify`: which scale vector an engine applies to a model, read back from its log probabilities."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import jax
import numpy as np

from rope_jax.commands.reporter import Reporter
from rope_jax.errors import InputError
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.files import write_json
from rope_jax.interop.engines import Question, ask
from rope_jax.interop.huggingface import read_model
from rope_jax.interop.verify import VerificationError
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector, frequencies, identity
from rope_jax.rope.methods.by_parts import llama3, yarn, yarn_attention_factor
from rope_jax.rope.methods.explicit import longrope_attention_factor
from rope_jax.rope.methods.interpolation import ntk, position_interpolation
from rope_jax.rope.relative import RelativeScale, compose, rebased

OWN = "the model's own"

# The rotary base that a config which names none has.
_DEFAULT_BASE = 10000.0


@dataclasses.dataclass(frozen=True, eq=False)
class Probe:
    """What is asked of an engine.

    Attributes:
        path: model folder, or GGUF file for llama.cpp.
        model: its config as it is computed here.
        own: the scale vector that its config gives.
        original: tokens that it was trained on before it was scaled.
        tokens: text, int32 ``[T]``.
        columns: tokens that are compared, in order.
        tolerance: mean difference that rounding may make, nats per token.
    """

    path: Path
    model: LlamaConfig
    own: ScaleVector
    original: int
    tokens: np.ndarray
    columns: np.ndarray
    tolerance: float


def columns(original: int, context: int, count: int) -> np.ndarray:
    """The last `count` tokens below the original context and the first above it, as far as the context goes."""
    return np.arange(max(original - count, 1), min(original + count, context))


def verify(probe: Probe, engine: str, python: str, folder: Path, reporter: Reporter) -> dict:
    """Asks an engine, and tells whether it applies the model's own scale vector, or which other one.

    Writes `engine.json`, whose content it returns.

    Args:
        engine: one of `rope_jax.interop.engines.ENGINES`.
        python: interpreter of its environment; empty for this one's.

    Raises:
        InputError: if the engine cannot be run or refuses the model.
        VerificationError: if the engine applies another scale vector, or none that is known here.
    """
    reporter.say(f"{engine}: {len(probe.columns):,} of {len(probe.tokens):,} tokens of {probe.path}")
    version, [theirs] = ask(engine, [Question(probe.path, probe.tokens, probe.columns)], python)
    if isinstance(theirs, str):
        raise InputError(f"{version} refuses {probe.path}: {theirs}")
    ours = scores(probe, candidates(probe.own, probe.model, probe.original))
    result = {"engine": version, "model": str(probe.path)} | compare(probe, ours, theirs, reporter)
    write_json(folder / "engine.json", result)
    verdict = _verdict(result, probe.tolerance)
    if result["applied"] != OWN:
        raise VerificationError(f"{probe.path}: {verdict}")
    reporter.say(f"verified: {verdict}\nnumbers  {folder / 'engine.json'}")
    return result


def scores(probe: Probe, vectors: Iterable[tuple[str, ScaleVector]]) -> dict[str, np.ndarray]:
    """Log probabilities by this package under each of the named vectors: float64, nats, by name."""
    params = read_model(probe.path, param_dtype=probe.model.param_dtype).params
    score = make_token_nll(probe.model, chunk=256)
    tokens = probe.tokens[None].astype(np.int32)
    wanted = np.zeros(tokens.shape, bool)
    wanted[:, probe.columns - 1] = True
    # By default, GPUs and TPUs multiply float32 matrices in TF32 or bfloat16.
    with jax.default_matmul_precision("highest"):
        return {
            name: -np.asarray(score(params, rope, tokens, wanted), np.float64)[0, probe.columns - 1]
            for name, rope in vectors
        }


def compare(probe: Probe, ours: Mapping[str, np.ndarray], theirs: np.ndarray, reporter: Reporter) -> dict:
    """Compares an engine's log probabilities with those of `scores`.

    Args:
        theirs: float64, nats, at the columns of the probe.

    Returns:
        `applied`, the name of the vector that fits best, or None if none is within the tolerance; `indistinct`, the
        others that are; and `vectors`: by name the mean and largest absolute difference in nats below and above the
        original context. Where the engine's numbers are not finite, no vector fits.
    """
    vectors, above = {}, probe.columns >= probe.original
    reporter.say(f"  {'nats per token':<40} {'below':>10} {'above':>10} {'largest':>10}")
    for name, own in ours.items():
        difference = np.abs(own - theirs)
        row = {
            "below": float(difference[~above].mean()) if not above.all() else None,
            "above": float(difference[above].mean()) if above.any() else None,
            "largest": float(difference.max()),
        }
        vectors[name] = row
        cells = [row["below"], row["above"], row["largest"]]
        reporter.say(f"  {name:<40}" + "".join(f" {'' if cell is None else f'{cell:.2g}':>10}" for cell in cells))
    fitting = sorted((_worst(row), name) for name, row in vectors.items() if _worst(row) <= probe.tolerance)
    applied = fitting[0][1] if fitting else None
    return {"applied": applied, "indistinct": [name for _, name in fitting[1:]], "vectors": vectors}


def candidates(own: ScaleVector, model: LlamaConfig, original: int) -> Iterator[tuple[str, ScaleVector]]:
    """The model's own vector, and those of engines that misread it, each once."""
    seen: list[ScaleVector] = []
    for name, vector in _readings(own, model, original):
        if not any(_alike(vector, other) for other in seen):
            seen.append(vector)
            yield name, vector


def _readings(own: ScaleVector, model: LlamaConfig, original: int) -> Iterator[tuple[str, ScaleVector]]:
    plain, base, head_dim = identity(model.head_dim), model.rope_base, model.head_dim
    yield OWN, own
    yield "plain RoPE: the scaling is ignored", plain
    yield "without the attention factor", ScaleVector.create(own.factors)
    yield "the attention factor alone", ScaleVector.create(plain.factors, own.attention_factor)
    yield "the attention factor twice", ScaleVector.create(own.factors, own.attention_factor**2)
    yield "rope_theta ignored", rebased(own, _DEFAULT_BASE, base)
    # How far an engine may take the model to be extended: by its lengths, and by its slowest pair.
    for extension in dict.fromkeys((model.context / original, round(float(np.max(own.factors)), 4))):
        if not 1 < extension < model.context:
            continue
        formulas = {
            "linear": position_interpolation(head_dim, extension),
            "LLaMA-3's formula": llama3(frequencies(base, head_dim), extension, original),
            "YaRN's formula": yarn(base, head_dim, extension, original),
            "NTK": ntk(head_dim, extension) if head_dim > 2 else RelativeScale.create(plain.factors),
        }
        for name, scale in formulas.items():
            yield f"{name} by {extension:g}", compose(plain, scale)
            yield f"{name} by {extension:g}, twice", compose(compose(plain, scale), scale)
        for name, factor in (
            ("LongRoPE's", longrope_attention_factor(extension, max(original, 2))),
            ("YaRN's", yarn_attention_factor(extension)),
        ):
            yield f"{name} attention factor for {extension:g}", ScaleVector.create(own.factors, factor)


def _alike(one: ScaleVector, other: ScaleVector) -> bool:
    near = np.allclose(one.factors, other.factors, rtol=1e-6)
    return near and bool(np.isclose(one.attention_factor, other.attention_factor, rtol=1e-6))


def _worst(row: Mapping) -> float:
    """The larger of the mean differences below and above; infinite for numbers that are not finite."""
    worst = max(value for value in (row["below"], row["above"]) if value is not None)
    return worst if np.isfinite(worst) else float("inf")


def _verdict(result: Mapping, tolerance: float) -> str:
    vectors, applied = result["vectors"], result["applied"]
    if applied is None:
        nearest = min(vectors, key=lambda name: _worst(vectors[name]))
        return (
            f"{result['engine']} applies no scale vector that is known here: the nearest, {nearest}, is "
            f"{_worst(vectors[nearest]):.2g} nats per token away, and {tolerance:g} is allowed"
        )
    text = f"{result['engine']} applies {applied}, to {_worst(vectors[applied]):.2g} nats per token"
    if applied != OWN:
        text += f"; {OWN} is {_worst(vectors[OWN]):.2g} away"
    if result["indistinct"]:
        text += f" (these texts do not tell it from: {'; '.join(result['indistinct'])})"
    return text
