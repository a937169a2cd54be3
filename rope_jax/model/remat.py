"""What a block keeps for its backward pass, by name.

What is not kept is computed once more from what is (gradient checkpointing, arXiv 1604.06174).
"""

from __future__ import annotations

import flax.linen as nn
import jax

POLICIES = ("none", "dots", "attention", "full", "offload")

# What `rope_jax.model.llama` calls the states that enter a block, products with weights, and attention's output.
BLOCK_INPUT = "block_input"
PRODUCT = "product"
ATTENTION = "attention"


def rematerialised(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """A block that keeps less, from that which keeps most to that which keeps least:

    - 'none' keeps every intermediate result;
    - 'dots' keeps what matrix products with weights gave, and attention's output: only what is cheap is repeated;
    - 'attention' keeps the block's input and attention's output, so that attention over long sequences is not formed
      a time more (kernels with a backward pass of their own still are);
    - 'full' keeps the block's input;
    - 'offload' keeps the block's input in the host's memory.

    Args:
        block: module of one layer, the body of a scan.
        policy: one of `POLICIES`.

    Returns:
        The module to scan over.
    """
    if policy == "none":
        return block
    policies = jax.checkpoint_policies
    attention = policies.save_only_these_names(ATTENTION)
    keeps = {
        "dots": policies.save_only_these_names(PRODUCT, ATTENTION),
        "attention": attention,
        "full": policies.nothing_saveable,
        "offload": policies.save_and_offload_only_these_names(
            names_which_can_be_saved=[],
            names_which_can_be_offloaded=[BLOCK_INPUT],
            offload_src="device",
            offload_dst="pinned_host",
        ),
    }
    # A scan's body cannot be merged with the one that it repeats, so that nothing need prevent it.
    return nn.remat(block, prevent_cse=False, policy=keeps[policy])
