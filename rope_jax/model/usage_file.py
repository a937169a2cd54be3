"""How much a model uses its frequency pairs and its distances, measured once and kept in a file."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rope_jax.errors import InputError
from rope_jax.files import read_json_object, write_json
from rope_jax.rope.distances import DistanceHistogram


@dataclasses.dataclass(frozen=True, eq=False)
class Usage:
    """What a model does with rotary positions on some texts.

    Attributes:
        energy: `[layers, heads, D/2]`, the norm of a pair in queries times that in keys, means over tokens: what it can
            add to an attention logit, before the division by `D^1/2`.
        edges: K + 1 whole numbers; bin k holds the distances from `edges[k]` up to, not including, `edges[k + 1]`.
        attention: `[layers, heads, K]`, share of attention at the distances of a bin, without the first token, where
            heads rest that look for nothing (attention sinks, arXiv 2309.17453).
        about: what was measured: model, texts, tokens.
    """

    energy: Float[np.ndarray, "layers heads pairs"]
    edges: tuple[int, ...]
    attention: Float[np.ndarray, "layers heads bins"]
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def pair_weights(self) -> tuple[float, ...]:
        """`[D/2]`, the mean energy of each pair over layers and heads; their mean is 1."""
        return tuple(np.mean(self.layer_weights(), axis=0).tolist())

    def layer_weights(self) -> tuple[tuple[float, ...], ...]:
        """`[layers, D/2]`, the mean energy of each pair over the heads of a layer; the mean of all is 1."""
        mean = self.energy.mean(axis=1)
        return tuple(map(tuple, (mean / mean.mean()).tolist()))

    def distances(self) -> DistanceHistogram:
        """Attention over distances, the mean over layers and heads."""
        return DistanceHistogram(self.edges, tuple(self.attention.mean(axis=(0, 1)).tolist()))

    def write(self, path: Path) -> None:
        """Writes the file that `read_usage` reads."""
        distances = {"edges": list(self.edges), "attention": self.attention.tolist()}
        write_json(path, {"about": dict(self.about), "energy": self.energy.tolist(), "distances": distances})


def read_usage(path: Path) -> Usage:
    """Reads what `Usage.write` wrote; `InputError` names a file that holds something else."""
    value = read_json_object(path)
    try:
        energy, edges, attention = value["energy"], value["distances"]["edges"], value["distances"]["attention"]
        usage = Usage(np.asarray(energy, float), tuple(edges), np.asarray(attention, float), value.get("about", {}))
        layers, heads, _ = usage.energy.shape
        if usage.attention.shape != (layers, heads, len(edges) - 1):
            raise ValueError("energy and attention are not of the same layers and heads")
        if not ((usage.energy >= 0) & np.isfinite(usage.energy)).all() or not usage.energy.any():
            raise ValueError("energy is not at least 0 and finite everywhere, and above 0 somewhere")
        usage.distances()
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError(f"{path} holds no measured usage of frequency pairs ({error}): measure it again") from None
    return usage
