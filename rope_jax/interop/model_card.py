"""The README.md of an exported folder: what was done to the model, what it measured, and whose terms it is under."""

import dataclasses
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml
from huggingface_hub import ModelCardData, metadata_load

from rope_jax.files import LARGEST_CONFIG, check_inside, read_json_object
from rope_jax.gguf_reader import is_gguf, read_gguf
from rope_jax.interop.hub import DOCUMENTS
from rope_jax.rope.embedding import ScaleVector

CARD = "README.md"

# What is said of `longrope` with an attention factor other than 1, where that is served in another way.
_SCALED = "longrope with an attention factor"

# Engine -> `rope_type` -> whether it serves that. Where nothing was tried, the engine's source was read (2026-11).
ENGINES = {
    "transformers, from 4.44": {
        "proportional": "yes, from 5; others refuse it",
        "yarn": "yes, from 4.51; earlier ones warn and compute another ramp",
        "other": "yes",
    },
    "vLLM on GPUs and CPUs": {"proportional": "newer releases; others refuse it", "other": "yes"},
    "vLLM on TPUs (tpu-inference)": {
        **dict.fromkeys(("default", "llama3", "proportional"), "yes"),
        "other": "**no, without a word**; set `MODEL_IMPL_TYPE=vllm`",
    },
    "SGLang": {"proportional": "unknown", "other": "yes"},
    "sglang-jax": {"default": "yes", "longrope": "refuses it", "other": "unknown"},
    "mlx-lm": {
        _SCALED: "**no: it leaves out the attention factor, without a word**",
        "proportional": "newer releases",
        "other": "yes",
    },
    "llama.cpp": {
        **dict.fromkeys(("default", "llama3"), "yes, converted by its own script"),
        "longrope": "no, its converter drops the factors; a GGUF file exported by rope-jax has them",
        "other": "unknown; a GGUF file exported by rope-jax has the factors",
    },
}

_PLAIN = re.compile(r"[\w .,:/()+-]{1,200}")


@dataclasses.dataclass(frozen=True)
class CardFacts:
    """What a card states.

    Attributes:
        title: name of the model.
        source: Hub name of the model it was made from, or a description of it.
        method: name of the method that gave the scale vector `rope`.
        original: pre-training context, tokens.
        target: extended context, tokens.
        training: sentences on how it was fine-tuned; empty for none.
        data: what it was fine-tuned on.
        before: `stage_record` before fine-tuning, or None.
        after: the same after it, or None.
        evaluated_on: texts of the perplexity.
        commit: of the source on the Hub.
    """

    title: str
    source: str
    method: str
    rope: ScaleVector
    original: int
    target: int
    training: str = ""
    data: str = ""
    before: Mapping | None = None
    after: Mapping | None = None
    evaluated_on: str = ""
    commit: str = ""


def write_card(folder: Path, facts: CardFacts, source: Path | None) -> None:
    """Writes the card, and the licence files of the source beside it; `source` None: trained from nothing."""
    licence = {} if source is None else _licence(source)
    files = [] if source is None else licence_files(source)
    for file in files:
        shutil.copyfile(file, folder / file.name)
    # Only a name on the Hub means anything to the Hub.
    base = facts.source if facts.source.count("/") == 1 and not os.path.exists(facts.source) else None
    header = ModelCardData(
        library_name="transformers",
        tags=["rope", "long-context"],
        base_model=base,
        license=licence.get("license"),
        license_name=licence.get("license_name"),
        license_link=licence.get("license_link"),
    )
    body = _body(facts, licence, [file.name for file in files], source is None, _kind(folder))
    text = f"---\n{header.to_yaml()}\n---\n\n{body}"
    (folder / CARD).write_text(text, encoding="utf-8")


def licence_files(source: Path) -> list[Path]:
    """Licences, notices and use policies of a model folder; `InputError` for a link out of it."""
    patterns = [pattern for pattern in DOCUMENTS if pattern != CARD]
    found = {file for pattern in patterns for file in source.glob(pattern)}
    files = sorted(file for file in found if file.is_file())
    for file in files:
        check_inside(source, file)
    return files


def _licence(source: Path) -> dict[str, str]:
    """`license` and its companions, as the source's own card, or the GGUF file, states them."""
    card = source / CARD
    try:
        if is_gguf(source):
            stated = _gguf_card(source)
        else:
            # Of a pipe, nothing would ever be read.
            readable = os.path.isfile(card) and os.path.getsize(card) <= LARGEST_CONFIG
            stated = (metadata_load(card) if readable else None) or {}
    # No front matter, or one that is not YAML: nothing that could be passed on.
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        return {}
    keys = ("license", "license_name", "license_link")
    found = {key: stated.get(key) for key in keys if isinstance(stated, dict)}
    # Nobody vouches for the file: a line of text is taken, and nothing that could pass for a part of this card.
    return {key: value for key, value in found.items() if isinstance(value, str) and _PLAIN.fullmatch(value)}


