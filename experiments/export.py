"""Exports a model with another scale vector, for transformers, vLLM and llama.cpp.

python -m experiments.export --config.model.path=MODEL --config.context.target=8192 --workdir=OUT     # no training
python -m experiments.export --config.export.run=runs/local --config.export.formats="('hf','gguf')" --workdir=OUT

Without a run, a method (`config.rope.method`) gives the vector, and the weights are the model's own. `OUT/export` is a
Hugging Face folder; `OUT/model.gguf`, its card beside it, is for llama.cpp; `OUT/adapter` is a PEFT adapter on
`OUT/base`. `--config.verify=True` loads what was written and compares.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from configs import defaults
from experiments import cli, settings
from experiments.cards import run_card, run_provenance
from experiments.progress import byte_bar, say
from experiments.reading import read_params
from rope_jax.errors import InputError
from rope_jax.files import read_json_object, write_json
from rope_jax.interop.gguf_convert import check_gguf, write_gguf
from rope_jax.interop.gguf_extend import add_factors, check_extendable
from rope_jax.interop.hf_config import SourceConfig, read_config
from rope_jax.interop.huggingface import check_model, write_model
from rope_jax.interop.model_card import CardFacts, write_card
from rope_jax.interop.peft_adapter import check_adapter, write_adapter
from rope_jax.interop.rescale import rescale_folder
from rope_jax.interop.verify import TOLERANCES, verify_config, verify_gguf, verify_logits
from rope_jax.model.config import LlamaConfig
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.checkpoints import losses, read_trained
from rope_jax.training.config import TrainConfig
from rope_jax.training.learn import from_logarithms
from rope_jax.training.state import Variables
from rope_jax.training.update import Training

DEFAULT = Path(__file__).resolve().parents[1] / "configs" / "export.py"
# Of `config.export.step`: the checkpoint of the lowest loss.
BEST = -1
FORMATS = ("hf", "gguf", "adapter")


@dataclasses.dataclass(frozen=True)
class Job:
    """An export after every check that needs no long computation.

    Attributes:
        source: folder of the model before the extension.
        known: what its config says.
        rope: the scale vector.
        original: pre-training context, tokens.
        target: extended context, tokens.
        provenance: what the scale vector was made from.
        facts: what the card states.
        licensed: folder to inherit a licence from; None for a model that was trained from nothing.
        run: the run that is exported; None for a zero-shot extension.
    """

    source: Path
    known: SourceConfig
    rope: ScaleVector
    original: int
    target: int
    provenance: dict
    facts: CardFacts
    licensed: Path | None
    run: TrainedRun | None


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A run of `experiments.extend`.

    Attributes:
        config: its config.
        training: how the method was trained.
        folder: of the method.
        export: the model folder that the run has exported, if it is of that method and its newest step; else None.
    """

    config: ConfigDict
    training: TrainConfig
    folder: Path
    export: Path | None


def export(config: ConfigDict, folder: Path, name: str) -> dict:
    """Writes the formats that the config asks for, and verifies them if it asks for that.

    Args:
        config: the export's config.
        folder: where everything is written.
        name: of the config.

    Returns:
        What `verify.json` holds: per file what was compared. Empty without `config.verify`.

    Raises:
        InputError: naming the field or file that cannot be used, before anything is written.
        VerificationError: naming the file and what differs.
    """
    job = prepare(config, folder)
    fields, rope = config.export, job.rope
    say(f"{name}: {job.original:,} to {job.target:,} tokens by {job.provenance['method']}; everything goes to {folder}")
    exported = None
    if "hf" in fields.formats or ("gguf" in fields.formats and job.run):
        exported = write_folder(config, job, folder / "export")
        say(f"folder   {exported}")
    if "gguf" in fields.formats:
        # A run's folder has the attention factor in its weights already.
        rope = read_config(exported).rope if job.run else rope
        write_gguf_file(config, job, exported if job.run else job.source, rope, folder / "model.gguf")
        write_card(folder, job.facts, job.licensed)
        say(f"gguf     {folder / 'model.gguf'}")
    if "adapter" in fields.formats:
        write_peft(config, job, folder)
        say(f"adapter  {folder / 'adapter'}, for the model in {folder / 'base'}")
    if not config.verify:
        return {}
    results = verify(config, job, exported, folder, rope)
    write_json(folder / "verify.json", results)
    return results


