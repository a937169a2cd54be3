"""BABILong (Kuratov et al., arXiv 2406.10149): facts of bAbI's stories scattered in books, and a question on them."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from random import Random

from rope_jax.errors import InputError
from rope_jax.evaluation.babilong.prompts import TASKS, babilong_prompt
from rope_jax.evaluation.babilong.stories import BABI_COMMAND, BOOKS_COMMAND, Story, read_books, read_stories
from rope_jax.evaluation.benchmark import DrawnQuestions
from rope_jax.evaluation.data_files import named_path
from rope_jax.evaluation.draft import Draft, SampleSpec, fitted_samples
from rope_jax.evaluation.haystack import make_haystack
from rope_jax.evaluation.sample import Sample

MAX_NEW_TOKENS = 20
LEAST_TOKENS = 10  # Of a sentence of the background.
TOKENS_PER_FACT = 8  # A story with more facts than that allows is left out, as in the official generator.
EXCERPT = 20_000  # Characters read from a random place of a book at a time.
TRIES = 100  # Excerpts without a usable sentence, after which the books are given up.


@dataclasses.dataclass(frozen=True)
class BabiLong(DrawnQuestions):
    """BABILong's tasks 1 to 5.

    Attributes:
        stories: folder of bAbI's stories.
        books: folder of texts to hide them in.
    """

    title = "BABILong"
    note = "Facts scattered in a book, and a question on them."
    tasks = tuple(TASKS)

    stories: str = ""
    books: str = ""

    def source(self, task: str) -> str:
        return ", ".join(filter(None, (self.stories, self.books)))

    def draw(self, task: str, spec: SampleSpec) -> Iterator[Sample]:
        command = BABI_COMMAND.format(folder="FOLDER")
        stories = read_stories(named_path(self, "stories", "the folder of bAbI's stories", command), task)
        return babilong_samples(task, stories, self._texts, spec)

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        what = "a folder of books (.txt), such as the test split of PG19"
        return read_books(named_path(self, "books", what, BOOKS_COMMAND.format(folder="FOLDER")))

    def score(self, sample: Sample, prediction: str) -> float:
        """Whether the prediction's first sentence names the answer and no other label but those in the question."""
        text = prediction.lower().split(".")[0].split("<context>")[0].split("<example>")[0]
        question = sample.details["question"].lower()
        labels = {label.lower() for label in TASKS[sample.task].labels}
        named = {label for label in labels if label in text and label not in question}
        return float(named == {sample.references[0].lower()})


def babilong_samples(task: str, stories: Sequence[Story], books: Sequence[str], spec: SampleSpec) -> Iterator[Sample]:
    """Generates samples, whose `details` hold the `question`, and as `units` the number of words of background.

    As in the official generator the facts of a story keep their order and stand at random places between the sentences
    of a book, read from a random place on, of which those below ten tokens are left out. Unlike there, prompt and
    answer together fill `length` in the model's own tokens, not GPT-2's.
    """
    short = [story for story in stories if (len(story.facts) + 1) * TOKENS_PER_FACT <= spec.length]
    if not short:
        raise InputError(
            f"BABILong {task} does not fit a length of {spec.length} tokens: use longer `lengths`", field="lengths"
        )
    order = Random(f"BABILong {task} {spec.length} {spec.seed}").sample(range(len(short)), len(short))

    def draft(index: int, rng: Random) -> Draft:
        story = short[order[index]]
        places = sorted(rng.random() for _ in story.facts)
        sentences = _background(books, rng, lambda text: len(spec.tokenizer.encode(text)))
        drawn: list[list[str]] = []

        def build(units: int) -> str:
            # Drawn as far as needed, so that fewer units are the first ones of more.
            while sum(map(len, drawn)) < units:
                drawn.append(next(sentences))
            return babilong_prompt(task, _scattered(story.facts, places, drawn, units), story.question)

        return Draft(build, (story.answer,), least=0, details={"question": story.question})

    return fitted_samples(
        draft,
        range(len(short)),
        spec,
        benchmark="BABILong",
        task=task,
        max_new_tokens=MAX_NEW_TOKENS,
        skip_too_long=True,
    )


def _background(books: Sequence[str], rng: Random, count_tokens: Callable[[str], int]) -> Iterator[list[str]]:
    """Sentences, as words, of random excerpts."""
    tries = 0
    while tries < TRIES:
        tries += 1
        book = rng.choice(books)
        start = rng.randrange(max(len(book), 1))
        excerpt = book[start : start + EXCERPT]
        if not excerpt.strip():
            continue
        haystack = make_haystack([excerpt])
        # The first and last sentence of an excerpt may be cut.
        for begin, end in zip(haystack.ends[:-2], haystack.ends[1:-1]):
            words = list(haystack.words[begin:end])
            if count_tokens(" ".join(words)) >= LEAST_TOKENS:
                tries = 0
                yield words
    raise InputError("the books of BABILong have no sentences of ten tokens: name a folder of longer texts")


def _scattered(facts: Sequence[str], places: Sequence[float], sentences: Sequence[list[str]], units: int) -> str:
    """The first words of the background with facts between its sentences, the last of which may be cut short."""
    background, left = [], units
    for words in sentences:
        if left <= 0:
            break
        background.append(" ".join(words[:left]))
        left -= len(words)
    parts: list[list[str]] = [[] for _ in range(len(background) + 1)]
    for fact, place in zip(facts, places):
        parts[int(place * len(parts))].append(fact)
    for part, sentence in zip(parts, background):
        part.append(sentence)
    return " ".join(text for part in parts for text in part)
