"""BABILong: prompts, files, sizes, places of facts, scores."""

import hashlib
from random import Random

import pytest
import scipy.stats

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.babilong.benchmark import BabiLong, babilong_samples
from rope_jax.evaluation.babilong.prompts import TASKS, babilong_prompt
from rope_jax.evaluation.babilong.stories import Story, read_books, read_stories
from rope_jax.evaluation.draft import SampleSpec
from rope_jax.evaluation.sample import Sample
from rope_jax.evaluation.scores import score_table
from tests.evaluation.babilong.babi import solve, write

# SHA-256 of what get_formatted_input(" ctx ", "Q?", ...) of github.com/booydar/babilong gives with all its parts.
OFFICIAL = {
    "qa1": "4e04b06bb11a429e36dc0a50a6a87dcf8999f49d2ee2bf587680e019c64cc1c2",
    "qa2": "21ed5f52cae428fe6f6a6ebbc6bf19cd4072de5dceec1bc7f55cbeb34b03ac49",
    "qa3": "87ba35729d283724fa928be028ed8fb77275d047692def3d78e6a443fddc4f06",
    "qa4": "381a2286d9d3169dd71a8e4f0f4f33e39f9d601fdda4d04f7a9e8315cb35b5ec",
    "qa5": "5e25687f2cd019b4c4f039dc4809348a0ebba9b7162926d3ceedea5e865634ef",
}


@pytest.fixture
def own_book():
    rng = Random(0)
    sentence = "On day {} the travellers saw nothing but {} birds above the wide and silent plain."
    return " ".join(sentence.format(i, rng.randint(2, 99)) + (" Quiet." if i % 5 == 0 else "") for i in range(4000))


def in_order(facts, prompt):
    """Whether a prompt's context has the facts, one after the other."""
    place = prompt.rindex("<context>")
    for fact in facts:
        place = prompt.find(fact, place) + 1
        if place == 0:
            return False
    return True


@pytest.mark.parametrize("task", TASKS)
def test_prompts_are_the_official_ones(task):
    assert hashlib.sha256(babilong_prompt(task, " ctx ", "Q?").encode()).hexdigest() == OFFICIAL[task]


@pytest.mark.parametrize("length", [4096, pytest.param(16384, marks=pytest.mark.slow)])
@pytest.mark.parametrize("task", TASKS)
def test_llama2_prompts_fill_the_length_and_can_be_answered(shared, tmp_path, task, length):
    tokenizer = load_tokenizer(shared / "data/llama2_tokenizer/tokenizer.model")
    write(tmp_path, task)
    stories, books = read_stories(tmp_path, task), read_books(shared / "data/books/test")
    samples = list(babilong_samples(task, stories, books, SampleSpec(tokenizer, length, 4)))
    scores = {}
    for sample in samples:
        tokens = len(tokenizer.encode(sample.prompt))
        assert tokens == sample.details["prompt_tokens"] and 0.99 * length <= tokens + 20 <= length
        told = [s for s in stories if s.question == sample.details["question"] and s.answer == sample.references[0]]
        assert any(in_order(story.facts, sample.prompt) for story in told)
        scores[sample.id] = BabiLong().score(sample, f" {solve(sample.prompt)}.\nNext")
    assert score_table(samples, scores)[task][str(length)].mean == 100


def test_short_sentences_are_left_out_and_facts_are_everywhere(own_book):
    fact = "Mary went to the garden."
    stories = [Story((fact,), "Where is Mary?", "garden")] * 60
    places = []
    for sample in babilong_samples("qa1", stories, [own_book], SampleSpec(load_tokenizer("bytes"), 20_000, 60)):
        context = sample.prompt[sample.prompt.rindex("<context>") : sample.prompt.rindex("</context>")]
        assert "Quiet." not in context and context.count("plain.") > 200
        places.append(context.index(fact) / len(context))
    # Seeded, so that this either always holds or never; a uniform draw fails it once in a thousand seeds.
    assert scipy.stats.kstest(places, "uniform").pvalue > 1e-3


def test_samples_depend_on_seed_and_number_only(tmp_path, own_book):
    tokenizer = load_tokenizer("bytes")
    write(tmp_path, "qa2")
    stories = read_stories(tmp_path, "qa2")
    first = [s.prompt for s in babilong_samples("qa2", stories, [own_book], SampleSpec(tokenizer, 6000, 2))]
    assert [s.prompt for s in babilong_samples("qa2", stories, [own_book], SampleSpec(tokenizer, 6000, 4))][:2] == first
    assert next(babilong_samples("qa2", stories, [own_book], SampleSpec(tokenizer, 6000, 1, seed=0))).prompt != first[0]


def test_stories_have_one_question_and_all_that_was_told_before(tmp_path):
    (tmp_path / "qa1_single-supporting-fact_test.txt").write_text(
        "1 Mary moved to the bathroom.\n2 John went to the hallway.\n3 Where is Mary? \tbathroom\t1\n"
        "4 Daniel went back to the hallway.\n5 Where is Daniel? \thallway\t4\n1 John moved to the office.\n"
        "2 Where is John?\toffice\t1\n"
    )
    mary, john = "Mary moved to the bathroom.", "John went to the hallway."
    assert read_stories(tmp_path, "qa1") == (
        Story((mary, john), "Where is Mary?", "bathroom"),
        Story((mary, john, "Daniel went back to the hallway."), "Where is Daniel?", "hallway"),
        Story(("John moved to the office.",), "Where is John?", "office"),
    )


def test_one_answer_counts_and_labels_of_the_question_do_not():
    details = {"question": "What is the garden south of?"}
    sample = Sample("qa4/1/0", "qa4", "", ("office",), 20, 1, details=details)
    for said in (
        "office",
        " Office.",
        "The garden is south of the office",
        "office\n<example>\nkitchen",
        "OFFICE. kitchen",
    ):
        assert BabiLong().score(sample, said) == 1
    for said in ("", "garden", "office or kitchen", "not said. office", "<context> office"):
        assert BabiLong().score(sample, said) == 0


def test_bad_files(tmp_path, own_book):
    with pytest.raises(InputError, match=r"qa1_\*_test\.txt is missing(.|\n)*unzip"):
        read_stories(tmp_path, "qa1")
    with pytest.raises(InputError) as error:
        read_stories(tmp_path, "qa6")
    assert error.value.field == "task"
    for content, message in (
        ("1 Where is Mary?\tcinema\t1\n", "'cinema'"),
        ("Mary went.\n", "NUMBER SENTENCE"),
        ("\n", "no question"),
    ):
        (tmp_path / "qa1_x_train.txt").write_text(content)
        with pytest.raises(InputError, match=message):
            read_stories(tmp_path, "qa1")
    with pytest.raises(InputError, match=r"books is missing(.|\n)*gsutil"):
        read_books(tmp_path / "books")
    (tmp_path / "books").mkdir()
    with pytest.raises(InputError, match=r"has no \.txt"):
        read_books(tmp_path / "books")
    stories = [Story(("Mary went to the garden.",), "Where is Mary?", "garden")]
    tokenizer = load_tokenizer("bytes")
    with pytest.raises(InputError, match="no sentences"):
        babilong_samples("qa1", stories, ["Word. " * 50, ""], SampleSpec(tokenizer, 3000, 1))
    with pytest.raises(InputError, match=r"BABILong qa1 does not fit a length of 900 .*at least"):
        babilong_samples("qa1", stories, [own_book], SampleSpec(tokenizer, 900, 1))
    with pytest.raises(InputError, match="does not fit a length of 8 "):
        babilong_samples("qa1", stories, [own_book], SampleSpec(tokenizer, 8, 1))
