"""A plan as text."""

from rope_jax.plan.chips import CHIPS, EFFICIENCY, GIB, MARGIN, USABLE
from rope_jax.plan.plan import Plan


def describe(plan: Plan, remat: str) -> str:
    """The plan, made with gradient checkpointing `remat`, as lines of text."""
    trained = f"; {plan.trained:,} numbers are trained" if plan.trained != plan.parameters else ""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    lines = [
        f"parameters   {plan.parameters:,}{trained}",
        f"mesh         {mesh}; {plan.tokens:,} tokens per step, {plan.steps:,} steps",
        *_memory(plan, remat),
        f"FLOPs        {plan.model_flops:.3g} per step for the model, {plan.step_flops:.3g} with recomputation",
        "collectives  per device and step, as compiled for CPUs: in float32, and with all-reduce where other compilers",
        "             use reduce-scatter, so that accelerators send less",
    ]
    lines += [f"  {c.kind:<24}{c.bytes / GIB:>9.2f} GiB in {c.count:,}" for c in plan.collectives]
    lines += [
        f"chips        fits: {MARGIN} times the sum, and the compiled program, are within {USABLE:.0%} of its memory",
        f"             close: only the sum is. Hours at an MFU of {EFFICIENCY:.0%} (of the model's FLOPs), and at the "
        "links' full speed",
    ]
    for chip in CHIPS:
        compute, sent = plan.hours(chip)
        lines.append(
            f"  {chip.name:<9}{chip.memory / GIB:>4.0f} GiB  {plan.verdict(chip):<6}{compute:>9.1f} h computing"
            f"{sent:>9.1f} h sending"
        )
    return "\n".join(lines)


def _memory(plan: Plan, remat: str) -> list[str]:
    memory = plan.memory
    lines = [f"memory       per device, GiB, in the {memory.largest} pass, which needs most (remat '{remat}')"]
    for place, (term, size) in enumerate(sorted(memory.terms.items(), key=lambda item: -item[1])):
        lines.append(f"  {term:<24}{size / GIB:>9.2f}{'' if place else '  <- the largest'}")
    lines.append(f"  {'sum':<24}{memory.peak / GIB:>9.2f}")
    if memory.host:
        lines.append(f"  {'in the host':<24}{memory.host / GIB:>9.2f}")
    return [
        *lines,
        f"  {'compiled for a CPU':<24}{(plan.arguments + plan.temporary) / GIB:>9.2f}  arguments "
        f"{plan.arguments / GIB:.2f} (donated {plan.donated / GIB:.2f}), temporary {plan.temporary / GIB:.2f}; "
        f"{plan.seconds:.0f} s",
    ]
