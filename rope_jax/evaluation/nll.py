"""Negative log likelihoods of tokens under a model, without ever holding T x V logits."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rope_jax.model.backends import attend_on
from rope_jax.model.config import LlamaConfig
from rope_jax.model.generate import bucket_length
from rope_jax.model.llama import Inputs, forward, head_kernel, logits
from rope_jax.training.loss import token_nll


@cache
def make_token_nll(
    config: LlamaConfig, chunk: int, batch_sharding: NamedSharding | None = None
) -> Callable[..., np.ndarray]:
    """Compiles, once per shape of batch, the scoring that the perplexities need; equal arguments give one function.

    Rows need no mask for padding on the right: attention is causal, so nothing before it sees it. What lies before the
    first wanted column of the batch passes through the last layer as keys and values only, and chunks in which nothing
    is wanted cost no logits; so batches whose rows want the same columns are the cheapest. A new scale vector
    recompiles nothing.

    Logits of `chunk` tokens of a row are formed at a time; `batch_sharding` is that of the batch's leading axis.

    Returns:
        `score(params, rope, tokens, wanted)`: from int32 and bool `[B, T]` to float32 `[B, T]`, at `[b, t]` the NLL in
        nats of `tokens[b, t + 1]` after `tokens[b, : t + 1]` where that is wanted, else 0.
    """
    score = partial(tail_nll, config=config, chunk=chunk, sharding=batch_sharding)
    compiled = _compiled(score, batch_sharding, "tail")

    def score_tail(params, rope, tokens, wanted):
        nll, tail = np.zeros(tokens.shape, np.float32), scored_columns(wanted)
        if tail:
            nll[:, -tail:] = compiled(params, rope, tokens, wanted, tail=tail)
        return nll

    return score_tail


def scored_columns(wanted: np.ndarray) -> int:
    """Last columns that are computed for a batch whose bool `[B, T]` are wanted; in buckets, for few compilations."""
    width = wanted.shape[1]
    columns = np.flatnonzero(wanted[:, :-1].any(axis=0))
    return min(bucket_length(width - int(columns[0])), width) if len(columns) else 0


def tail_nll(
    params, rope, tokens, wanted, *, config: LlamaConfig, chunk: int, tail: int, sharding: NamedSharding | None = None
):
    """NLL in nats of the tokens after each of the last `tail` columns, float32 `[B, tail]`.

    Tokens are int32 `[B, T]`, and bool `[B, T]` says whose successors are wanted; the NLL is 0 elsewhere and in the
    last column.
    """
    first = jnp.zeros(tokens.shape[0], jnp.int32)
    hidden = _tail_states(config, sharding)(params, rope, tokens, first, tail)
    targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
    wanted = wanted.at[:, -1].set(False)
    return token_nll(hidden, head_kernel(params, config), targets[:, -tail:], chunk, wanted[:, -tail:])


@cache
def make_continuation_scores(
    config: LlamaConfig, chunk: int, batch_sharding: NamedSharding | None = None
) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Compiles, once per shape, the scoring of given continuations.

    Returns:
        `score(params, rope, tokens, first, targets)`: tokens int32 `[B, T]` end in the last column and begin in column
        `first` (int32 `[B]`), and targets int32 `[B, C]` follow the last C tokens (-1: none). It gives the log
        likelihoods of the targets, float32 `[B, C]`, 0 without one, and whether each is the most likely token, bool
        `[B, C]`, True without one.
    """

    states = _tail_states(config, batch_sharding)

    def score(params, rope, tokens, first, targets):
        hidden = states(params, rope, tokens, first, targets.shape[1])
        head = head_kernel(params, config).astype(hidden.dtype)
        b, c = targets.shape
        size = min(chunk, c)
        padding = -c % size

        def part(inputs):
            h, t = inputs
            logits = jnp.einsum("bte,ev->btv", h, head, preferred_element_type=jnp.float32)
            hit = jnp.arange(logits.shape[-1]) == t[..., None]
            of_target = jnp.sum(jnp.where(hit, logits, 0.0), axis=-1)
            log_likelihood = of_target - jax.nn.logsumexp(logits, axis=-1)
            return jnp.where(t >= 0, log_likelihood, 0.0), (t < 0) | (jnp.argmax(logits, axis=-1) == t)

        hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(b, -1, size, hidden.shape[-1])
        targets = jnp.pad(targets, ((0, 0), (0, padding)), constant_values=-1).reshape(b, -1, size)
        log_likelihood, greedy = jax.lax.map(part, (hidden.swapaxes(0, 1), targets.swapaxes(0, 1)))
        return tuple(found.swapaxes(0, 1).reshape(b, -1)[:, :c] for found in (log_likelihood, greedy))

    return _compiled(score, batch_sharding)


@cache
def make_next_token_scores(
    config: LlamaConfig, batch_sharding: NamedSharding | None = None
) -> Callable[..., jax.Array]:
    """Compiles, once per shape, the log probabilities of the token that comes next.

    Returns:
        `score(params, rope, tokens, first)`: from rows int32 `[B, T]` that begin in column `first` and end in the last
        one to float32 `[B, V]`.
    """

    states = _tail_states(config, batch_sharding)

    def score(params, rope, tokens, first):
        hidden = states(params, rope, tokens, first, 1)[:, 0]
        return jax.nn.log_softmax(logits(hidden, head_kernel(params, config)))

    return _compiled(score, batch_sharding)


def _tail_states(config: LlamaConfig, sharding: NamedSharding | None) -> Callable:
    """Makes `states(params, rope, tokens, first, tail)`: final states of the last `tail` tokens of rows `[B, T]`, which
    begin in the columns `first`, `[B]`.
    """
    # Plain JAX is left to the compiler.
    mesh = None if sharding is None or config.attention == "cpu" else sharding.mesh
    attention = attend_on(config, mesh, "rows")

    def states(params, rope, tokens, first, tail):
        places = jnp.arange(tokens.shape[1])
        # Padding is a document of its own, which no other token sees.
        document = jnp.where(places >= first[:, None], 0, -1)
        inputs = Inputs(tokens, jnp.maximum(places - first[:, None], 0), document)
        return forward(params, config, rope, inputs, attend=attention, tail=tail).states

    return states


def _compiled(score, batch_sharding, *static):
    """Compiles `score(params, rope, *rows)`; rows are split as given, and every process gets every result."""
    if batch_sharding is None:
        return jax.jit(score, static_argnames=static)
    replicated = NamedSharding(batch_sharding.mesh, PartitionSpec())
    compiled = jax.jit(score, static_argnames=static, out_shardings=replicated)
    return lambda params, rope, *rows, **options: compiled(
        params, rope, *jax.device_put(rows, batch_sharding), **options
    )
