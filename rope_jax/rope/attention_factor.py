"""Factors on cos and sin that sharpen attention over a longer context; logits scale by their square."""

from __future__ import annotations

import math

from rope_jax.rope.checks import check_extension


def yarn_attention_factor(extension: float) -> float:
    """YaRN's `0.1 ln s + 1` (arXiv 2309.00071, section 3.4), for an extension factor s of at least 1."""
    check_extension(extension)
    return 0.1 * math.log(extension) + 1