def _gguf_card(file: Path) -> dict:
    values = read_gguf(file).values
    return {key: values.get(f"general.{key.replace('_', '.')}") for key in ("license", "license_name", "license_link")}


def _body(facts: CardFacts, licence: Mapping, files: list[str], trained_here: bool, kind: str | None) -> str:
    """`kind` is the `rope_type` of the `config.json` beside the card; None beside a GGUF file."""
    factors = np.atleast_2d(np.asarray(facts.rope.factors, float))
    pairs = factors.shape[-1]
    moved = int(np.any(factors != 1, axis=0).sum())
    attention_factor = float(facts.rope.attention_factor)
    commit = f" (commit {facts.commit})" if facts.commit else ""
    lines = [
        f"# {facts.title}",
        "",
        f"{facts.source}{commit}, its context extended from {facts.original:,} to {facts.target:,} tokens by "
        "[rope-jax](https://arxiv.org/abs/2410.01490).",
        "",
        "## Method",
        "",
        f"`{facts.method}`: frequency `i` of the rotary embedding is divided by a factor `f_i` at all lengths.",
        "",
        "| | |",
        "|---|---|",
        f"| pairs | {pairs}, of which {moved} have a factor other than 1 |",
        f"| factors | {factors.min():.6g} to {factors.max():.6g}, mean {factors.mean():.6g} |",
        f"| attention factor | {attention_factor:.6g} |",
        "",
        *(_gguf() if kind is None else _engines(kind, attention_factor)),
        "",
        "## Training and data",
        "",
    ]
    lines += [f"{facts.training} Data: {facts.data}." if facts.training else "None: the weights are the source's."]
    lines += ["", "## Evaluation", "", *_evaluation(facts), "", "## Licence", ""]
    if licence:
        stated = ", ".join(f"{key}: {value}" for key, value in licence.items())
        lines.append(f"That of the source, as its own card states it ({stated}).")
    if files:
        lines.append(f"The source's terms are in {', '.join(f'`{name}`' for name in files)}.")
    if trained_here:
        lines.append("None is stated: the model was trained from nothing in the run that exported it.")
    elif not licence and not files:
        lines.append(
            "The source folder states none, and so this card claims none: the terms of the model it was made from "
            "apply."
        )
    return "\n".join(lines) + "\n"


def _kind(folder: Path) -> str | None:
    if not (folder / "config.json").is_file():
        return None
    return read_json_object(folder / "config.json")["rope_parameters"]["rope_type"]


def _gguf() -> list[str]:
    return [
        "llama.cpp divides each frequency by its factor, the tensor `rope_freqs.weight`, and multiplies cos and sin by "
        "the attention factor, the key `rope.scaling.attn_factor`. In a file without that tensor, the rotary base, the "
        "key `rope.freq_base`, is the whole vector."
    ]


def _engines(kind: str, attention_factor: float) -> list[str]:
    """Which engines serve the frequencies of a `rope_type` as they are meant: a table of docs/export.md."""
    says = "`rope_theta` alone" if kind == "default" else f"`rope_type: {kind}`"
    scaled = kind == "longrope" and attention_factor != 1
    kinds = (_SCALED, kind, "other") if scaled else (kind, "other")
    lines = [f"`config.json` says this as {says}.", "", "| engine | serves it |", "|---|---|"]
    for engine, answers in ENGINES.items():
        lines.append(f"| {engine} | {next(answers[name] for name in kinds if name in answers)} |")
    if scaled:
        lines += ["", "transformers warns of `short_mscale` and `long_mscale`, which vLLM and SGLang read."]
    return lines


def _evaluation(facts: CardFacts) -> list[str]:
    stages = [(name, record) for name, record in (("before", facts.before), ("after", facts.after)) if record]
    if not stages:
        return ["Not measured."]
    windows = list(stages[0][1]["perplexity"])
    lines = [
        f"Sliding-window perplexity on {facts.evaluated_on}, before and after fine-tuning.",
        "",
        "| window | " + " | ".join(name for name, _ in stages) + " |",
        "|---|" + "---|" * len(stages),
    ]
    for window in windows:
        cells = [f"{record['perplexity'][window]['perplexity']:.3f}" for _, record in stages]
        lines.append(f"| {int(window):,} tokens | {' | '.join(cells)} |")
    retrieved = stages[-1][1].get("passkey")
    if retrieved:
        rates = [
            f"{rate['successes']} of {rate['trials']} at {length:,} tokens"
            for length, rate in zip(retrieved["lengths"], retrieved["per_length"])
        ]
        lines += ["", f"Passkey retrieved, {stages[-1][0]} fine-tuning: {', '.join(rates)}."]
    if recalled := stages[-1][1].get("recall"):
        cells = recalled["table"]["recall"].items()
        rates = ", ".join(f"{cell['mean']:.0f}% at {int(length):,} tokens" for length, cell in cells)
        lines += ["", f"Facts of one token recalled, {stages[-1][0]} fine-tuning: {rates}."]
    return lines
