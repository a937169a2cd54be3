"""Every field that a config may set: its name, default, meaning and check.

Defaults are the paper's recipe. `rope_jax/cli/config.py` makes a ConfigDict of this list; a field that is not here
cannot be set, in a file or on the command line.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rope_jax.commands.field import Check, Field, above, at_least, listed, one_of
from rope_jax.evaluation.perplexity.sliding import CONVENTIONS
from rope_jax.interop.engines import ENGINES
from rope_jax.model.config import ARCHITECTURES, ATTENTION, DTYPES, ROTARY
from rope_jax.model.lora import PROJECTIONS, WHOLE
from rope_jax.model.remat import POLICIES
from rope_jax.rope.methods import METHODS
from rope_jax.rope.methods.registered import REGISTERED

# Methods beside the closed-form ones: 'learned' takes gradients of the model, 'own' is the model's own scaling.
LEARNED = "learned"
OWN = "own"

EXPORT_FORMATS = ("hf", "gguf", "adapter")
# Of `export.step`: the checkpoint of the lowest loss.
BEST = -1

# Sequences of a batch, and samples: more would exhaust a machine's memory before they train or measure anything.
_BATCH, _SAMPLES = 1 << 20, 100_000


def check_fields(values: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Checks every field on its own; what depends on several fields or on a file is checked where it is used.

    `known` are choices that the command knows and others do not.
    """
    for field in FIELDS:
        field.check_value(values[field.name], known)


# Parameters whose section is not 'rope'.
_SOLVE = ("n_hat", "threshold", "resolution", "unseen_weight", "distances", "energy")

# Parameter of a method to the field that sets it. Those of 'explicit' come from a file.
METHOD_FIELDS: dict[str, str] = {
    parameter.name: f"{'solve' if parameter.name in _SOLVE else 'rope'}.{parameter.name}"
    for name, method in METHODS.items()
    for parameter in dataclasses.fields(method)
    if name != "explicit"
}


def _parameters(section: str) -> list[Field]:
    """The fields of a section that are parameters of methods, with the meaning that the methods give them."""
    defaults: dict[str, Any] = {}
    meanings: dict[str, dict[str, list[str]]] = {}  # to the methods that give it
    for name, method in METHODS.items():
        for parameter in dataclasses.fields(method):
            field = METHOD_FIELDS.get(parameter.name, "")
            # What is None without a file has a field of its own, which names the file.
            if field.startswith(f"{section}.") and parameter.default is not None:
                defaults.setdefault(field, parameter.default)
                meanings.setdefault(field, {}).setdefault(parameter.metadata["help"], []).append(name)
    said = {
        field: "; ".join(f"{_methods(names)}: {meaning}" for meaning, names in found.items())
        for field, found in meanings.items()
    }
    return [Field(field, default, said[field], at_least(0)) for field, default in defaults.items()]


def _methods(names: list[str]) -> str:
    return ("methods " if len(names) > 1 else "method ") + listed(names)


_CONTEXT = Check(least=2, most=2**28, zero=True)
# Adjustments may follow, as in 'two_term_w300_t6@1.03'.
_ADJUSTED = r"(_[ntw]\d{1,6})*(@.+)?"
_METHOD = Check(choices=(*METHODS, LEARNED), more=(OWN,), registered=REGISTERED.keys(), suffix=_ADJUSTED)
_SHARE = Check(least=0, most=1)

