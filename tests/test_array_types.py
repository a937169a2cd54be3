"""Signatures are checked in tests."""

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from rope_jax.rope.angles import extended


@pytest.mark.parametrize("factors", [np.ones(3, np.float32), np.ones(4), np.ones((4, 1), np.float32)])
def test_shapes_and_dtypes_are_checked(factors):
    with pytest.raises(TypeCheckError):
        extended(np.ones(4, np.float32), factors)
