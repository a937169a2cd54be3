"""Gradient checkpointing (arXiv 1604.06174): what a block keeps for its backward pass, by the name of a policy."""

from __future__ import annotations

from collections.abc import Callable

import jax

# From the policy that keeps the most to the one that keeps the least. What is not kept is recomputed.
#
# - 'none' keeps every intermediate result;
# - 'dots' keeps the products with weights and attention's output, so that only cheap operations are repeated;
# - 'attention' keeps the block's input and attention's output, so that attention over long sequences is computed once
#   less (kernels that recompute it in their own backward pass still do);
# - 'full' keeps the block's input;
# - 'offload' keeps the block's input in host memory.
POLICIES = ("none", "dots", "attention", "full", "offload")

# Names of a block's intermediate results: its input, products with weights, attention's output.
BLOCK_INPUT = "block_input"
PRODUCT = "product"
ATTENTION = "attention"


def rematerialised(block: Callable, policy: str) -> Callable:
    """A block that keeps what `policy` says.

    Args:
        block: function of one layer, the body of a scan.
        policy: one of `POLICIES`.

    Returns:
        The same function, differentiated with fewer residuals.
    """
    if policy == "none":
        return block
    policies = jax.checkpoint_policies
    keeps = {
        "dots": policies.save_only_these_names(PRODUCT, ATTENTION),
        "attention": policies.save_only_these_names(ATTENTION),
        "full": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    # The body of a scan cannot be merged with its repetition, so nothing need prevent that.
    return jax.checkpoint(block, prevent_cse=False, policy=keeps[policy])
