"""The command `export`: a model with another scale vector, or a run of `extend`, for other engines."""

import dataclasses
from pathlib import Path

import jax

from rope_jax.commands.export_job import TARGETS, Formats, Job, Trained, existing_gguf
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.source import read_params
from rope_jax.files import read_record, write_json
from rope_jax.interop.gguf_export import add_factors, write_gguf
from rope_jax.interop.hf_config import read_config
from rope_jax.interop.huggingface import write_model
from rope_jax.interop.model_card import write_card
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.interop.peft_adapter import write_adapter
from rope_jax.interop.verify import verify_config, verify_gguf, verify_logits
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.checkpoints import read_trained
from rope_jax.training.state import Variables


def export(job: Job, wanted: Formats, folder: Path, reporter: Reporter) -> dict:
    """Writes every format, and verifies it if asked.

    Args:
        wanted: formats that `check` accepts.

    Returns:
        What `verify.json` holds: what was compared, by file; of other files, what an earlier export compared.

    Raises:
        VerificationError: naming the file and what differs.
    """
    exported, converted, rope = None, job.recipe.source.folder, job.rope
    results = kept_results(wanted, folder)
    for note in job.recipe.source.notes:
        reporter.say(note)
    if "hf" in wanted.formats or ("gguf" in wanted.formats and job.trained):
        exported = write_folder(job, wanted, folder / "export", reporter)
        reporter.say(f"folder   {exported}")
        if job.trained:
            # As its config says: a folder of before attention factors went there has it in its weights.
            converted, rope = exported, read_config(exported).rope
    if "gguf" in wanted.formats:
        write_gguf_file(job, wanted, converted, rope, target=folder / "model.gguf", reporter=reporter)
        write_card(folder, job.facts, job.licensed)
        reporter.say(f"gguf     {folder / 'model.gguf'}")
    if "adapter" in wanted.formats and job.trained:
        write_peft(job, job.trained, wanted, folder, reporter)
        reporter.say(f"adapter  {folder / 'adapter'}, for the model in {folder / 'base'}")
    if not wanted.verify:
        return results
    if exported:
        results["export"] = verify_folder(job, wanted, exported, reporter)
    if "gguf" in wanted.formats:
        base, target = job.recipe.geometry.base, job.recipe.measure.target
        verify_gguf(folder / "model.gguf", rope, base=base, context=target)
        reporter.say("verified: model.gguf gives llama.cpp the vector and the context, and no further scaling")
        results["model.gguf"] = "the vector"
    write_json(folder / "verify.json", results)
    return results


def kept_results(wanted: Formats, folder: Path) -> dict:
    """What `verify.json` says of files that this export leaves as they are; it says nothing of others from now on."""
    replaced = {name for format in wanted.formats for name in TARGETS[format]}
    before = read_record(folder / "verify.json") or {}
    kept = {name: result for name, result in before.items() if name not in replaced}
    if kept != before:
        write_json(folder / "verify.json", kept)
    return kept


def write_folder(job: Job, wanted: Formats, target: Path, reporter: Reporter) -> Path:
    """The Hugging Face folder: the one that a run has exported already, or one written now to `target`."""
    if job.trained and job.trained.export:
        return job.trained.export
    source = job.recipe.source
    with reporter.byte_bar("writing the folder") as progress:
        common = {
            "context": job.recipe.measure.target,
            "provenance": job.provenance,
            "extra_files": lambda place: write_card(place, job.facts, job.licensed),
            "overwrite": wanted.overwrite,
            "progress": progress,
        }
        if job.trained is None:
            rescale_folder(source.folder, target, job.rope, **common)
        else:
            params, dtype = merged_params(job, job.trained, reporter), source.known.config.param_dtype
            write_model(target, source.model, params, job.rope, **common, source=source.folder, dtype=dtype)
    return target


def merged_params(job: Job, trained: Trained, reporter: Reporter) -> dict:
    """Sharded parameters of a checkpoint, low-rank updates merged."""
    training, source = trained.training, job.recipe.source
    frozen = read_params(source.folder, source.model, training.mesh, reporter) if training.config.lora else None
    state = restore(job, trained)
    return training.objective.result(state, Variables(frozen, job.rope), training.mesh).params


def restore(job: Job, trained: Trained) -> dict:
    """What a run trained: parameters, or low-rank updates, with the scale vector if that was learned too."""
    return read_trained(trained.checkpoints, trained.training.abstract_state(job.rope).params, trained.step)


def write_gguf_file(
    job: Job, wanted: Formats, converted: Path, rope: ScaleVector, *, target: Path, reporter: Reporter
) -> None:
    """Writes a GGUF file: the given one with factors, or a conversion of the folder `converted`."""
    common = {"context": job.recipe.measure.target, "provenance": job.provenance, "overwrite": wanted.overwrite}
    with reporter.byte_bar("writing the GGUF file") as progress:
        existing = existing_gguf(job, wanted)
        if existing is not None:
            base = job.recipe.geometry.base
            add_factors(target, existing, rope, base=base, **common, progress=progress)
        else:
            how = {"dtype": wanted.dtype or None, "vocabulary": wanted.vocabulary}
            write_gguf(target, converted, rope, **common, **how, progress=progress)


def write_peft(job: Job, trained: Trained, wanted: Formats, folder: Path, reporter: Reporter) -> None:
    """`base`, the untrained model with the scale vector, and `adapter`, which belongs on it."""
    source, config = job.recipe.source, trained.training.config
    assert config.lora is not None
    facts = dataclasses.replace(job.facts, training="", before=None, after=None)
    common = {"provenance": job.provenance, "overwrite": wanted.overwrite}
    with reporter.byte_bar("writing the base of the adapter") as progress:
        rescale_folder(
            source.folder,
            folder / "base",
            job.rope,
            context=job.recipe.measure.target,
            extra_files=lambda place: write_card(place, facts, job.licensed),
            progress=progress,
            **common,
        )
    state = restore(job, trained)
    write_adapter(
        folder / "adapter",
        folder / "base",
        source.model,
        config.lora,
        jax.device_get(state["weights"] if config.learn else state),
        **common,
    )


def verify_folder(job: Job, wanted: Formats, exported: Path, reporter: Reporter) -> dict:
    """Checks the config of a Hugging Face folder, and its logits in transformers; gives JSON-able results."""
    verify_config(exported, job.rope)
    reporter.say("verified: config.json gives transformers and vLLM one vector and no further scale")
    measure = job.recipe.measure
    lengths = wanted.verify_lengths or tuple(dict.fromkeys((32, measure.original, measure.target)))
    # What a run has trained is in the export alone.
    source = exported if job.trained else job.recipe.source.folder
    compared = verify_logits(exported, source, job.rope, lengths, dtype=wanted.verify_dtype, seed=wanted.seed)
    if compared is None:
        reporter.say("not verified: torch is not installed, so transformers cannot compute logits (pip install torch)")
    for row in compared or ():
        reporter.say(
            f"verified: at {row['length']:,} tokens transformers' logits differ by {row['difference']:.2g}, "
            f"largest {row['largest']:.2g}"
        )
    return {"config": "the vector, at all lengths", "logits": compared}
