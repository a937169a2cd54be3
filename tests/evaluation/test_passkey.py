"""The passkey task: its text to the letter, its sizes, its scoring."""

import dataclasses
import json
import re

import numpy as np
import pytest
import sentencepiece

from rope_jax.errors import InputError
from rope_jax.evaluation.passkey import (
    encode_prompt,
    found_number,
    garbage,
    make_prompts,
    passkey,
    prompt_text,
)


class Bytes:
    """A byte tokenizer with a BOS."""

    bos_id = 256

    def encode(self, text):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def decode(self, ids):
        return bytes(int(i) for i in ids if i < 256).decode(errors="replace")


class Llama2:
    """The LLaMA2 tokenizer."""

    def __init__(self, path):
        self.model = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.bos_id = self.model.bos_id()

    def encode(self, text):
        return np.array(self.model.encode(text), np.int32)

    def decode(self, ids):
        return self.model.decode([int(i) for i in ids])


@pytest.fixture(scope="module")
def llama2(shared):
    return Llama2(shared / "data/llama2_tokenizer/tokenizer.model")


def reading(tokenizer, answer=" {key}."):
    """A generate that reads the key in the prompt."""

    def generate(prompts):
        texts = [tokenizer.decode(prompt) for prompt in prompts]
        keys = [re.search(r"The pass key is (\d+)\. Remember", text).group(1) for text in texts]
        return [tokenizer.encode(answer.format(key=key)) for key in keys]

    return generate


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


@pytest.mark.parametrize(("characters", "tokens"), [(14000, 3807), (28000, 7539), (56000, 15005)])
def test_published_llama2_token_counts(llama2, characters, tokens):
    assert len(encode_prompt(llama2, 12345, characters, 0.5)) == tokens
    # Where the key stands moves the count by no more than a few tokens.
    for depth in (0.0, 0.123, 0.77, 1.0):
        assert abs(len(encode_prompt(llama2, 43210, characters, depth)) - tokens) <= 3


@pytest.mark.parametrize("length", [200, 1024, 4096])
def test_llama2_prompts_fill_the_length_and_never_exceed_it(llama2, length):
    prompts = make_prompts(llama2, length, 20, seed=0)
    sizes = [len(prompt.tokens) + 10 for prompt in prompts]
    assert max(sizes) <= length
    assert min(sizes) >= length - 8
    assert all(prompt.tokens[0] == 1 for prompt in prompts)


def test_byte_prompts_fill_the_length_exactly():
    for prompt in make_prompts(Bytes(), 1000, 12, seed=3, max_new_tokens=7):
        assert len(prompt.tokens) == 993
        text = prompt_text(prompt.key, prompt.n_garbage, prompt.depth)
        assert prompt.tokens[0] == 256 and Bytes().decode(prompt.tokens) == text


def test_trials_are_stratified_seeded_and_independent_of_other_lengths():
    prompts = make_prompts(Bytes(), 2000, 23, seed=1, depth_bins=5)
    assert np.bincount([p.bin for p in prompts]).tolist() == [5, 5, 5, 4, 4]
    for p in prompts:
        assert p.bin / 5 <= p.depth < (p.bin + 1) / 5
        assert 10000 <= p.key <= 50000
    again = make_prompts(Bytes(), 2000, 23, seed=1, depth_bins=5)
    assert [(p.key, p.depth) for p in prompts] == [(p.key, p.depth) for p in again]
    other = make_prompts(Bytes(), 2000, 23, seed=2, depth_bins=5)
    assert [p.key for p in prompts] != [p.key for p in other]
    alone = passkey(reading(Bytes()), Bytes(), [2000], 6)
    among = passkey(reading(Bytes()), Bytes(), [1000, 2000], 6)
    assert alone.trials == among.trials[6:]


def test_a_model_that_reads_the_key_scores_all_and_one_that_does_not_scores_none():
    right = passkey(reading(Bytes()), Bytes(), [700, 1500], 50, seed=4)
    assert [(r.successes, r.trials, r.rate) for r in right.per_length] == [(50, 50, 1.0)] * 2
    assert all(cell.successes == cell.trials == 5 for row in right.cells for cell in row)
    np.testing.assert_allclose(right.per_length[0].interval, (0.9287, 1.0), atol=1e-4)
    for wrong in (" 1{key}", " {key}1", "9 {key}", "none"):
        result = passkey(reading(Bytes(), wrong), Bytes(), [700], 20, seed=4)
        assert result.per_length[0].rate == 0.0


def test_only_the_first_tokens_count():
    long_winded = reading(Bytes(), "it is, I think, {key}")
    assert passkey(long_winded, Bytes(), [700], 5).per_length[0].rate == 0.0
    assert passkey(long_winded, Bytes(), [700], 5, max_new_tokens=21).per_length[0].rate == 1.0


def test_a_model_with_a_short_window_loses_early_keys():
    blind = Bytes().encode("The pass key is 0. Remember")

    def near_sighted(prompts):
        seen = [b"pass key" in bytes(prompt[-600:-40].astype(np.uint8)) for prompt in prompts]
        return reading(Bytes())([prompt if sees else blind for prompt, sees in zip(prompts, seen)])

    result = passkey(near_sighted, Bytes(), [2000], 40, depth_bins=4)
    assert [cell.rate for cell in result.cells[0]][:2] == [0.0, 0.0]
    assert result.cells[0][3].rate == 1.0
    assert result.depths == ((0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0))
    assert sum(t.correct for t in result.trials) == result.per_length[0].successes


def test_result_is_plain_json_with_empty_cells():
    result = passkey(reading(Bytes()), Bytes(), np.array([600]), 3, depth_bins=4)
    assert json.loads(json.dumps(dataclasses.asdict(result)))["cells"][0][3] == {
        "successes": 0,
        "trials": 0,
        "rate": None,
        "interval": [0.0, 1.0],
    }


def test_llama2_answers_are_decoded_and_found(llama2):
    result = passkey(reading(llama2), llama2, [600], 10)
    assert result.per_length[0].rate == 1.0


@pytest.mark.parametrize(
    ("text", "number"), [(" 12345. 6", "12345"), ("a\n42b", "42"), ("", None), ("no", None), ("007", "007")]
)
def test_first_run_of_digits(text, number):
    assert found_number(text) == number


def test_a_length_too_short_names_the_least_that_fits(llama2):
    for tokenizer in (Bytes(), llama2):
        with pytest.raises(InputError, match="passkey_lengths has 50") as caught:
            passkey(lambda prompts: pytest.fail("ran before the check"), tokenizer, [4000, 50], 5)
        least = int(re.search(r"at least (\d+)", str(caught.value)).group(1))
        assert passkey(reading(tokenizer), tokenizer, [least], 5).per_length[0].rate == 1.0
        with pytest.raises(InputError, match=f"at least {least}"):
            passkey(reading(tokenizer), tokenizer, [least - 1], 5)


def test_numbers_of_trials_are_checked():
    with pytest.raises(InputError, match="passkey_trials"):
        passkey(reading(Bytes()), Bytes(), [700], 0)
    with pytest.raises(InputError, match="passkey_depth_bins"):
        passkey(reading(Bytes()), Bytes(), [700], 5, depth_bins=0)
