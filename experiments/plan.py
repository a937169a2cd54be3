"""`python -m experiments.extend --plan`: what fine-tuning takes and where it fits, without an accelerator."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from experiments import settings
from experiments.names import renamed
from experiments.progress import say
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.interop.hf_config import read_config
from rope_jax.model.config import LlamaConfig
from rope_jax.plan.chips import CHIPS, EFFICIENCY, GIB, MARGIN, USABLE
from rope_jax.plan.plan import Plan, plan
from rope_jax.rope.embedding import ScaleVector, identity
from rope_jax.sharding import AXES, make_mesh
from rope_jax.training.update import Training


def plan_run(config: ConfigDict, name: str, mesh: str) -> Plan:
    """Plans the fine-tuning of a run and prints the plan.

    Args:
        config: the run's config.
        name: of the run.
        mesh: value of `--mesh`; empty for `config.mesh`.

    Returns:
        The plan.

    Raises:
        InputError: naming the flag or field that cannot be used.
    """
    sizes = mesh_sizes(mesh, dict(config.mesh))
    count = math.prod(sizes.values())
    model, own = shape(config)
    wanted = config.model.attention
    model = dataclasses.replace(model, attention="cpu")
    extension = settings.model_extension(config, model, own)
    run = settings.fine_tuning(config, extension.measure.target)
    with settings.renamed(config, "train", length="config.context.target"):
        training = Training(model, run, make_mesh(**sizes, devices=jax.devices()[:count]))
        training.check()
    say(
        f"{name}: compiling the training step for {count} virtual devices; attention is compiled as 'cpu', in chunks"
        + ("" if wanted == "cpu" else ", in place of a kernel that only its own platform can compile")
    )
    result = plan(training, own)
    say(describe(result, config.model.remat))
    return result


def virtual_devices(config: ConfigDict, mesh: str) -> None:
    """Has JAX see as many devices as a plan needs, on the CPU; before JAX has looked for any.

    Args:
        config: the run's config.
        mesh: value of `--mesh`.

    Raises:
        InputError: if `mesh` cannot be used.
    """
    jax.config.update("jax_platforms", "cpu")  # what else this machine has is left alone
    jax.config.update("jax_num_cpu_devices", math.prod(mesh_sizes(mesh, dict(config.mesh)).values()))


def mesh_sizes(flag: str, default: dict[str, int]) -> dict[str, int]:
    """Sizes of all axes.

    Args:
        flag: such as 'data=2,fsdp=4'; axes that it leaves out have one device. Empty for the default.
        default: sizes by axis; a -1 is one device.

    Returns:
        Axis to size.

    Raises:
        InputError: for what is no axis or no size.
    """
    if not flag:
        return {axis: max(size, 1) for axis, size in default.items()}
    sizes = dict.fromkeys(AXES, 1)
    for part in flag.split(","):
        axis, _, size = part.partition("=")
        if axis not in AXES or not size.isdecimal() or int(size) < 1:
            raise InputError(
                f"--mesh={flag}: {part!r} is no size of an axis; write some of {', '.join(AXES)} as fsdp=8"
            )
        sizes[axis] = int(size)
    return sizes


def shape(config: ConfigDict) -> tuple[LlamaConfig, ScaleVector]:
    """The model to plan for, as an accelerator would compute it, and its own scale vector; no weights are read."""
    if config.plan.model or config.model.path:
        # A config that ships names a folder beside it, from wherever the command is run.
        beside = Path(__file__).resolve().parents[1] / config.plan.model
        found = read_config(beside if config.plan.model else settings.model_folder(config.model.path))
        return settings.computed(config, found.config, "gpu"), found.rope
    with renamed({"path": "config.pretrain.tokenizer"}):
        tokenizer = load_tokenizer(config.pretrain.tokenizer)
    model = settings.pretrained_model(config, tokenizer)
    return model, identity(model.head_dim)


def describe(plan: Plan, remat: str) -> str:
    """The plan as text."""
    memory, compiled = plan.memory, plan.compiled
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    lines = [
        f"parameters   {plan.parameters:,}"
        + (f"; {plan.trained:,} numbers are trained" if plan.trained != plan.parameters else ""),
        f"mesh         {mesh}; {plan.tokens:,} tokens per step, {plan.steps:,} steps",
        f"memory       per device, GiB, in the {memory.largest} pass, which needs most (remat '{remat}')",
    ]
    largest = max(memory.terms, key=memory.terms.get)
    for term, size in sorted(memory.terms.items(), key=lambda item: -item[1]):
        lines.append(f"  {term:<24}{size / GIB:>9.2f}{'  <- the largest' if term == largest else ''}")
    lines.append(f"  {'sum':<24}{memory.peak / GIB:>9.2f}")
    if memory.host:
        lines.append(f"  {'in the host':<24}{memory.host / GIB:>9.2f}")
    held = compiled.arguments + compiled.temporary
    lines += [
        f"  {'compiled for a CPU':<24}{held / GIB:>9.2f}  arguments {compiled.arguments / GIB:.2f} (donated "
        f"{compiled.donated / GIB:.2f}), temporary {compiled.temporary / GIB:.2f}; {compiled.seconds:.0f} s",
        f"FLOPs        {plan.model_flops:.3g} per step for the model, {plan.step_flops:.3g} with recomputation",
        "collectives  per device and step, as a CPU's compiler has them: float32, and sums whole where other compilers",
        "             scatter them: more than an accelerator sends",
    ]
    lines += [f"  {c.kind:<24}{c.bytes / GIB:>9.2f} GiB in {c.count:,}" for c in compiled.collectives]
    lines += [
        f"chips        fits: {MARGIN} times the sum and what is compiled are within {USABLE:.0%} of its memory",
        f"             close: the sum is; hours at {EFFICIENCY:.0%} of the peak, and of sending at the links' speed",
    ]
    for chip in CHIPS:
        compute, sent = plan.hours(chip)
        lines.append(
            f"  {chip.name:<9}{chip.memory / GIB:>4.0f} GiB  {plan.verdict(chip):<6}{compute:>9.1f} h computing"
            f"{sent:>9.1f} h sending"
        )
    return "\n".join(lines)
