"""From a config to a question to a serving engine."""

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from rope_jax.cli import build, shell
from rope_jax.cli.names import config_names, reading, section
from rope_jax.commands import verify as procedure
from rope_jax.commands.evaluate import trained_context
from rope_jax.commands.reporter import Reporter
from rope_jax.data.stdlib import list_sources, read_sources
from rope_jax.data.tokenizer import Tokenizer
from rope_jax.errors import InputError
from rope_jax.gguf_reader import is_gguf
from rope_jax.runs.folder import RunFolder


def verify(config: ConfigDict, folder: Path, name: str, reporter: Reporter | None = None) -> dict:
    """Asks the engine that a config names, and gives what `engine.json` holds.

    Raises:
        VerificationError: if the engine applies another vector than the model's config says.
    """
    reporter = reporter or shell.Terminal()
    with config_names(), section("engine"):
        build.check(config)
        engine, question = config.engine, probe(config, folder)
        with RunFolder(folder).locked():
            return procedure.verify(question, engine.name, engine.python, folder, reporter)


def probe(config: ConfigDict, folder: Path) -> procedure.Probe:
    """The model and the tokens that an engine is asked about."""
    if not config.model.path:
        raise InputError("`model.path` is empty: name the folder that the engine serves")
    source = build.source(config, folder)
    if is_gguf(source.folder) != (config.engine.name == "llama.cpp"):
        raise InputError(
            f"`engine.name` is {config.engine.name!r} and the model {source.folder}: llama.cpp serves a .gguf file, "
            "and the others a folder"
        )
    with reading("model.path"):
        original = config.context.original or trained_context(source.folder, source.known)
    columns = procedure.columns(original, source.model.context, config.engine.tokens)
    return procedure.Probe(
        path=source.folder,
        model=source.model,
        own=source.own,
        original=original,
        tokens=text(build.tokenizer(config, source), int(columns[-1]) + 1),
        columns=columns,
        tolerance=config.engine.tolerance,
    )


def text(tokenizer: Tokenizer, length: int) -> np.ndarray:
    """Tokens of Python's standard library, int32 ``[length]``, after BOS if the tokenizer has one."""
    found = [[] if tokenizer.bos_id is None else [tokenizer.bos_id]]
    for document in read_sources(*list_sources()):
        # llama.cpp gives no probability for a token that is half a character.
        found.append(tokenizer.encode(document.text.encode("ascii", "ignore").decode()).tolist())
        if sum(map(len, found)) >= length:
            break
    return np.array([token for tokens in found for token in tokens][:length], np.int32)
