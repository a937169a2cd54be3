"""A corpus and a finished run, made once for all tests of this folder."""

import pytest

from experiments.extend import extend
from rope_jax.commands.reporter import Silent
from tests.experiments.helpers import small_config, write_texts


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def finished(texts, tmp_path_factory):
    """A whole run on the session's eight virtual devices: its folder and results."""
    folder = tmp_path_factory.mktemp("run") / "small"
    return folder, extend(small_config(texts), folder, "small", profile=(2, 3), reporter=Silent())
