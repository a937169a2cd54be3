"""A corpus and a finished run, made once for all tests of this folder by the worker that first asks for them."""

import json
import os

import pytest

from rope_jax.cli.extend import extend
from rope_jax.commands.reporter import Silent
from rope_jax.lock import locked
from tests.experiments.helpers import small_config, write_texts


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A folder that all workers share. It is locked while one of them makes what is missing."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "experiments"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def texts(small):
    with locked(small / "texts.lock", wait=True):
        return small / "texts" if (small / "texts").exists() else write_texts(small / "texts")


@pytest.fixture(scope="session")
def finished(small, texts):
    """A whole run on the session's eight virtual devices: its folder and results."""
    folder, whole = small / "run", small / "whole"
    with locked(small / "lock", wait=True):
        if whole.exists():
            return folder, json.loads(whole.read_text(encoding="utf-8"))
        results = extend(small_config(texts), folder, "small", profile=(2, 3), reporter=Silent())
        whole.write_text(json.dumps(results), encoding="utf-8")
        return folder, results
