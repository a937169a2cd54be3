"""LongBench-E's prompt templates: from the official file, or from lm_eval with its lost white space restored."""

import importlib.util
import re
import string
from pathlib import Path

import yaml

from rope_jax.errors import InputError
from rope_jax.evaluation.data_files import find_file, missing_file
from rope_jax.evaluation.longbench.sets import SETS
from rope_jax.files import read_json, read_text

OFFICIAL = "dataset2prompt.json"
FIELDS = ("context", "input")

# What follows the last visible character of a template. lm_eval strips it, for its YAML ends where the text does.
_ENDINGS = {"passage_count": " ", "passage_retrieval_en": " ", "lcc": "\n", "repobench-p": "\n"}
# What stands between the examples and the question; lm_eval has one newline.
_BLANK_LINE = ("triviaqa", "samsum")


def load_prompts(folder: Path) -> dict[str, str]:
    """The templates of all sets, with the fields `{context}` and `{input}`.

    The official `dataset2prompt.json` is read if the folder, or its sub-folder `config` or `data`, has it; otherwise
    they come from the installed lm_eval.
    """
    folder = Path(folder)
    path = find_file(folder, OFFICIAL) or find_file(folder / "config", OFFICIAL)
    if path is not None:
        return official_prompts(path)
    harness = importlib.util.find_spec("lm_eval")
    if harness is None or harness.origin is None:
        raise missing_file(
            folder / OFFICIAL,
            "LongBench's prompts (github.com/THUDM/LongBench); the package lm_eval, which has them too, is not "
            "installed either",
            "pip install 'rope-jax[eval]', or "
            f"curl -L -o {folder / OFFICIAL} "
            "https://raw.githubusercontent.com/THUDM/LongBench/main/LongBench/config/dataset2prompt.json",
        )
    return harness_prompts(Path(harness.origin).parent)


def official_prompts(path: Path) -> dict[str, str]:
    """Reads the templates from LongBench's own `dataset2prompt.json`."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold an object: set name to prompt template")
    return {name: _checked(value.get(name), name, path) for name in SETS}


def harness_prompts(package: Path) -> dict[str, str]:
    """The templates in the package lm_eval, equal to the official ones once their white space is restored."""
    tasks = package / "tasks" / "longbench"
    prompts = {}
    for name in SETS:
        path = tasks / f"{name}_e.yaml"
        if not path.is_file():
            raise InputError(f"the installed lm_eval has no {path}: upgrade it (pip install 'lm_eval>=0.4.13')")
        template = yaml.load(read_text(path), Loader=_TaskLoader).get("doc_to_text")
        prompts[name] = _checked(_restored(name, str(template)), name, path)
    return prompts


class _TaskLoader(yaml.SafeLoader):
    """Reads lm_eval's tasks without following their `!function` tags."""


_TaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _restored(name: str, template: str) -> str:
    # Jinja's `{{context}}` and `{{question}}`; there are no other braces in these templates.
    template = template.replace("{{context}}", "{context}")
    template = re.sub(r"\{\{(question|input)\}\}", "{input}", template)
    if name in _BLANK_LINE:
        template = re.sub(r"\{context\}\n+\{input\}", "{context}\n\n{input}", template)
    return template.rstrip() + _ENDINGS.get(name, "")


def _checked(template, name: str, path: Path) -> str:
    if not isinstance(template, str):
        raise InputError(f"{path} has no prompt template for {name}")
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise InputError(f"{path}: the template of {name} is not a format string ({error})") from None
    if "context" not in fields or not fields <= set(FIELDS):
        raise InputError(f"{path}: the template of {name} must have the field {{context}} and may have {{input}}")
    return template
