"""Every engine on every export: `pytest -m engines`, after `python -m tests.engines.environments FOLDER`.

ROPE_JAX_ENGINES is that FOLDER. An engine whose environment it lacks is skipped.
"""

import os
from pathlib import Path

import pytest

from tests.engines.environments import ENVIRONMENTS, interpreter
from tests.engines.measure import measure
from tests.engines.models import SMOLLM2_MODELS, TINY, make, names

pytestmark = pytest.mark.engines

PLACE = Path(os.environ.get("ROPE_JAX_ENGINES", "engines")).resolve()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("engines")
    return [make(place, *name) for name in TINY]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    place = tmp_path_factory.mktemp("smollm2")
    return [make(place, *name) for name in SMOLLM2_MODELS if name in names()]


def measured(name, exports):
    if not interpreter(PLACE, name).is_file():
        pytest.skip(f"{PLACE} has no environment {name}")
    return measure(PLACE, name, exports)


def applied(name, row):
    """The vector that an engine applies to a model; other engines apply the model's own."""
    # Its code for `longrope` takes no attention factor from a file.
    return "without the attention factor" if (name, row["method"]) == ("mlx", "dprope+af") else "the model's own"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_tiny_models(tiny, name):
    rows = measured(name, tiny)
    assert [(row["family"], row["method"]) for row in rows] == TINY
    for row in rows:
        if name == "llama.cpp" and row["family"] == "qwen3" and row["method"] != "ntk":
            assert "reads no scale vector for a qwen3 model" in row["refused"]
            continue
        assert row["applied"] == applied(name, row), row


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_smollm2(smollm2, name):
    if not smollm2:
        pytest.skip("ROPE_JAX_SMOLLM2 names no file")
    for row in measured(name, smollm2):
        assert row["applied"] == applied(name, row), row
