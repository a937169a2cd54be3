"""Accelerators that a plan is compared with."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, by its data sheet.

    Attributes:
        name: usual name.
        flops: peak of dense bfloat16 products, FLOP/s.
        memory: HBM, bytes.
        link: bandwidth to its neighbours over all links, bytes/s in one direction.
    """

    name: str
    flops: float
    memory: int
    link: float


CHIPS = (
    # NVIDIA's data sheets, SXM modules. Peaks without sparsity, which doubles the printed ones of H100 and H200; of
    # the NVLink bandwidth, printed for both directions together, one half. Memory as the driver reports it.
    Chip("A100-80", 312e12, 80 * GIB, 300e9),
    Chip("H100", 989e12, 80 * GIB, 450e9),
    Chip("H200", 989e12, 140 * GIB, 450e9),  # 141e9 bytes on the sheet would be 131 GiB; the driver reports 143,771 MiB
    # cloud.google.com/tpu/docs, a page per generation: 2400, 4800 and 3584 Gbit/s of interconnect per chip.
    Chip("v4", 275e12, 32 * GIB, 300e9),
    Chip("v5p", 459e12, 95 * GIB, 600e9),
    Chip("v6e", 918e12, 32 * GIB, 448e9),
)

# Share of a chip's memory that arrays of a step can use: the rest goes to the runtime and to fragmentation.
USABLE = 0.92

# Factor by which a compiler may exceed the account of `memory.py`: TPU v5p's kept 1.23 times as much for a step of
# LLaMA2-7B at 8192 tokens on 8 chips (31.5 GiB, compiled without the chips, against 25.7 in the account).
MARGIN = 1.25

# MFU that training of models of this kind reaches: 0.40 to 0.55 in published runs (PaLM 0.46, arXiv
# 2204.02311; LLaMA 3 0.38 to 0.43, 2407.21783).
EFFICIENCY = 0.4
