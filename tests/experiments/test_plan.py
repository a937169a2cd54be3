"""`--plan`: what it says of a small run, what it refuses, and the configs that ship."""

import math

import pytest

from configs import llama2_13b_16k
from rope_jax.cli.extend import mesh_sizes, plan_on, steps_to_trace
from rope_jax.cli.shell import Terminal
from rope_jax.commands.reporter import Silent
from rope_jax.errors import InputError
from rope_jax.plan.chips import CHIPS
from tests.experiments.helpers import small_config
from tests.processes import REPOSITORY, output


def test_plan_of_a_small_run(capsys):
    result = plan_on(small_config("/nowhere"), "small", mesh_sizes("fsdp=4,context=2", {}), Terminal())
    said = capsys.readouterr().out
    assert math.prod(result.mesh.values()) == 8 and result.tokens == 8 * 128 and result.steps == 4
    assert {"all-gather", "all-reduce"} <= {kind.kind for kind in result.collectives}
    assert f"parameters   {result.parameters:,}" in said
    assert "mesh         fsdp 4, context 2; 1,024 tokens per step, 4 steps" in said
    for chip in ("A100-80", "H100", "H200", "v4", "v5p", "v6e"):
        assert f"\n  {chip}" in said
    assert said.count(" fits ") == 6
    # An MFU counts the model's FLOPs: recomputation takes no further hours.
    assert result.step_flops > result.model_flops
    hours = 4 * result.model_flops / (8 * 0.4 * CHIPS[0].flops) / 3600
    assert result.hours(CHIPS[0])[0] == pytest.approx(hours, rel=1e-12)


def test_flags():
    assert mesh_sizes("", {"data": 2, "fsdp": -1}) == {"data": 2, "fsdp": 1}
    assert steps_to_trace("") is None and steps_to_trace("3:5") == (3, 5)
    for flag in ("fdsp=8", "fsdp=0", "fsdp"):
        with pytest.raises(InputError, match=rf"--mesh={flag}: '{flag}' is not the size of an axis; .* data, fsdp"):
            mesh_sizes(flag, {})
    for flag in ("3", "5:3", "0:2", "a:b"):
        with pytest.raises(InputError, match=r"--profile=.* such as 10:12"):
            steps_to_trace(flag)


def steady(said):
    """The lines of a plan without what depends on the compiler's release and on the machine's speed."""
    compiled = ("  compiled for a CPU", "  all-", "  reduce-scatter")
    return [line.partition(" h computing")[0] for line in said.split("\n") if not line.startswith(compiled)]


@pytest.mark.slow
def test_a_config_that_ships():
    """What a user types, on a machine without an accelerator, the hub or the weights."""
    said = output("-m", "experiments.extend", "--config=configs/llama2_8k.py", "--plan", "--mesh=fsdp=8")
    assert "parameters   6,738,415,616" in said
    page = (REPOSITORY / "docs" / "planning.md").read_text(encoding="utf-8")
    sample = page[page.index("llama2_8k: sequences") :].partition("\n```")[0]
    assert steady(said.rstrip("\n")) == steady(sample)
    assert not (REPOSITORY / "runs" / "llama2_8k").exists()


@pytest.mark.slow
def test_a_large_config_that_ships():
    result = plan_on(llama2_13b_16k.get_config(), "llama2_13b_16k", mesh_sizes("fsdp=8", {}), Silent())
    assert result.parameters == 13_015_864_320  # as published
