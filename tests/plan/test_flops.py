"""FLOPs, against XLA's own count of a program without loops."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rope_jax.evaluation.nll import tail_nll
from rope_jax.model.config import LlamaConfig
from rope_jax.model.flash import Blocks, Mask, Tokens
from rope_jax.model.llama import abstract_params
from rope_jax.plan.flops import key_blocks, model_flops, product_flops, scoring_flops, training_flops
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import make_mesh
from rope_jax.training.config import OptimizerConfig, TrainConfig
from rope_jax.training.state import Variables
from rope_jax.training.step import summed_loss

T = 64
# Wide enough for products to outweigh everything else; attention in one pair of blocks and layers unrolled, so that
# XLA's count, which takes a loop's body once, is a count.
CONFIG = LlamaConfig(512, 128, 256, 2, 4, 2, 32, scan_unroll=2, attention_chunk=2 * T)
ROPE = ScaleVector.create(np.ones(16))


def step(params, config):
    tokens = jnp.zeros((1, T), jnp.int32)
    rows = {"tokens": tokens, "segment_ids": tokens + 1, "positions": jnp.arange(T)[None]}
    return jax.grad(lambda p: summed_loss(Variables(p, ROPE), rows, config, T)[0])(params)


def counts(config):
    traced = jax.jit(lambda p: step(p, config)).trace(abstract_params(config))
    return product_flops(traced.jaxpr, key_blocks(config, T)), traced.lower().compile().cost_analysis()["flops"]


@pytest.mark.parametrize("remat", ["none", "full"])
def test_products_of_an_unrolled_model_are_xlas(remat):
    ours, xla = counts(dataclasses.replace(CONFIG, remat=remat))
    # XLA also counts what is no product: norms, rotations, softmax, 5 to 10% at this width; and with 'full' merges some
    # of what is to be computed again.
    assert 0.85 < ours / xla < 1.05


def test_loops_count_as_often_as_they_run():
    unrolled, _ = counts(CONFIG)
    assert counts(dataclasses.replace(CONFIG, scan_unroll=1))[0] == unrolled
    deep = dataclasses.replace(CONFIG, num_layers=6, scan_unroll=1)
    head = product_flops(jax.make_jaxpr(lambda p: step(p, deep))(abstract_params(deep))) - 3 * unrolled
    # Three times the layers, but the head once.
    assert head == pytest.approx(-2 * 6 * T * 512 * 128)


@pytest.mark.parametrize(("length", "chunk"), [(64, 16), (60, 16), (7, 4), (64, 256)])
def test_blocks_of_keys_are_those_that_attention_visits(length, chunk):
    tokens = Tokens(jnp.arange(length), jnp.ones((1, length), jnp.int32))
    blocks = Blocks.of(Mask(tokens, tokens), chunk)
    visited = np.mean(np.asarray(blocks.end) - np.asarray(blocks.first))
    assert key_blocks(dataclasses.replace(CONFIG, attention_chunk=chunk), length) == visited


def test_parts_on_devices_count_together():
    """Each of 4 devices multiplies its 2 of 8 rows, once for each of two copies of the rows."""
    mesh = make_mesh(2, 4, 1)
    product = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp"))
    assert product_flops(jax.make_jaxpr(product)(jnp.ones((8, 4)))) == 2 * 4 * 2 * 2 * 2 * 4


def test_formula_is_the_products_of_full_attention():
    """6 per weight and 12 H D per key; the program forms all scores of a block, twice those that are seen."""
    ours, _ = counts(CONFIG)
    seen = model_flops(CONFIG, T) * T
    unseen = 12 * 2 * 4 * 32 * (T - 1) / 2 * T
    # Scores are formed once more in the backward pass: 2 on top of 12, for every key. Norms have weights, which are
    # multiplied without a product: 5 vectors of 128.
    again = 2 * 2 * 4 * 32 * T * T
    assert ours == pytest.approx(seen + unseen + again - 6 * T * 4 * 128, rel=1e-3)


@pytest.mark.parametrize(("tail", "tolerance"), [(T, 1e-3), (T // 4, 0.1)])
def test_scoring_is_a_forward_pass(tail, tolerance):
    """2 per weight and 4 H D per key, half of which are seen; norms have no products."""
    columns = jnp.zeros((1, T), jnp.int32), jnp.ones((1, T), bool)
    score = partial(tail_nll, config=CONFIG, chunk=T, tail=tail)
    count = product_flops(jax.make_jaxpr(score)(abstract_params(CONFIG), ROPE, *columns), key_blocks(CONFIG, T))
    unseen = 4 * 4 * 32 * (T - 1) / 2 * (T + tail)
    assert count == pytest.approx(scoring_flops(CONFIG, T, tail) + unseen - 2 * T * 4 * 128, rel=tolerance)


@pytest.mark.parametrize(("remat", "passes"), [("none", 3), ("full", 4)])
def test_training_is_three_passes_and_what_is_repeated(remat, passes):
    model = dataclasses.replace(CONFIG, remat=remat)
    config = TrainConfig(OptimizerConfig(steps=5, warmup_steps=0), length=T, global_batch=2, accumulation=1)
    assert training_flops(model, config) == pytest.approx(5 * 2 * passes * scoring_flops(CONFIG, T, T))


def test_known_models():
    """LLaMA2-7B's 6.6e9 weights in products, and attention over half of 4096 tokens: 4.3e10 a token."""
    llama = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128)
    dense = 6 * (6_738_415_616 - 32000 * 4096 - 4096)
    assert model_flops(llama, 4096) == pytest.approx(dense + 12 * 32 * 4096 * 2048.5, rel=1e-9)
    # Without gradients of the weights a third of their products is left out.
    assert model_flops(llama, 4096) - model_flops(llama, 4096, frozen=True) == pytest.approx(dense / 3, rel=1e-9)
    window = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, architecture="mistral", sliding_window=3)
    plain = LlamaConfig(32000, 4096, 11008, 32, 32, 32, 128, architecture="mistral")
    # Of 5 tokens with a window of 3: 1, 2, 3, 3, 3 keys are seen instead of 1 to 5.
    assert model_flops(plain, 5) - model_flops(window, 5) == pytest.approx(12 * 32 * 4096 * (3 - 12 / 5))
