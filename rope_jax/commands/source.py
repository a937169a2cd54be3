"""The model that a command starts from: its folder, and how this machine computes it."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from rope_jax.commands.reporter import Reporter
from rope_jax.data.tokenizer import Tokenizer, load_tokenizer
from rope_jax.errors import InputError
from rope_jax.interop.hf_config import SourceConfig
from rope_jax.interop.hub import commit_of
from rope_jax.interop.huggingface import read_model
from rope_jax.model.backends import Device, best_backend
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import param_shardings
from rope_jax.rope.embedding import ScaleVector


@dataclasses.dataclass(frozen=True)
class Compute:
    """How a model is computed, which its files do not say.

    Attributes:
        choices: fields of `LlamaConfig`. An 'auto' of `dtype` is bfloat16, and float32 on a CPU, which emulates
            bfloat16; of `param_dtype`, the dtype of the stored weights; of `attention`, the fastest backend that takes
            the model.
        ring: whether sequences are split over devices.
    """

    choices: Mapping[str, Any]
    ring: bool = False

    def of(self, model: LlamaConfig, device: Device | None = None) -> LlamaConfig:
        """A stored model's config with these choices on a device, by default the one here."""
        device = device or Device.here()
        automatic = {
            "dtype": "float32" if device.platform == "cpu" else "bfloat16",
            "param_dtype": model.param_dtype,
            "attention": model.attention,
        }
        chosen = {name: automatic[name] if value == "auto" else value for name, value in self.choices.items()}
        model = dataclasses.replace(model, **chosen)
        if self.choices.get("attention") == "auto":
            model = dataclasses.replace(model, attention=best_backend(model, device, ring=self.ring))
        return model


@dataclasses.dataclass(frozen=True)
class Source:
    """The model before extension.

    Attributes:
        path: folder, GGUF file or Hub id as the user names it; empty for a small model that the run pre-trains.
        folder: model folder, or GGUF file.
        known: what its config says.
        model: its config as this command computes it.
    """

    path: str
    folder: Path
    known: SourceConfig
    model: LlamaConfig

    @property
    def own(self) -> ScaleVector:
        """The scaling that the model already carries."""
        return self.known.rope

    @property
    def name(self) -> str:
        """The model's name: a Hub id, or the last part of a path, whose rest concerns this machine alone."""
        path = Path(self.path).expanduser()
        return path.resolve().name if self.path and os.path.exists(path) else self.path

    @property
    def commit(self) -> str:
        """The commit of a model of the Hub, whatever revision was asked for; empty for a folder."""
        return commit_of(self.folder)

    @property
    def notes(self) -> list[str]:
        """What a user should know of the model's files."""
        keys = ", ".join(self.known.undeclared)
        return [f"note     config.json has {keys}, which transformers does not read: kept as it is"] if keys else []

    def load_tokenizer(self, tokenizer: str = "", recall: bool = False) -> Tokenizer:
        """The tokenizer in the folder or file `tokenizer`, as `load_tokenizer` has it; the model's if that is empty."""
        found = load_tokenizer(tokenizer or self.folder, recall)
        if found.vocab_size > self.model.vocab_size:
            raise InputError(
                f"`tokenizer` has {found.vocab_size} ids and the model in {self.folder} only "
                f"{self.model.vocab_size}: use the tokenizer that the model was trained with"
            )
        return found


def read_params(folder: Path, model: LlamaConfig, mesh: Mesh, reporter: Reporter) -> dict:
    """Reads the parameters of a model, in its config's `param_dtype`, each straight to the devices that hold it."""
    with reporter.byte_bar("reading the model") as advance:
        return read_model(folder, param_shardings(model, mesh), model.param_dtype, advance).params
