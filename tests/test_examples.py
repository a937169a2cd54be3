"""The examples of docstrings print what they say."""

import doctest
from importlib import import_module

import numpy as np
import pytest

import rope_jax
from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.rope.embedding import identity
from tests.conftest import REPOSITORY
from tests.interop.references import write_random_llama

MODULES = sorted(
    path.relative_to(REPOSITORY).with_suffix("").as_posix().replace("/", ".")
    for path in (REPOSITORY / "rope_jax").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
TOOLS = {"np": np, "identity": identity, "rope_jax": rope_jax}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model for examples that load one."""
    folder, tokenizer = tmp_path_factory.mktemp("model"), ByteTokenizer()
    write_random_llama(folder, vocab_size=tokenizer.vocab_size)
    tokenizer.save(folder)
    return str(folder)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module, folder):
    found = import_module(module)
    known = {name: value for name, value in TOOLS.items() if not hasattr(found, name)}
    result = doctest.testmod(found, extraglobs=known | {"folder": folder}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted and not result.failed
