"""Greedy decoding over a KV cache: one compiled function for prompts, one for the steps after them."""

import dataclasses
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from rope_jax.model import cpu
from rope_jax.model.backends import attend_on
from rope_jax.model.cache import Cache
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Inputs, forward
from rope_jax.rope.embedding import ScaleVector

# Steps between two looks of the host at what was decoded; it checks stop strings and grows the cache there.
SEGMENT = 32


def decoding_weights(params, config: LlamaConfig):
    """The parameters as decoding reads them: in the computation dtype, layer by layer, the head as `[V, E]`.

    A step reads every weight once and does little with it, so it must neither convert nor slice any. A scan over
    stacked layers would slice weights, and the cache, at each step.
    """
    top = {name: value for name, value in params.items() if name != "layers"}
    if not config.tie_embeddings:
        top["head"] = top["head"].T
    return {"layers": _separate(params["layers"], config), **jax.tree.map(lambda x: x.astype(config.dtype), top)}


@partial(jax.jit, static_argnames="config")
def _separate(layers, config):
    layers = jax.tree.map(lambda x: x.astype(config.dtype), layers)
    return tuple(jax.tree.map(itemgetter(i), layers) for i in range(config.num_layers))


@partial(jax.tree_util.register_dataclass, data_fields=("weights", "rope"), meta_fields=("config", "replicated"))
@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model that decodes."""

    weights: Any  # from `decoding_weights`
    rope: ScaleVector
    config: LlamaConfig
    replicated: NamedSharding | None = None  # gives every process the whole answer

    def next_token(self, tokens, cache: Cache, banned, attend=None):
        """The most likely token after `tokens` that is not banned, and the cache with `tokens`."""
        # Padding in front of a prompt has no position, and is a document of its own; no query reads it.
        places = cache.used + jnp.arange(tokens.shape[1]) - cache.first[:, None]
        inputs = Inputs(tokens, jnp.maximum(places, 0), jnp.where(places >= 0, 0, -1))
        # Only the last state meets the vocabulary: T x V logits are never formed.
        states, cache, _ = forward(self.weights, self.config, self.rope, inputs, cache=cache, tail=1, attend=attend)
        head = self.weights["embedding" if self.config.tie_embeddings else "head"]
        return cpu.most_likely(cpu.projection(states[:, 0], head), banned), cache

    def whole(self, x):
        return x if self.replicated is None else jax.lax.with_sharding_constraint(x, self.replicated)


@partial(jax.jit, static_argnames="whole", donate_argnames="cache")
def prefill(decoder: Decoder, tokens, cache: Cache, banned, whole: bool = False):
    """Reads the next tokens of every prompt, int32 `[B, T]`, into the cache, which has room for them and is donated.

    If they are `whole` prompts, the cache being empty, the backend of the config computes attention.

    Returns:
        The most likely token int32 `[B]` after them that is not `banned`, bool `[V]`; and the cache.
    """
    mesh = decoder.replicated.mesh if decoder.replicated else None
    attend = attend_on(decoder.config, mesh, "rows") if whole else None
    token, cache = decoder.next_token(tokens, cache, banned, attend)
    return decoder.whole(token), cache


class Limits(NamedTuple):
    """When decoding ends."""

    left: Any  # int32 `[B]`, tokens that each row may still produce; 0 for rows that have ended
    stops: Any  # bool `[V]`, tokens that end a row
    steps: Any  # int32 scalar, steps at most, up to `SEGMENT`
    unstopped: Any  # int32 scalar, the number of first steps in which `stops` have no probability


@partial(jax.jit, donate_argnames="cache")
def decode(decoder: Decoder, token, cache: Cache, limits: Limits):
    """Greedy decoding until every row has ended, or for `limits.steps`.

    `token`, int32 `[B]`, are the newest tokens, not in the cache yet, which is donated and has room for the steps.

    Returns:
        int32 `[B, SEGMENT]` tokens, valid as far as steps were made and the row had not ended; the newest token; and
        the cache.
    """

    def unfinished(carry):
        step, _, _, _, left = carry
        return (step < limits.steps) & jnp.any(left > 0)

    def advance(carry):
        step, token, cache, new, left = carry
        token, cache = decoder.next_token(token[:, None], cache, limits.stops & (step < limits.unstopped))
        new = jax.lax.dynamic_update_slice(new, token[:, None], (0, step))
        return step + 1, token, cache, new, jnp.where(limits.stops[token], 0, jnp.maximum(left - 1, 0))

    new = jnp.zeros((len(token), SEGMENT), jnp.int32)
    start = jnp.int32(0), token, cache, new, limits.left
    _, token, cache, new, _ = jax.lax.while_loop(unfinished, advance, start)
    return decoder.whole(new), token, cache
