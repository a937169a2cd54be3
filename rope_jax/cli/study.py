"""From a config to a study."""

import contextlib
from pathlib import Path

from ml_collections import ConfigDict

from rope_jax.cli import build, names, shell, typed
from rope_jax.commands import study as procedure
from rope_jax.commands.fields import DEFAULTS
from rope_jax.commands.reporter import Reporter
from rope_jax.commands.study import Study
from rope_jax.data.recall import Symbols
from rope_jax.model.config import LlamaConfig
from rope_jax.runs.folder import RunFolder
from rope_jax.runs.software import compilation_cache
from rope_jax.sharding import make_mesh
from rope_jax.study.design import Design, parse_model
from rope_jax.study.probes import ProbeSizes
from rope_jax.training.config import OptimizerConfig

# What later commands on a folder may change: records that exist stay valid.
MAY_CHANGE = tuple(f"study.{name}" for name in ("models", "seeds", "methods", "zero_shot", "n_hats", "intervals"))


def command(config: ConfigDict, folder: Path, name: str, *, quick: bool = False, table: str = "") -> None:
    """Runs the command with its flags; with `quick`, the config is the small one already."""
    if table:
        procedure.rewrite_page(Path(table), folder)
    elif quick:
        study(config, folder / "quick", f"{name}, quick")
    else:
        study(config, folder, name)


def study(config: ConfigDict, folder: Path, name: str, reporter: Reporter | None = None) -> list[dict]:
    """Runs or resumes a study; gives the lines of its table.

    Raises:
        InputError: naming the field or file that cannot be used, before any long computation.
        NonFiniteLoss: naming the step of a pre-training.
    """
    reporter = reporter or shell.Terminal()
    compilation_cache(folder, config.compilation_cache)
    with names.config_names(), contextlib.ExitStack() as held:
        return procedure.run(prepare(config, folder, name, held), reporter)


def prepare(config: ConfigDict, folder: Path, name: str, held: contextlib.ExitStack) -> Study:
    """Checks everything that can be checked before the first long computation, and claims the folder.

    Until `held` closes, no other command works in the folder.
    """
    build.check(config)
    place, s = RunFolder(folder), config.study
    held.enter_context(place.locked())
    place.check(build.settings(config), (*MAY_CHANGE, "mesh", "compilation_cache"), DEFAULTS)
    learning = build.learning(config), config.learn.start, config.learn.steps
    with names.section("study", n_hat="config.study.n_hats", global_batch="config.study.tune_batch_tokens"):
        found = Study(
            name=name,
            command=typed.command("study", config, folder),
            settings=build.settings(config),
            folder=place,
            design=design(config),
            texts=build.corpus(config, folder),
            vocab_size=s.vocab_size,
            symbols=Symbols(0, s.recall_keys, s.recall_values),
            recall_share=s.recall_share,
            model=model(config),
            intervals=config.angles.intervals,
            pretraining=optimizer(config, "pretrain", schedule="cosine", b2=0.95),
            tuning=optimizer(config, "train", **{name: config.train[name] for name in ("schedule", "b1", "b2")}),
            batch_tokens=(s.batch_tokens, s.tune_batch_tokens),
            learning=learning,
            probes=ProbeSizes(s.windows, s.recall_rows, s.recall_rows),
            mesh=make_mesh(**config.mesh),
        )
        found.check()
    splits = found.texts
    with names.reading("data.name" if config.data.name == "python_stdlib" else "data.path"):
        place.check_texts(splits.digest)
    place.claim(build.settings(config), splits.digest)
    return found


def design(config: ConfigDict) -> Design:
    s = config.study
    fields = ("extensions", "methods", "zero_shot", "shares", "n_hats", "intervals")
    return Design(
        tuple(map(parse_model, s.models)),
        s.seeds,
        random=s.random,
        tune_share=s.tune_share,
        **{field: tuple(s[field]) for field in fields},
    )


def model(config: ConfigDict) -> LlamaConfig:
    """What all models have in common; shapes are the design's."""
    shape = LlamaConfig(
        vocab_size=config.study.vocab_size,
        hidden_size=config.rope.head_dim,
        intermediate_size=config.rope.head_dim,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=config.rope.head_dim,
        rope_base=config.rope.base,
        tie_embeddings=True,
    )
    return build.compute(config).of(shape)


def optimizer(config: ConfigDict, section: str, **more) -> OptimizerConfig:
    """AdamW as a section has it; a training's steps follow from its tokens."""
    fields = ("learning_rate", "warmup_steps", "weight_decay", "clip_norm")
    chosen = {field: config[section][field] for field in fields}
    with names.section(section):
        return OptimizerConfig(steps=max(chosen["warmup_steps"], 1), **chosen, **more)
