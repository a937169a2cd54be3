"""Training steps: tokens per second, MFU and peak memory; with `--peer` against transformers and torch.

python benchmarks/train.py --peer                                   # 15M parameters, T = 1024, 4096 and 16384
python benchmarks/train.py --peer --model=configs/llama2_7b --dtype=bfloat16 --cases 8192x1 16384x1 \
    --remat=full --checkpointing --attention=cudnn --peak=989e12                    # one H200

Each side runs in its own process, so that memory is its own. Their steps alternate, from the same weights and over the
same tokens. A step is a forward pass, a backward pass and an AdamW update of all weights. On a CPU, memory is the peak
over the life of a process: ours is given with the program in the compilation cache, and (column "compiling") without.

MFU is model FLOPs per second over the peak FLOP/s: 6 per weight and token, without the embedding, and 12 H D per layer,
token and key seen (`rope_jax.plan.flops.model_flops`). Recomputation does not count. The default of `--peak` is
measured in the same run: a float32 product of 4096 x 4096 matrices in JAX.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import SHAPE, head, machine, options, peak_bytes, row, seconds


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--model", type=Path, help="folder with a config.json; default 15M parameters")
    parser.add_argument("--cases", nargs="*", default=["1024x2", "4096x1", "16384x1"], help="tokens x rows")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--remat", default="dots", help="of `rope_jax.model.remat`")
    parser.add_argument("--checkpointing", action="store_true", help="the peer's gradient checkpointing")
    parser.add_argument("--attention", default="cpu", help="backend: cpu, cudnn, pallas or splash")
    parser.add_argument("--chunk", type=int, default=512, help="queries and keys at a time of the backend cpu")
    parser.add_argument("--loss-tokens", type=int, default=512, help="tokens whose logits are formed at a time")
    parser.add_argument("--unroll", action="store_true", help="unroll the layers instead of scanning them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peak", type=float, help="FLOP/s of the device")
    parser.add_argument("--peer", action="store_true", help="transformers and torch as well")
    arguments = parser.parse_args()
    print(machine())
    speed = ("s/step", "tokens/s", "of the peer", "MFU")
    head("T", "B", "by", *speed, "peak memory", "compiling", "loss of the first step")
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        config = json.loads((arguments.model / "config.json").read_text()) if arguments.model else SHAPE
        (arguments.folder / "config.json").write_text(json.dumps(config))
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(arguments.folder / "compiled")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        for case in arguments.cases:
            compare(arguments, *map(int, case.split("x")))


def compare(arguments: argparse.Namespace, length: int, rows: int) -> None:
    """Runs one case on all sides and prints its rows."""
    # The peer starts first: it writes the initial weights of both.
    other = {"peer": Side(peer, arguments, length, rows)} if arguments.peer else {}
    first = Side(ours, arguments, length, rows)
    compiling = first.ask("end").get("memory", 0)
    first.process.join()
    sides = {"ours": Side(ours, arguments, length, rows)} | other
    times = {side: [] for side in sides}
    for _ in range(arguments.repeats):
        for name, side in sides.items():
            if found := side.ask("step"):
                times[name].append(found["seconds"])
    last = {name: side.ask("end") for name, side in sides.items()}
    own = sides["ours"].hello
    for name, side in sides.items():
        side.process.join()
        if not last[name]:
            row(length, rows, name, f"did not run, exit status {side.process.exitcode}", *[""] * 6)
            continue
        time, tokens = statistics.median(times[name]), length * rows
        ratio = ""
        if name == "ours" and last.get("peer"):
            ratio = f"{statistics.median(b / a for a, b in zip(times['ours'], times['peer'])):.2f}"
        mfu = f"{own['flops'] * tokens / time / own['peak']:.2f}" if own else ""
        memory = f"{last[name]['memory'] / 2**30:.2f} GiB"
        before = f"{compiling / 2**30:.2f} GiB" if name == "ours" else ""
        speed = (f"{time:.2f}", f"{tokens / time:,.0f}", ratio, mfu)
        row(length, rows, side.hello["versions"], *speed, memory, before, f"{side.hello['loss']:.5f}")
    if own:
        print(f"\nPeak: {own['peak'] / 1e9:,.0f} GFLOP/s\n", flush=True)


class Side:
    """A process that makes steps on request. If it ends early, its answers are empty."""

    def __init__(self, prepare, *case):
        context = multiprocessing.get_context("spawn")
        self._connection, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, prepare, *case))
        self.process.start()
        end.close()
        self.hello = self._answer()

    def ask(self, what: str) -> dict:
        try:
            self._connection.send(what)
        except BrokenPipeError:
            return {}
        return self._answer()

    def _answer(self) -> dict:
        try:
            return self._connection.recv()
        except (EOFError, ConnectionResetError):
            return {}


def serve(connection, prepare, *case) -> None:
    """Answers requests: `prepare(*case)` gives a function of one step, the memory used, and a greeting."""
    step, memory, hello = prepare(*case)
    connection.send(hello)
    while connection.recv() == "step":
        connection.send({"seconds": seconds(step)})
    connection.send({"memory": memory})


def random_tokens(length: int, rows: int, vocabulary: int):
    import numpy as np

    return np.random.default_rng(length).integers(3, vocabulary, (rows, length)).astype(np.int32)


def ours(arguments, length, rows):
    import dataclasses

    import jax
    import jax.numpy as jnp
    from flax import linen as nn

    from rope_jax.interop.hf_config import read_config
    from rope_jax.interop.huggingface import read_model
    from rope_jax.model.llama import init_params
    from rope_jax.plan.flops import model_flops
    from rope_jax.training.config import OptimizerConfig, make_optimizer
    from rope_jax.training.state import Variables, create_state
    from rope_jax.training.step import summed_loss, train_step

    if arguments.peer:
        found = read_model(arguments.folder, None, arguments.dtype)
        config, params, rope = found.config, found.params, found.rope
    else:
        found = read_config(arguments.folder)
        config, params, rope = found.config, None, found.rope
    config = dataclasses.replace(
        config,
        dtype=arguments.dtype,
        param_dtype=arguments.dtype,
        remat=arguments.remat,
        attention=arguments.attention,
        attention_chunk=arguments.chunk,
        scan_unroll=config.num_layers if arguments.unroll else 1,
    )
    if params is None:
        params = jax.jit(lambda: nn.unbox(init_params(config, jax.random.key(0))))()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-5, clip_norm=1.0))
    state = jax.jit(partial(create_state, optimizer=optimizer), donate_argnums=0)(params)
    del params, found
    tokens = random_tokens(length, rows, config.vocab_size)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    batch = {"tokens": tokens, "segment_ids": jnp.ones_like(positions), "positions": positions}
    batch = {name: jnp.asarray(value)[None] for name, value in batch.items()}
    chunk = max(1, arguments.loss_tokens // rows)

    def loss(params, rows):
        return summed_loss(Variables(params, rope), rows, config, chunk)

    update = jax.jit(partial(train_step, loss=loss, optimizer=optimizer), donate_argnums=0)

    def step():
        nonlocal state
        state, metrics = update(state, batch)
        return float(metrics["loss"])

    first = step()
    step()
    stats = jax.local_devices()[0].memory_stats() or {}
    used = stats.get("peak_bytes_in_use") or peak_bytes()
    hello = {
        "versions": f"rope-jax, JAX {jax.__version__} ({jax.default_backend()})",
        "loss": first,
        "flops": model_flops(config, length),
        "peak": arguments.peak or product_peak(),
    }
    return step, used, hello


def product_peak() -> float:
    """FLOP/s of a large float32 product."""
    import jax
    import jax.numpy as jnp

    a = jnp.ones((4096, 4096))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))
    return 2 * 4096**3 / min(seconds(lambda: jax.block_until_ready(product(a))) for _ in range(3))


def peer(arguments, length, rows):
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, arguments.dtype)
    config = transformers.AutoConfig.from_pretrained(arguments.folder)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).to(device)
    model.save_pretrained(arguments.folder)
    if arguments.checkpointing:
        model.gradient_checkpointing_enable()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0)
    ids = torch.tensor(random_tokens(length, rows, config.vocab_size), dtype=torch.long, device=device)

    def step():
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    first = step()
    step()
    used = torch.cuda.max_memory_allocated() if device == "cuda" else peak_bytes()
    versions = f"transformers {transformers.__version__}, torch {torch.__version__} ({device})"
    return step, used, {"versions": versions, "loss": first}


if __name__ == "__main__":
    main()
