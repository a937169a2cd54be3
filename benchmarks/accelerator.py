"""What an accelerator computes, and how fast: one command, at most nine minutes on one GPU or TPU.

python benchmarks/accelerator.py            # writes benchmarks/accelerator.json, case by case, then the table
python benchmarks/accelerator.py --table    # the tables of benchmarks/README.md from benchmarks/accelerator.json
python benchmarks/accelerator.py --small --out=small.json    # the same program in seconds, on any machine

- attention: every backend of the platform against float64, values and gradients, for rows of one document and of
  several, with and without a sliding window; then TFLOP/s by the usual count, 2 T^2 D per head for a causal forward
  pass and 5 T^2 D for a backward pass.
- train: steps of the shapes of LLaMA 3.2 1B and LLaMA2 7B with the default attention and checkpointing: MFU, and peak
  memory beside the plan's. All weights are trained where the plan fits the memory, otherwise low-rank updates.
- generate: prefill of one prompt, and greedy decoding of eight.
- transformers does the same with flash_attention_2, or with sdpa where flash_attn is missing, if torch is there.

Weights and tokens are random. Each case has its own process; a case that would begin after the time is over is left
out, and one that fails is listed with its error. Needed are jax, flax, optax, numpy and jaxtyping; for the peer torch
and transformers.
"""

import argparse
import dataclasses
import importlib.util
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import in_own_process, machine, markdown_row, options, seconds

