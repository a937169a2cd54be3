"""Gradient checkpointing (arXiv 1604.06174): what a block keeps for its backward pass, by the name of a policy."""

from collections.abc import Callable

import jax

# Names of a block's intermediate results: its input, products with weights, attention's output.
BLOCK_INPUT = "block_input"
PRODUCT = "product"
ATTENTION = "attention"

_policies = jax.checkpoint_policies

# From the policy that keeps the most to the one that keeps the least. What is not kept is recomputed.
POLICIES = {
    # Every intermediate result.
    "none": None,
    # Products with weights and attention's output, so that only cheap operations are repeated.
    "dots": _policies.save_only_these_names(PRODUCT, ATTENTION),
    # The block's input and attention's output, so that attention over long sequences is computed once less (kernels
    # that recompute it in their own backward pass still do).
    "attention": _policies.save_only_these_names(ATTENTION),
    # The block's input.
    "full": _policies.nothing_saveable,
    # The block's input, in host memory.
    "offload": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[BLOCK_INPUT],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def rematerialised(block: Callable, policy: str) -> Callable:
    """The body of a scan over layers, keeping what the policy of that name says for its backward pass."""
    if policy == "none":
        return block
    # The body of a scan cannot be merged with its repetition, so nothing need prevent that.
    return jax.checkpoint(block, prevent_cse=False, policy=POLICIES[policy])