FIELDS: tuple[Field, ...] = (
    Field("seed", 0, "seed of weights, data order, samples and bootstrap", at_least(0, 2**32 - 1)),
    #
    Field("model.path", "", "Hugging Face folder or hub id, or GGUF file; empty pre-trains a small model first"),
    Field("model.revision", "", "branch, tag or commit of a hub id; empty for its default branch"),
    Field(
        "model.dtype",
        "auto",
        "dtype of matrix products; 'auto' is bfloat16, on a CPU float32",
        one_of("auto", *DTYPES),
    ),
    Field(
        "model.param_dtype",
        "float32",
        "dtype of the weights; 'auto' as they are stored. Weights in training are float32",
        one_of("auto", *DTYPES),
    ),
    Field(
        "model.rotary",
        "float32",
        "arithmetic of rotary angles; 'exact' does not drift at long positions",
        one_of(*ROTARY),
    ),
    Field(
        "model.remat",
        "full",
        "gradient checkpointing: what a block saves for the backward pass, from everything to nothing",
        one_of(*POLICIES),
    ),
    Field(
        "model.scan_unroll",
        1,
        "blocks per iteration of the scan over layers; above 1 a CPU saves activations despite remat",
        at_least(1),
    ),
    Field(
        "model.attention",
        "auto",
        "attention of whole sequences, prompts included: 'cpu' is plain JAX for any device, 'cudnn' NVIDIA's and "
        "'pallas' JAX's for GPUs, in 16 bits, 'splash' JAX's for TPUs; 'auto' takes the fastest that takes the model, "
        "and the run says which. With mesh.context, a ring computes in plain JAX; with 'splash', its forward pass "
        "takes that kernel",
        one_of("auto", *ATTENTION),
    ),
    Field("model.attention_chunk", 512, "queries and keys at a time; bounds the memory of attention", at_least(1)),
    #
    Field(
        "rope.method",
        "dprope",
        "method whose scale vector is fine-tuned and exported; in evaluate also 'own', the model's scaling",
        _METHOD,
    ),
    Field("rope.base", 0.0, "rotary base; 0 takes the model's, another value must agree with it", at_least(0)),
    Field(
        "rope.head_dim",
        0,
        "head dimension; 0 takes the model's, another value must agree with it",
        at_least(0, 1 << 16),
    ),
    Field(
        "rope.factors",
        "",
        "method 'explicit': factors on top of the model's own scaling ([1,1.5,...], a JSON file of such a list or of "
        "one per layer, a LongRoPE CSV), or a whole vector that replaces it (a run's scale.json, a model folder)",
    ),
    *_parameters("rope"),
    Field(
        "rope.attention_factor",
        "",
        "of every method: factor on cos and sin; empty for the method's own, a number, 'yarn' (0.1 ln s + 1) or "
        "'longrope' (sqrt(1 + ln s / ln L))",
    ),
    Field("rope.taper", 0, "of every method: pairs on either side that factors are averaged with", at_least(0, 1024)),
    Field(
        "rope.layers",
        (),
        "of every method: layers that are extended, from 0; the others keep the model's own scaling; empty for all",
        at_least(0),
        int,
    ),
    Field(
        "compare",
        (),
        "further methods, fine-tuned and evaluated in the same way; 'METHOD@FACTOR' has the attention factor FACTOR, "
        "as in rope.attention_factor, and 'METHOD_tN' factors averaged over N pairs on either side, as in rope.taper; "
        "'dprope_nN' interpolates N dimensions, and 'two_term_wN' weighs unseen angles N times",
        _METHOD,
    ),
    Field("methods", "", "Python file that is run to define methods of your own, by rope_jax.method"),
    #
    Field("angles.intervals", 360, "intervals of [0, 2 pi) that angles are counted in", at_least(2, 100_000)),
    Field(
        "angles.arithmetic",
        "float32",
        "arithmetic of the counted angles; 'exact' for contexts above 16M tokens",
        one_of("float32", "exact"),
    ),
    Field("context.original", 0, "pre-training context, tokens; 0 takes the model's", _CONTEXT),
    Field("context.target", 8192, "extended context, tokens; 0 doubles the original", _CONTEXT),
    *_parameters("solve"),
    Field(
        "solve.energy",
        "",
        "method 'dprope': file of measured energies, which weigh pairs; analyze then weighs totals as well",
    ),
    Field(
        "solve.by_layer",
        False,
        "method 'dprope': the energies of each layer rank its pairs, which gives a vector per layer",
    ),
    Field("solve.distances", "", "method 'two_term': file of measured distances; empty counts all pairs of positions"),
    Field("usage.texts", 4, "analyze --usage: texts to measure a model on", at_least(1, _SAMPLES)),
    Field("usage.tokens", 0, "tokens of each, from its beginning; 0 for the original context", _CONTEXT),
    #
    Field("learn.start", "ntk", "method 'learned': method whose scale vector gradients start from", one_of(*METHODS)),
    Field("learn.steps", 40, "method 'learned': gradient steps, with frozen weights", at_least(1)),
    Field("learn.batch", 8, "method 'learned': sequences of train.length tokens per step", at_least(1, _BATCH)),
    Field("learn.learning_rate", 0.02, "method 'learned': learning rate of the logarithms of factors", above(0, 10)),
    Field("learn.attention_factor", False, "method 'learned': also learn the attention factor"),
    Field("learn.joint", False, "method 'learned': keep learning the vector while the weights are fine-tuned"),
    #
    Field("data.name", "text_folder", "corpus", one_of("text_folder", "pg19", "python_stdlib")),
    Field("data.path", "", "folder of texts; for pg19 the TFDS data directory"),
    Field("data.streams", 1, "streams of documents; with one per process, each reads only its own", at_least(1)),
    Field("data.tokenizer", "", "Hugging Face folder, tokenizer.model, or 'bytes'; empty takes the model's"),
    #
    Field("train.steps", 1000, "updates of fine-tuning", at_least(1)),
    Field("train.learning_rate", 2e-5, "peak learning rate of AdamW", above(0, 10)),
    Field("train.schedule", "constant", "learning rate schedule", one_of("constant", "cosine")),
    Field("train.warmup_steps", 0, "updates of linear warm-up", at_least(0)),
    Field("train.b1", 0.9, "decay of the first moment", Check(least=0, below=1)),
    Field("train.b2", 0.999, "decay of the second moment", Check(least=0, below=1)),
    Field("train.weight_decay", 0.0, "decoupled weight decay", at_least(0, 1000)),
    Field("train.clip_norm", 0.0, "global gradient norm to clip at; 0 for none", at_least(0)),
    Field("train.mu_dtype", "float32", "dtype of the first moment", one_of("float32", "bfloat16")),
    Field("train.offload_optimizer", False, "offload the optimizer state to host memory between updates"),
    Field("train.length", 0, "tokens of a sequence; 0 for context.target", _CONTEXT),
    Field(
        "train.positions",
        "consecutive",
        "positions of a sequence; 'skip' cuts each document at random and skips positions in between (PoSE), so that "
        "sequences shorter than context.target reach all of it",
        one_of("consecutive", "skip"),
    ),
    Field("train.chunks", 2, "chunks of a document between which positions skip", at_least(2, 1024)),
    Field(
        "train.mix",
        0.0,
        "share of microbatches under the model's own scale vector, whose documents are cut every context.original "
        "tokens (LongRoPE2's mixed windows); the others are as without it",
        Check(least=0, below=1),
    ),
    Field("train.global_batch", 64, "sequences of train.length tokens per update", at_least(1, _BATCH)),
    Field("train.accumulation", 8, "microbatches per update; divides train.global_batch", at_least(1, _BATCH)),
    Field("train.loss_chunk", 512, "tokens of a row projected to the vocabulary at a time", at_least(1)),
    Field("train.checkpoint_every", 100, "updates between checkpoints", at_least(1)),
    Field("train.keep", 2, "newest checkpoints to keep; a damaged one is skipped on resuming", at_least(1)),
    Field("train.keep_best", 0, "checkpoints of the lowest loss to keep beside them", at_least(0)),
    Field("train.lora.rank", 0, "rank of low-rank updates (LoRA); 0 trains all weights", at_least(0)),
    Field("train.lora.alpha", 16.0, "low-rank updates are scaled by alpha / rank", above(0, 1e6)),
    Field(
        "train.lora.targets",
        ("q", "k", "v", "o"),
        "projections with low-rank updates, and parameters trained whole ('norm', 'embedding', 'head'), which "
        "LongLoRA finds to matter at a longer context",
        one_of(*PROJECTIONS, *WHOLE),
    ),
    #
    Field("eval.split", "validation", "split of the corpus to evaluate on"),
    Field("eval.max_tokens", 1_000_000, "tokens of the split for sliding-window perplexity", at_least(1)),
    Field("eval.position_tokens", 1_000_000, "tokens of the split for perplexity by position", at_least(1)),
    Field("eval.document_tokens", 0, "tokens used of each document, to cover more of them; 0 for all", at_least(0)),
    Field("eval.stride", 256, "stride of the sliding window, tokens; at most half of the window", at_least(1)),
    Field("eval.batch", 8, "windows scored together", at_least(1, _BATCH)),
    Field("eval.passkey_lengths", (), "tokens of passkey prompts; empty for both contexts", at_least(1), int),
    Field("eval.passkey_trials", 50, "passkey trials per length; 0 for none", at_least(0, _SAMPLES)),
    Field("eval.passkey_depths", 10, "strata of the depth of a passkey", at_least(1, _SAMPLES)),
    Field("eval.passkey_new_tokens", 10, "tokens generated to find a passkey", at_least(1)),
    Field("eval.passkey_batch", 8, "passkey prompts decoded together", at_least(1, _BATCH)),
    Field(
        "eval.recall_lengths", (), "tokens of texts with synthetic recall; empty for both contexts", at_least(1), int
    ),
    Field(
        "eval.recall_texts",
        64,
        "such texts per length, for a model that was pre-trained with pretrain.recall; 0 for none",
        at_least(0, _SAMPLES),
    ),
    #
    Field(
        "suite",
        "perplexity,passkey",
        "benchmarks of evaluate, separated by commas: perplexity, passkey, recall, longbench_e, ruler, "
        "leaderboard, longppl, key_value, many_shot, babilong",
    ),
    Field("eval.lengths", (), "tokens of windows and prompts; empty for both contexts", at_least(2), int),
    Field("eval.reference", "", "method that evaluate compares the others with; empty for rope.method"),
    Field(
        "eval.samples",
        100,
        "samples per task and length of ruler, key_value, many_shot and babilong",
        at_least(1, _SAMPLES),
    ),
    Field("eval.generate_batch", 8, "prompts decoded together", at_least(1, _BATCH)),
    Field("eval.conventions", ("token", "yarn", "longlora"), "perplexity: how windows slide", one_of(*CONVENTIONS)),
    Field("eval.longbench", "", "longbench_e: folder of the benchmark's files"),
    Field("eval.longbench_rows", 0, "longbench_e: rows of each set and bucket; 0 for all", at_least(0)),
    Field("eval.longbench_max_length", 0, "longbench_e: tokens of a prompt; 0 for the longest less 500", at_least(0)),
    Field("eval.essays", "", "ruler: folder of texts, or PaulGrahamEssays.json"),
    Field("eval.squad", "", "ruler: file dev-v2.0.json"),
    Field("eval.hotpotqa", "", "ruler: file hotpot_dev_distractor_v1.json"),
    Field("eval.babilong", "", "babilong: folder of bAbI's stories"),
    Field("eval.books", "", "babilong: folder of texts"),
    Field("eval.many_shot", "", "many_shot: folder of TREC's questions, or of train.jsonl and test.jsonl"),
    Field("eval.leaderboard", "", "leaderboard: folder of questions; empty takes the Hugging Face hub's"),
    Field("eval.leaderboard_limit", 0, "leaderboard: questions of each task; 0 for all", at_least(0)),
    Field("eval.longppl_evaluator", "", "longppl: model that finds the key tokens"),
    Field("eval.longppl_context", 4096, "longppl: short context of that model, tokens", at_least(1)),
    #
    Field("export.run", "", "folder of a run of extend; empty exports model.path without training"),
    Field("export.method", "", "method of that run; empty for its rope.method"),
    Field("export.step", 0, "checkpoint of that run; 0 for the newest, -1 for the lowest loss", at_least(BEST)),
    Field(
        "export.formats",
        ("hf",),
        "Hugging Face folder, GGUF file, and PEFT adapter (of a run with train.lora)",
        one_of(*EXPORT_FORMATS),
    ),
    Field(
        "export.gguf",
        "",
        "GGUF file to copy with the factors; empty: the model if it is one, else a conversion",
    ),
    Field("export.dtype", "", "dtype of a converted GGUF file's matrices; empty as they are", one_of("", *DTYPES)),
    Field("export.vocabulary", True, "write the tokenizer into a converted GGUF file"),
    Field("export.overwrite", False, "replace what an earlier export has written"),
    Field("export.verify_lengths", (), "tokens to compare logits at; empty for 32 and both contexts", at_least(1), int),
    Field("export.verify_dtype", "float32", "dtype to compare logits in", one_of("float32", "bfloat16")),
    Field("verify", False, "load the export in transformers and compare logits"),
    #
    Field("engine.name", "transformers", "engine that verify asks", one_of(*ENGINES)),
    Field("engine.python", "", "interpreter of the engine's environment; empty for this one's"),
    Field("engine.tokens", 256, "tokens compared below and above the original context", at_least(1)),
    Field("engine.tolerance", 0.01, "nats per token that rounding may make", above(0)),
    #
    Field("mesh.data", 1, "replicas of the model; -1 takes the devices that are left", at_least(-1)),
    Field("mesh.fsdp", -1, "shards of the weights; -1 takes the devices that are left", at_least(-1)),
    Field("mesh.tensor", 1, "shards of heads and feed-forward width (tensor parallelism)", at_least(-1)),
    Field("mesh.context", 1, "pieces of every sequence in training (sequence parallelism)", at_least(-1)),
    #
    Field("distributed.coordinator", "", "HOST:PORT of process 0, for a run of several processes"),
    Field("distributed.processes", 0, "number of processes", at_least(0)),
    Field("distributed.process", -1, "number of this process, from 0", at_least(-1)),
    Field("distributed.auto", False, "find the processes through Slurm, Open MPI, Kubernetes or Cloud TPU"),
    Field("distributed.local_devices", (), "devices of this process; empty for all", at_least(0), int),
    Field("distributed.timeout", 300, "seconds that processes wait for one another at the start", at_least(1)),
    #
    Field("debug.nans", False, "name the first part of a training step that is not finite"),
    Field("compilation_cache", "", "folder of compiled programs; empty for one in the run's folder; 'off' for none"),
    Field("plan.model", "", "--plan: folder of a config.json, instead of model.path"),
    #
    Field("pretrain.tokenizer", "bytes", "tokenizer of the small model that is trained if model.path is empty"),
    Field("pretrain.architecture", "llama", "its architecture", one_of(*ARCHITECTURES)),
    Field("pretrain.hidden_size", 128, "its width", at_least(1, 1 << 20)),
    Field("pretrain.intermediate_size", 352, "its feed-forward width", at_least(1, 1 << 20)),
    Field("pretrain.num_layers", 4, "its layers", at_least(1, 10_000)),
    Field("pretrain.num_heads", 4, "its query heads", at_least(1, 10_000)),
    Field("pretrain.num_kv_heads", 4, "its key and value heads; divides pretrain.num_heads", at_least(1, 10_000)),
    Field("pretrain.steps", 0, "updates of its training", at_least(0)),
    Field("pretrain.learning_rate", 3e-3, "peak learning rate, decayed to zero by a cosine", above(0, 10)),
    Field("pretrain.warmup_steps", 50, "updates of linear warm-up", at_least(0)),
    Field("pretrain.weight_decay", 0.1, "decoupled weight decay", at_least(0, 1000)),
    Field("pretrain.clip_norm", 1.0, "global gradient norm to clip at; 0 for none", at_least(0)),
    Field("pretrain.global_batch", 32, "sequences of context.original tokens per update", at_least(1, _BATCH)),
    Field("pretrain.checkpoint_every", 200, "updates between checkpoints", at_least(1)),
    Field(
        "pretrain.recall",
        0.0,
        "share of its training rows that are synthetic recall: facts and questions of one token, for which the byte "
        "tokenizer has further ids",
        Check(least=0, below=1),
    ),
    #
    Field("study.models", ("4x256:256:3000000",), "models: layers x width : original context : pre-training tokens"),
    Field("study.seeds", 3, "models of each, which differ in initial weights and data order", at_least(1)),
    Field("study.extensions", (2, 4), "extension factors s", at_least(2), int),
    Field("study.methods", ("yarn",), "methods to compare in every stage; 'METHOD@FACTOR' as in compare"),
    Field("study.zero_shot", (), "further methods, compared without training"),
    Field("study.shares", (0.625, 0.5), "share of dimensions that 'dprope' interpolates, by factor", _SHARE, float),
    Field("study.n_hats", (), "numbers of dimensions that 'dprope' interpolates, without training", at_least(2), int),
    Field("study.intervals", (), "numbers of intervals of 'dprope_argmin', without training", at_least(2), int),
    Field("study.random", 0, "random vectors, compared without training", at_least(0)),
    Field("study.vocab_size", 2048, "ids of the subword tokenizer that is trained", at_least(2)),
    Field(
        "study.recall_keys", 8, "keys of synthetic recall, each of them and each value an id of its own", at_least(2)
    ),
    Field("study.recall_values", 15, "values of each key", at_least(2)),
    Field("study.recall_share", 0.2, "share of training rows that are synthetic recall", Check(least=0, below=1)),
    Field("study.batch_tokens", 2048, "tokens of an update of pre-training", at_least(1)),
    Field("study.tune_batch_tokens", 2048, "tokens of an update of fine-tuning", at_least(1)),
    Field("study.tune_share", 0.01, "tokens of a fine-tuning, as a share of the pre-training's", above(0)),
    Field("study.windows", 1, "windows of each held-out text that are measured", at_least(1)),
    Field("study.recall_rows", 4, "rows of either kind of recall that are measured", at_least(1)),
)

DEFAULTS: dict[str, Any] = {field.name: field.default for field in FIELDS}


def changed(settings: Mapping[str, Any], defaults: Mapping[str, Any] = DEFAULTS) -> dict[str, dict[str, Any]]:
    """Fields of a JSON-able config that differ from their defaults: name to `value` and `default`."""
    found = {}
    for name, default in defaults.items():
        value: Any = settings
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        default = list(default) if isinstance(default, tuple) else default
        if value not in (None, default):
            found[name] = {"value": value, "default": default}
    return found
