"""Configs from the list of fields."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from rope_jax.cli.starts import STARTS
from rope_jax.commands.fields import DEFAULTS


def default_config() -> ConfigDict:
    """Every field at its default."""
    nested: dict = {}
    for name, value in DEFAULTS.items():
        *sections, last = name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return ConfigDict(nested)


def start(command: str) -> ConfigDict:
    """What a command such as 'extend' starts from."""
    config = default_config()
    change(config, STARTS[command])
    return config


def change(config: ConfigDict, values: Mapping[str, Any]) -> None:
    """Sets fields by name, such as 'train.steps'."""
    with config.unlocked():
        config.update_from_flattened_dict(values)
