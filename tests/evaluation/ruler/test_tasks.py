"""RULER: sizes, answers, determinism, scores."""

import dataclasses
import hashlib
import itertools
import json
import re
from random import Random

import pytest

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.haystack import make_haystack, read_haystack
from rope_jax.evaluation.ruler.benchmark import FILES, TASKS, Ruler, Sources, needed_file, ruler_samples
from rope_jax.evaluation.ruler.questions import read_hotpotqa, read_squad
from rope_jax.evaluation.ruler.words import WordList, built_in_words, load_words
from rope_jax.evaluation.sample import from_json
from rope_jax.evaluation.scores import score_table
from tests.evaluation.ruler.solver import documents, question, solve
from tests.processes import output


@pytest.fixture(scope="module")
def llama2(shared):
    return load_tokenizer(shared / "data/llama2_tokenizer/tokenizer.model")


@pytest.fixture(scope="module")
def sources(shared, squad_file, hotpotqa_file):
    essays = read_haystack(shared / "data/books/test", 16384)
    return Sources(load_words(), essays, read_squad(squad_file), read_hotpotqa(hotpotqa_file))


@pytest.fixture(scope="module")
def own_sources(squad_file, hotpotqa_file):
    """Sources that need no other package and no other file."""
    text = " ".join(f"Sentence number {i} says nothing of interest, as {'so ' * (i % 7)}often." for i in range(2000))
    return Sources(built_in_words(), make_haystack([text]), read_squad(squad_file), read_hotpotqa(hotpotqa_file))


def answer(task, sample):
    """What a reader of the prompt says."""
    if not task.startswith("qa"):
        return solve(task, sample.prompt)
    place = re.search(r"code of (\w+)\?", question(sample.prompt)).group(1)
    (code,) = {m for text in documents(sample.prompt) for m in re.findall(rf"The code of {place} is (\d+)", text)}
    return code


