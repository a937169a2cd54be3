"""Many-shot classification: its text, sizes, balance and scores."""

import re
from collections import Counter

import pytest

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.many_shot import Example, ManyShot, many_shot_samples, read_examples

TOPICS = ["rivers", "music", "ships", "bread", "stars", "horses", "paper"]
TRAIN = [Example(f"What, by the way, is known of {t} in town {i} and near it?", t) for i in range(60) for t in TOPICS]
TEST = [Example(f"Who knows about {t} in {i}?", t) for t in TOPICS for i in range(9)]


def parts(prompt):
    """The examples as (text, label), and the text that is asked for."""
    order, *examples, question = prompt.split("\n\n")
    assert order == (
        "Use the provided mapping from the text to label to assign a label to the text. Only output "
        '"label: {label}" and nothing else. '
    )
    shown = [re.fullmatch(r"(.*)\nlabel: (\d+)", example).groups() for example in examples]
    return shown, re.fullmatch(r"(.*)\nlabel:", question).group(1)


def topic(text):
    (found,) = [t for t in TOPICS if t in text]
    return found


@pytest.mark.parametrize("length", [2048, 8192])
def test_llama2_prompts_fill_the_length_and_can_be_learnt_from(shared, length):
    tokenizer = load_tokenizer(shared / "data/llama2_tokenizer/tokenizer.model")
    samples = list(many_shot_samples("topics", TRAIN, TEST, SampleSpec(tokenizer, length, 14)))
    assert Counter(sample.details["class"] for sample in samples) == dict.fromkeys(TOPICS, 2)
    mappings = set()
    for sample in samples:
        assert sample.max_new_tokens == 20 and sample.stop == ("\n",)
        assert 0.99 * length <= len(tokenizer.encode(sample.prompt)) + 20 <= length
        shown, text = parts(sample.prompt)
        mapping = {topic(example): label for example, label in shown}
        assert all(mapping[topic(example)] == label for example, label in shown)
        assert sorted(mapping.values()) == [str(i) for i in range(7)]
        counts = Counter(label for _, label in shown).values()
        assert max(counts) - min(counts) <= 1 and sum(counts) == sample.details["units"]
        assert ManyShot().score(sample, f" {mapping[topic(text)]}") == 1
        assert ManyShot().score(sample, f" {9 - int(mapping[topic(text)])}") == 0
        mappings.add(tuple(sorted(mapping.items())))
    assert len(mappings) > 10


def test_what_counts_of_a_prediction():
    sample = next(many_shot_samples("t", TRAIN, TEST, SampleSpec(load_tokenizer("bytes"), 3000, 1)))
    label = sample.references[0]
    for said in (label, f" {label}\n\nWho", f"label: {label}.", f"The Label:  {label} \nx", f"label: label: {label}"):
        assert ManyShot().score(sample, said) == 1
    for said in ("", f"1{label}", f"it is {label}", f"\n{label}", f"{label} {label}"):
        assert ManyShot().score(sample, said) == 0


def test_all_test_texts_are_asked_and_examples_start_over_where_there_are_too_few():
    tokenizer = load_tokenizer("bytes")
    samples = list(many_shot_samples("t", TRAIN[:14], TEST, SampleSpec(tokenizer, 4000, 1000)))
    assert len(samples) == len(TEST) == len({sample.id for sample in samples})
    shown, _ = parts(samples[0].prompt)
    assert len(shown) > 14 and set(Counter(text for text, _ in shown[:28]).values()) == {2}


def test_files_in_both_formats(tmp_path):
    trec = tmp_path / "TREC_10.label"
    trec.write_bytes("NUM:dist How far is it ?\nLOC:city What's M\xe9xico ?\n\n".encode("latin-1"))
    assert read_examples(trec) == (Example("How far is it ?", "NUM:dist"), Example("What's México ?", "LOC:city"))
    lines = tmp_path / "train.jsonl"
    lines.write_text('{"text": "a", "label": 3}\n{"text": "b", "label": "x"}\n')
    assert read_examples(lines) == (Example("a", "3"), Example("b", "x"))
    for name, content, message in (
        ("a.label", "no colon here\n", r"a\.label:1 is not `COARSE:fine text`"),
        ("d.label", '{"label": "a"}\n', r"d\.label:1 is not"),
        ("b.jsonl", '{"text": "a"}', r"b\.jsonl:1 must have"),
        ("c.label", "\n", "no examples"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=message):
            read_examples(tmp_path / name)
    with pytest.raises(InputError, match=r"train_5500\.label is missing(.|\n)*curl"):
        read_examples(tmp_path / "train_5500.label")


def test_classes_must_fit_together_and_the_length(tmp_path):
    tokenizer = load_tokenizer("bytes")
    with pytest.raises(InputError, match="without an example: stars"):
        many_shot_samples("t", TRAIN[:3], TEST[36:37], SampleSpec(tokenizer, 3000, 1))
    with pytest.raises(InputError, match="1 class"):
        many_shot_samples("t", TRAIN[:1], TEST[:1], SampleSpec(tokenizer, 3000, 1))
    with pytest.raises(InputError, match="no test texts"):
        many_shot_samples("t", TRAIN, [], SampleSpec(tokenizer, 3000, 1))
    with pytest.raises(InputError, match="many-shot t does not fit a length of 300"):
        many_shot_samples("t", TRAIN, TEST, SampleSpec(tokenizer, 300, 1))
