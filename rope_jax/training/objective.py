"""The kinds of training: all weights, a low-rank update, and the scale vector together with either."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from rope_jax.model.config import LlamaConfig
from rope_jax.model.llama import abstract_params, param_shardings
from rope_jax.model.lora import LoraConfig, apply_lora, init_lora, lora_axes, merge_lora
from rope_jax.rope.embedding import identity
from rope_jax.sharding import replicated, shardings_of
from rope_jax.training.config import OptimizerConfig, make_optimizer
from rope_jax.training.learn import LearnConfig, from_logarithms, to_logarithms
from rope_jax.training.state import Variables


@dataclasses.dataclass(frozen=True)
class Objective:
    """What is trained, and how the model computes with it; here all weights.

    Three values recur. `base`: the model that training starts from, without adapters. `trained`: the pytree of arrays
    that gradients are taken of. `frozen`: the base, with None for what the steps do not need of it.
    """

    model: LlamaConfig

    def shardings(self, mesh: Mesh) -> Any:
        """Shardings of `trained`, a pytree of `NamedSharding`."""
        return param_shardings(self.model, mesh)

    def optimizer(self, config: OptimizerConfig) -> optax.GradientTransformation:
        """Optimizer of `trained`; `config` is that of the weights."""
        return make_optimizer(config)

    def frozen(self, base: Variables) -> Variables:
        """The part of `base` that every step needs."""
        return dataclasses.replace(base, params=None)

    def start(self, base: Variables) -> Any:
        """`trained` before the first update, float32 whatever the dtype of the weights.

        An update changes a weight by less than the spacing of 16-bit numbers, and the second moment, a square, falls
        below the least of float16.
        """
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), base.params)

    def variables(self, trained: Any, frozen: Variables) -> Variables:
        """What the model computes with."""
        return dataclasses.replace(frozen, params=trained)

    def result(self, trained: Any, frozen: Variables, mesh: Mesh) -> Variables:
        """The trained model, sharded, without adapters, in the dtype of the weights. Consumes `frozen.params`."""
        del mesh
        return Variables(jax.tree.map(lambda leaf: leaf.astype(self.model.param_dtype), trained), frozen.rope)


@dataclasses.dataclass(frozen=True)
class LoraObjective(Objective):
    """Trains a low-rank update beside frozen weights. `trained` is what `init_lora` returns."""

    lora: LoraConfig

    def shardings(self, mesh: Mesh) -> dict:
        initial = partial(init_lora, model=self.model, lora=self.lora)
        abstract = jax.eval_shape(initial, abstract_params(self.model))
        return shardings_of(abstract, lora_axes(self.model, self.lora), mesh)

    def frozen(self, base: Variables) -> Variables:
        return base

    def start(self, base: Variables) -> dict:
        return init_lora(base.params, self.model, self.lora)

    def variables(self, trained: dict, frozen: Variables) -> Variables:
        params, adapters = apply_lora(frozen.params, trained, self.lora)
        return dataclasses.replace(frozen, params=params, adapters=adapters)

    def result(self, trained: dict, frozen: Variables, mesh: Mesh) -> Variables:
        merge = partial(merge_lora, lora=self.lora)
        shardings = param_shardings(self.model, mesh)
        params = jax.jit(merge, out_shardings=shardings, donate_argnums=0)(frozen.params, trained)
        return Variables(params, frozen.rope)


@dataclasses.dataclass(frozen=True)
class WithScaleVector(Objective):
    """Trains the scale vector together with the weights. `trained` is `{"weights": ..., "rope": logarithms}`."""

    weights: Objective
    learn: LearnConfig

    def shardings(self, mesh: Mesh) -> dict:
        vector = jax.eval_shape(lambda: identity(self.model.head_dim))
        vector = jax.tree.map(lambda _: replicated(mesh), vector)
        return {"weights": self.weights.shardings(mesh), "rope": vector}

    def optimizer(self, config: OptimizerConfig) -> optax.GradientTransformation:
        # Logarithms get Adam without weight decay.
        adam = optax.adam(self.learn.learning_rate)
        attention = adam if self.learn.attention_factor else optax.set_to_zero()

        def labels(trained):
            weights = jax.tree.map(lambda _: "weights", trained["weights"])
            vector = dataclasses.replace(trained["rope"], factors="factors", attention_factor="attention")
            return {"weights": weights, "rope": vector}

        weights = self.weights.optimizer(config)
        return optax.partition({"weights": weights, "factors": adam, "attention": attention}, labels)

    def frozen(self, base: Variables) -> Variables:
        return dataclasses.replace(self.weights.frozen(base), rope=None)

    def start(self, base: Variables) -> dict:
        return {"weights": self.weights.start(base), "rope": to_logarithms(base.rope)}

    def variables(self, trained: dict, frozen: Variables) -> Variables:
        found = self.weights.variables(trained["weights"], frozen)
        return dataclasses.replace(found, rope=from_logarithms(trained["rope"]))

    def result(self, trained: dict, frozen: Variables, mesh: Mesh) -> Variables:
        found = self.weights.result(trained["weights"], frozen, mesh)
        return dataclasses.replace(found, rope=from_logarithms(trained["rope"]))
