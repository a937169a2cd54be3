"""The config that the files beside this one start from: every field of `rope_jax.commands.fields`, at its default."""

from rope_jax.cli.config import default_config as get_config

__all__ = ["get_config"]
