"""Types of the arrays of attention.

b rows, t queries, s keys, h query heads, k key heads, g = h / k query heads to each of them, d head dimension.
"""

import numpy as np
from jaxtyping import Array, Float, Float32, Int

# Weights and documents may come from the host.
HostOrDevice = Array | np.ndarray
Head = Float[HostOrDevice, "e v"]

# Queries and keys of the model are rotated already. A query sees only keys of its own segment, which is a document.
Query = Float[Array, "b t h d"]
Key = Float[Array, "b s k d"]
Segments = Int[HostOrDevice, "b s"]

# As products take them: a product is one of plain matrices, and queries are scaled by `d^-1/2`.
GroupedQuery = Float[Array, "b k g t d"]
GroupedKey = Float[Array, "b k s d"]
Output = Float32[Array, "b k g t d"]
LogSum = Float32[Array, "b k g t"]
