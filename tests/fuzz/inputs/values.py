"""Paths and config fields."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from rope_jax.commands.fields import FIELDS, check_fields
from rope_jax.data.corpus import open_corpus
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.evaluation.babilong.stories import read_stories
from rope_jax.evaluation.haystack import read_haystack
from rope_jax.evaluation.longbench.rows import read_rows
from rope_jax.evaluation.longbench.scoring import read_scored
from rope_jax.evaluation.many_shot import read_examples
from rope_jax.evaluation.ruler.questions import read_squad
from rope_jax.interop.gguf_files import read_gguf_rope
from rope_jax.interop.huggingface import check_model
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.model.usage_file import read_usage
from rope_jax.rope.embedding import identity
from rope_jax.runs.folder import RunFolder
from tests.fuzz.inputs.factors import use_factors
from tests.fuzz.inputs.kinds import Input

PATHS: dict[str, tuple[Callable[[str], object], str]] = {
    "read_model": (check_model, "{}"),
    "read_gguf_rope": (lambda path: read_gguf_rope(Path(path)), "{}.gguf"),
    "load_tokenizer": (load_tokenizer, "{}"),
    "a sentencepiece model": (load_tokenizer, "{}.model"),
    "factors": (lambda path: use_factors(path)(Path("/")), "{}.json"),
    "a CSV of factors": (lambda path: use_factors(path)(Path("/")), "{}.csv"),
    "read_usage": (lambda path: read_usage(Path(path)), "{}"),
    "open_corpus": (lambda path: open_corpus("text_folder", path, "cache"), "{}"),
    "pg19": (lambda path: open_corpus("pg19", path, "cache"), "{}"),
    "RunFolder": (lambda path: RunFolder(Path(path)).check({}), "{}"),
    "a locked run": (lambda path: RunFolder(Path(path)).locked().__enter__(), "{}"),
    "rescale_folder": (
        lambda path: rescale_folder(path, "copy", identity(8), context=256, provenance={}),
        "{}",
    ),
    "read_scored": (lambda path: read_scored(Path(path)), "{}"),
    "read_rows": (lambda path: read_rows(Path(path), "qasper"), "{}"),
    "read_examples": (lambda path: read_examples(Path(path)), "{}"),
    "read_squad": (lambda path: read_squad(Path(path)), "{}"),
    "read_haystack": (lambda path: read_haystack(Path(path), 9), "{}"),
    "read_stories": (lambda path: read_stories(Path(path), "qa1"), "{}"),
}
_NAMES = {
    "300 characters": "x" * 300,
    "5000 characters": "/".join(["x" * 200] * 25),
    "a NUL": "a\0b",
    "no UTF-8": "a\udc80b",
    "no such file": "nowhere",
    "a link to itself": "loop",
    "below a link to itself": "loop/a",
    "below a file": "file/a",
    "a device": "zero",
    "a pipe": "pipe",
}


def path_input(random: Random) -> Input:
    """A name that no file has, or one that is none, for every function that takes a path."""
    what, (read, pattern) = random.choice(list(PATHS.items()))
    name = random.choice(list(_NAMES))

    def prepare(folder: Path) -> None:
        (folder / "file").write_text("")
        for made, target in (("loop", None), ("zero", "/dev/zero")):
            (folder / pattern.format(made)).symlink_to(target or pattern.format(made))
            if not (folder / made).is_symlink():
                (folder / made).symlink_to(target or made)
        os.mkfifo(folder / pattern.format("pipe"))

    def attempt(folder: Path) -> None:
        os.chdir(folder)
        read(str(folder / pattern.format(_NAMES[name])))

    if what in ("RunFolder", "a locked run") and name == "a NUL":  # no command line can hold one
        name = "a link to itself"
    new = what in ("RunFolder", "a locked run") and name in ("no such file", "no UTF-8")
    return Input("paths", f"{what}: {name}", prepare, attempt, "either" if new else "refused")


def field_input(random: Random) -> Input:
    """A field of the config with a value that it cannot have, or one at its bounds."""
    defaults = {field.name: field.default for field in FIELDS}
    field = random.choice(FIELDS)
    kind = field.element if isinstance(field.default, tuple) else type(field.default)
    wrong: dict[type, list] = {
        int: ["1", True, 1.5, None, [1], math.nan, math.inf, 2**31, 2**63, 10**400, -(10**400), 10**5000, b"1", 1j],
        float: ["1", False, None, [1.0], math.nan, math.inf, -math.inf, 1e300, -1e300, 10**400, 10**5000, 1j],
        str: [1, None, b"a", ["a", 1], True, 1.5],
        bool: [0, 1, "true", None, 1.0],
    }
    if field.name == "seed":
        wrong[int] = [value for value in wrong[int] if value != 2**31]
    values = [(value, "refused") for value in wrong[kind]]
    check = field.check
    if check and check.choices:
        values += [(value, "refused") for value in ("nothing", "\ud800", "x" * 10**6)]
        values += [(value, "accepted") for value in check.choices]
    elif check:
        step = 1 if kind is int else 1e-6
        for bound, outside in ((check.least, -step), (check.most, step), (check.above, 0), (check.below, 0)):
            if bound is not None and not (check.zero and bound + outside == 0):
                values.append((kind(bound + outside * max(1, abs(bound))), "refused"))
        values += [(kind(bound), "accepted") for bound in (check.least, check.most) if bound is not None]
        values += [(kind(0), "accepted")] if check.zero else []
    value, answer = random.choice(values)
    if isinstance(field.default, tuple):
        value = random.choice(((value,), [value] * 3, (*field.default, value)))
    return Input(
        "fields",
        f"{field.name} is {_shown(value)}",
        lambda folder: None,
        lambda folder: check_fields({**defaults, field.name: value}),
        answer,
    )


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:
        return "an integer of thousands of digits"