HERE = Path(__file__).resolve().parent
README, BEGIN, END = HERE / "README.md", "<!-- accelerator.json -->", "<!-- end of accelerator.json -->"
ALL, LORA = "all weights", "rank 8 of q, v"  # what is trained
SHAPES = {
    "1B": {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_layers": 16, "num_heads": 32}
    | {"num_kv_heads": 8, "head_dim": 64, "rope_base": 500000.0, "tie_embeddings": True},
    "7B": {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_layers": 32, "num_heads": 32}
    | {"num_kv_heads": 32, "head_dim": 128},
    "small": {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 2}
    | {"num_kv_heads": 1, "head_dim": 16},
}


@dataclasses.dataclass(frozen=True)
class Size:
    """How much each case computes."""

    exact: int = 512  # tokens of attention in float64
    attention: int = 8192  # tokens of attention that is timed
    train: tuple = (("1B", 8192), ("7B", 8192), ("1B", 16384), ("7B", 16384))
    prompt: int = 8192
    decode: tuple = (8, 512, 128)  # prompts, tokens of each, new tokens
    model: str = "1B"  # that generates
    steps: int = 5


SMALL = Size(32, 64, (("small", 32),), 32, (2, 16, 4), "small", 1)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--small", action="store_true", help="the smallest sizes, in this process")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--peer", action=argparse.BooleanOptionalAction, default=True, help="transformers as well")
    parser.add_argument("--out", type=Path, default=HERE / "accelerator.json")
    parser.add_argument("--table", action="store_true", help="only write the tables of the README")
    arguments = parser.parse_args()
    if not arguments.table:
        measure(arguments)
    if arguments.table or arguments.out == HERE / "accelerator.json":
        before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
        text = tables(json.loads(arguments.out.read_text(encoding="utf-8")))
        README.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def measure(arguments: argparse.Namespace) -> None:
    """Runs all cases, and writes the file after each."""
    # As much as a plan counts on; JAX takes three quarters unless it is told otherwise.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    size, began = SMALL if arguments.small else Size(), time.monotonic()
    peer = arguments.peer and all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
    cases = [(attention, size)]
    for model, length in size.train:
        cases += [(train, size, model, length)] + [(train_peer, size, model, length)] * peer
    cases += [(generate, size)] + [(generate_peer, size)] * peer
    call = (lambda case, *of, limit: case(*of)) if arguments.small else in_own_process
    result = {"command": " ".join(["python", *sys.argv]), "machine": machine(), **call(device, limit=None), "rows": []}
    for case, *of in cases:
        if case is train_peer:
            of = [*of, result["rows"][-1].get("trained") == ALL]
        left, about = 60 * arguments.minutes - (time.monotonic() - began), {"case": case.__name__, "of": of[1:3]}
        try:
            rows = call(case, *of, limit=left) if left > 0 else [{"error": "left out: the time was over"}]
        except Exception as error:
            rows = [{"error": f"{type(error).__name__}: {str(error)[:300]}"}]
        for row in rows:
            result["rows"].append(about | row)
            print(json.dumps(result["rows"][-1]), flush=True)
        arguments.out.write_text(json.dumps(result, indent=1), encoding="utf-8")


def device() -> dict:
    """What is measured, its memory, and its peak: of the data sheet where it is known, otherwise a product's."""
    import jax
    import jax.numpy as jnp

    from rope_jax.plan.chips import CHIPS

    found = jax.devices()[0]
    chip = next((chip for chip in CHIPS if chip.name.partition("-")[0].lower() in found.device_kind.lower()), None)
    accelerated = found.platform != "cpu"
    a = jnp.ones((8192,) * 2 if accelerated else (512,) * 2, jnp.bfloat16 if accelerated else jnp.float32)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    reached = 2 * len(a) ** 3 / min(seconds(lambda: product(a).block_until_ready()) for _ in range(5))
    memory = (found.memory_stats() or {}).get("bytes_limit")
    about = {"device": found.device_kind, "platform": found.platform, "count": jax.device_count(), "memory": memory}
    return about | {"jax": jax.__version__, "peak": chip.flops if chip else reached, "product": reached}


def attention(size: Size) -> list[dict]:
    """Errors of every backend of this platform, relative to the largest value, and its speed."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rope_jax.errors import InputError
    from rope_jax.model.backends import KERNELS, attend, check_backend
    from rope_jax.model.config import LlamaConfig
    from tests.model.references import allowed_keys, dense, random_segments

    platform, rows = jax.default_backend(), []
    dtype = "float32" if platform == "cpu" else "bfloat16"
    dim, heads, kv_heads = (16, 2, 1) if size == SMALL else (128, 16, 4)

    def arrays(length, rows):
        rng = np.random.default_rng(0)
        shapes = [(rows, length, n, dim) for n in (heads, kv_heads, kv_heads, heads)]
        return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]

    def both(attention, query, key, value, cotangent, segments):
        out, pull = jax.vjp(lambda *x: attention(*x, segments), query, key, value)
        return out, pull(cotangent)

    for backend in (*KERNELS.get(platform, ()), "cpu"):
        for window, packed in ((None, False), (None, True), (size.exact // 4, False), (size.exact // 4, True)):
            row = {"backend": backend, "window": window, "packed": packed}
            try:
                config = LlamaConfig(64, 64, 64, 1, heads, kv_heads, dim, architecture="mistral", dtype=dtype)
                config = dataclasses.replace(config, sliding_window=window, attention=backend)
                check_backend(config)
            except InputError as error:
                rows.append(row | {"error": str(error)})
                continue
            given = arrays(size.exact, 2)
            segments = random_segments(2, size.exact) if packed else np.ones((2, size.exact), np.int32)
            of = partial(attend, config=config)
            out, gradients = jax.jit(partial(both, of))(*given, segments)
            query, key, value, cotangent = (np.asarray(x, np.float64) for x in given)
            exact, exact_gradients = dense(query, key, value, allowed_keys(segments, window), cotangent)
            errors = [
                float(np.max(np.abs(np.asarray(ours, np.float64) - x)) / np.max(np.abs(x)))
                for ours, x in zip((out, *gradients), (exact, *exact_gradients))
            ]
            row |= {"error_of_values": errors[0], "error_of_gradients": max(errors[1:])}
            if window is None:
                given, length = arrays(size.attention, 1), size.attention
                segments = (jnp.arange(length) * 4 // length if packed else jnp.zeros(length)).astype(jnp.int32)[None]
                forward = timed(jax.jit(of), *given[:3], segments)
                whole = timed(jax.jit(partial(both, of)), *given, segments)
                flops = heads * length**2 * dim  # all blocks under the diagonal, whatever the documents
                row |= {"forward_tflops": 2e-12 * flops / forward, "tflops": 7e-12 * flops / whole}
            rows.append(row)
    return rows


def timed(call, *arguments, repeats: int = 5) -> float:
    """Median seconds of a call after the first."""
    import jax

    jax.block_until_ready(call(*arguments))
    return statistics.median(seconds(lambda: jax.block_until_ready(call(*arguments))) for _ in range(repeats))


def shape(name: str):
    """A model's config as commands compute it here by default."""
    from rope_jax.model.backends import Device, best_backend
    from rope_jax.model.config import LlamaConfig

    here = Device.here()
    config = LlamaConfig(**SHAPES[name], dtype="float32" if here.platform == "cpu" else "bfloat16", remat="full")
    return dataclasses.replace(config, attention=best_backend(config, here))


def train(size: Size, model: str, length: int) -> list[dict]:
    """Steps of training on one row, of all weights if the plan fits the memory, otherwise of low-rank updates."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np

    from rope_jax.model.backends import Device, described_backend
    from rope_jax.model.llama import init_params
    from rope_jax.model.lora import LoraConfig
    from rope_jax.plan.chips import MARGIN
    from rope_jax.plan.flops import model_flops
    from rope_jax.plan.memory import account, measured
    from rope_jax.rope.embedding import identity
    from rope_jax.sharding import make_mesh
    from rope_jax.training.config import OptimizerConfig, TrainConfig
    from rope_jax.training.state import Variables, create_state
    from rope_jax.training.update import Training, update

    config, mesh = shape(model), make_mesh(1, 1, 1, jax.devices()[:1])
    rope, about = identity(config.head_dim), device()
    training = Training(config, TrainConfig(OptimizerConfig(clip_norm=1.0), length, 1), mesh)
    full = MARGIN * account(training, rope).peak <= (about["memory"] or float("inf"))
    if not full:
        config = dataclasses.replace(config, param_dtype="bfloat16")
        lora = LoraConfig(8, 16.0, ("q", "v"))
        training = Training(config, dataclasses.replace(training.config, lora=lora), mesh)
    objective = training.objective

    @jax.jit
    def start(key):
        base = Variables(nn.unbox(init_params(config, key)), rope)
        return create_state(objective.start(base), training.optimizer), objective.frozen(base)

    state, frozen = start(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(3, config.vocab_size, (1, 1, length)).astype(np.int32)
    rows = []
    for kind, documents in (("one", 1), ("four", 4)):
        segments = 1 + jnp.arange(length, dtype=jnp.int32)[None, None] * documents // length  # 0 is padding
        positions = jnp.arange(length, dtype=jnp.int32)[None, None] % (length // documents)
        batch = {"tokens": jnp.asarray(tokens), "segment_ids": segments, "positions": positions}
        times = []
        for _ in range(size.steps + 2):
            began = time.perf_counter()
            state, metrics = update(state, frozen, batch, training)
            loss = float(metrics["loss"])
            times.append(time.perf_counter() - began)
        step = statistics.median(times[2:])
        mfu = length * model_flops(config, length, frozen=not full) / step / about["peak"]
        rows.append(
            {
                "by": f"rope-jax, JAX {jax.__version__}",
                "trained": ALL if full else LORA,
                "attention": described_backend(config, Device.here()),
                "documents": kind,
                "loss": loss,
                **{"seconds": step, "tokens_per_second": length / step, "mfu": mfu},
                **{"planned_bytes": account(training, rope).peak, "peak_bytes": measured(mesh)},
            }
        )
    return rows


def generate(size: Size) -> list[dict]:
    """Prefill of one prompt, and decoding of several."""
    import flax.linen as nn
    import jax

    from rope_jax.model.generate import greedy
    from rope_jax.model.llama import init_params
    from rope_jax.rope.embedding import identity

    config = shape(size.model)
    config = dataclasses.replace(config, param_dtype=config.dtype)
    params = jax.jit(lambda key: nn.unbox(init_params(config, key)))(jax.random.key(0))
    answer = partial(greedy, params, config, identity(config.head_dim))
    return generation(size, config.vocab_size, answer, f"rope-jax, JAX {jax.__version__}")


def generation(size: Size, vocabulary: int, answer, by: str) -> list[dict]:
    """Times `answer(prompts, new)`, which gives the new tokens of each prompt."""
    import numpy as np

    def prompts(count, length):
        return list(np.random.default_rng(0).integers(3, vocabulary, (count, length)).astype(np.int32))

    def median(*arguments):
        answer(*arguments)
        return statistics.median(seconds(answer, *arguments) for _ in range(3))

    count, length, new = size.decode
    first, prefill = median(prompts(count, length), 1), median(prompts(1, size.prompt), 1)
    decode = median(prompts(count, length), new + 1) - first
    speeds = {"prefill_tokens_per_second": size.prompt / prefill, "decode_tokens_per_second": count * new / decode}
    return [{"by": by, "model": size.model, "prompt": size.prompt, "decoded": size.decode, **speeds}]


def peer(name: str, dtype):
    """A random model of transformers with its fastest attention, and what to call it."""
    import torch
    import transformers

    s, on = SHAPES[name], "cuda" if torch.cuda.is_available() else "cpu"
    attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") and on == "cuda" else "sdpa"
    config = transformers.LlamaConfig(
        **{name: s[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "head_dim")},
        num_hidden_layers=s["num_layers"],
        num_attention_heads=s["num_heads"],
        num_key_value_heads=s["num_kv_heads"],
        tie_word_embeddings=s.get("tie_embeddings", False),
        max_position_embeddings=32768,
        eos_token_id=None,
    )
    with torch.device(on):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return model, on, f"transformers {transformers.__version__} ({attention}), torch {torch.__version__}"


def train_peer(size: Size, model: str, length: int, full: bool) -> list[dict]:
    """The same step by transformers: of all weights in float32, otherwise of low-rank updates to bfloat16."""
    import torch

    net, on, by = peer(model, torch.float32 if full else torch.bfloat16)
    if not full:
        net.requires_grad_(False)
        for layer in net.model.layers:
            for projection in (layer.self_attn.q_proj, layer.self_attn.v_proj):
                low_rank(projection, 8)
        net.enable_input_require_grads()
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    trained = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-5, weight_decay=0.0)
    ids = torch.randint(3, SHAPES[model]["vocab_size"], (1, length), device=on)
    net.train()

    def step():
        with torch.autocast(on, torch.bfloat16, enabled=on == "cuda"):
            loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    loss, _ = step(), step()
    time = statistics.median(seconds(step) for _ in range(size.steps))
    used = torch.cuda.max_memory_allocated() if on == "cuda" else None
    about = {"by": by, "trained": ALL if full else LORA, "documents": "one", "loss": loss}
    return [about | {"seconds": time, "tokens_per_second": length / time, "peak_bytes": used}]


def low_rank(projection, rank: int) -> None:
    """Adds a trained low-rank update to the output of a projection."""
    import torch

    weight = projection.weight
    a, b = (
        torch.nn.Parameter(torch.zeros(n, m, device=weight.device))
        for n, m in ((rank, weight.shape[1]), (weight.shape[0], rank))
    )
    torch.nn.init.normal_(a, std=rank**-0.5)
    projection.register_parameter("a", a)
    projection.register_parameter("b", b)

    def add(module, inputs, out):
        x, dtype = inputs[0], out.dtype
        return out + (x @ module.a.T.to(x.dtype) @ module.b.T.to(x.dtype)).to(dtype)

    projection.register_forward_hook(add)


def generate_peer(size: Size) -> list[dict]:
    """The same prompts by transformers."""
    import numpy as np
    import torch

    net, on, by = peer(size.model, torch.bfloat16 if torch.cuda.is_available() else torch.float32)
    net.eval()

    def answer(prompts, new):
        ids = torch.tensor(np.stack(prompts), dtype=torch.long, device=on)
        options = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}
        return net.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :].cpu()

    return generation(size, SHAPES[size.model]["vocab_size"], answer, by)


def tables(found: dict) -> str:
    """The tables of the README."""
    gib, rows = 2**30, found["rows"]

    def table(case, names, row):
        lines = [row(r) for r in rows if r["case"].startswith(case) and "error" not in r]
        return [markdown_row(*names), "|" + "---|" * len(names), *(markdown_row(*line) for line in lines), ""]

    def number(row, name, form):
        return format(row[name], form) if row.get(name) is not None else ""

    def memory(row, name):
        return f"{row[name] / gib:.1f} GiB" if row.get(name) else ""

    lines = [
        f"`{found['command']}` on {found['count']} x {found['device']}, JAX {found['jax']}; {found['machine']}. Peak: "
        f"{found['peak'] / 1e12:,.3g} TFLOP/s; a product of large matrices reaches {found['product'] / 1e12:,.3g}.",
        "",
    ]
    lines += table(
        "attention",
        ("backend", "window", "rows", "error of values", "of gradients", "forward, TFLOP/s", "with gradient"),
        lambda r: (
            *(r["backend"], r["window"] or "none", "packed" if r["packed"] else "one document"),
            *(f"{r['error_of_values']:.1e}", f"{r['error_of_gradients']:.1e}"),
            *(number(r, "forward_tflops", ",.4g"), number(r, "tflops", ",.4g")),
        ),
    )
    lines += table(
        "train",
        ("model", "tokens", "documents", "by", "trained", "s/step", "tokens/s", "MFU", "peak memory", "planned"),
        lambda r: (
            *(*r["of"], r["documents"], r["by"], r["trained"], f"{r['seconds']:.3g}"),
            *(f"{r['tokens_per_second']:,.0f}", number(r, "mfu", ".2f")),
            *(memory(r, "peak_bytes"), memory(r, "planned_bytes")),
        ),
    )
    lines += table(
        "generate",
        ("model", "by", "prompt", "prefill, tokens/s", "prompts x tokens, new", "decoding, tokens/s"),
        lambda r: (
            *(r["model"], r["by"], r["prompt"], f"{r['prefill_tokens_per_second']:,.0f}"),
            *("{} x {}, {}".format(*r["decoded"]), f"{r['decode_tokens_per_second']:,.0f}"),
        ),
    )
    used = dict.fromkeys(r["attention"] for r in rows if "attention" in r)
    lines += [f"Training computes attention by {said}." for said in used]
    lines += [
        f"- {' '.join(map(str, (r['case'], *r['of'], r.get('backend', ''))))}: {r['error']}"
        for r in rows
        if "error" in r
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