@pytest.mark.parametrize("length", [4096, 8192, pytest.param(16384, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", TASKS)
def test_llama2_prompts_fill_the_length_and_can_be_answered(llama2, sources, task, length):
    count = 4 if length == 4096 else 2
    samples = list(ruler_samples(task, SampleSpec(llama2, length, count), sources))
    assert len({sample.id for sample in samples}) == len(samples) == count
    for sample in samples:
        tokens = len(llama2.encode(sample.prompt))
        assert tokens == sample.details["prompt_tokens"]
        assert 0.99 * length <= tokens + sample.max_new_tokens <= length
        found = [reference in sample.prompt for reference in sample.references]
        assert any(found) if task.startswith("qa") else all(found)
        assert Ruler().score(sample, answer(task, sample).upper()) == 1
        assert Ruler().score(sample, "") == 0


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_many_llama2_prompts_at_4k(llama2, sources, task):
    scores, samples = {}, list(ruler_samples(task, SampleSpec(llama2, 4096, 30, seed=1), sources))
    for sample in samples:
        assert 0.99 * 4096 <= len(llama2.encode(sample.prompt)) + sample.max_new_tokens <= 4096
        scores[sample.id] = Ruler().score(sample, answer(task, sample))
    cell = score_table(samples, scores)[task]["4096"]
    assert cell.mean == 100 and cell.samples == 30 and cell.interval[0] > 88


@pytest.mark.parametrize("task", TASKS)
def test_byte_prompts_of_own_words_can_be_answered(own_sources, task):
    tokenizer = load_tokenizer("bytes")
    for length in (30_000, 45_000):
        for sample in ruler_samples(task, SampleSpec(tokenizer, length, 2, seed=7), own_sources):
            assert 0.99 * length <= len(tokenizer.encode(sample.prompt)) + sample.max_new_tokens <= length
            assert Ruler().score(sample, answer(task, sample)) == 1
            assert sample.details.get("words", "built in") == "built in"
            assert ("words" in sample.details) == task.startswith(("niah", "cwe"))
            assert from_json(json.loads(json.dumps(dataclasses.asdict(sample)))) == sample


@pytest.mark.slow
def test_samples_are_the_same_in_another_process_and_independent_of_their_number(own_sources):
    script = """
import hashlib
from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.ruler.benchmark import Sources, ruler_samples
from rope_jax.evaluation.ruler.words import built_in_words
for task in ("niah_multikey_3", "vt", "cwe", "fwe"):
    for sample in ruler_samples(task, SampleSpec(load_tokenizer("bytes"), 14000, 2, seed=3), Sources(built_in_words())):
        print(hashlib.sha256((sample.id + sample.prompt).encode()).hexdigest())
"""
    told = output("-c", script).split()
    tokenizer = load_tokenizer("bytes")

    def prompts(task, count, seed=3):
        return list(itertools.islice(ruler_samples(task, SampleSpec(tokenizer, 14000, count, seed), own_sources), 2))

    here = [
        hashlib.sha256((sample.id + sample.prompt).encode()).hexdigest()
        for task in ("niah_multikey_3", "vt", "cwe", "fwe")
        for sample in prompts(task, 5)
    ]
    assert told == here and len(set(here)) == 8
    assert prompts("vt", 1, seed=4)[0].prompt != prompts("vt", 1)[0].prompt


def test_golden_prompts(own_sources):
    """Guards against a change of the draws, with which scores could no longer be compared."""
    spec = SampleSpec(load_tokenizer("bytes"), 30_000, 1)
    golden = {
        "niah_single_3": "a5008ae6",
        "niah_multiquery": "290ee84d",
        "vt": "a5b98873",
        "cwe": "c0c0817e",
        "fwe": "eaef7303",
    }
    prompts = {task: next(ruler_samples(task, spec, own_sources)).prompt for task in golden}
    assert {task: hashlib.sha256(prompt.encode()).hexdigest()[:8] for task, prompt in prompts.items()} == golden


def test_prompts_are_rulers_to_the_letter(own_sources):
    tokenizer = load_tokenizer("bytes")
    prompt = next(ruler_samples("niah_single_1", SampleSpec(tokenizer, 1000, 1), own_sources)).prompt
    lines = prompt.split("\n")
    assert lines[0] == (
        "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
        "the number afterwards."
    )
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    assert {line for line in lines[1:-1] if not line.startswith("One of")} == {noise}
    (needle,) = [line for line in lines if line.startswith("One of")]
    (key,) = re.fullmatch(r"One of the special magic numbers for ([a-z]+-[a-z]+) is: \d{7}\.", needle).groups()
    assert lines[-1] == (
        f"What is the special magic number for {key} mentioned in the provided text? The special magic number for "
        f"{key} mentioned in the provided text is"
    )
    many = next(ruler_samples("niah_multiquery", SampleSpec(tokenizer, 2000, 1), own_sources)).prompt
    assert many.startswith("Some special magic numbers are hidden within the following text.")
    assert re.search(
        r"\nWhat are all the special magic numbers for (\S+), (\S+), (\S+), and (\S+) mentioned in the provided text\? "
        r"The special magic numbers for \1, \2, \3, and \4 mentioned in the provided text are$",
        many,
    )
    tracked = next(ruler_samples("vt", SampleSpec(tokenizer, 6000, 1), own_sources))
    example, asked = tracked.prompt.split("\n\nMemorize")
    assert re.search(r"they are:  (?:[A-Z]{3} ){4}[A-Z]{3}$", example)
    assert re.search(r"Answer: According to .*, 5 variables are assigned the value \d{5}, they are: $", asked)
    assert len(set(tracked.references)) == 5 and all(re.fullmatch("[A-Z]{5}", name) for name in tracked.references)
    coded = next(ruler_samples("fwe", SampleSpec(tokenizer, 6000, 1), own_sources))
    assert all(re.fullmatch("[a-z]{6}", word) for word in coded.references)
    assert "Please ignore the dots '....'. What are the three most" in coded.prompt and " ... " in coded.prompt
    listed = next(ruler_samples("cwe", SampleSpec(tokenizer, 30_000, 1), own_sources))
    assert len(listed.references) == 10 and listed.prompt.count("Below is a numbered list of words.") == 2
    assert re.search(r"in the list are: 1\. \S+ (.*)10\. \S+\nBelow", listed.prompt)
    # Ten words thirty times, the others three times; the example's ten times and three times.
    own = listed.prompt[listed.prompt.rindex("Below") :]
    assert all(len(re.findall(rf"\. {word}\b(?!-)", own)) >= 30 for word in listed.references)


def test_qa_prompts_hold_the_documents_they_need(own_sources):
    tokenizer = load_tokenizer("bytes")
    squad = next(ruler_samples("qa_1", SampleSpec(tokenizer, 20_000, 1), own_sources))
    texts = documents(squad.prompt)
    # The other paragraphs of the article distract first.
    assert {f"Town0x{i}" for i in range(10)} <= {re.search(r"The code of (\w+)", text).group(1) for text in texts}
    assert len(texts) == len(set(texts)) and squad.references[1] == f"the {squad.references[0]}"
    hotpot = next(ruler_samples("qa_2", SampleSpec(tokenizer, 20_000, 1), own_sources))
    titles = [text.split("\n")[0] for text in documents(hotpot.prompt)]
    assert {f"Village0x{i}" for i in range(10)} <= set(titles)


def test_qa_passes_over_questions_that_do_not_fit_and_ends_with_the_file(own_sources):
    tokenizer = load_tokenizer("bytes")
    samples = list(ruler_samples("qa_2", SampleSpec(tokenizer, 6000, 1000), own_sources))
    assert 0 < len(samples) < 60
    assert len(list(ruler_samples("qa_1", SampleSpec(tokenizer, 4000, 1000), own_sources))) == 40 * 7


def test_documents_repeat_where_there_are_too_few(own_sources):
    tokenizer = load_tokenizer("bytes")
    sample = next(ruler_samples("qa_2", SampleSpec(tokenizer, 700_000, 1), own_sources))
    assert len(documents(sample.prompt)) > 600 and len(sample.prompt) > 690_000


@pytest.mark.parametrize("task", TASKS)
def test_a_length_too_short_is_told_at_once(own_sources, task):
    with pytest.raises(InputError, match=rf"RULER {task} does not fit a length of 300 .*at least \d+"):
        ruler_samples(task, SampleSpec(load_tokenizer("bytes"), 300, 5), own_sources)


def test_tasks_without_data_are_named_and_refused(tmp_path):
    bare = Sources(built_in_words())
    needing = {task: field for task in TASKS if (field := needed_file(task))}
    assert needing == {
        **dict.fromkeys(("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue"), "essays"),
        **{"niah_multiquery": "essays", "qa_1": "squad", "qa_2": "hotpotqa"},
    }
    for task, field in needing.items():
        with pytest.raises(InputError, match=r"git clone|curl") as error:
            ruler_samples(task, SampleSpec(load_tokenizer("bytes"), 3000, 1), bare)
        assert error.value.field == field and FILES[field][1] in str(error.value)
    with pytest.raises(InputError) as error:
        ruler_samples("niah", SampleSpec(load_tokenizer("bytes"), 3000, 1), bare)
    assert error.value.field == "task"
    samples = list(ruler_samples("vt", SampleSpec(load_tokenizer("bytes"), 6000, 2), bare))
    table = score_table(samples, {sample.id: 1.0 for sample in samples}, tasks=tuple(TASKS))
    assert list(table) == [*TASKS, "average"] and table["average"]["6000"].mean is None
    for read in (lambda path: read_haystack(path, 100), read_squad, read_hotpotqa):
        with pytest.raises(InputError, match=r"absent\.json is missing(.|\n)*(git clone|curl)"):
            read(tmp_path / "absent.json")
    bad = tmp_path / "bad.json"
    bad.write_text('{"data": [{"paragraphs": [{}]}]}')
    with pytest.raises(InputError, match=r"bad\.json is not dev-v2\.0\.json"):
        read_squad(bad)
    with pytest.raises(InputError, match=r"bad\.json is not hotpot_dev"):
        read_hotpotqa(bad)


def test_scores():
    sample = next(ruler_samples("vt", SampleSpec(load_tokenizer("bytes"), 6000, 1), Sources(built_in_words())))
    assert Ruler().score(sample, " ".join(sample.references[:3]).lower()) == pytest.approx(0.6)


def test_a_stream_has_every_word_once_and_single_ones_first():
    words = WordList("small", ("blue", "green"), ("boat", "house", "green"), ("run",))
    drawn = list(words.stream(Random(0)))
    assert sorted(drawn[:5]) == ["blue", "boat", "green", "house", "run"]
    assert len(drawn) == len(set(drawn)) == words.count == 8
    assert set(drawn[5:]) <= {f"{a}-{n}" for a in ("blue", "green") for n in ("boat", "house", "green")}


def test_wonderwords_are_rulers_words():
    pytest.importorskip("wonderwords", reason="the extra [eval] is not installed")
    words = load_words()
    assert words.name.startswith("wonderwords ") and len(words.single) > 8000
    assert {"aardvark", "abundant"} <= set(words.single)
