"""RULER's question answering: a question among many documents, from SQuAD or HotpotQA."""

import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from rope_jax.errors import InputError
from rope_jax.evaluation.data_files import missing_file
from rope_jax.evaluation.draft import Draft
from rope_jax.files import read_json

_ORDER = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
TEMPLATE = (
    f"{_ORDER}\n\nThe following are given documents.\n\n{{context}}\n\n{_ORDER}\n\nQuestion: {{question}} Answer:"
)
SQUAD_COMMAND = "curl -L -o {path} https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v2.0.json"
HOTPOTQA_COMMAND = "curl -L -o {path} http://curtis.ml.cmu.edu/datasets/hotpot/hotpot_dev_distractor_v1.json"

# Documents tried for the last place, to fill it best, and of these the prompts built.
CANDIDATES = 256
TRIES = 4


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its accepted answers, by indices of documents: those needed in the prompt, and those that
    distract first.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    related: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class QuestionSet:
    """Questions in the order of their file, and all documents, sorted."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


def read_squad(path: Path) -> QuestionSet:
    """Reads the answerable questions of SQuAD 2.0; other paragraphs of the same article distract first."""
    return _read(_parse_squad, path, "dev-v2.0.json of SQuAD 2.0", SQUAD_COMMAND)


def read_hotpotqa(path: Path) -> QuestionSet:
    """Reads the questions of HotpotQA's distractor setting; all ten documents of a question must be in its prompt."""
    return _read(_parse_hotpotqa, path, "hotpot_dev_distractor_v1.json of HotpotQA", HOTPOTQA_COMMAND)


def question_draft(
    rng: Random, source: QuestionSet, question: Question, document_tokens: Callable[[int], int]
) -> Draft:
    """Draws the documents that distract, given approximate tokens of a document by its index.

    Units are documents; more than there are repeat.
    """
    needed = set(question.documents) | set(question.related)
    related = [i for i in question.related if i not in question.documents]
    others = [i for i in range(len(source.documents)) if i not in needed]
    rng.shuffle(related)
    rng.shuffle(others)
    pool = related + others
    least = len(question.documents)
    shuffle_seed = rng.random()

    def build(chosen: list[int]) -> str:
        order = [*question.documents, *chosen]
        Random(shuffle_seed).shuffle(order)
        context = "\n\n".join(f"Document {n}:\n{source.documents[i]}" for n, i in enumerate(order, 1))
        return TEMPLATE.format(context=context, question=question.text)

    def distractors(units: int) -> list[int]:
        count = units - least
        rounds = -(-count // max(len(pool), 1))
        return (pool * rounds)[:count]

    def refine(units: int, left: int) -> Iterator[str]:
        chosen = distractors(units)
        later = pool[len(chosen) : len(chosen) + CANDIDATES]
        # Besides one more document, each later one can take the place of the last.
        options = [(document_tokens(i), [*chosen, i]) for i in later]
        if chosen:
            last = document_tokens(chosen[-1])
            options += [(document_tokens(i) - last, [*chosen[:-1], i]) for i in later]
        best = sorted((option for option in options if 0 < option[0] <= left), reverse=True)
        yield from (build(option) for _, option in best[:TRIES])

    return Draft(
        build=lambda units: build(distractors(units)),
        references=question.answers,
        least=least,
        most=None if pool else least,
        refine=refine,
    )


def _read(parse: Callable[[Any], QuestionSet], path: Path, what: str, command: str) -> QuestionSet:
    path = Path(path)
    if not os.path.isfile(path):
        raise missing_file(path, what, command.format(path=path))
    value = read_json(path)
    try:
        source = parse(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} is not {what} ({type(error).__name__}: {error}): download it again") from None
    if not source.questions:
        raise InputError(f"{path} has no question with an answer: download {what} again")
    return source


def _parse_squad(value: Any) -> QuestionSet:
    articles = [[_string(paragraph["context"]) for paragraph in article["paragraphs"]] for article in value["data"]]
    documents = sorted({text for article in articles for text in article})
    index = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(
            text=_string(asked["question"]),
            answers=tuple(_string(answer["text"]) for answer in asked["answers"]),
            documents=(index[paragraph["context"]],),
            related=tuple(sorted({index[text] for text in texts})),
        )
        for article, texts in zip(value["data"], articles)
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
        if not asked.get("is_impossible", False)
    ]
    return QuestionSet(tuple(questions), tuple(documents))


def _parse_hotpotqa(value: Any) -> QuestionSet:
    contexts = [[f"{_string(title)}\n{''.join(lines)}" for title, lines in asked["context"]] for asked in value]
    documents = sorted({text for context in contexts for text in context})
    index = {text: i for i, text in enumerate(documents)}
    questions = [
        Question(
            text=_string(asked["question"]),
            answers=(_string(asked["answer"]),),
            documents=tuple(dict.fromkeys(index[text] for text in context)),
            related=(),
        )
        for asked, context in zip(value, contexts)
    ]
    return QuestionSet(tuple(questions), tuple(documents))


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not a text")
    return value
