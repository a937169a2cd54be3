"""A model's weights, read while the person at the terminal sees how far."""

from __future__ import annotations

from pathlib import Path

from jax.sharding import Mesh

from experiments.progress import byte_bar
from rope_jax.interop.huggingface import read_model
from rope_jax.model.config import LlamaConfig
from rope_jax.sharding import param_shardings


def read_params(folder: Path, model: LlamaConfig, mesh: Mesh) -> dict:
    """Reads the parameters of a model, each straight to the devices that hold it.

    Args:
        folder: model folder that `check_model` accepts.
        model: its shape; `param_dtype` is the dtype to keep the weights in.
        mesh: devices.

    Returns:
        Parameters of `Llama(model)`, sharded over the mesh.

    Raises:
        InputError: as `read_model`.
    """
    with byte_bar("reading the model") as advance:
        return read_model(folder, param_shardings(model, mesh), model.param_dtype, advance).params
