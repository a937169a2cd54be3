"""Sliding-window scoring beside the plain way (all logits of every window), interleaved in one run.

python benchmarks/perplexity.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rope_jax.evaluation.nll import make_token_nll
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import Llama, init_params
from rope_jax.rope.embedding import identity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--windows", type=int, nargs="*", default=[1024, 2048])
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--batch", type=int, default=4, help="windows scored together by ours; the plain way takes one")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = LlamaConfig(32000, 288, 768, arguments.layers, 6, 6, 48, tie_embeddings=True, context=4096)
    params = nn.unbox(jax.jit(lambda: init_params(config, jax.random.key(0)))())
    rope = identity(config.head_dim)
    fast = make_token_nll(config, chunk=256)

    @jax.jit
    def plain(tokens):
        logits = Llama(config).apply({"params": params}, tokens, rope)
        log_probabilities = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(log_probabilities, tokens[:, 1:, None], axis=-1)[..., 0]

    print(f"{os.cpu_count()} CPUs; load {os.getloadavg()[0]:.1f}; {jax.default_backend()}; JAX {jax.__version__}")
    print(f"{arguments.layers} layers, hidden 288, vocabulary 32000, stride {arguments.stride}\n")
    print("| window | plain, windows/s | ours, windows/s | speed-up | largest difference |")
    print("|---|---|---|---|---|")
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
        pairs = [(timed(one_by_one), timed(ours)) for _ in range(arguments.repeats)]
        slow, quick = (arguments.batch / statistics.median(times) for times in zip(*pairs))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"| {window} | {slow:.2f} | {quick:.2f} | {ratio:.1f} | {difference:.1e} |", flush=True)


def timed(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
