"""What training changes, and the optimizer that changes it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rope_jax.errors import InputError
from rope_jax.sharding import replicated

# The host's memory that devices read and write by themselves.
HOST = "pinned_host"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (arXiv 1711.05101). The defaults are the paper's recipe for fine-tuning.

    Attributes:
        learning_rate: peak learning rate.
        schedule: 'constant' or 'cosine' (to zero at `steps`).
        warmup_steps: linear warm-up, 0 for none.
        steps: length of the run; only 'cosine' reads it.
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled weight decay.
        clip_norm: global gradient norm to clip at, 0 for none.
        mu_dtype: dtype of the first moment, 'float32' or 'bfloat16'. The second stays float32: a step changes it by
            about `1 - b2`, a thousandth, which bfloat16 with its steps of 1/256 would round away.
    """

    learning_rate: float = 2e-5
    schedule: str = "constant"
    warmup_steps: int = 0
    steps: int = 1000
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    mu_dtype: str = "float32"

    def __post_init__(self):
        if self.schedule not in ("constant", "cosine"):
            raise InputError(f"schedule is {self.schedule!r}: use 'constant' or 'cosine'")
        if not self.learning_rate > 0:
            raise InputError(f"learning_rate is {self.learning_rate}: it must be above 0")
        if self.mu_dtype not in ("float32", "bfloat16"):
            raise InputError(f"mu_dtype is {self.mu_dtype!r}: use 'float32' or 'bfloat16'")
        if not 0 <= self.warmup_steps <= self.steps:
            raise InputError(f"warmup_steps is {self.warmup_steps}: it must lie in 0 .. steps = {self.steps}")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The state of training; a pytree.

    Attributes:
        step: int32 scalar, updates made so far.
        params: parameters of `Llama`.
        opt_state: state of the optimizer.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW with the configured schedule.

    Args:
        config: see `OptimizerConfig`.

    Returns:
        The optax transformation.
    """
    after = config.steps - config.warmup_steps
    schedule = (
        optax.constant_schedule(config.learning_rate)
        if config.schedule == "constant"
        else optax.cosine_decay_schedule(config.learning_rate, max(after, 1))
    )
    if config.warmup_steps:
        rise = optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)
        schedule = optax.join_schedules([rise, schedule], [config.warmup_steps])
    adamw = optax.adamw(
        schedule,
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=config.mu_dtype,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw


def create_state(params, optimizer: optax.GradientTransformation) -> TrainState:
    """State before the first update.

    Args:
        params: parameters; the state takes them over.
        optimizer: from `make_optimizer`.

    Returns:
        The state, step 0.
    """
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def state_shardings(params, shardings, optimizer: optax.GradientTransformation, mesh) -> TrainState:
    """Shardings of a `TrainState`: moments are laid out as their parameters.

    Args:
        params: what is trained, concrete or abstract.
        shardings: a tree of shardings like it.
        optimizer: of these parameters.
        mesh: the mesh.

    Returns:
        A `TrainState` of shardings.
    """
    whole = replicated(mesh)
    by_path = dict(jax.tree_util.tree_flatten_with_path(shardings)[0])

    def layout(path, _):
        # A moment lies in the optimizer's state under the path of its parameter.
        ends = (path[start:] for start in range(len(path)))
        return next((by_path[end] for end in ends if end in by_path), whole)

    opt_state = jax.tree_util.tree_map_with_path(layout, jax.eval_shape(optimizer.init, params))
    return TrainState(whole, shardings, opt_state)


def in_host_memory(state: TrainState, shardings: TrainState) -> TrainState:
    """The same shardings, with moments in the memory of each device's host.

    Args:
        state: concrete or abstract.
        shardings: from `state_shardings`.

    Returns:
        A `TrainState` of shardings; step counts and the like stay on the devices.
    """

    def moved(leaf, sharding):
        return sharding.with_memory_kind(HOST) if leaf.ndim else sharding

    return dataclasses.replace(shardings, opt_state=jax.tree.map(moved, state.opt_state, shardings.opt_state))


def check_host_memory(mesh: Mesh, field: str) -> None:
    """Checks that devices can reach their host's memory.

    Args:
        mesh: the devices.
        field: config field that asks for it.

    Raises:
        InputError: if they cannot.
    """
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise InputError(
            f"{field} needs the memory '{HOST}', and a {device.device_kind} has {', '.join(kinds)}: set it otherwise"
        )
