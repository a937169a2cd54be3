"""Checks calls against the array types in signatures, shapes included."""

import inspect
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray


def check_arrays(function):
    """Has beartype check the parameters and the result that are arrays.

    Other annotations are pyright's to check, and tests pass values of other types on purpose.
    """
    annotations = function.__annotations__
    if not any(map(_has_array, annotations.values())):
        return function
    function.__annotations__ = {name: kind if _has_array(kind) else Any for name, kind in annotations.items()}
    return beartype(function, conf=BeartypeConf(is_pep484_tower=True))


def _has_array(annotation) -> bool:
    is_array = inspect.isclass(annotation) and issubclass(annotation, AbstractArray)
    return is_array or any(map(_has_array, get_args(annotation)))
