"""The library in few lines: a model that scores and generates under a scale vector, and what a vector disturbs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.model.backends import Device, best_backend
from rope_jax.model.config import LlamaConfig
from rope_jax.model.generate import Stops, greedy
from rope_jax.model.llama import Llama
from rope_jax.rope.embedding import ScaleVector
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods.method import Method, Solution
from rope_jax.rope.methods.registered import named


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A model with a scale vector. Another vector is another `Model` with the same weights.

    Attributes:
        config: the architecture, and how it is computed.
        params: parameters of `rope_jax.model.llama.Llama`.
        rope: the scale vector that is applied.
        geometry: the rotary geometry before extension.
        tokenizer: from text to token ids and back.
    """

    config: LlamaConfig
    params: Mapping[str, Any]
    rope: ScaleVector
    geometry: Geometry
    tokenizer: Tokenizer

    def under(self, vector: ScaleVector | Solution | str, target: int = 0, **parameters) -> Model:
        """The model under a scale vector, or under what a method gives for `target` tokens.

        Args:
            vector: a vector that replaces the model's, a solution, or the name of a method, with its `parameters`.
            target: extended context, tokens; needed with a name.
        """
        if isinstance(vector, str):
            vector = solve(vector, self, target, **parameters)
        return dataclasses.replace(self, rope=vector.scale if isinstance(vector, Solution) else vector)

    def logits(self, text: str | ArrayLike) -> Float32[jax.Array, "tokens vocabulary"]:
        """Logits after each token of a text, float32 `[T, V]`; a text in characters begins with BOS."""
        return _logits(self.config)(self.params, self._tokens(text)[None], self.rope)[0]

    def nll(self, text: str | ArrayLike) -> Float32[np.ndarray, " predicted"]:
        """Negative log likelihood of each token after the first, nats, `[T - 1]`."""
        tokens = self._tokens(text)[None]
        return make_token_nll(self.config, chunk=1024)(self.params, self.rope, tokens, np.ones(tokens.shape, bool))[
            0, :-1
        ]

    def generate(self, prompt: str | ArrayLike, max_new_tokens: int = 50) -> str:
        """The most likely continuation of a prompt, up to EOS, as text."""
        ends = () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        prompts = [self._tokens(prompt)]
        (new,) = greedy(self.params, self.config, self.rope, prompts, max_new_tokens, stops=Stops(ends))
        return self.tokenizer.decode(new)

    def _tokens(self, text: str | ArrayLike) -> np.ndarray:
        if not isinstance(text, str):
            return np.asarray(text, np.int32)
        start = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return np.concatenate([np.asarray(start, np.int32), self.tokenizer.encode(text)])


# A new scale vector compiles nothing.
@cache
def _logits(config: LlamaConfig):
    model = Llama(config)
    return jax.jit(lambda params, *inputs: jnp.asarray(model.apply({"params": params}, *inputs), jnp.float32))


def load(path: str, *, dtype: str = "float32", revision: str = "") -> Model:
    """Loads a model under its own scaling, on one device.

    Args:
        path: a Hugging Face folder, a GGUF file, or an id of the Hugging Face Hub.
        dtype: of weights and computation.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: if there is no model that this package computes at `path`.

    Example:
        >>> model = rope_jax.load(folder)
        >>> model.logits([1, 2, 3]).shape  # tokens, vocabulary
        (3, 258)
        >>> longer = model.under("yarn", target=4 * model.config.context)
        >>> longer.logits([1, 2, 3]).shape
        (3, 258)
    """
    place = resolve_model(path, revision)
    known = check_model(place)
    config = dataclasses.replace(known.config, dtype=dtype, param_dtype=dtype)
    config = dataclasses.replace(config, attention=best_backend(config, Device.here()))
    params = read_model(place, param_dtype=dtype).params
    geometry = Geometry(config.rope_base, config.head_dim, known.rope, config.num_layers)
    return Model(config, params, known.rope, geometry, load_tokenizer(place))


def solve(method: str | Method, model: Model | Geometry, target: int, original: int = 0, **parameters) -> Solution:
    """The scale vector of a method for an extended context, with its disturbance.

    Args:
        method: a name, of `rope_jax.rope.methods.METHODS` or given by `rope_jax.method`, with its `parameters`, or a
            method.
        model: a model, or its rotary geometry.
        target: extended context, tokens.
        original: context of pre-training, tokens; by default the model's.

    Example:
        >>> llama2 = rope_jax.Geometry(10000.0, 128, rope_jax.ScaleVector.create(np.ones(64)))
        >>> solution = rope_jax.solve("yarn", llama2, target=8192, original=4096)
        >>> print(f"{1e3 * solution.disturbance.mean():.2f}")
        25.63
        >>> solution.interpolated_dimensions  # of 128
        86
    """
    if isinstance(method, str):
        method = named(method)(**parameters)
    return method(*_setting(model, target, original))


def disturbance(vector: ScaleVector | ArrayLike, model: Model | Geometry, target: int, original: int = 0) -> np.ndarray:
    """How far a vector shifts the distribution of rotary angles, float32 `[D/2]`, nats per pair (KL divergence).

    `vector` is a scale vector, or its factors `[D/2]`; the other arguments are those of `solve`.

    Example:
        >>> llama2 = rope_jax.Geometry(10000.0, 128, rope_jax.ScaleVector.create(np.ones(64)))
        >>> found = rope_jax.disturbance(np.full(64, 2.0), llama2, target=8192, original=4096)
        >>> print(found.shape, f"{1e3 * found.mean():.2f}")  # position interpolation
        (64,) 24.08
    """
    scale = vector if isinstance(vector, ScaleVector) else ScaleVector.create(np.asarray(vector, np.float32))
    return Solution.measured(*_setting(model, target, original), scale).disturbance


def _setting(model: Model | Geometry, target: int, original: int) -> tuple[Geometry, Measure]:
    if isinstance(model, Model):
        return model.geometry, Measure(original or model.config.context, target)
    return model, Measure(original, target)
