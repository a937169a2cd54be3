"""Low-rank factors in the format of the PEFT library, for engines that put adapters on a shared model."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from rope_jax.errors import InputError
from rope_jax.interop.atomic import check_target, write_atomically
from rope_jax.interop.weights import table
from rope_jax.model.config import LlamaConfig
from rope_jax.model.lora import LoraConfig

_PREFIX = "base_model.model."


def check_adapter(config: LlamaConfig, lora: LoraConfig) -> None:
    """Refuses an embedding that is trained whole and is also the head: PEFT trains a copy of one of the two."""
    if "embedding" in lora.targets and config.tie_embeddings:
        raise InputError(
            "`targets` has 'embedding', which in this model is also the head; a PEFT adapter would change one of the "
            "two: export the merged model"
        )


def write_adapter(
    folder: str | Path,
    base: str | Path,
    config: LlamaConfig,
    lora: LoraConfig,
    trained: Mapping,
    *,
    provenance: Mapping,
    overwrite: bool = False,
) -> None:
    """Writes `adapter_config.json` and `adapter_model.safetensors`, whole or not at all.

    The adapter is for `base`, the folder whose config holds the scale vector; on the original model it computes
    something else than what was trained.

    Args:
        config: shape of `base`.
        trained: as from `init_lora`.
        provenance: what the scale vector was made from; JSON-serialisable.
        overwrite: replace an adapter that exists.
    """
    folder = Path(os.path.abspath(folder))
    check_adapter(config, lora)
    check_target(folder, overwrite, mark="adapter_config.json")
    trained = flatten_dict(trained)
    modules, whole, values = set(), set(), {}
    for weight in table(config):
        module = weight.name.removesuffix(".weight")
        factors = [trained.get(("factors", *weight.path[:-1], part)) for part in ("a", "b")]
        if weight.path[-1] == "kernel" and factors[1] is not None:
            modules.add(module.rpartition(".")[2])
            a, b = np.asarray(factors[0], np.float32), np.asarray(factors[1], np.float32)
            for layer in range(config.num_layers):
                name = _PREFIX + module.format(layer)
                values[f"{name}.lora_A.weight"] = a[layer].reshape(-1, lora.rank).T
                values[f"{name}.lora_B.weight"] = b[layer].reshape(lora.rank, -1).T
        elif ("whole", *weight.path) in trained:
            whole.add(module.rpartition(".")[2])
            parameter = np.asarray(trained["whole", *weight.path], np.float32)
            for name, layer in zip(weight.names(config), parameter if weight.stacked else [parameter]):
                values[_PREFIX + name] = weight.to_stored(layer, config)
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        # Relative to the adapter: both move together, and a path of this machine concerns nobody else.
        "base_model_name_or_path": os.path.relpath(base, folder),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted(modules),
        "modules_to_save": sorted(whole) or None,
    }

    def write(place: Path) -> None:
        place.mkdir()
        contiguous = {name: np.ascontiguousarray(value) for name, value in values.items()}
        save_file(contiguous, place / "adapter_model.safetensors", metadata={"format": "pt"})
        (place / "provenance.json").write_text(json.dumps(dict(provenance), indent=2) + "\n", encoding="utf-8")
        (place / "adapter_config.json").write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")

    write_atomically(folder, write)
