"""stories260K, a real LLaMA of 260 thousand parameters, from llama2.c's files to a Hugging Face folder.

    python -m tests.interop.stories SOURCE TARGET

SOURCE holds `stories260k/stories260K.bin` and `stories260k/tok512.bin` (karpathy's tinyllamas, MIT); TARGET
is created.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors

SPACE = "\u2581"  # sentencepiece's visible space


def write_stories260k(shared_data_dir: Path, folder: Path) -> Path:
    """Converts the model and its tokenizer.

    Args:
        shared_data_dir: folder that holds `stories260k`.
        folder: folder to create or fill.

    Returns:
        `folder`, which transformers loads.
    """
    source, folder = Path(shared_data_dir) / "stories260k", Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = read_llama2c(source / "stories260K.bin")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    pieces = read_pieces(source / "tok512.bin")
    sentencepiece_like(pieces).save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    (folder / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
    return folder


def read_llama2c(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """Reads llama2.c's legacy format (`legacy_export` of karpathy/llama2.c).

    Args:
        path: checkpoint.

    Returns:
        `config.json` and Hugging Face's tensors.
    """
    dim, hidden, layers, heads, kv_heads, vocab, context = struct.unpack("7i", path.read_bytes()[:28])
    tied, vocab = vocab > 0, abs(vocab)
    numbers = np.fromfile(path, "<f4", offset=28)
    position = 0

    def take(*shape):
        nonlocal position
        start, position = position, position + int(np.prod(shape))
        return numbers[start:position].reshape(shape)

    head_dim = dim // heads
    kv_dim = kv_heads * head_dim
    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    stacked = {
        "input_layernorm": take(layers, dim),
        "self_attn.q_proj": half_split(take(layers, dim, dim), heads),
        "self_attn.k_proj": half_split(take(layers, kv_dim, dim), kv_heads),
        "self_attn.v_proj": take(layers, kv_dim, dim),
        "self_attn.o_proj": take(layers, dim, dim),
        "post_attention_layernorm": take(layers, dim),
        "mlp.gate_proj": take(layers, hidden, dim),
        "mlp.down_proj": take(layers, dim, hidden),
        "mlp.up_proj": take(layers, hidden, dim),
    }
    tensors["model.norm.weight"] = take(dim)
    take(2, context, head_dim // 2)  # cos and sin, which follow from the config
    if not tied:
        tensors["lm_head.weight"] = take(vocab, dim)
    assert position == numbers.size
    for module, values in stacked.items():
        for i in range(layers):
            tensors[f"model.layers.{i}.{module}.weight"] = values[i]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": dim,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return config, {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}


def half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders rows so that rotary pairs `(2i, 2i + 1)` of each head become `(i, i + D/2)`.

    Args:
        weight: `[layers, H * D, E]` of a query or key projection.
        heads: H.

    Returns:
        The same shape.
    """
    layers, rows, columns = weight.shape
    pairs = weight.reshape(layers, heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(2, 3).reshape(layers, rows, columns)


def read_pieces(path: Path) -> list[tuple[str, float]]:
    """Reads llama2.c's tokenizer file.

    Args:
        path: `tok512.bin`.

    Returns:
        Sentencepiece's pieces and scores, by id.
    """
    data, pieces = path.read_bytes(), []
    position = 4  # the longest piece's length comes first
    while position < len(data):
        score, length = struct.unpack_from("<fi", data, position)
        piece = data[position + 8 : position + 8 + length].decode("utf-8")
        position += 8 + length
        # llama2.c stores spaces as such, and the control pieces on lines of their own.
        piece = piece.strip("\n") if len(pieces) < 3 else piece.replace(" ", SPACE)
        pieces.append((piece, score))
    return pieces


def sentencepiece_like(pieces: list[tuple[str, float]]) -> Tokenizer:
    """The `tokenizers` tokenizer that encodes as sentencepiece's BPE with these pieces does.

    Sentencepiece merges the adjacent pair whose union scores highest; merges sorted by that score say the
    same.

    Args:
        pieces: pieces and scores, by id.

    Returns:
        The tokenizer; BOS is put in front on request for special tokens.
    """
    scores = {piece: score for piece, score in pieces[259:]}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    vocabulary = {piece: i for i, (piece, _) in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


if __name__ == "__main__":
    print(write_stories260k(Path(sys.argv[1]), Path(sys.argv[2])))
