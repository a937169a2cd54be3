"""What a run's config says about an exported model: provenance for machines, facts for its card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ml_collections import ConfigDict

from rope_jax.interop.model_card import CardFacts
from rope_jax.rope.embedding import ScaleVector


def run_provenance(config: ConfigDict, method: str, original: int, target: int, steps: int) -> dict:
    """What the scale vector was made from, as `config.json` keeps it.

    Args:
        config: the run's config.
        method: name of the method.
        original: pre-training context, tokens.
        target: extended context, tokens.
        steps: of fine-tuning; 0 for none.

    Returns:
        A JSON-able dictionary.
    """
    about = {
        "method": method,
        "original_context": original,
        "extended_context": target,
        "fine_tuning_steps": steps,
    }
    return about | ({"fine_tuning_data": config.data.name} if steps else {})


def run_card(
    config: ConfigDict,
    method: str,
    rope: ScaleVector,
    original: int,
    target: int,
    steps: int,
    before: Mapping | None = None,
    after: Mapping | None = None,
) -> CardFacts:
    """What the model's card states.

    Args:
        config: the run's config.
        method: name of the method.
        rope: scale vector.
        original: pre-training context, tokens.
        target: extended context, tokens.
        steps: of fine-tuning; 0 for none.
        before: record of the evaluation before fine-tuning, or None.
        after: the same after it, or None.

    Returns:
        The facts.
    """
    name = config.model.path
    path = Path(name).expanduser()
    if name and path.is_dir():
        name = path.resolve().name  # the rest of a path is the business of its machine
    data = config.data.name
    if config.data.path and data == "text_folder":
        data = f"texts of the folder {Path(config.data.path).resolve().name}"
    return CardFacts(
        title=f"{name or 'A small model'}, {target:,} tokens",
        source=name or "A small model, pre-trained in the same run",
        method=method,
        rope=rope,
        original=original,
        target=target,
        training=_training(config, target, steps) if steps else "",
        data=data,
        before=before,
        after=after,
        evaluated_on=f"{data}, split {config.eval.split}",
    )


def _training(config: ConfigDict, target: int, steps: int) -> str:
    train = config.train
    lora = train.lora
    weights = f"low-rank updates (rank {lora.rank}, {', '.join(lora.targets)})" if lora.rank else "all weights"
    return (
        f"Fine-tuned for {steps:,} steps of {train.global_batch} sequences of {target:,} tokens, {weights}, AdamW, "
        f"learning rate {train.learning_rate:g}, {train.schedule}."
    )
