"""Checks calls against the array types in signatures, shapes included."""

import functools
import inspect
import operator
from typing import Any, Union, get_args

import jax
import numpy as np
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray


def check_arrays(function):
    """Has beartype check the parameters and the result that are arrays, of JAX or of NumPy.

    Other annotations are pyright's to check, and tests pass values of other types on purpose.
    """
    annotations = function.__annotations__
    if not any(map(_has_array, annotations.values())):
        return function
    function.__annotations__ = {
        name: _with_numpy(kind) if _has_array(kind) else Any for name, kind in annotations.items()
    }
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))


def _is_array(annotation) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, AbstractArray)


def _has_array(annotation) -> bool:
    return _is_array(annotation) or any(map(_has_array, get_args(annotation)))


def _with_numpy(annotation):
    """Arrays of NumPy, which JAX takes everywhere, beside those of JAX; also in a union."""
    if _is_array(annotation):
        return annotation.dtype[jax.Array | np.ndarray, annotation.dim_str]
    if isinstance(annotation, type(int | str)) or getattr(annotation, "__origin__", None) is Union:
        return functools.reduce(operator.or_, map(_with_numpy, get_args(annotation)))
    return annotation
