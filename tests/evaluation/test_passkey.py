"""The passkey task: its text to the letter, its sizes, its scoring."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.answering import Prediction, with_bos
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.passkey import (
    Passkey,
    garbage,
    passkey_samples,
    prompt_text,
    retrieval_grid,
)
from rope_jax.evaluation.sample import Sample

BYTES = load_tokenizer("bytes")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden/passkey_llama2.json").read_text())["prompts"]


@pytest.fixture(scope="module")
def llama2(shared):
    return load_tokenizer(shared / "data/llama2_tokenizer/tokenizer.model")


def samples_of(length, count, seed=0, depths=10, new_tokens=10):
    return list(passkey_samples(SampleSpec(BYTES, length, count, seed), depths, new_tokens))


def key_of(prompt):
    """The key that a reader of the prompt finds; None without one."""
    found = re.search(r"The pass key is (\d+)\. Remember", prompt)
    return found and found.group(1)


def retrieved(samples, read, depths=10):
    """The grid of a model that answers each sample with what `read` makes of its prompt."""
    benchmark = Passkey(depths=depths)
    texts = {sample.id: read(sample.prompt) for sample in samples}
    predictions = {s.id: Prediction("", texts[s.id], benchmark.score(s, texts[s.id]), 0.0) for s in samples}
    return retrieval_grid(benchmark, samples, predictions)


def test_prompt_is_the_scripts_to_the_letter():
    assert prompt_text(12345, 150, 0.4) == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. I will "
        "quiz you about the important information there.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here\n"
        "The pass key is 12345. Remember it. 12345 is the pass key.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. \n"
        "What is the pass key? The pass key is"
    )
    assert prompt_text(7, 0, 0.5).split("\n")[1::2] == ["", ""]


def test_garbage_repeats_with_a_blank_between():
    sentence = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    endless = " ".join([sentence] * 4)
    for n in (0, 1, 89, 90, 91, 180, 300):
        assert garbage(n) == endless[:n]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["garbage"])
def test_prompts_of_published_llama2_token_counts(row):
    text = prompt_text(row["key"], row["garbage"], row["depth"])
    assert hashlib.sha256(text.encode()).hexdigest() == row["sha256"]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["garbage"])
def test_published_llama2_token_counts(llama2, row):
    assert len(with_bos(llama2, prompt_text(row["key"], row["garbage"], row["depth"]))) == row["tokens"]
    # Where the key stands moves the count by no more than a few tokens.
    for depth in (0.0, 0.123, 0.77, 1.0):
        assert abs(len(with_bos(llama2, prompt_text(43210, row["garbage"], depth))) - row["tokens"]) <= 3


@pytest.mark.parametrize("length", [200, 1024, 4096])
def test_llama2_prompts_fill_the_length_and_never_exceed_it(llama2, length):
    for sample in passkey_samples(SampleSpec(llama2, length, 20, seed=0)):
        tokens = 1 + len(llama2.encode(sample.prompt))
        assert sample.details["prompt_tokens"] == tokens
        assert length - 8 <= tokens + sample.max_new_tokens <= length


def test_byte_prompts_fill_the_length_exactly():
    for sample in samples_of(1000, 12, seed=3, new_tokens=7):
        assert 1 + len(BYTES.encode(sample.prompt)) == sample.details["prompt_tokens"] == 993
        assert key_of(sample.prompt) == sample.references[0] and sample.max_new_tokens == 7


def test_trials_are_stratified_seeded_and_independent_of_their_number():
    samples = samples_of(2000, 23, seed=1, depths=5)
    assert np.bincount([int(5 * s.details["depth"]) for s in samples]).tolist() == [5, 4, 5, 5, 4]
    for sample in samples:
        assert 10000 <= int(sample.references[0]) <= 50000
    assert samples == samples_of(2000, 23, seed=1, depths=5)
    assert [s.references for s in samples] != [s.references for s in samples_of(2000, 23, seed=2, depths=5)]


@pytest.mark.parametrize(("trials", "depths"), [(2, 4), (3, 10), (5, 10), (7, 10), (15, 10)])
def test_few_trials_are_spread_over_all_depths(trials, depths):
    """No half of the depths without a trial, and every depth once before any has a second."""
    strata = [int(depths * s.details["depth"]) for s in samples_of(700, trials, depths=depths)]
    assert len(set(strata)) == min(trials, depths)
    lower = sum(stratum < depths / 2 for stratum in strata)
    assert abs(2 * lower - trials) <= 1


def test_a_model_that_reads_the_key_scores_all_and_one_that_does_not_scores_none():
    samples = samples_of(700, 50, seed=4) + samples_of(1500, 50, seed=4)
    right = retrieved(samples, lambda prompt: f" {key_of(prompt)}.")
    assert [(r["successes"], r["trials"], r["rate"]) for r in right["per_length"]] == [(50, 50, 1.0)] * 2
    assert all(cell["successes"] == cell["trials"] == 5 for row in right["cells"] for cell in row)
    np.testing.assert_allclose(right["per_length"][0]["interval"], (0.9287, 1.0), atol=1e-4)
    for wrong in (" 1{}", " {}1", "9 {}", "none"):
        result = retrieved(samples[:20], lambda prompt, wrong=wrong: wrong.format(key_of(prompt)))
        assert result["per_length"][0]["rate"] == 0.0


def test_a_model_with_a_short_window_loses_early_keys():
    samples = samples_of(2000, 40, depths=4)
    result = retrieved(samples, lambda prompt: key_of(prompt[-600:]) or "0", depths=4)
    assert [cell["rate"] for cell in result["cells"][0]][:2] == [0.0, 0.0]
    assert result["cells"][0][3]["rate"] == 1.0
    assert result["depths"] == [[0.0, 0.25], [0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]
    assert sum(trial["correct"] for trial in result["trials"]) == result["per_length"][0]["successes"]


def test_result_is_plain_json_with_empty_cells():
    result = retrieved(samples_of(600, 3, depths=4), key_of, depths=4)
    assert result["lengths"] == [600] and len(result["trials"]) == 3
    empty = {"successes": 0, "trials": 0, "rate": None, "interval": [0.0, 1.0]}
    assert json.loads(json.dumps(result))["cells"][0].count(empty) == 1


@pytest.mark.parametrize(
    ("text", "number"), [(" 12345. 6", "12345"), ("a\n42b", "42"), ("", None), ("no", None), ("007", "007")]
)
def test_first_run_of_digits_counts(text, number):
    asked = Sample("passkey/1/0", "passkey", "", (number or "1",), 10, 1)
    assert Passkey().score(asked, text) == (number is not None)


def test_a_length_too_short_names_the_least_that_fits():
    with pytest.raises(InputError) as error:
        samples_of(50, 5)
    assert error.value.field == "lengths"
    least = int(re.search(r"at least (\d+)", str(error.value)).group(1))
    (sample,) = samples_of(least, 1)
    assert 1 + len(BYTES.encode(sample.prompt)) + 10 == least
    with pytest.raises(InputError, match=f"at least {least}"):
        samples_of(least - 1, 5)


@pytest.mark.parametrize("field", ["trials", "depths", "new_tokens"])
def test_numbers_are_checked(field):
    with pytest.raises(InputError) as error:
        Passkey(**{field: 0})
    assert error.value.field == field
