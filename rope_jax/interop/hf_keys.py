"""What this package knows of the keys of `config.json`.

A key that transformers reads for one of these models is understood here, or may only have the value at which it
changes nothing: an ignored key that matters gives a model that runs and is wrong. Any other key changes nothing in
transformers, and is kept.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial

from rope_jax.files import Fields

# The top-level key under which an export says what its scale vector was made from.
PROVENANCE_KEY = "rope_jax"

# In it, the rotary base that the scale vector is relative to, where the file has that of another base.
BASE_KEY = "base"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model family of transformers whose computation and weight names this package reproduces.

    Attributes:
        name: its class.
        defaults: what its config assumes for keys that a file leaves out (transformers 5.23), where that depends
            on the family.
        understood: keys of its own that `read_config` interprets; those that are fields of `LlamaConfig` are exported.
        values: keys of its own that may only have the values at which they change nothing.
        harmless: keys of its own that change nothing here whatever they hold.
        written: keys of its own that every export has.
    """

    name: str
    defaults: Mapping[str, int]
    understood: tuple[str, ...] = ()
    values: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    harmless: tuple[str, ...] = ()
    written: Mapping[str, bool | None] = dataclasses.field(default_factory=dict)


# Window and layers of a window that is not used, and how an export says so.
_UNUSED_WINDOW = ("sliding_window", "max_window_layers")
_NO_WINDOW = {"use_sliding_window": False, "sliding_window": None}

# By `model_type`.
ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM",
        {"max_position_embeddings": 2048},
        understood=("attention_bias",),
        written={"mlp_bias": False},
    ),
    "mistral": Architecture(
        "MistralForCausalLM",
        {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        understood=("sliding_window",),
        values={"attention_bias": (False,)},
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM",
        {"max_position_embeddings": 32768, "num_key_value_heads": 32},
        values={"attention_bias": (True,), "use_sliding_window": (False,)},
        harmless=_UNUSED_WINDOW,
        written=_NO_WINDOW,
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        understood=("attention_bias",),
        values={"use_sliding_window": (False,)},
        harmless=_UNUSED_WINDOW,
        written=_NO_WINDOW,
    ),
}

# Largest sizes, each well above that of any model: memory of that size is asked for before weights are seen.
_WIDTH = partial(Fields.integer, most=1 << 20)
_HEADS = partial(Fields.integer, most=1 << 14)

# Field of `LlamaConfig` -> the key that says the same for every family, and how its value is read.
SHAPE = {
    "vocab_size": ("vocab_size", partial(Fields.integer, most=1 << 24)),
    "hidden_size": ("hidden_size", _WIDTH),
    "intermediate_size": ("intermediate_size", _WIDTH),
    "num_layers": ("num_hidden_layers", partial(Fields.integer, most=10_000)),
    "num_heads": ("num_attention_heads", _HEADS),
    "num_kv_heads": ("num_key_value_heads", _HEADS),
    "head_dim": ("head_dim", _HEADS),
    "rms_norm_eps": ("rms_norm_eps", Fields.number),
    "initializer_range": ("initializer_range", Fields.number),
    "tie_embeddings": ("tie_word_embeddings", Fields.boolean),
    "context": ("max_position_embeddings", Fields.integer),
}

# Keys that `read_config` interprets.
UNDERSTOOD = {
    *(key for key, _ in SHAPE.values()),
    *("architectures", "model_type", "dtype", "torch_dtype", "layer_types", PROVENANCE_KEY),
    *("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"),
}

# Keys that may only have the values at which they change nothing. Some are read by code that models share, though no
# config class of these families declares them.
HARMLESS_VALUES = {
    "add_cross_attention": (False,),
    "attention_chunk_size": (None,),
    "attention_dropout": (0, None),
    "auto_map": (None, {}),
    "chunk_size_feed_forward": (0,),
    "compression_config": (None,),
    "cross_attention_hidden_size": (None,),
    "fusion_config": (None,),
    "hidden_act": ("silu", "swish"),
    "is_causal": (True, None),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "is_llama_config": (True,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, None),
    "per_layer_config": (None, {}),
    # Above 1, transformers 4 summed each product in as many slices: other roundings.
    "pretraining_tp": (1, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "sliding_window": (None,),
    "tie_encoder_decoder": (False,),
    "transformers_weights": (None,),
    "use_mrope": (False,),
}

# What describes the folder that a config was read from, rather than the model.
NOT_CARRIED = {"_commit_hash", "_name_or_path", "name_or_path"}

# Keys that change no logit whatever they hold.
HARMLESS = {
    *NOT_CARRIED,
    # Labels.
    *("finetuning_task", "id2label", "label2id", "num_labels", "prefix", "problem_type", "task_specific_params"),
    # Token ids, and the tokenizer.
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id"),
    *("pad_token_id", "sep_token_id", "tokenizer_class"),
    # What an API returns, and how.
    *("output_attentions", "output_hidden_states", "output_scores", "return_dict", "return_dict_in_generate"),
    *("use_cache", "torchscript", "use_bfloat16", "tf_legacy_loss"),
    # How text is sampled.
    *("bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "remove_invalid_values"),
    *("diversity_penalty", "exponential_decay_length_penalty", "length_penalty", "repetition_penalty"),
    *("do_sample", "early_stopping", "num_beam_groups", "num_beams", "num_return_sequences"),
    *("encoder_no_repeat_ngram_size", "max_length", "min_length", "no_repeat_ngram_size"),
    *("temperature", "top_k", "top_p", "typical_p"),
    # What wrote the file, and which implementation it chose.
    *("_attn_implementation", "_attn_implementation_autoset", "attn_implementation"),
    *("transformers.js_config", "transformers_version", "unsloth_fixed", "unsloth_version"),
}
