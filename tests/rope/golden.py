"""The paper's figures per pair, from the authors' released solver."""

import json
from pathlib import Path

import numpy as np

from rope_jax.rope.embedding import frequencies, identity
from rope_jax.rope.geometry import Geometry

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

LLAMA2 = Geometry(10000.0, 128, identity(128))
THETA = frequencies(10000.0, 128)


def golden_case(extension, intervals=360):
    """Figures of LLaMA2, extended from 4096 tokens by a factor."""
    cases = json.loads((GOLDEN / "disturbance.json").read_text())["cases"]
    wanted = {"rope_theta": 10000, "origin_max_position": 4096, "head_dim": 128}
    wanted |= {"scaling_factor": extension, "intervals": intervals}
    (case,) = (case for case in cases if case["config"] == wanted)
    return case


def keep_or_interpolate(head_dim, extension):
    """The paper's two candidates."""
    return np.stack([np.ones(head_dim // 2), np.full(head_dim // 2, extension)]).astype(np.float32)
