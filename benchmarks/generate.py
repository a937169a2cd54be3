"""Greedy decoding against transformers' `generate`, interleaved in one run.

python benchmarks/generate.py                        # 15M parameters, batch 8, prompts of 64 tokens, 512 new tokens
python benchmarks/generate.py --layers=2 --new=64    # quicker

The model is random. Both sides use the same float32 weights and must give the same tokens. JAX has one device per core,
over which a mesh shards heads and vocabulary (mesh.tensor) or, for prefill, also the rows of the batch (mesh.data). Set
XLA_FLAGS to choose the devices.
"""

import dataclasses
import os
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", f"--xla_force_host_platform_device_count={os.cpu_count()} --xla_cpu_multi_thread_eigen=false"
)
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
import torch
import transformers

from benchmarks.common import SHAPE, head, interleaved, machine, options, row
from rope_jax.interop.huggingface import read_model
from rope_jax.model.generate import greedy
from rope_jax.model.llama import param_shardings
from rope_jax.sharding import cache_sharding, make_mesh

HEADS = SHAPE["num_attention_heads"]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt of the generation")
    parser.add_argument("--new", type=int, default=512, help="new tokens")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512, 2048], help="tokens of the prompts of prefill")
    # Smaller than the default of a model, 512, which suits products over all cores.
    parser.add_argument("--attention-chunk", type=int, default=256, help="as config.model.attention_chunk")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    count = jax.device_count()
    if HEADS % count or arguments.batch % count:
        parser.error(f"there are {count} JAX devices: they must divide {HEADS} heads and a batch of {arguments.batch}")
    print(machine(JAX=jax.__version__, transformers=transformers.__version__, torch=torch.__version__))
    print(f"{jax.default_backend()}, {count} JAX devices")

    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder), arguments)
        ours = read_model(folder)
    config = dataclasses.replace(ours.config, attention_chunk=arguments.attention_chunk)
    meshes = {"heads": make_mesh(1, 1, count), "rows": make_mesh(count, 1, 1)}
    params = {cut: jax.device_put(ours.params, param_shardings(config, mesh)) for cut, mesh in meshes.items()}
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, batch {arguments.batch}\n")

    def transformers_side(prompts, new):
        ids = torch.tensor(np.stack(prompts), dtype=torch.long)
        options = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0}
        return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)[:, ids.shape[1] :].numpy()

    def our_side(prompts, new, cut):
        sharding = cache_sharding(meshes[cut])
        return np.stack(greedy(params[cut], config, ours.rope, prompts, new, cache_sharding=sharding))

    head("prompt", "new tokens", "cut", "ours", "transformers", "ours, tokens/s", "its tokens/s", "ratio", "equal")
    reading = [(length, 1, cut) for length in arguments.prefill for cut in meshes]
    for length, new, cut in [(arguments.prompt, arguments.new, "heads"), *reading]:
        rng = np.random.default_rng(length)
        prompts = [rng.integers(3, arguments.vocabulary, length).astype(np.int32) for _ in range(arguments.batch)]
        first, second = partial(our_side, prompts, new, cut), partial(transformers_side, prompts, new)
        equal = np.array_equal(first(), second())  # compiles, too
        mine, other, ratio = interleaved(first, second, arguments.repeats)
        tokens = arguments.batch * (new if new > 1 else length)
        row(
            *(length, new if new > 1 else "- (prefill)", cut, f"{mine:.2f} s", f"{other:.2f} s"),
            *(f"{tokens / mine:,.0f}", f"{tokens / other:,.0f}", f"{ratio:.2f}", "yes" if equal else "NO"),
        )


def random_model(folder: Path, arguments):
    """A random LLaMA of the size of stories15M, saved to a folder. It never ends a text."""
    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": arguments.vocabulary, "num_hidden_layers": arguments.layers}
    # Ten times the usual range: rounding must not decide between tokens.
    config = transformers.LlamaConfig.from_dict(shape | {"initializer_range": 0.2, "eos_token_id": None})
    model = transformers.LlamaForCausalLM(config).eval()
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return model


if __name__ == "__main__":
    main()
