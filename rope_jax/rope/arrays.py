"""Array types of the signatures in this room."""

import jax
import numpy as np

# Functions that compute on the device also take what was computed on the host.
AnyArray = jax.Array | np.ndarray
