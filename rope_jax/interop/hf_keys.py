"""What this package knows of the keys of `config.json`.

Reading is by allow-list: a key is understood, or known to leave the computation as it is here, or the file is
refused. An ignored key that matters gives a model that runs and is wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

# The top-level key under which an export says what its scale vector was made from.
PROVENANCE_KEY = "rope_jax"


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model family of transformers whose computation and weight names this package reproduces.

    Attributes:
        name: its class.
        defaults: what its config assumes for keys that a file leaves out (transformers 5.23), where that depends
            on the family.
        understood: keys of its own that `read_config` interprets.
        values: keys of its own that may only have the values at which they change nothing.
        harmless: keys of its own that change nothing here whatever they hold.
    """

    name: str
    defaults: Mapping[str, int]
    understood: frozenset[str] = frozenset()
    values: Mapping[str, tuple] = dataclasses.field(default_factory=dict)
    harmless: frozenset[str] = frozenset()


# Window and layers of a window that is not used.
_UNUSED_WINDOW = frozenset({"sliding_window", "max_window_layers"})

# By `model_type`.
ARCHITECTURES = {
    "llama": Architecture(
        "LlamaForCausalLM",
        {"max_position_embeddings": 2048},
        understood=frozenset({"attention_bias"}),
        values={"sliding_window": (None,)},
    ),
    "mistral": Architecture(
        "MistralForCausalLM",
        {"max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
        understood=frozenset({"sliding_window"}),
        values={"attention_bias": (False,)},
    ),
    "qwen2": Architecture(
        "Qwen2ForCausalLM",
        {"max_position_embeddings": 32768, "num_key_value_heads": 32},
        understood=frozenset({"layer_types"}),
        values={"attention_bias": (True,), "use_sliding_window": (False,)},
        harmless=_UNUSED_WINDOW,
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        {"max_position_embeddings": 32768, "num_key_value_heads": 32, "head_dim": 128},
        understood=frozenset({"attention_bias", "layer_types"}),
        values={"use_sliding_window": (False,)},
        harmless=_UNUSED_WINDOW,
    ),
}

# Keys that `read_config` interprets.
UNDERSTOOD = frozenset(
    {
        "architectures",
        "dtype",
        "head_dim",
        "hidden_size",
        "initializer_range",
        "intermediate_size",
        "max_position_embeddings",
        "model_type",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "original_max_position_embeddings",
        "rms_norm_eps",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "tie_word_embeddings",
        "torch_dtype",
        "vocab_size",
        PROVENANCE_KEY,
    }
)

# Keys that may only have the values at which they change nothing.
HARMLESS_VALUES = {
    "add_cross_attention": (False,),
    "attention_dropout": (0, None),
    "chunk_size_feed_forward": (0,),
    "cross_attention_hidden_size": (None,),
    "hidden_act": ("silu", "swish"),
    "is_decoder": (False,),
    "is_encoder_decoder": (False,),
    "is_llama_config": (True,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1, None),
    # Above 1, transformers 4 summed each product in as many slices: other roundings.
    "pretraining_tp": (1, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_interleaved": (False,),
    "tie_encoder_decoder": (False,),
    "use_mrope": (False,),
}

# Keys that change no logit whatever they hold: labels, token ids, what an API returns, how text is sampled.
HARMLESS = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_commit_hash",
        "_name_or_path",
        "attn_implementation",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "id2label",
        "label2id",
        "length_penalty",
        "max_length",
        "min_length",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_labels",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "problem_type",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "sep_token_id",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
    }
)

# What describes the folder that a config was read from, rather than the model.
NOT_CARRIED = frozenset({"_commit_hash", "_name_or_path", "name_or_path"})
