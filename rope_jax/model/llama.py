"""LLaMA, Mistral, Qwen2 and Qwen3: the parameters with their logical axes, one block, and the forward pass."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Float32

from rope_jax.model import cpu
from rope_jax.model.arrays import Head
from rope_jax.model.attention import cached_attention
from rope_jax.model.backends import attend as attend_by_config
from rope_jax.model.cache import Cache
from rope_jax.model.config import LlamaConfig
from rope_jax.model.remat import BLOCK_INPUT, PRODUCT, rematerialised
from rope_jax.rope.embedding import ScaleVector, periods, phases, rotate
from rope_jax.rope.exact.turns import exact_frequencies, exact_phases
from rope_jax.sharding import shardings_of

Waves = Float32[Array, "#b t pairs"]


@dataclasses.dataclass(frozen=True)
class Weight:
    """How one parameter is declared."""

    axes: tuple[str, ...]  # logical names, which `rope_jax.sharding.RULES` maps to mesh axes
    shape: tuple[int, ...]
    initialiser: Callable  # of a PRNG key, shape and dtype


def _declared_weights(config: LlamaConfig) -> dict:
    """Declaration of the parameters, a nested dict of `Weight`; under `layers`, those of one block."""
    c, normal = config, nn.initializers.normal(config.initializer_range)
    sizes = {
        "vocab": c.vocab_size,
        "embed": c.hidden_size,
        "mlp": c.intermediate_size,
        "heads": c.num_heads,
        "kv_heads": c.num_kv_heads,
        "head_dim": c.head_dim,
    }

    def matrix(*axes):
        return Weight(axes, tuple(sizes[axis] for axis in axes), normal)

    def norm(axis="embed"):
        return {"weight": Weight(("norm",), (sizes[axis],), nn.initializers.ones)}

    def projection(*axes, contract=1, bias=False):
        kernel = matrix(*axes)
        zeros = Weight(axes[contract:], kernel.shape[contract:], nn.initializers.zeros)
        return {"kernel": kernel, "bias": zeros} if bias else {"kernel": kernel}

    heads = {"q": "heads", "k": "kv_heads", "v": "kv_heads"}
    attention = {name: projection("embed", axis, "head_dim", bias=c.attention_bias) for name, axis in heads.items()}
    attention["o"] = projection("heads", "head_dim", "embed", contract=2, bias=c.output_bias)
    if c.qk_norm:
        attention |= {"q_norm": norm("head_dim"), "k_norm": norm("head_dim")}
    feed_forward = {name: projection("embed", "mlp") for name in ("gate", "up")} | {"down": projection("mlp", "embed")}
    layers = {
        "attention_norm": norm(),
        "attention": attention,
        "feed_forward_norm": norm(),
        "feed_forward": feed_forward,
    }
    head = {} if c.tie_embeddings else {"head": matrix("embed", "vocab")}
    return {"embedding": matrix("vocab", "embed"), **head, "layers": layers, "norm": norm()}


def _stacked_weights(config: LlamaConfig) -> dict:
    """`_declared_weights`, those under `layers` stacked over layers."""

    def stacked(weight):
        return Weight(("layers", *weight.axes), (config.num_layers, *weight.shape), weight.initialiser)

    weights = _declared_weights(config)
    return weights | {"layers": jax.tree.map(stacked, weights["layers"])}


class _Parameters(nn.Module):
    """Declares a nested dict of `Weight` in Flax; one layer of a scan."""

    # A function: Flax sorts the keys of a dict, and random numbers depend on the order of declaration.
    weights: Callable[[], dict]
    dtype: str

    @nn.compact
    def __call__(self, *_):
        _declare(self, self.weights(), self.dtype)
        return None, None


def _declare(module, weights, dtype):
    for name, weight in weights.items():
        if isinstance(weight, Weight):
            init = nn.with_logical_partitioning(weight.initialiser, weight.axes)
            module.param(name, init, weight.shape, dtype)
        else:
            _Parameters(lambda weight=weight: weight, dtype, name=name)()


class Inputs(NamedTuple):
    """What the model reads, int `[B, T]` each."""

    tokens: Any
    positions: Any
    segment_ids: Any = None  # documents of a packed row; not with a KV cache


class Pass(NamedTuple):
    """What a forward pass gives."""

    states: jax.Array  # final, normalised, in the computation dtype: `[B, T, E]`, or `[B, tail, E]`
    cache: Any  # the KV cache with the new tokens, or None
    inspected: tuple  # `inspect` of the embedded tokens, of each layer's output (stacked), and of the final states


def forward(
    params,
    config: LlamaConfig,
    rope: ScaleVector,
    inputs: Inputs,
    *,
    lora=None,
    cache: Cache | None = None,
    tail: int = 0,
    attend: Callable | None = None,
    place: Callable = lambda x: x,
    inspect: Callable = lambda x: None,
) -> Pass:
    """The forward pass up to the final norm: of training, scoring, decoding and the search for what is not finite.

    Args:
        params: parameters of `Llama`. Their `layers` are stacked, or, with a cache, a tuple of trees.
        config: model config.
        rope: scale vector, for the model or per layer.
        inputs: tokens, positions and documents.
        lora: low-rank factors `a` and `b` of projections, a tree like `params`; `x a b` is added to the output of
            each projection that has them: two thin products instead of a changed kernel.
        cache: KV cache to read and to extend; not with `inspect`.
        tail: number of last tokens whose states are given; 0 gives all. The last layer computes these only: of the
            others it needs keys and values, the smaller part of its work. Without a cache, `attend` must take fewer
            queries than keys. Not with `inspect`.
        attend: attention as a function of query, key, value and segment ids, such as
            `rope_jax.training.context.attention_on` gives for a mesh; default `config.attention` on one device. With a
            cache, which has to be empty, it computes whole prompts; the default reads the cache, in plain JAX.
        place: lays states `[B, T, E]` out over a mesh, such as `rope_jax.sharding.states_on` gives.
        inspect: function of states whose results are returned, such as whether they are finite.
    """
    c, layers = config, params["layers"]
    if lora:
        layers = unflatten_dict(flatten_dict(layers) | flatten_dict(lora["layers"]))
    scales = rope.by_layer(c.num_layers, c.head_dim // 2)

    def layer(x, weights, scale, cached=None, tail=0):
        def attention(query, key, value):
            if cached is None:
                whole = attend or partial(attend_by_config, config=c)
                return whole(query, key, value, inputs.segment_ids), None
            appended = cached.append(key, value)
            # Of prompts, the last layer asks for the last token only, which reads the cache as those after it do.
            if attend and query.shape[1] == key.shape[1]:
                return attend(query, key, value, inputs.segment_ids), appended
            return cached_attention(query, appended, chunk=c.attention_chunk, window=c.sliding_window), appended

        # Formed in each layer: D/2 sines per token are little beside 12 E^2 products, and one code path serves a
        # vector for the model and a vector per layer.
        waves = waves_of(c, inputs.positions, scale)
        return block(weights, c, checkpoint_name(place(x), BLOCK_INPUT), waves, attention, tail=tail)

    x = embedded = jnp.take(params["embedding"], inputs.tokens, axis=0).astype(c.dtype)
    last, seen = c.num_layers - 1, None
    if cache is not None:
        found = []
        for i, (weights, cached) in enumerate(zip(layers, cache.layers)):
            x, cached = layer(x, weights, _numbered(scales, i), cached, tail if i == last else 0)
            found.append(cached)
        cache = Cache.of(found)
    elif tail:

        def numbered(x, i, tail=0):
            # Sliced by number: a scan over all but the last layer's weights would copy them.
            return layer(x, _numbered(layers, i), _numbered(scales, i), tail=tail)

        x, _ = jax.lax.scan(numbered, x, jnp.arange(last))
        x, _ = numbered(x, last, tail)
    else:

        def scanned(x, weights_and_scale):
            x, _ = rematerialised(layer, c.remat)(x, *weights_and_scale)
            return x, inspect(x)

        x, seen = jax.lax.scan(scanned, x, (layers, scales), unroll=min(c.scan_unroll, c.num_layers))
    x = rms_norm(place(x), params["norm"], c)
    return Pass(x, cache, (inspect(embedded), seen, inspect(x)))


def block(
    weights: dict,
    config: LlamaConfig,
    x: Float[Array, "b t e"],
    waves: tuple[Waves, Waves],
    attend: Callable,
    *,
    tail: int = 0,
):
    """One pre-norm decoder block: grouped-query attention with rotary positions, and SwiGLU (arXiv 2002.05202).

    `waves` are cosine and sine of the rotary angles. `attend`, of query, key and value, gives its output and a KV cache
    or None. Returned are the states, of the last `tail` tokens if it is not 0, and that cache.
    """
    cos, sin = waves
    attention, feed_forward = weights["attention"], weights["feed_forward"]
    normed = rms_norm(x, weights["attention_norm"], config)
    query, key = queries_and_keys(attention, config, normed, tail)
    value = project(normed, attention["v"])
    attended, cache = attend(rotate(query, cos[:, -tail:], sin[:, -tail:]), rotate(key, cos, sin), value)
    x = x[:, -tail:] + project(attended, attention["o"], contract=2)

    normed = rms_norm(x, weights["feed_forward_norm"], config)
    gated = nn.silu(project(normed, feed_forward["gate"])) * project(normed, feed_forward["up"])
    return x + project(gated, feed_forward["down"]), cache


def queries_and_keys(attention: dict, config: LlamaConfig, normed: Float[Array, "b t e"], tail: int = 0):
    """Queries of the last `tail` tokens, of all if it is 0, and keys of all, before rotation."""
    query, key = project(normed[:, -tail:], attention["q"]), project(normed, attention["k"])
    if config.qk_norm:
        query, key = rms_norm(query, attention["q_norm"], config), rms_norm(key, attention["k_norm"], config)
    return query, key


def rms_norm(x: Float[Array, "*shape"], weights: dict, config: LlamaConfig) -> Float[Array, "*shape"]:
    """Root mean square normalisation (arXiv 1910.07467), statistics in float32."""
    y = x.astype(jnp.float32)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + config.rms_norm_eps)
    # Rounded before the weight, as the reference implementation does: it matters in bfloat16.
    return y.astype(x.dtype) * weights["weight"].astype(x.dtype)


def project(x: Float[Array, "*in"], weights: dict, contract: int = 1) -> Float[Array, "*out"]:
    """A linear map over the `contract` last axes of its input, with bias and low-rank factors where there are any."""

    def product(x, kernel, axes):  # jnp.tensordot(x, kernel, axes)
        return checkpoint_name(cpu.product(x, kernel.astype(x.dtype), axes), PRODUCT)

    y = product(x, weights["kernel"], contract)
    if "bias" in weights:
        y = y + weights["bias"].astype(x.dtype)
    if "a" in weights:
        y = y + product(product(x, weights["a"], contract), weights["b"], 1)
    return y


def _numbered(stacked, number):
    return jax.tree.map(lambda leaf: leaf[number], stacked)


def waves_of(config: LlamaConfig, positions, scale: ScaleVector) -> tuple[Waves, Waves]:
    """Cosine and sine of the rotary angles of one layer, times its attention factor."""
    if config.rotary == "exact":
        angles = exact_phases(positions, exact_frequencies(config.rope_base, config.head_dim), scale.factors)
    else:
        angles = phases(positions, periods(config.rope_base, config.head_dim), scale.factors)
    cos, sin = cpu.cos_and_sin(angles)
    return scale.attention_factor * cos, scale.attention_factor * sin


class Llama(nn.Module):
    """The decoder: `Llama(config).apply({"params": params}, tokens, rope, positions, segment_ids)` gives logits.

    `rope` is a `ScaleVector`, an argument like the tokens: the same compiled function serves every scale vector of
    one shape, and gradients flow into it.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, tokens, rope: ScaleVector, positions=None, segment_ids=None, *, project: bool = True):
        """Next-token logits, or the states they are projected from.

        Args:
            tokens: int `[B, T]`.
            rope: scale vector, for the model or per layer.
            positions: int `[B, T]`; default 0 .. T-1.
            segment_ids: int `[B, T]` documents of a packed row; default one document.
            project: False returns the final normalised states instead of logits.

        Returns:
            float32 logits `[B, T, V]`, or states `[B, T, E]` in the computation dtype if not `project`. None while
            parameters are initialised.
        """
        c = self.config
        if self.is_initializing():
            weights = _declared_weights(c)
            layers = weights.pop("layers")
            _declare(self, weights, c.param_dtype)
            stacked = nn.scan(
                _Parameters,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            stacked(lambda: layers, c.param_dtype, name="layers")(None)
            return None
        params = nn.unbox(self.variables["params"])
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        inputs = Inputs(tokens, positions, segment_ids)
        states = forward(params, c, rope, inputs, lora=self.variables.get("lora")).states
        return logits(states, head_kernel(params, c)) if project else states


def head_kernel(params, config: LlamaConfig) -> Head:
    """The kernel that projects states to the vocabulary: the embedding transposed if they are tied."""
    return params["embedding"].T if config.tie_embeddings else params["head"]


def logits(states: Float[Array, "*rows e"], head: Head) -> Float32[Array, "*rows v"]:
    """Next-token logits of final states."""
    return jnp.dot(states, head.astype(states.dtype), preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnums=0)
def init_params(config: LlamaConfig, key):
    """Fresh parameters: pytree of `flax.linen.LogicallyPartitioned`, which `nn.unbox` unboxes, with stacked layers."""
    return Llama(config).init(key, None, None)["params"]


def abstract_params(config: LlamaConfig):
    """Shapes and dtypes of the parameters: pytree of `jax.ShapeDtypeStruct`, shaped like them without boxes."""
    return jax.tree.map(lambda weight: jax.ShapeDtypeStruct(weight.shape, config.param_dtype), _stacked_weights(config))


def logical_axes(config: LlamaConfig):
    """Logical axis names of the parameters: pytree of `PartitionSpec`, shaped like them without boxes."""
    return jax.tree.map(lambda weight: PartitionSpec(*weight.axes), _stacked_weights(config))


def param_shardings(config: LlamaConfig, mesh: Mesh):
    """Shardings of the model's parameters; an InputError if a dimension does not divide over its mesh axis."""
    return shardings_of(abstract_params(config), logical_axes(config), mesh)
