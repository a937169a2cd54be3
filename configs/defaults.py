"""The config that the files beside this one start from: every field of `rope_jax.commands.fields`, at its default."""

from ml_collections import ConfigDict

from rope_jax.commands.fields import FIELDS


def get_config() -> ConfigDict:
    nested: dict = {}
    for field in FIELDS:
        *sections, name = field.name.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = field.default
    return ConfigDict(nested)
