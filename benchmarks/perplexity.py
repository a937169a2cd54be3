"""Sliding-window scoring against the plain way (all logits of every window), interleaved in one run.

python benchmarks/perplexity.py
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.common import head, interleaved, machine, options, row
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Llama, init_params
from rope_jax.rope.embedding import identity


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--windows", type=int, nargs="*", default=[1024, 2048])
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="windows that we score together; the plain way takes one")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = LlamaConfig(32000, 288, 768, arguments.layers, 6, 6, 48, tie_embeddings=True, context=4096)
    params = nn.unbox(jax.jit(lambda: init_params(config, jax.random.key(0)))())
    rope = identity(config.head_dim)
    fast = make_token_nll(config, chunk=256)

    @jax.jit
    def plain(tokens):
        logits = jnp.asarray(Llama(config).apply({"params": params}, tokens, rope))
        log_probabilities = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1)[..., 0]

    print(machine(JAX=f"{jax.__version__} ({jax.default_backend()})"))
    print(f"{arguments.layers} layers, hidden 288, vocabulary 32000, stride {arguments.stride}\n")
    head("window", "plain, windows/s", "ours, windows/s", "speed-up", "largest difference")
    for window in arguments.windows:
        rng = np.random.default_rng(window)
        tokens = rng.integers(0, config.vocab_size, (arguments.batch, window)).astype(np.int32)
        wanted = np.zeros(tokens.shape, bool)
        wanted[:, -1 - arguments.stride : -1] = True

        def ours(tokens=tokens, wanted=wanted):
            return fast(params, rope, tokens, wanted)[:, -1 - arguments.stride : -1]

        def one_by_one(tokens=tokens):
            return np.concatenate([np.asarray(plain(row[None])) for row in tokens])[:, -arguments.stride :]

        difference = np.abs(ours() - one_by_one()).max()  # compiles, too
        quick, slow, ratio = interleaved(ours, one_by_one, arguments.repeats)
        rates = [f"{arguments.batch / time:.2f}" for time in (slow, quick)]
        row(window, *rates, f"{ratio:.1f}", f"{difference:.1e}")


if __name__ == "__main__":
    main()