def prepare(config: ConfigDict, folder: Path) -> Job:
    """Checks everything that can be checked before anything is written.

    Args:
        config: the export's config.
        folder: where everything is written.

    Returns:
        The job.

    Raises:
        InputError: naming the field or file, and the fix.
    """
    fields = config.export
    unknown = [format for format in fields.formats if format not in FORMATS]
    if unknown or not fields.formats:
        raise InputError(f"config.export.formats is {tuple(fields.formats)}: name some of {', '.join(FORMATS)}")
    if config.verify and fields.verify_dtype not in TOLERANCES:
        raise InputError(f"config.export.verify_dtype is {fields.verify_dtype!r}: use {' or '.join(TOLERANCES)}")
    if any(not isinstance(length, int) or length < 1 for length in fields.verify_lengths):
        raise InputError(f"config.export.verify_lengths is {tuple(fields.verify_lengths)}: give positive token counts")
    job = trained_job(config) if fields.run else zero_shot_job(config)
    if np.ndim(job.rope.factors) == 2:
        raise InputError(
            "the factors differ from layer to layer, which no stock config.json and no GGUF file can say: export a "
            "method of one vector"
        )
    if "gguf" in fields.formats:
        check_gguf(job.known.config, job.rope, job.target)
        if fields.gguf:
            check_extendable(Path(fields.gguf), job.rope, job.known.config.rope_base)
    elif fields.gguf:
        raise InputError("config.export.gguf is set, but config.export.formats has no 'gguf': add it")
    if "adapter" in fields.formats:
        lora = job.run and job.run.training.lora
        if not lora:
            raise InputError("config.export.formats has 'adapter', which only a run with config.train.lora.rank has")
        check_adapter(job.known.config, lora)
    names = {"hf": ["export"], "gguf": ["model.gguf"], "adapter": ["adapter", "base"]}
    for target in (folder / name for format in fields.formats for name in names[format]):
        if target.exists() and not fields.overwrite:
            raise InputError(
                f"{target} already exists: choose another --workdir, or set config.export.overwrite to True"
            )
    return job


def zero_shot_job(config: ConfigDict) -> Job:
    """The job of a model as it is and a method."""
    if config.rope.method == settings.LEARNED:
        raise InputError("config.rope.method is 'learned', which takes texts: run experiments.extend and export that")
    if not config.model.path:
        raise InputError("config.model.path and config.export.run are empty: name the model, or the run, to export")
    source = settings.model_folder(config.model.path)
    known = check_model(source)
    extension = settings.model_extension(config, known.config, known.rope)
    method, original, target = config.rope.method, extension.measure.original, extension.measure.target
    rope = extension.solve(method).scale
    return Job(
        source=source,
        known=known,
        rope=rope,
        original=original,
        target=target,
        provenance=run_provenance(config, method, original, target, 0),
        facts=run_card(config, method, rope, original, target, 0),
        licensed=source,
        run=None,
    )


