"""JSON key-value recall: its text, sizes and scores."""

import dataclasses
import json
import re

import pytest

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.key_value import KeyValue, key_value_samples
from rope_jax.evaluation.sample import from_json
from rope_jax.evaluation.scores import score_table


def parts(prompt):
    """The object as JSON reads it, the examples, and the key that is asked for."""
    written, rest = re.fullmatch(
        r"JSON data:\n(\{.*\})\n\nExtract the value corresponding to the specified key in the JSON object below\."
        r"\n\n(.*)",
        prompt,
        re.DOTALL,
    ).groups()
    *examples, question = rest.split("\n\n")
    shown = [re.fullmatch(r"Key: (\S+)\nCorresponding value: (\S+)", example).groups() for example in examples]
    return json.loads(written), shown, re.fullmatch(r"Key: (\S+)\nCorresponding value:", question).group(1)


@pytest.mark.parametrize("length", [2048, 4096, pytest.param(16384, marks=pytest.mark.slow)])
def test_llama2_prompts_fill_the_length_and_can_be_answered(shared, length):
    tokenizer = load_tokenizer(shared / "data/llama2_tokenizer/tokenizer.model")
    samples = list(key_value_samples(SampleSpec(tokenizer, length, 12)))
    scores = {}
    for i, sample in enumerate(samples):
        tokens = len(tokenizer.encode(sample.prompt)) + 100
        assert sample.max_new_tokens == 100 and 0.99 * length <= tokens <= length
        pairs, shown, key = parts(sample.prompt)
        assert len(shown) == 2 and all(pairs[k] == v for k, v in shown) and key not in dict(shown)
        assert len(pairs) == sample.details["units"] and sample.references == (pairs[key],)
        place = list(pairs).index(key) / (len(pairs) - 1)
        # Places are whole numbers of pairs.
        depth = (3, 0, 4, 2, 5, 1)[i % 6] / 5
        assert abs(place - depth) <= 0.5 / (len(pairs) - 1) and sample.details["depth"] == depth
        assert from_json(json.loads(json.dumps(dataclasses.asdict(sample)))) == sample
        scores[sample.id] = KeyValue().score(sample, f' "{pairs[key].upper()}"\n\nKey:')
        assert KeyValue().score(sample, pairs[key][:-1]) == KeyValue().score(sample, shown[0][1]) == 0
    assert score_table(samples, scores)["json_kv"][str(length)].mean == 100


def test_prompts_depend_on_seed_and_number_only():
    tokenizer = load_tokenizer("bytes")
    first = [sample.prompt for sample in key_value_samples(SampleSpec(tokenizer, 2000, 2))]
    assert [sample.prompt for sample in key_value_samples(SampleSpec(tokenizer, 2000, 5))][:2] == first
    assert next(key_value_samples(SampleSpec(tokenizer, 2000, 1, seed=1))).prompt != first[0]
    with pytest.raises(InputError, match=r"json_kv does not fit a length of 200 .*at least \d+") as error:
        key_value_samples(SampleSpec(tokenizer, 200, 1))
    assert error.value.field == "lengths"
