"""What `export` exports and in which formats, with every check that comes before writing."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from rope_jax.commands.cards import card, provenance
from rope_jax.commands.fields import BEST, EXPORT_FORMATS
from rope_jax.commands.run import LearnedMethod, Recipe
from rope_jax.errors import InputError
from rope_jax.gguf_reader import is_gguf
from rope_jax.interop.gguf_export import check_extendable, check_gguf
from rope_jax.interop.model_card import CardFacts
from rope_jax.interop.peft_adapter import check_adapter
from rope_jax.interop.verify import TOLERANCES
from rope_jax.rope.embedding import ScaleVector
from rope_jax.runs.folder import RunFolder
from rope_jax.training.checkpoints import losses, read_trained
from rope_jax.training.learn import from_logarithms
from rope_jax.training.update import Training

# Format -> what is written.
TARGETS = {"hf": ("export",), "gguf": ("model.gguf",), "adapter": ("adapter", "base")}


@dataclasses.dataclass(frozen=True)
class Formats:
    """What an export writes, and how it is verified.

    Attributes:
        gguf: GGUF file to put the factors into; empty takes the model itself if it is one that was not trained, and
            else converts the weights.
        dtype: dtype of a converted GGUF file's matrices; empty keeps them.
        vocabulary: whether a converted GGUF file holds the tokenizer.
        verify_lengths: tokens to compare logits at; empty for 32 and both contexts.
        seed: seed of the tokens that are compared.
    """

    formats: tuple[str, ...] = ("hf",)
    gguf: str = ""
    dtype: str = ""
    vocabulary: bool = True
    overwrite: bool = False
    verify: bool = False
    verify_lengths: tuple[int, ...] = ()
    verify_dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        unknown = [format for format in self.formats if format not in EXPORT_FORMATS]
        if unknown or not self.formats:
            raise InputError(f"`formats` is {self.formats}: name some of {', '.join(EXPORT_FORMATS)}")
        if self.verify_dtype not in TOLERANCES:
            raise InputError(f"`verify_dtype` is {self.verify_dtype!r}: use {' or '.join(TOLERANCES)}")
        if self.gguf and "gguf" not in self.formats:
            raise InputError("`gguf` is set, but `formats` has no 'gguf': add it", field="formats")


@dataclasses.dataclass(frozen=True)
class Trained:
    """A checkpoint of a run of `extend`; `export` is the model folder that the run has made of it, if any."""

    training: Training
    checkpoints: Path
    step: int
    export: Path | None


@dataclasses.dataclass(frozen=True)
class Job:
    """An export, before anything is written; `trained` is None for an extension without training."""

    recipe: Recipe
    method: str
    rope: ScaleVector
    provenance: dict
    facts: CardFacts
    trained: Trained | None = None

    @property
    def licensed(self) -> Path | None:
        """Folder to inherit a licence from; None for a model that was trained from random weights."""
        return self.recipe.source.folder if self.recipe.source.path else None


def existing_gguf(job: Job, wanted: Formats) -> Path | None:
    """The GGUF file that a copy with the factors is made of; None where weights are converted."""
    if wanted.gguf:
        return Path(wanted.gguf)
    source = job.recipe.source.folder
    return source if job.trained is None and is_gguf(source) else None


def check(job: Job, wanted: Formats, folder: Path) -> None:
    """Checks that every format can hold the model and is free to be written."""
    known, rope = job.recipe.source.known, job.rope
    if np.ndim(rope.factors) == 2:
        raise InputError(
            "`factors` differ from layer to layer, which no stock config.json and no GGUF file can say: export a "
            "method of one vector"
        )
    if "gguf" in wanted.formats:
        check_gguf(known.config, rope, job.recipe.measure.target)
        existing = existing_gguf(job, wanted)
        if existing is not None:
            check_extendable(existing, rope, known.config.rope_base)
            if wanted.dtype:
                raise InputError(
                    f"`dtype` is {wanted.dtype!r}, and a copy of {existing} keeps its dtypes: leave it empty"
                )
    if "adapter" in wanted.formats:
        lora = job.trained and job.trained.training.config.lora
        if not lora:
            raise InputError("`formats` has 'adapter', which only a run with LoRA (`rank`) has")
        check_adapter(known.config, lora)
    for target in (folder / name for format in wanted.formats for name in TARGETS[format]):
        if os.path.lexists(target) and not wanted.overwrite:
            raise InputError(
                f"{target} already exists: choose another `folder`, or set `overwrite` to True", field="overwrite"
            )


def untrained_job(recipe: Recipe) -> Job:
    """The export of a model with another scale vector and its own weights."""
    name = recipe.exported
    method = recipe.methods[name]
    assert not isinstance(method, LearnedMethod)
    rope = method(recipe.geometry, recipe.measure).scale
    return Job(recipe, name, rope, provenance(recipe, name, 0), card(recipe, name, rope, 0))


def trained_job(recipe: Recipe, run: Path, method: str, step: int, mesh: Mesh) -> Job:
    """The export of a run of `extend`.

    Args:
        run: folder of the run.
        method: one of its methods; empty for the one that it exports.
        step: checkpoint; 0 for the newest, -1 for that of the lowest loss.
    """
    method = method or recipe.exported
    if method not in recipe.methods:
        raise InputError(f"`method` is {method!r}: the run in {run} has {', '.join(recipe.methods)}")
    place, records = run / "methods" / method, RunFolder(run / "methods" / method)
    scale = records.recorded("scale")
    if scale is None:
        raise InputError(f"{place / 'scale.json'} is missing: resume the run until it has solved for {method}")
    finished = run / "export"
    whole = method == recipe.exported and not step and (finished / "config.json").is_file()
    checkpoints, config = place / "checkpoints", recipe.tuning[method]
    if not whole and not checkpoints.is_dir():
        raise InputError(f"{checkpoints} is missing: resume the run until it fine-tunes {method}")
    last = config.optimizer.steps
    at = last if whole else checkpoint_step(checkpoints, step)
    training = Training(recipe.source.model, config, mesh)
    rope = ScaleVector.create(scale["factors"], scale["attention_factor"])
    if config.learn:
        vector = {"rope": training.abstract_state(rope).params["rope"]}
        rope = from_logarithms(read_trained(checkpoints, vector, at)["rope"])
    stages = ("before", "after") if at == last else ()
    measured = {stage: records.recorded(stage) for stage in stages}
    trained = Trained(training, checkpoints, at, finished if whole else None)
    facts = card(recipe, method, rope, at, **measured)
    return Job(recipe, method, rope, provenance(recipe, method, at), facts, trained)


def checkpoint_step(checkpoints: Path, step: int) -> int:
    """The step of the checkpoint that `step` asks for, read off the folder names that Orbax gives."""
    if step == BEST:
        known = losses(checkpoints)
        if not known:
            raise InputError(f"`step` asks for the best of {checkpoints}, which has none")
        return min(known, key=lambda step: (known[step], -step))
    steps = sorted(int(path.name) for path in checkpoints.iterdir() if path.name.isdigit())
    if not steps or (step and step not in steps):
        raise InputError(f"`step` is {step}: {checkpoints} has {steps or 'none'}")
    return step or steps[-1]
