"""Energies and attention over distances, against the projections and attention weights of transformers."""

import itertools

import numpy as np
import pytest
import torch
import transformers

from rope_jax.errors import InputError
from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.model.usage import distance_edges, measure_usage
from rope_jax.model.usage_file import read_usage
from tests.interop.references import quiet_transformers, write_random_llama

TEXTS = np.random.default_rng(0).integers(0, 96, (2, 40))
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4}


def reference(folder):
    """Queries and keys before rotation, `[texts, layers, T, heads, D]`; attention `[texts, layers, heads, T, T]`."""
    with quiet_transformers():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    found = {"q": [], "k": []}
    for layer in model.model.layers:
        for name, kept in found.items():
            norm, projection = (getattr(layer.self_attn, f"{name}_{kind}", None) for kind in ("norm", "proj"))
            (norm or projection).register_forward_hook(lambda *call, kept=kept: kept.append(call[2].detach().numpy()))
    with torch.no_grad():
        attention = [model(torch.tensor(text[None]), output_attentions=True).attentions for text in TEXTS]
    size = model.config.hidden_size // 4
    heads = [
        np.reshape(values, (len(TEXTS), model.config.num_hidden_layers, 40, -1, size)).astype(float)
        for values in found.values()
    ]
    return *heads, np.asarray([[layer[0].numpy() for layer in text] for text in attention], float)


def test_usage_is_that_of_transformers(tmp_path):
    """With normalised queries and keys, grouped heads, and an attention factor of the model's own."""
    folder = write_random_llama(tmp_path / "model", architecture="qwen3", head_dim=12, rope_parameters=YARN)
    known = check_model(folder)
    usage = measure_usage(read_model(folder).params, known.config, known.rope, TEXTS, {"model": "random"})
    query, key, attention = reference(folder)
    half = query.shape[-1] // 2
    norms = [np.hypot(x[..., :half], x[..., half:]).mean(axis=2) for x in (query, key)]
    energy = (norms[0] * np.repeat(norms[1], 2, axis=2)).mean(axis=0)
    np.testing.assert_allclose(usage.energy, energy, rtol=1e-5)
    edges = distance_edges(40)
    assert usage.edges == edges == (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40)
    away = np.subtract.outer(np.arange(40), np.arange(40))
    expected = [
        (attention[..., 1:, 1:] * ((away >= low) & (away < high))[1:, 1:]).sum(axis=-1).mean(axis=(0, 3))
        for low, high in itertools.pairwise(edges)
    ]
    np.testing.assert_allclose(usage.attention, np.moveaxis(expected, 0, -1), rtol=1e-4, atol=1e-7)
    assert usage.about == {"model": "random", "texts": 2, "tokens": 80}
    usage.write(tmp_path / "usage.json")
    again = read_usage(tmp_path / "usage.json")
    np.testing.assert_array_equal(again.energy, usage.energy)
    assert again.distances() == usage.distances() and np.mean(again.pair_weights()) == pytest.approx(1)


def test_texts_of_unequal_length():
    with pytest.raises(InputError) as error:
        measure_usage({}, None, None, [], {})
    assert error.value.field == "texts"


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"energy": 3, "distances": {"edges": [0, 1], "attention": [[[1]]]}}', "not JSON"]
    + [f'{{"energy": {e}, "distances": {{"edges": [0, 2], "attention": [[[1]]]}}}}' for e in ("[[[0]]]", "[[[-1]]]")],
)
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "usage.json").write_text(text)
    with pytest.raises(InputError, match=r"usage\.json"):
        read_usage(tmp_path / "usage.json")
