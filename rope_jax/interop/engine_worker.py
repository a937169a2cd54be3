"""Log probabilities of given tokens by a serving engine: a script for the engine's own environment.

    python engine_worker.py JOBS.json ANSWERS.json

It needs Python and the engine only. JOBS is `{"engine": ..., "jobs": [{"model", "tokens", "columns"}, ...]}`; a column
c asks for the log probability of token c after the tokens before it. ANSWERS is `{"version": ..., "answers": [...]}`,
each a list of numbers in nats, or a text that says why there are none.
"""

# The engines are in other environments, and xllamacpp has no types.
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportOptionalCall=false

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from pathlib import Path


def by_transformers(jobs: list[dict]) -> tuple[str, list]:
    import torch
    import transformers

    def answer(job: dict) -> list[float]:
        tokens, columns = torch.tensor([job["tokens"]]), torch.tensor(job["columns"])
        model = transformers.AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=torch.float32, trust_remote_code=False, use_safetensors=True
        )
        with torch.no_grad():
            states = model.base_model(tokens, use_cache=False).last_hidden_state[0, columns - 1]
            scores = torch.log_softmax(model.get_output_embeddings()(states).double(), -1)
        return scores[torch.arange(len(columns)), tokens[0, columns]].tolist()

    return f"transformers {transformers.__version__}", [_tried(answer, job) for job in jobs]


def by_vllm(jobs: list[dict]) -> tuple[str, list]:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    # Models follow one another in this process.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    import gc

    import vllm

    def answer(job: dict) -> list[float]:
        engine = vllm.LLM(
            model=job["model"],
            dtype="float32",
            enforce_eager=True,
            max_model_len=len(job["tokens"]) + 1,
            max_num_seqs=1,
            skip_tokenizer_init=True,
        )
        # Of every token of the prompt, the log probability and no alternatives.
        wanted = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        [found] = engine.generate({"prompt_token_ids": job["tokens"]}, wanted, use_tqdm=False)
        scores = [found.prompt_logprobs[c][job["tokens"][c]].logprob for c in job["columns"]]
        del engine
        gc.collect()
        return scores

    return f"vLLM {vllm.__version__}", [_tried(answer, job) for job in jobs]


def by_llama_cpp(jobs: list[dict]) -> tuple[str, list]:
    # Threads that wait for one another sleep: where others compute, too, spinning is some fifty times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import xllamacpp

    def answer(job: dict) -> list[float]:
        params = xllamacpp.CommonParams()
        params.model.path = job["model"]
        params.n_ctx, params.n_parallel, params.warmup, params.n_gpu_layers = len(job["tokens"]) + 8, 1, False, 0
        # float32 throughout: by default the cache of keys and values is float16.
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        server = xllamacpp.Server(params)
        scores = []
        for column in job["columns"]:
            # The server tells the probability of what it samples. The bias decides that, and is no part of the
            # probability. The cache holds all but the last token of the prompt.
            found = server.handle_completions(
                {
                    "prompt": job["tokens"][:column],
                    "n_predict": 1,
                    "logprobs": 1,
                    "temperature": -1.0,
                    "logit_bias": [[job["tokens"][column], 1000.0]],
                    "cache_prompt": True,
                }
            )
            [sampled] = found["choices"][0]["logprobs"]["content"]
            if sampled["id"] != job["tokens"][column]:
                raise ValueError(f"token {sampled['id']} was sampled, and not {job['tokens'][column]}")
            scores.append(sampled["logprob"])
        return scores

    version = importlib.metadata.version("xllamacpp")
    return f"llama.cpp (xllamacpp {version})", [_tried(answer, job) for job in jobs]


def by_mlx(jobs: list[dict]) -> tuple[str, list]:
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache
    from mlx_lm.utils import load_model

    def answer(job: dict) -> list[float]:
        model, _ = load_model(Path(job["model"]))
        cache, scores = make_prompt_cache(model), {}
        for start in range(0, len(job["tokens"]) - 1, 512):
            # Logits of few tokens at a time.
            piece = job["tokens"][start : start + 512]
            logits = model(mx.array([piece]), cache=cache)[0].astype(mx.float32)
            following = job["tokens"][start + 1 : start + 1 + len(piece)]
            places = mx.arange(len(following))
            chosen = logits[places, mx.array(following)] - mx.logsumexp(logits[: len(following)], axis=-1)
            scores |= dict(enumerate(chosen.tolist(), start + 1))
        return [scores[column] for column in job["columns"]]

    versions = " ".join(f"{name} {importlib.metadata.version(name)}" for name in ("mlx", "mlx-lm"))
    return versions, [_tried(answer, job) for job in jobs]


ENGINES = {"transformers": by_transformers, "vllm": by_vllm, "llama.cpp": by_llama_cpp, "mlx": by_mlx}


def _tried(answer, job: dict):
    try:
        return answer(job)
    except Exception as error:  # an engine refuses a model with any of them
        return f"{type(error).__name__}: {error}"


def main(jobs: str, answers: str) -> None:
    asked = json.loads(Path(jobs).read_text(encoding="utf-8"))
    version, found = ENGINES[asked["engine"]](asked["jobs"])
    Path(answers).write_text(json.dumps({"version": version, "answers": found}), encoding="utf-8")
    # Engines keep threads that would not end by themselves.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
