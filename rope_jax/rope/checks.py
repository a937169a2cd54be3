"""Checks of numbers that several functions of this room take."""

import operator

from rope_jax.errors import InputError

# Bases and factors are kept in float32.
LARGEST = 1e38
LARGEST_ATTENTION_FACTOR = 1e6


def whole(field: str, value: int) -> int:
    """The integer `value` of the argument `field` as a Python int; refuses any other number."""
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"`{field}` is {value!r}: it must be a whole number") from None


def check_head_dim(head_dim: int) -> None:
    """Requires a head dimension that splits into pairs."""
    if head_dim < 2 or head_dim % 2:
        raise InputError(
            f"`head_dim` is {head_dim}: rotary embedding rotates pairs, so it must be a positive even number"
        )


def check_base(base: float) -> None:
    """Requires a rotary base that gives decreasing frequencies."""
    if not 1 < base < LARGEST:
        raise InputError(f"`base` is {base}: it must be above 1 and finite (LLaMA2 uses 10000)")


def check_extension(extension: float) -> None:
    """Requires an extension factor that does not shorten the context."""
    if not 1 <= extension < LARGEST:
        raise InputError(
            f"`extension` is {extension}: it is the extended context over the original one, so it must be finite and"
            " at least 1"
        )


def check_attention_factor(attention_factor: float) -> None:
    """Requires a factor on cos and sin that float32 holds, and its square, by which attention logits scale."""
    if not 1 / LARGEST_ATTENTION_FACTOR <= attention_factor <= LARGEST_ATTENTION_FACTOR:
        raise InputError(
            f"`attention_factor` is {attention_factor}: it must be above 0, and at most {LARGEST_ATTENTION_FACTOR:g} "
            "(YaRN's is 1.07 for twice the context)"
        )


def check_original(original: int, least: int = 2) -> None:
    """Requires an original context of at least some tokens."""
    if original < least:
        raise InputError(f"`original` is {original}: give the context that the model was trained with, in tokens")
