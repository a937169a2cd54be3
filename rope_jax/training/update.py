"""A training run on its mesh: state, shardings, and the compiled update."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding

from rope_jax.data.mixed import SHORT
from rope_jax.errors import InputError
from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params, param_shardings
from rope_jax.rope.embedding import ScaleVector
from rope_jax.sharding import batch_sharding, check_batch, replicated
from rope_jax.training.config import TrainConfig
from rope_jax.training.context import check_length
from rope_jax.training.objective import LoraObjective, Objective, WithScaleVector
from rope_jax.training.state import TrainState, Variables, create_state
from rope_jax.training.step import summed_loss, train_step

# Memory of the host that devices read and write themselves.
HOST = "pinned_host"


@dataclasses.dataclass(frozen=True)
class Training:
    """What an update is compiled for, apart from the shape of the scale vector. Hashable; devices may be virtual."""

    model: LlamaConfig
    config: TrainConfig
    mesh: Mesh

    @property
    def objective(self) -> Objective:
        """What is trained."""
        lora, learn = self.config.lora, self.config.learn
        weights = LoraObjective(self.model, lora) if lora else Objective(self.model)
        return WithScaleVector(self.model, weights, learn) if learn else weights

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """Optimizer of all that is trained."""
        return self.objective.optimizer(self.config.optimizer)

    def check(self) -> None:
        """Raises InputError if low-rank targets do not fit the model, parameters, rows or tokens do not divide over the
        mesh, or its devices cannot reach host memory that the run needs."""
        if self.config.lora:
            self.config.lora.check(self.model)
        self.objective.shardings(self.mesh)
        try:
            check_batch(self.mesh, self.config.rows, "global_batch")
        except InputError as error:
            message = str(error).replace("`global_batch`", "`global_batch` / `accumulation`")
            raise InputError(message, field="global_batch") from None
        check_length(self.mesh, self.config.length)
        if self.config.offload_optimizer:
            check_host_memory(self.mesh, "offload_optimizer")
        if self.model.remat == "offload":
            check_host_memory(self.mesh, "remat")

    def loss(self, frozen: Variables) -> Callable:
        """The loss of `trained` and rows that `train_step` takes; `frozen` is what the objective keeps of the base."""

        def loss(trained, rows):
            variables = self.objective.variables(trained, frozen)
            return summed_loss(variables, rows, self.model, self.config.loss_chunk, self.mesh)

        return loss

    def state_shardings(self, trained: Any) -> TrainState:
        """Shardings of the state between updates. The optimizer state is sharded like the parameters `trained`."""
        shardings, whole = self.objective.shardings(self.mesh), replicated(self.mesh)
        by_path = dict(jax.tree_util.tree_flatten_with_path(shardings)[0])

        def place(path, leaf) -> NamedSharding:
            # A moment lies in the optimizer state under the path of its parameter.
            ends = (path[start:] for start in range(len(path)))
            sharding = next((by_path[end] for end in ends if end in by_path), whole)
            return sharding.with_memory_kind(HOST) if self.config.offload_optimizer and leaf.ndim else sharding

        opt_state = jax.eval_shape(self.optimizer.init, trained)
        return TrainState(whole, shardings, jax.tree_util.tree_map_with_path(place, opt_state))

    def abstract_base(self, rope: ScaleVector) -> Variables:
        """Shapes, dtypes and shardings of the model that training starts from; `rope` is taken for its shape."""
        params = abstract(abstract_params(self.model), param_shardings(self.model, self.mesh))
        vector = abstract(rope, jax.tree.map(lambda _: replicated(self.mesh), rope))
        return Variables(params, vector, original=vector if self.config.mix else None)

    def abstract_state(self, rope: ScaleVector) -> TrainState:
        """Shapes, dtypes and shardings of the state between updates; `rope` is taken for its shape."""
        trained = jax.eval_shape(self.objective.start, self.abstract_base(rope))
        state = jax.eval_shape(partial(create_state, optimizer=self.optimizer), trained)
        return abstract(state, self.state_shardings(trained))

    def abstract_rows(self) -> dict:
        """Shapes, dtypes and shardings of the batch of an update."""
        shape = self.config.accumulation, self.config.rows, self.config.length
        rows = jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(self.mesh, leading=1))
        found = dict.fromkeys(("tokens", "segment_ids", "positions"), rows)
        flags = jax.ShapeDtypeStruct(shape[:1], bool, sharding=replicated(self.mesh))
        return found | ({SHORT: flags} if self.config.mix else {})

    def trace(self, rope: ScaleVector) -> jax.stages.Traced:
        """Traces the update from shapes alone: the program that `train` compiles from arrays."""
        frozen = self.objective.frozen(self.abstract_base(rope))
        with jax.set_mesh(self.mesh):
            return update.trace(self.abstract_state(rope), frozen, self.abstract_rows(), self)


@partial(jax.jit, static_argnames="training", donate_argnames="state")
def update(state: TrainState, frozen: Variables, rows: dict, training: Training) -> tuple[TrainState, dict]:
    """One `train_step` on the mesh, of rows like `Training.abstract_rows`; the donated state keeps its shardings."""
    shardings = training.state_shardings(state.params)
    if training.config.offload_optimizer:
        device = jax.tree.map(lambda sharding: sharding.with_memory_kind("device"), shardings.opt_state)
        state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, device))
    loss = training.loss(frozen)
    state, metrics = train_step(state, rows, loss, training.optimizer, training.config.check_finite)
    return jax.device_put(state, shardings), metrics


def abstract(tree: Any, shardings: Any) -> Any:
    """Shapes and dtypes of a pytree, with a sharding for each."""
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree, shardings)


def check_host_memory(mesh: Mesh, field: str) -> None:
    """Raises InputError if devices cannot reach host memory; `field` asks for it."""
    device = mesh.devices.flat[0]
    kinds = [memory.kind for memory in device.addressable_memories()]
    if HOST not in kinds:
        raise InputError(
            f"`{field}` needs the memory '{HOST}', and a {device.device_kind} has {', '.join(kinds)}: turn it off"
        )
