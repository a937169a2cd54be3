"""Low-rank adaptation (LoRA, arXiv 2106.09685) for those who cannot fine-tune all weights.

A targeted kernel W stays as it is and `W + (alpha / r) A B` is what computes, with A of r columns and B of r rows. The
model adds `(x A) B` to each projection's output, so that neither a changed copy of the weights nor a gradient of their
size ever exists; `merge` forms the changed weights once, at the end. Norms, embedding and head, which have no kernel
to factor, are trained whole where they are targeted: LongLoRA (arXiv 2309.12307, table 2) finds that low-rank updates
alone do not close the gap to full fine-tuning at a longer context, and with norms and embedding trained too they do.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, PartitionSpec

from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params, logical_axes
from rope_jax.sharding import shardings_of

# Projections, and how many leading axes of a layer's kernel its input has.
PROJECTIONS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
WHOLE = ("norm", "embedding", "head")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """What is trained, and at which rank.

    Attributes:
        rank: r.
        alpha: the update is scaled by `alpha / r`.
        targets: projections, of `PROJECTIONS`, and what is trained whole, of `WHOLE`; "norm" is every norm.
        seed: of the initial A.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    seed: int = 0

    def __post_init__(self):
        if self.rank < 1:
            raise InputError(f"lora.rank is {self.rank}: it must be at least 1, or 0 to train all weights")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise InputError(f"lora.alpha is {self.alpha}: it must be a finite number above 0")
        known = (*PROJECTIONS, *WHOLE)
        for target in self.targets:
            if target not in known:
                raise InputError(f"lora.targets names {target!r}: use some of {', '.join(known)}")
        if not set(self.targets) & set(PROJECTIONS):
            raise InputError(f"lora.targets is {self.targets}: name a projection, {', '.join(PROJECTIONS)}")


def check_targets(lora: LoraConfig, config: LlamaConfig) -> None:
    """Checks targets and rank against a model.

    Args:
        lora: see `LoraConfig`.
        config: model shape.

    Raises:
        InputError: for a head that a model of tied embeddings does not have, or a rank that reduces nothing.
    """
    if "head" in lora.targets and config.tie_embeddings:
        raise InputError(
            "config.train.lora.targets names 'head', which this model does not have (tied): name 'embedding'"
        )
    if lora.rank > config.hidden_size:
        raise InputError(
            f"config.train.lora.rank is {lora.rank}, above the model's width of {config.hidden_size}: lower it"
        )


def init_trained(frozen, config: LlamaConfig, lora: LoraConfig) -> dict:
    """What is trained, before the first update: A uniform in +-1/sqrt(inputs), B zero, so that nothing has changed.

    Args:
        frozen: parameters of `Llama`, arrays.
        config: model shape.
        lora: see `LoraConfig`.

    Returns:
        `{"factors": ..., "whole": ...}`, subtrees of the parameters, all float32: in place of each targeted kernel
        `a` `[layers, *inputs, r]` and `b` `[layers, r, *outputs]`; and the parameters that are trained whole.
    """
    key, found, leaves = jax.random.key(lora.seed), flatten_dict(frozen), {}
    for number, (path, (shape, _)) in enumerate(_layout(config, lora).items()):
        if path[0] == "whole":
            leaves[path] = found[path[1:]].astype(jnp.float32)
        elif path[-1] == "b":
            leaves[path] = jnp.zeros(shape, jnp.float32)
        else:
            bound = 1 / math.sqrt(math.prod(shape[1:-1]))
            leaves[path] = jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -bound, bound)
    return unflatten_dict(leaves)


def abstract_trained(config: LlamaConfig, lora: LoraConfig) -> dict:
    """Shapes and dtypes of what is trained, without any memory.

    Args:
        config: model shape.
        lora: see `LoraConfig`.

    Returns:
        Pytree of `jax.ShapeDtypeStruct`, shaped like the result of `init_trained`.
    """
    layout = _layout(config, lora).items()
    return unflatten_dict({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, (shape, _) in layout})


def trained_shardings(config: LlamaConfig, lora: LoraConfig, mesh: Mesh) -> dict:
    """Shardings of what is trained: factors are cut as the kernels that they change, but never along the rank.

    Args:
        config: model shape.
        lora: see `LoraConfig`.
        mesh: from `make_mesh`.

    Returns:
        Pytree of `NamedSharding`, shaped like the result of `init_trained`.
    """
    specs = unflatten_dict({path: PartitionSpec(*axes) for path, (_, axes) in _layout(config, lora).items()})
    return shardings_of(abstract_trained(config, lora), specs, mesh)


def applied(frozen, trained: dict, lora: LoraConfig) -> tuple[dict, dict]:
    """What the model computes with.

    Args:
        frozen: parameters of `Llama`.
        trained: as from `init_trained`.
        lora: see `LoraConfig`.

    Returns:
        The parameters with those that are trained whole in place, and the model's collection `lora`: A and
        `(alpha / r) B`.
    """
    params = unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained.get("whole", {}))})
    scale = lora.alpha / lora.rank
    factors = flatten_dict(trained["factors"])
    return params, unflatten_dict({p: leaf * scale if p[-1] == "b" else leaf for p, leaf in factors.items()})


def merge(frozen, trained: dict, lora: LoraConfig) -> dict:
    """Parameters with the updates in them: `W + (alpha / r) A B`, layer by layer in float32.

    Args:
        frozen: parameters of `Llama`.
        trained: as from `init_trained`.
        lora: see `LoraConfig`.

    Returns:
        Parameters of `Llama`, each rounded to the dtype of the frozen one.
    """
    params, factors = applied(frozen, trained, lora)
    params, factors = flatten_dict(params), flatten_dict(factors)
    merged = {path: leaf.astype(flatten_dict(frozen)[path].dtype) for path, leaf in params.items()}
    for path in params:
        a, b = (factors.get((*path[:-1], name)) for name in ("a", "b"))
        if path[-1] == "kernel" and a is not None:
            merged[path] = jax.lax.map(lambda layer: _changed(*layer), (params[path], a, b))
    return unflatten_dict(merged)


def _layout(config: LlamaConfig, lora: LoraConfig) -> dict[tuple, tuple[tuple, tuple]]:
    """Path of each trained leaf -> its shape and the logical names of its axes."""
    layout = {}
    axes = flatten_dict(logical_axes(config))
    for path, leaf in flatten_dict(abstract_params(config)).items():
        shape, names = leaf.shape, tuple(axes[path])
        if path[-1] == "kernel":
            if path[-2] in lora.targets:
                cut = 1 + PROJECTIONS[path[-2]]
                module = ("factors", *path[:-1])
                layout[*module, "a"] = (*shape[:cut], lora.rank), (*names[:cut], "rank")
                layout[*module, "b"] = (shape[0], lora.rank, *shape[cut:]), (names[0], "rank", *names[cut:])
        elif ("norm" if path[-1] == "weight" else path[-1]) in lora.targets:
            layout["whole", *path] = shape, names
    return layout


def _changed(kernel, a, b):
    # Without a precision a TPU would round the factors to bfloat16.
    change = jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)
    return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
