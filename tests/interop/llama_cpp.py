"""What llama.cpp itself computes with a GGUF file.

In a process of its own: the server has threads that do not like to share one with JAX and torch, and a file that it
cannot compute with ends the process.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest


def log_probabilities(file: Path, tokens: list[int], vocab: int, context: int) -> np.ndarray:
    """Of the token after `tokens`.

    Args:
        file: GGUF file.
        tokens: ids.
        vocab: ids in all.
        context: tokens to allocate.

    Returns:
        float64 `[vocab]`, nats.
    """
    # The answer holds probabilities only where the token is text, which half a character is not: the bias has an "A"
    # sampled. Probabilities are those of the model's own logits all the same.
    question = {"prompt": tokens, "n_predict": 1, "logprobs": vocab, "temperature": -1.0, "logit_bias": [[65, 1000.0]]}
    answer = _asked({"file": str(file), "context": context, "completion": question})
    found = {entry["id"]: entry["logprob"] for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
    assert len(found) == vocab
    return np.array([found[i] for i in range(vocab)])


def tokenized(file: Path, texts: list[str]) -> list[list[int]]:
    """What llama.cpp's tokenizer makes of texts, special tokens in front as the file asks for."""
    questions = [{"content": text, "add_special": True, "parse_special": False} for text in texts]
    return _asked({"file": str(file), "context": 64, "tokenize": questions})


def _asked(job: dict):
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp is not installed (pip install xllamacpp)")
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(job), capture_output=True, text=True, timeout=120, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")]
    assert lines, done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("ANSWER "))


def _main():
    import os

    import xllamacpp

    job = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = job["file"]
    params.n_ctx, params.n_parallel, params.warmup, params.n_gpu_layers = job["context"], 1, False, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    # float32 throughout: by default the cache of keys and values is float16.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    if "completion" in job:
        answer = server.handle_completions(job["completion"])
    else:
        answer = [_posted(f"{server.listening_address}/tokenize", body)["tokens"] for body in job["tokenize"]]
    print("\nANSWER " + json.dumps(answer), flush=True)
    os._exit(0)  # no waiting for the server's threads


def _posted(address: str, body: dict) -> dict:
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


if __name__ == "__main__":
    _main()
