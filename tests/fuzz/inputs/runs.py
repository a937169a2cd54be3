"""Run folders, and exports of model folders with links."""

from __future__ import annotations

import os
from pathlib import Path

from rope_jax.runs.folder import RunFolder
from tests.fuzz.damage import Change
from tests.fuzz.inputs.kinds import Kind
from tests.fuzz.inputs.models import CONFIG_FILE, MODEL, content, export_beside, write_model_folder
from tests.fuzz.inputs.tokenizer import TOKENIZER_CONFIG, write_tokenizer_folder

SCALE = {"factors": [1.0, 2.0], "attention_factor": 1.0, "of": {"model": "m"}}
RUN_CONFIG = {"seed": 0, "rope": {"method": "pi"}, "eval": {"lengths": [1, 2]}}


def write_run(folder: Path) -> None:
    run = RunFolder(folder)
    run.claim(RUN_CONFIG, "digest")
    run.at("methods/pi").record("scale", lambda: SCALE)
    run.at("methods/pi").record("before", lambda: SCALE)


def use_run(folder: Path) -> None:
    run = RunFolder(folder)
    with run.locked():
        run.check(RUN_CONFIG)
        run.check_texts("digest")
        for name in ("scale", "before"):
            assert run.at("methods/pi").recorded(name, SCALE["of"]) in (None, SCALE), "another record"


_RECORDS = ("methods/pi/scale.json", "config.json", "texts.json", "methods/pi/before.json")
RUNS = Kind(
    write_run,
    use_run,
    _RECORDS,
    refused={
        f"{name}: {what}": content(name, data)
        for name in _RECORDS
        for what, data in {
            "cut": '{"factors": [1.0',
            "a list": "[]",
            "null": "null",
            "not UTF-8": b"\xff",
            "brackets": "[" * 100_000,
            "digits": "1" * 5000,
            "a surrogate": '{"\\ud800": 1}',
            "another": '{"seed": 1, "checksum": "a"}',
            "a checksum of 1": '{"checksum": 1}',
        }.items()
    },
    either={
        "a lock that is a folder": lambda folder: ((folder / ".lock").unlink(), (folder / ".lock").mkdir()),
        "a lock that is a link": lambda folder: ((folder / ".lock").unlink(), link(".lock", ".lock")(folder)),
        "methods that is a file": lambda folder: (
            os.rename(folder / "methods", folder / "other"),
            (folder / "methods").write_text(""),
        ),
        "methods that is a link": lambda folder: (
            os.rename(folder / "methods", folder / "other"),
            (folder / "methods").symlink_to("methods"),
        ),
    },
)


def link(name: str, target: str) -> Change:
    return lambda folder: (folder / name).symlink_to(target)


EXPORTS = Kind(
    lambda folder: (write_model_folder(folder), write_tokenizer_folder(folder)),
    export_beside,
    (TOKENIZER_CONFIG, CONFIG_FILE, MODEL),
    refused={
        f"{name} leads out": link(name, "../../outside/secret")
        for name in ("generation_config.json", "tokenizer.model", "added_tokens.json", "chat_template.jinja", "LICENSE")
        if name != "LICENSE"
    },
    either={
        "LICENSE leads out": link("LICENSE", "../../outside/secret"),
        "a note leads out": link("NOTICE.txt", "../../outside/secret"),
        "the weights lead to themselves": lambda folder: ((folder / MODEL).unlink(), link(MODEL, MODEL)(folder)),
    },
)
