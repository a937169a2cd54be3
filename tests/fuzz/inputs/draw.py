"""Inputs by number: each class in turn, hand-written ones and random damage."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from random import Random

from tests.fuzz.damage import damaged_bytes, damaged_json, no_file
from tests.fuzz.inputs.corpora import CORPORA
from tests.fuzz.inputs.evaluation import BENCHMARKS, PREDICTIONS, SCORED
from tests.fuzz.inputs.factors import FACTOR_LISTS, FACTOR_OBJECTS, FACTOR_ROWS, USAGES
from tests.fuzz.inputs.gguf import GGUFS
from tests.fuzz.inputs.kinds import Input, Kind
from tests.fuzz.inputs.models import CONFIGS, SHARDS, WEIGHTS
from tests.fuzz.inputs.runs import EXPORTS, RUNS
from tests.fuzz.inputs.tokenizer import PIECES, TOKENIZERS
from tests.fuzz.inputs.values import field_input, path_input

KINDS = {
    "config.json": CONFIGS,
    "safetensors": WEIGHTS,
    "shards": SHARDS,
    "GGUF": GGUFS,
    "tokenizer.json": TOKENIZERS,
    "sentencepiece": PIECES,
    "factor lists": FACTOR_LISTS,
    "factor objects": FACTOR_OBJECTS,
    "factor rows": FACTOR_ROWS,
    "usages": USAGES,
    "predictions": PREDICTIONS,
    "scored": SCORED,
    "benchmarks": BENCHMARKS,
    "corpora": CORPORA,
    "runs": RUNS,
    "exports": EXPORTS,
}
DRAWN = {"paths": path_input, "fields": field_input}


def input_of(seed: int, number: int) -> Input:
    """Input `number` of a seed. Classes alternate; within one, hand-written inputs and random damage."""
    names = [*KINDS, *DRAWN]
    kind, turn = names[number % len(names)], number // len(names)
    random = Random(f"{seed} {kind} {turn}")
    if kind in DRAWN:
        return DRAWN[kind](random)
    found = KINDS[kind]
    thought = [(name, change, "refused") for name, change in found.refused.items()]
    thought += [(name, change, "either") for name, change in found.either.items()]
    thought += [(name, change, "either") for file in found.files for name, change in no_file(file).items()]
    Random(f"{seed} {kind}").shuffle(thought)
    if turn % 3 and turn * 2 // 3 < len(thought):
        name, change, answer = thought[turn * 2 // 3]
        return Input(kind, name, change, found.read, answer)
    return _random_damage(random, kind, found)


def _random_damage(random: Random, kind: str, found: Kind) -> Input:
    file, as_json = random.choice(found.files), random.random() < 0.6

    def change(folder: Path) -> None:
        path = folder / file
        if path.name.endswith(".gz"):
            text = gzip.decompress(path.read_bytes())
            done = (
                gzip.compress(damaged_bytes(random, text)[1])
                if as_json
                else damaged_bytes(random, path.read_bytes())[1]
            )
        elif as_json and path.suffix == ".safetensors":
            data = path.read_bytes()
            size = struct.unpack("<Q", data[:8])[0]
            text = damaged_json(random, data[8 : 8 + size].decode())[1].encode()
            done = struct.pack("<Q", len(text)) + text + data[8 + size :]
        elif as_json and path.suffix == ".json":
            done = damaged_json(random, path.read_text())[1].encode()
        elif as_json and path.suffix == ".jsonl":
            lines = path.read_text().splitlines()
            place = random.randrange(len(lines))
            lines[place] = damaged_json(random, lines[place])[1]
            done = "\n".join([*lines, ""]).encode()
        else:
            done = damaged_bytes(random, path.read_bytes())[1]
        path.write_bytes(done)

    return Input(kind, f"random damage of {file}", change, found.read, "either")


def warm_up(folder: Path) -> Path:
    """Writes the valid files of every class and reads them, so that all modules are there."""
    for name, kind in KINDS.items():
        (folder / name).mkdir(parents=True)
        kind.make(folder / name)
        if name not in ("exports", "sentencepiece", "corpora"):
            kind.read(folder / name)
    return folder