def trained_job(config: ConfigDict) -> Job:
    """The job of a run of `experiments.extend`, as its folder describes it."""
    fields = config.export
    folder = Path(fields.run).expanduser().resolve()
    if not (folder / "config.json").is_file():
        raise InputError(f"config.export.run is {fields.run}: that is no folder of a run (it has no config.json)")
    ran = defaults.get_config()
    try:
        ran.update(_tuples(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    except (ValueError, TypeError) as error:
        raise InputError(f"{folder / 'config.json'} is no config of a run ({error})") from None
    methods = settings.methods(ran)
    method = fields.method or methods[0]
    if method not in methods:
        raise InputError(f"config.export.method is {method!r}: the run in {folder} has {', '.join(methods)}")
    place = folder / "methods" / method
    scale = _read(place / "scale.json")
    if scale is None:
        raise InputError(f"{place / 'scale.json'} is missing: the run has not come to method {method}; let it go on")
    source = settings.model_folder(ran.model.path) if ran.model.path else folder / "model"
    known = check_model(source)
    extension = settings.model_extension(ran, known.config, known.rope)
    original, target = extension.measure.original, extension.measure.target
    rope = ScaleVector.create(scale["factors"], scale["attention_factor"])
    finished = folder / "export"
    whole = method == methods[0] and not fields.step and (finished / "config.json").is_file()
    if not whole and not (place / "checkpoints").is_dir():
        raise InputError(f"{place} has no checkpoints: the run has not come to method {method}; let it go on")
    training = settings.method_tuning(ran, target, method)
    steps = ran.train.steps if whole else _step(place, fields.step)
    if training.learn:
        setup = Training(known.config, training, settings.mesh(config))
        vector = {"rope": setup.abstract_state(rope).params["rope"]}
        rope = from_logarithms(read_trained(place / "checkpoints", vector, steps)["rope"])
    measured = {}
    if steps == ran.train.steps:
        measured = {stage: _read(place / f"{stage}.json") for stage in ("before", "after")}
    return Job(
        source=source,
        known=known,
        rope=rope,
        original=original,
        target=target,
        provenance=run_provenance(ran, method, original, target, steps),
        facts=run_card(ran, method, rope, original, target, steps, **measured),
        licensed=source if ran.model.path else None,
        run=TrainedRun(ran, training, place, finished if whole else None),
    )


def write_folder(config: ConfigDict, job: Job, target: Path) -> Path:
    """The Hugging Face folder: a run's own where it has one, else written now.

    Args:
        config: the export's config.
        job: the job.
        target: folder to create.

    Returns:
        The folder.
    """
    if job.run and job.run.export:
        return job.run.export
    common = {
        "context": job.target,
        "provenance": job.provenance,
        "extra_files": lambda place: write_card(place, job.facts, job.licensed),
        "overwrite": config.export.overwrite,
    }
    with byte_bar("writing the folder") as progress:
        if job.run is None:
            rescale_folder(job.source, target, job.rope, **common, progress=progress)
            return target
        model, params = trained_model(config, job)
        dtype = job.known.config.param_dtype
        write_model(target, model, params, job.rope, **common, source=job.source, dtype=dtype, progress=progress)
    return target


def trained_model(config: ConfigDict, job: Job) -> tuple[LlamaConfig, dict]:
    """A run's model and trained parameters, from its checkpoint; low-rank updates merged.

    Args:
        config: the export's config; its mesh is used.
        job: a run's job.

    Returns:
        Shape, and sharded parameters.
    """
    model, mesh, state = _restored(config, job)
    frozen = None
    if job.run.training.lora:
        frozen = read_params(job.source, model, mesh)
    objective = Training(model, job.run.training, mesh).objective
    return model, objective.result(state, Variables(frozen, job.rope), mesh).params


def write_gguf_file(config: ConfigDict, job: Job, source: Path, rope: ScaleVector, target: Path) -> None:
    """The GGUF file: an existing one with the factors in, or a conversion of a folder.

    Args:
        config: the export's config.
        job: the job.
        source: folder to convert.
        rope: scale vector to serve it under.
        target: file to create.
    """
    fields = config.export
    common = {"context": job.target, "provenance": job.provenance, "overwrite": fields.overwrite}
    with byte_bar("writing the GGUF file") as progress:
        if fields.gguf:
            base = job.known.config.rope_base
            add_factors(target, Path(fields.gguf), rope, base=base, **common, progress=progress)
        else:
            how = {"dtype": fields.dtype or None, "vocabulary": fields.vocabulary}
            write_gguf(target, source, rope, **common, **how, progress=progress)


def write_peft(config: ConfigDict, job: Job, folder: Path) -> None:
    """The adapter, and the untrained model with the scale vector that it belongs on.

    Args:
        config: the export's config.
        job: a run's job.
        folder: where `base` and `adapter` are created.
    """
    model, _, state = _restored(config, job)
    training = job.run.training
    facts = dataclasses.replace(job.facts, training="", before=None, after=None)
    common = {"provenance": job.provenance, "overwrite": config.export.overwrite}
    with byte_bar("writing the model below the adapter") as progress:
        rescale_folder(
            job.source,
            folder / "base",
            job.rope,
            context=job.target,
            extra_files=lambda place: write_card(place, facts, job.licensed),
            progress=progress,
            **common,
        )
    weights = jax.device_get(state["weights"] if training.learn else state)
    attention = float(job.rope.attention_factor)
    write_adapter(
        folder / "adapter", folder / "base", model, training.lora, weights, attention_factor=attention, **common
    )


def verify(config: ConfigDict, job: Job, exported: Path | None, folder: Path, rope: ScaleVector) -> dict:
    """Checks what was written, from the files.

    Args:
        config: the export's config.
        job: the job.
        exported: the Hugging Face folder; None if there is none.
        folder: holds the GGUF file.
        rope: what the GGUF file should serve under.

    Returns:
        JSON-able results per file.

    Raises:
        VerificationError: naming the file and what differs.
    """
    fields, results = config.export, {}
    if exported:
        verify_config(exported)
        say("verified: config.json gives transformers and vLLM one vector and no further scale")
        lengths = tuple(fields.verify_lengths) or tuple(dict.fromkeys((32, job.original, job.target)))
        compared = verify_logits(exported, lengths, fields.verify_dtype, config.seed)
        if compared is None:
            say("not verified: torch is not installed, so transformers cannot compute logits (pip install torch)")
        for row in compared or ():
            say(
                f"verified: at {row['length']:,} tokens transformers' logits differ by {row['difference']:.2g}, "
                f"largest {row['largest']:.2g}"
            )
        results["export"] = {"config": "equal maxima", "logits": compared}
    if "gguf" in fields.formats:
        base = job.known.config.rope_base
        verify_gguf(folder / "model.gguf", rope, base=base, context=job.target, folded=not fields.gguf)
        say("verified: model.gguf has rope_freqs.weight, the base and the context, and no further scaling")
        results["model.gguf"] = "rope_freqs.weight"
    return results


def _restored(config: ConfigDict, job: Job):
    """The model's shape, the mesh, and what the run trained."""
    mesh = settings.mesh(config)
    model = settings.computed(job.run.config, job.known.config)
    abstract = Training(model, job.run.training, mesh).abstract_state(job.rope).params
    step = _step(job.run.folder, config.export.step)
    return model, mesh, read_trained(job.run.folder / "checkpoints", abstract, step)


def _step(place: Path, wanted: int) -> int:
    """The step of a checkpoint without reading its tensors, as Orbax names its folders."""
    if wanted == BEST:
        known = losses(place / "checkpoints")
        if not known:
            raise InputError(f"config.export.step asks for the best of {place / 'checkpoints'}, which has none")
        return min(known, key=lambda step: (known[step], -step))
    steps = sorted(int(path.name) for path in (place / "checkpoints").iterdir() if path.name.isdigit())
    if not steps or (wanted and wanted not in steps):
        raise InputError(f"config.export.step is {wanted}: {place / 'checkpoints'} has {steps or 'none'}")
    return wanted or steps[-1]


def _read(path: Path) -> dict | None:
    return read_json_object(path) if path.is_file() else None


def _tuples(value):
    """JSON's lists as the tuples that configs have."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


if __name__ == "__main__":
    # It warns of templates for pairs of texts, which no language model is given.
    logging.getLogger("gguf").setLevel(logging.ERROR)
    cli.run(export, DEFAULT)
