"""What an exported model says about itself: provenance for machines, facts for its card."""

from collections.abc import Mapping

from rope_jax.commands.run import Recipe
from rope_jax.interop.model_card import CardFacts
from rope_jax.rope.embedding import ScaleVector
from rope_jax.training.config import TrainConfig


def provenance(recipe: Recipe, method: str, steps: int) -> dict:
    """Where the scale vector comes from, for the exported `config.json`; `steps` of fine-tuning, 0 for none."""
    about = {
        "method": method,
        "original_context": recipe.measure.original,
        "extended_context": recipe.measure.target,
        "fine_tuning_steps": steps,
    }
    about |= {"source_commit": recipe.source.commit} if recipe.source.commit else {}
    return about | ({"fine_tuning_data": recipe.corpus.name} if steps else {})


def card(
    recipe: Recipe,
    method: str,
    rope: ScaleVector,
    steps: int,
    *,
    before: Mapping | None = None,
    after: Mapping | None = None,
) -> CardFacts:
    """What the model's card states; `steps` of fine-tuning, and records of the evaluations before and after it."""
    name, target = recipe.source.name, recipe.measure.target
    return CardFacts(
        title=f"{name or 'A small model'}, {target:,} tokens",
        source=name or "A small model, pre-trained in the same run",
        method=method,
        rope=rope,
        original=recipe.measure.original,
        target=target,
        training=training(recipe.tuning[method], steps) if steps else "",
        data=str(recipe.corpus),
        before=before,
        after=after,
        evaluated_on=f"{recipe.corpus}, split {recipe.corpus.split}",
        commit=recipe.source.commit,
    )


def described(config: TrainConfig) -> str:
    """The sequences of a training."""
    skips = f" whose positions skip up to {config.skips.reach:,}" if config.skips else ""
    mix = (
        f"; {config.mix.share:.2g} of them hold documents of at most {config.mix.context:,} tokens, under the original "
        "scale vector"
        if config.mix
        else ""
    )
    return f"sequences of {config.length:,} tokens{skips}{mix}"


def training(config: TrainConfig, steps: int) -> str:
    """A fine-tuning as a sentence."""
    lora, optimizer = config.lora, config.optimizer
    weights = f"low-rank updates (rank {lora.rank}, {', '.join(lora.targets)})" if lora else "all weights"
    return (
        f"Fine-tuned for {steps:,} steps of {config.global_batch} {described(config)}, {weights}, "
        f"AdamW, learning rate {optimizer.learning_rate:g}, {optimizer.schedule}."
    )
