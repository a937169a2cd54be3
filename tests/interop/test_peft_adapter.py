"""The exported adapter, loaded by PEFT onto the exported folder, computes what was trained."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers

from rope_jax.errors import InputError
from rope_jax.interop.huggingface import read_model
from rope_jax.interop.new_folder import rescale_folder
from rope_jax.interop.peft_adapter import check_adapter, write_adapter
from rope_jax.model.llama import Llama
from rope_jax.model.lora import LoraConfig, apply_lora, init_lora, merge_lora
from rope_jax.rope.embedding import ScaleVector
from tests.interop.references import write_random_llama

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 40))


def moved(params, config, lora):
    """Trained factors in which nothing is as it began."""
    leaves, structure = jax.tree.flatten(init_lora(params, config, lora))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return structure.unflatten([leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)])


@pytest.mark.parametrize("attention_factor", [1.0, 1.2])
@pytest.mark.parametrize(
    ("targets", "tied"),
    [
        (("q", "v"), True),
        (("q", "k", "v", "o", "gate", "up", "down", "norm", "embedding", "head"), False),
    ],
)
def test_peft_computes_the_same_logits(tmp_path, monkeypatch, targets, tied, attention_factor):
    write_random_llama(tmp_path / "source", tie_word_embeddings=tied)
    source = read_model(tmp_path / "source")
    rope = ScaleVector.create(np.linspace(1, 3, 6), attention_factor)
    lora = LoraConfig(rank=4, alpha=6.0, targets=targets)
    trained = moved(source.params, source.config, lora)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    rescale_folder(tmp_path / "source", base, rope, context=256, provenance={})
    write_adapter(adapter, base, source.config, lora, trained, provenance={"method": "x"})
    monkeypatch.chdir(adapter)  # The base that it names lies beside it.
    params, adapters = apply_lora(source.params, trained, lora)
    ours = Llama(source.config).apply({"params": params, "lora": adapters}, jnp.asarray(TOKENS), rope)
    merged = merge_lora(source.params, trained, lora)
    # Logits of order 10; float32 sums in another order.
    np.testing.assert_allclose(Llama(source.config).apply({"params": merged}, TOKENS, rope), ours, atol=2e-4)

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.PeftModel.from_pretrained(model, adapter)
    status = peft.get_peft_model_state_dict(model)
    with torch.no_grad():
        theirs = model(torch.asarray(TOKENS)).logits.numpy()
        with model.disable_adapter():
            untrained = model(torch.asarray(TOKENS)).logits.numpy()
    np.testing.assert_allclose(theirs, ours, atol=2e-4)
    assert np.abs(theirs - untrained).max() > 0.1
    # What PEFT holds is what the file says, every tensor of it.
    from safetensors.numpy import load_file

    stored = load_file(adapter / "adapter_model.safetensors")
    assert {name for name in status if "lora_" in name} == {name for name in stored if "lora_" in name}
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "../base"
    # From the adapter alone, which names its base.
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(adapter, dtype=torch.float32)
    with torch.no_grad():
        np.testing.assert_allclose(alone(torch.asarray(TOKENS)).logits.numpy(), theirs, atol=1e-5)


def test_unusable(tmp_path):
    config = read_model(write_random_llama(tmp_path / "a", tie_word_embeddings=True)).config
    lora = LoraConfig(rank=4, alpha=6.0, targets=("q", "embedding"))
    with pytest.raises(InputError, match=r"also the head.*export the merged model"):
        check_adapter(config, lora)
    lora = LoraConfig(rank=4, alpha=6.0, targets=("q",))
    trained = {"factors": {}}
    write_adapter(tmp_path / "b", tmp_path / "a", config, lora, trained, provenance={})
    with pytest.raises(InputError, match="already exists"):
        write_adapter(tmp_path / "b", tmp_path / "a", config, lora, trained, provenance={})
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        write_adapter(tmp_path / "a", tmp_path / "a", config, lora, trained, provenance={}, overwrite=True)
