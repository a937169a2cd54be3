"""Low-rank adaptation (LoRA, arXiv 2106.09685): a projection with frozen W computes with `W + (alpha / r) A B`.

It adds `(x A) B`, scaled, to its output, so that neither a changed copy of the weights nor a gradient of their
size exists. Norms, embedding and head are trained whole where targeted: LongLoRA (arXiv 2309.12307, table 2) finds
that low-rank updates alone do not close the gap to full fine-tuning at a longer context, and that they do with norms
and embedding trained too.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import PartitionSpec

from rope_jax.errors import InputError, require
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params, logical_axes

# Projections, and how many leading axes of a layer's kernel its input has.
PROJECTIONS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}
WHOLE = ("norm", "embedding", "head")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Targets and rank of the update.

    Attributes:
        rank: r.
        alpha: the update is scaled by `alpha / r`.
        targets: projections (keys of `PROJECTIONS`), and parameters that are trained whole (of `WHOLE`); "norm" is
            every norm.
        seed: seed of the initial A.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    seed: int = 0

    def __post_init__(self):
        require(self, "rank", self.rank >= 1, "it must be at least 1, or 0 to train all weights")
        require(self, "alpha", math.isfinite(self.alpha) and self.alpha > 0, "it must be a finite number above 0")
        known = (*PROJECTIONS, *WHOLE)
        for target in self.targets:
            if target not in known:
                raise InputError(f"`targets` names {target!r}: use some of {', '.join(known)}")
        projections = set(self.targets) & set(PROJECTIONS)
        require(self, "targets", projections, f"name a projection, {', '.join(PROJECTIONS)}")

    def check(self, model: LlamaConfig) -> None:
        """Raises InputError if `targets` names a head that the model has not, or `rank` exceeds the model's width."""
        if "head" in self.targets and model.tie_embeddings:
            raise InputError(
                "`targets` names 'head', which this model does not have (its embeddings are tied): name 'embedding'"
            )
        require(self, "rank", self.rank <= model.hidden_size, f"lower it to the model's width, {model.hidden_size}")


def init_lora(params: dict, model: LlamaConfig, lora: LoraConfig) -> dict:
    """The trained numbers before the first update: A uniform in +-1/sqrt(inputs), B zero, so that nothing changes.

    Returns:
        `{"factors": ..., "whole": ...}`, subtrees of the parameters, all float32: `factors` has `a`
        `[layers, *inputs, r]` and `b` `[layers, r, *outputs]` for each targeted kernel, `whole` the parameters that
        are trained whole.
    """
    key, found, leaves = jax.random.key(lora.seed), _flat(params), {}
    for number, (path, (shape, _)) in enumerate(_layout(model, lora).items()):
        if path[0] == "whole":
            leaves[path] = found[path[1:]].astype(jnp.float32)
        elif path[-1] == "b":
            leaves[path] = jnp.zeros(shape, jnp.float32)
        else:
            bound = 1 / math.sqrt(math.prod(shape[1:-1]))
            leaves[path] = jax.random.uniform(jax.random.fold_in(key, number), shape, jnp.float32, -bound, bound)
    return unflatten_dict(leaves)


def lora_axes(model: LlamaConfig, lora: LoraConfig) -> dict:
    """Logical axes of the result of `init_lora`, `PartitionSpec`: those of the kernels that it changes, and `rank`."""
    return unflatten_dict({path: PartitionSpec(*axes) for path, (_, axes) in _layout(model, lora).items()})


def apply_lora(params: dict, trained: dict, lora: LoraConfig) -> tuple[dict, dict]:
    """Frozen parameters with the wholly trained ones replaced, and the collection `lora`: A and `(alpha / r) B`."""
    params = unflatten_dict({**_flat(params), **_flat(trained.get("whole", {}))})
    scale = lora.alpha / lora.rank
    factors = _flat(trained["factors"])
    return params, unflatten_dict({p: leaf * scale if p[-1] == "b" else leaf for p, leaf in factors.items()})


def merge_lora(params: dict, trained: dict, lora: LoraConfig) -> dict:
    """Frozen parameters plus updates, added layer by layer in float32 and kept in the dtype of the parameter."""
    dtypes = {path: leaf.dtype for path, leaf in _flat(params).items()}
    params, factors = map(_flat, apply_lora(params, trained, lora))
    merged = {path: leaf.astype(dtypes[path]) for path, leaf in params.items()}
    for path in params:
        a, b = (factors.get((*path[:-1], name)) for name in ("a", "b"))
        if path[-1] == "kernel" and a is not None:
            merged[path] = jax.lax.map(lambda layer: _changed(*layer), (params[path], a, b))
    return unflatten_dict(merged)


def _flat(tree: dict) -> dict[tuple, Any]:
    return dict(flatten_dict(tree))


def _layout(model: LlamaConfig, lora: LoraConfig) -> dict[tuple, tuple[tuple, tuple]]:
    """Path of each trained leaf -> its shape and the logical names of its axes."""
    layout = {}
    axes = _flat(logical_axes(model))
    for path, leaf in _flat(abstract_params(model)).items():
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
