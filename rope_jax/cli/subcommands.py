"""The subcommands of `rope-jax`: what each does, and the options that its most important fields have."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        does: what it does.
        given: what is typed without an option, to its field.
        options: option to its field.
        switches: option without a value, to its meaning.
        words: option whose value is no field's, to its meaning.
        examples: what follows the command's name.
    """

    does: str
    given: Mapping[str, str]
    options: Mapping[str, str]
    examples: tuple[str, str]
    switches: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: Mapping[str, str] = dataclasses.field(default_factory=dict)


_MODEL = {"MODEL": "model.path"}
_DRY_RUN = {"--dry-run": "check everything and report the minutes of each stage on this machine, and stop"}
COMMANDS = {
    "analyze": Command(
        "The disturbance of the rotary angles of a model under every method, without weights, in seconds.",
        _MODEL,
        {
            "--target": "context.target",
            "--original": "context.original",
            "--base": "rope.base",
            "--head-dim": "rope.head_dim",
            "--data": "data.path",
        },
        ("MODEL --target 32k", "--base 10000 --head-dim 128 --original 4k --target 16k --sweep"),
        {
            "--sweep": "also sweep interpolated dimensions, intervals and lengths",
            "--usage": "measure how the model uses pairs and distances on the texts of --data, instead",
        },
    ),
    "export": Command(
        "A model with another scale vector, without training, or a finished run, for transformers, vLLM and llama.cpp.",
        _MODEL,
        {
            "--method": "rope.method",
            "--target": "context.target",
            "--formats": "export.formats",
            "--run": "export.run",
            "--factors": "rope.factors",
        },
        ("MODEL --method yarn -o OUT", "--run runs/extend --formats hf,gguf -o OUT"),
        {"--verify": "load the export in transformers and compare logits"},
    ),
    "evaluate": Command(
        "Benchmarks of a model, or of a run's folder, under one scale vector or several.",
        _MODEL,
        {
            "--suite": "suite",
            "--data": "data.path",
            "--method": "rope.method",
            "--target": "context.target",
            "--lengths": "eval.lengths",
        },
        ("MODEL --suite passkey,perplexity --data TEXTS", "MODEL --suite passkey --method yarn,dprope --target 16k"),
        _DRY_RUN,
        {"--score": "folder of LongBench-E prediction files to score, without a model"},
    ),
    "extend": Command(
        "Fine-tunes a model at a longer context, measures it before and after, and exports the result.",
        {**_MODEL, "TEXTS": "data.path"},
        {
            "--target": "context.target",
            "--method": "rope.method",
            "--lora": "train.lora.rank",
            "--steps": "train.steps",
            "--batch": "train.global_batch",
        },
        ("MODEL TEXTS --quick", "MODEL TEXTS --target 16k --method dprope,yarn --lora 16"),
        {
            "--quick": "one method and few tokens: whether model, texts and memory fit",
            **_DRY_RUN,
            "--plan": "only report memory, communication and hours of fine-tuning, on any accelerator",
        },
        {
            "--mesh": "with --plan: devices to plan for, such as data=2,fsdp=4",
            "--profile": "trace these steps of every training, such as 10:12",
        },
    ),
    "verify": Command(
        "Which scale vector a serving engine applies to a model, read back from its log probabilities.",
        {"FOLDER": "model.path"},
        {
            "--engine": "engine.name",
            "--python": "engine.python",
            "--tokens": "engine.tokens",
            "--tolerance": "engine.tolerance",
            "--original": "context.original",
        },
        ("FOLDER", "FOLDER --engine vllm --python ENV/bin/python"),
    ),
    "study": Command(
        "What scale vectors do to small models, which are trained and extended here.",
        {"TEXTS": "data.path"},
        {
            "--models": "study.models",
            "--seeds": "study.seeds",
            "--extensions": "study.extensions",
            "--methods": "study.methods",
            "--random": "study.random",
        },
        ("TEXTS --quick", "TEXTS --seeds 2 --methods yarn,dprope"),
        {"--quick": "the same study in small, into the folder `quick` of the output"},
        {"--table": "a table.jsonl to write the page of; nothing is computed"},
    ),
}
