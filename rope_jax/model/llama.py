"""LLaMA, Mistral, Qwen2 and Qwen3 in Flax Linen. Every parameter carries its logical axes where it is declared."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from rope_jax.model.attention import cached_attention
from rope_jax.model.backends import attend
from rope_jax.model.config import LlamaConfig
from rope_jax.model.remat import BLOCK_INPUT, PRODUCT, rematerialised
from rope_jax.rope.embedding import ScaleVector, periods, phases, rotate
from rope_jax.rope.exact.turns import exact_frequencies, exact_phases


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467), statistics in float32."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x):
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        weight = self.param("weight", ones, (x.shape[-1],), self.config.param_dtype)
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.config.rms_norm_eps)
        # Rounded before the weight, as the reference implementation does: it matters in bfloat16.
        return y.astype(x.dtype) * weight.astype(x.dtype)


class Projection(nn.Module):
    """A linear map over the trailing axes of its input, kernel and bias named by logical axes.

    Where the collection `lora` holds factors `a` and `b` of this projection, `x a b` is added to its output: two thin
    products in place of a kernel changed by `a b` (see `rope_jax.model.lora`).
    """

    config: LlamaConfig
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    contract: int = 1
    bias: bool = False

    @nn.compact
    def __call__(self, x):
        init = nn.with_logical_partitioning(nn.initializers.normal(self.config.initializer_range), self.axes)
        kernel = self.param("kernel", init, self.shape, self.config.param_dtype)
        y = _contract(x, kernel, self.contract)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[self.contract :])
            y = y + self.param("bias", zeros, self.shape[self.contract :], self.config.param_dtype).astype(x.dtype)
        if self.has_variable("lora", "a"):
            thin = _contract(x, self.get_variable("lora", "a"), self.contract)
            y = y + _contract(thin, self.get_variable("lora", "b"), 1)
        return y


def _contract(x, kernel, axes):
    return checkpoint_name(_product(x, kernel.astype(x.dtype), axes), PRODUCT)


# With a gradient of its own because of the kernel's: of the two long arrays in that product XLA transposes the first on
# a CPU, and JAX begins with the gradient of the outputs, which may be the wider.
@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x, kernel, axes):
    last = tuple(range(x.ndim - axes, x.ndim))
    return jnp.tensordot(x, kernel, axes=(last, tuple(range(axes))))


def _product_forward(x, kernel, axes):
    return _product(x, kernel, axes), (x, kernel)


def _product_backward(axes, residuals, d_y):
    x, kernel = residuals
    rows = tuple(range(x.ndim - axes))
    inner, outer = tuple(range(len(rows), d_y.ndim)), tuple(range(axes, kernel.ndim))
    d_x = jnp.tensordot(d_y, kernel, axes=(inner, outer))
    if x.size <= d_y.size:
        return d_x, jnp.tensordot(x, d_y, axes=(rows, rows))
    d_kernel = jnp.tensordot(d_y, x, axes=(rows, rows))
    return d_x, jnp.moveaxis(d_kernel, range(len(outer), kernel.ndim), range(axes))


_product.defvjp(_product_forward, _product_backward)


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions."""

    config: LlamaConfig
    tail: int = 0
    attend: Callable | None = None

    @nn.compact
    def __call__(self, x, angles, attention_factor, segment_ids, cache):
        c = self.config

        def project(name, heads, axis, x=x):
            shape, axes = (c.hidden_size, heads, c.head_dim), ("embed", axis, "head_dim")
            return Projection(c, shape, axes, bias=c.attention_bias, name=name)(x)

        q = project("q", c.num_heads, "heads", x[:, -self.tail :])
        k = project("k", c.num_kv_heads, "kv_heads")
        v = project("v", c.num_kv_heads, "kv_heads")
        if c.qk_norm:
            q = RMSNorm(c, name="q_norm")(q)
            k = RMSNorm(c, name="k_norm")(k)
        q = rotate(q, angles[:, -self.tail :], attention_factor)
        k = rotate(k, angles, attention_factor)
        if cache is None:
            out = self.attend(q, k, v, segment_ids) if self.attend else attend(q, k, v, segment_ids, c)
        else:
            cache = cache.append(k, v)
            out = cached_attention(q, cache, c.attention_chunk, c.sliding_window)
        shape, axes = (c.num_heads, c.head_dim, c.hidden_size), ("heads", "head_dim", "embed")
        out = Projection(c, shape, axes, contract=2, bias=c.output_bias, name="o")(out)
        return out, cache


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    config: LlamaConfig

    @nn.compact
    def __call__(self, x):
        c = self.config
        gate = Projection(c, (c.hidden_size, c.intermediate_size), ("embed", "mlp"), name="gate")(x)
        up = Projection(c, (c.hidden_size, c.intermediate_size), ("embed", "mlp"), name="up")(x)
        return Projection(c, (c.intermediate_size, c.hidden_size), ("mlp", "embed"), name="down")(nn.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm decoder block: the body of the scan over layers, and of decoding, with a `LayerCache`.

    Attributes:
        config: model config.
        tail: with a cache, give only so many of the last tokens; 0 gives all. Keys and values are those of all.
        attend: see `Llama`.
        place: see `Llama`.
    """

    config: LlamaConfig
    tail: int = 0
    attend: Callable | None = None
    place: Callable | None = None

    @nn.compact
    def __call__(self, x, factors, cache, attention_factor, positions, segment_ids):
        c = self.config
        x = checkpoint_name(self.place(x) if self.place else x, BLOCK_INPUT)
        # Phases are formed inside the block: D/2 sines per token are little beside 12 E^2 products, and
        # one code path serves a vector for the model and a vector per layer.
        if c.rotary == "exact":
            angles = exact_phases(positions, exact_frequencies(c.rope_base, c.head_dim), factors)
        else:
            angles = phases(positions, periods(c.rope_base, c.head_dim), factors)
        attended, cache = Attention(c, self.tail, self.attend, name="attention")(
            RMSNorm(c, name="attention_norm")(x), angles, attention_factor, segment_ids, cache
        )
        x = x[:, -self.tail :] + attended
        x = x + FeedForward(c, name="feed_forward")(RMSNorm(c, name="feed_forward_norm")(x))
        return x, cache


class Llama(nn.Module):
    """The decoder: `model.apply({"params": params}, tokens, rope, positions, segment_ids)` gives logits.

    `rope` is a `ScaleVector`, an argument like the tokens: the same compiled function serves every scale
    vector of one shape, and gradients flow into it.

    Attributes:
        config: model config.
        attend: attention as a function of query, key, value and segment ids, such as
            `rope_jax.training.context.attention_on` gives for a mesh; None takes `config.attention` on one device.
        place: lays hidden states `[B, T, E]` out over a mesh, such as `rope_jax.sharding.states_on` gives.
    """

    config: LlamaConfig
    attend: Callable | None = None
    place: Callable | None = None

    @nn.compact
    def __call__(
        self,
        tokens,
        rope: ScaleVector,
        positions=None,
        segment_ids=None,
        *,
        project: bool = True,
    ):
        """Next-token logits, or the states they are projected from.

        Args:
            tokens: int `[B, T]`.
            rope: scale vector, factors `[D/2]` or `[layers, D/2]`.
            positions: int `[B, T]`; default 0 .. T-1.
            segment_ids: int `[B, T]` documents of a packed row, which never attend to one another; default
                one document.
            project: False returns the final normalised states instead of logits, for callers that project to
                the vocabulary a chunk at a time (see `head_kernel`).

        Returns:
            float32 logits `[B, T, V]`, or states `[B, T, E]` in the computation dtype if not `project`.
        """
        c = self.config
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        if segment_ids is None:
            segment_ids = jnp.ones_like(tokens)
        init = nn.initializers.normal(c.initializer_range)
        embedding = self.param(
            "embedding",
            nn.with_logical_partitioning(init, ("vocab", "embed")),
            (c.vocab_size, c.hidden_size),
            c.param_dtype,
        )
        x = jnp.take(embedding, tokens, axis=0).astype(c.dtype)

        layers = nn.scan(
            rematerialised(Block, c.remat),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.num_layers,
            unroll=min(c.scan_unroll, c.num_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, attend=self.attend, place=self.place, name="layers")
        factors = jnp.broadcast_to(rope.factors, (c.num_layers, c.head_dim // 2))
        x, _ = layers(x, factors, None, rope.attention_factor, positions, segment_ids)
        x = RMSNorm(c, name="norm")(self.place(x) if self.place else x)

        if project:
            if c.tie_embeddings:
                head = embedding.T
            else:
                axes = nn.with_logical_partitioning(init, ("embed", "vocab"))
                head = self.param("head", axes, (c.hidden_size, c.vocab_size), c.param_dtype)
            x = jnp.dot(x, head.astype(x.dtype), preferred_element_type=jnp.float32)
        return x


def head_kernel(params, config: LlamaConfig):
    """The kernel that projects states to the vocabulary.

    Args:
        params: parameters of `Llama`.
        config: its config.

    Returns:
        `[E, V]`, the embedding transposed if it is tied.
    """
    return params["embedding"].T if config.tie_embeddings else params["head"]


@partial(jax.jit, static_argnums=0)
def init_params(config: LlamaConfig, key):
    """Fresh parameters, boxed with their logical axes (`nn.unbox` gives plain arrays).

    Args:
        config: model shape.
        key: PRNG key.

    Returns:
        Parameter pytree of `flax.linen.LogicallyPartitioned`, layers stacked on the leading axis.
    """
    rope = ScaleVector.create(jnp.ones(config.head_dim // 2))
    # Parameters do not depend on how attention is computed: nothing of it is traced, and no backend need be there.
    model = Llama(config, attend=lambda query, key, value, segment_ids: query)
    return model.init(key, jnp.zeros((1, 2), jnp.int32), rope)["params"]


def abstract_params(config: LlamaConfig):
    """Shapes and dtypes of the parameters, without any memory.

    Args:
        config: model shape.

    Returns:
        Pytree of `jax.ShapeDtypeStruct`, shaped like the plain (unboxed) parameters.
    """
    return nn.unbox(_abstract_boxed(config))


def logical_axes(config: LlamaConfig):
    """Logical axis names of the parameters, as declared beside them.

    Args:
        config: model shape.

    Returns:
        Pytree of `PartitionSpec` of names, shaped like the parameters.
    """
    return nn.get_partition_spec(_abstract_boxed(config))


# Asked for by everything that lays out, stores or counts parameters, and half a second to trace.
@cache
def _abstract_boxed(config: LlamaConfig):
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
