"""The files that BABILong is made of: bAbI's stories, and books for background."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from rope_jax.errors import InputError
from rope_jax.evaluation.babilong.prompts import TASKS
from rope_jax.evaluation.data_files import missing_file, read_texts
from rope_jax.files import read_text

BABI_COMMAND = (
    "git clone https://github.com/booydar/babilong && unzip babilong/data/tasks_1-20_v1-2.zip -d {folder} && "
    "mv {folder}/tasks_1-20_v1-2/en-10k/qa[1-5]_* {folder}"
)
BOOKS_COMMAND = "gsutil -m cp -r gs://deepmind-gutenberg/test {folder}"


@dataclasses.dataclass(frozen=True)
class Story:
    """A question on facts, which are sentences in order, and its answer, one of the task's labels."""

    facts: tuple[str, ...]
    question: str
    answer: str


def read_stories(folder: Path, task: str) -> tuple[Story, ...]:
    """Reads the stories of a bAbI task: one for each question, with all sentences told before it.

    A line is a number, a blank and a sentence; with a question also its answer and the numbers of the sentences that
    tell it, each after a tab. The number 1 begins a new story. Test and train files are read, also gzip, because
    BABILong's own samples come from the larger train file.
    """
    if task not in TASKS:
        raise InputError(f"`task` is {task!r}: use one of {', '.join(TASKS)}")
    folder = Path(folder)
    # `glob` fails at a name that no file system has.
    kinds = ("test", "train") if os.path.isdir(folder) else ()
    paths = [path for kind in kinds for path in sorted(folder.glob(f"{task}_*_{kind}.txt*"))]
    if not paths:
        raise missing_file(
            folder / f"{task}_*_test.txt",
            f"the stories of bAbI's task {task[2:]} (Facebook's bAbI tasks 1-20 v1.2, English, 10k)",
            BABI_COMMAND.format(folder=folder),
        )
    stories = tuple(story for path in paths for story in _read(path, task))
    if not stories:
        raise InputError(f"{paths[0]} has no question: download it again")
    return stories


def read_books(folder: Path) -> tuple[str, ...]:
    """Texts of a folder (`.txt`, or `.jsonl` with `text`, also gzip) to hide facts in, in the order of their names."""
    what = "books to hide facts in: any folder of .txt files; BABILong takes the test split of PG19"
    texts = tuple(read_texts(Path(folder), what, BOOKS_COMMAND.format(folder=folder)))
    if not texts:
        raise InputError(f"{folder} has no text in its files: name a folder that has")
    return texts


def _read(path: Path, task: str) -> Iterator[Story]:
    facts: list[str] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        order, _, rest = line.strip("\r").partition(" ")
        text, *told = rest.split("\t")
        if not order.isdecimal() or not text.strip():
            raise InputError(f"{path}:{number} is not `NUMBER SENTENCE`, as lines of bAbI's tasks are")
        if order == "1":
            facts = []
        if not told:
            facts.append(text.strip())
            continue
        answer = told[0].strip()
        if answer not in TASKS[task].labels:
            raise InputError(
                f"{path}:{number} has the answer {answer!r}, which {task} does not have in English: "
                f"{', '.join(TASKS[task].labels)}"
            )
        yield Story(tuple(facts), text.strip(), answer)
