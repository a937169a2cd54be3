"""A plan as text."""

from __future__ import annotations

from rope_jax.plan.chips import CHIPS, EFFICIENCY, GIB, MARGIN, USABLE
from rope_jax.plan.plan import Plan


def describe(plan: Plan, remat: str) -> str:
    """The plan as a table.

    Args:
        plan: the plan.
        remat: gradient checkpointing that it was made with.

    Returns:
        Lines of text.
    """
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
    lines += [f"  {c.kind:<24}{c.bytes / GIB:>9.2f} GiB in {c.count:,}" for c in plan.compiled.collectives]
    lines += [
        f"chips        fits: {MARGIN} times the sum, and the compiled program, are within {USABLE:.0%} of its memory",
        f"             close: only the sum is. Hours at {EFFICIENCY:.0%} of peak FLOPs, and at the links' full speed",
    ]
    for chip in CHIPS:
        compute, sent = plan.hours(chip)
        lines.append(
            f"  {chip.name:<9}{chip.memory / GIB:>4.0f} GiB  {plan.verdict(chip):<6}{compute:>9.1f} h computing"
            f"{sent:>9.1f} h sending"
        )
    return "\n".join(lines)


def _memory(plan: Plan, remat: str) -> list[str]:
    memory, compiled = plan.memory, plan.compiled
    lines = [f"memory       per device, GiB, in the {memory.largest} pass, which needs most (remat '{remat}')"]
    largest = max(memory.terms, key=lambda term: memory.terms[term])
    for term, size in sorted(memory.terms.items(), key=lambda item: -item[1]):
        lines.append(f"  {term:<24}{size / GIB:>9.2f}{'  <- the largest' if term == largest else ''}")
    lines.append(f"  {'sum':<24}{memory.peak / GIB:>9.2f}")
    if memory.host:
        lines.append(f"  {'in the host':<24}{memory.host / GIB:>9.2f}")
    held = compiled.arguments + compiled.temporary
    return [
        *lines,
        f"  {'compiled for a CPU':<24}{held / GIB:>9.2f}  arguments {compiled.arguments / GIB:.2f} (donated "
        f"{compiled.donated / GIB:.2f}), temporary {compiled.temporary / GIB:.2f}; {compiled.seconds:.0f} s",
    ]
