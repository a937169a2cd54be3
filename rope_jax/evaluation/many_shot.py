"""Classification learnt from many examples in the prompt, with random numbers for labels, after HELMET.

HELMET (Yen et al., arXiv 2410.02694) fixes the number of examples for each length; here as many are shown as fit.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

from rope_jax.errors import InputError
from rope_jax.evaluation.answers import equals
from rope_jax.evaluation.benchmark import DrawnQuestions
from rope_jax.evaluation.data_files import missing_file, named_path
from rope_jax.evaluation.draft import Draft, SampleSpec, fitted_samples
from rope_jax.evaluation.sample import Sample
from rope_jax.files import read_bytes, read_json_lines

MAX_NEW_TOKENS = 20
TEMPLATE = (
    "Use the provided mapping from the text to label to assign a label to the text. Only output "
    '"label: {{label}}" and nothing else. \n\n{examples}\n\n{text}\nlabel:'
)
TREC_COMMAND = "curl -L -o {path} https://cogcomp.seas.upenn.edu/Data/QA/QC/{name}"


@dataclasses.dataclass(frozen=True)
class ManyShot(DrawnQuestions):
    """Classification of TREC's questions, or of other labelled texts.

    Attributes:
        folder: holds `train_5500.label` and `TREC_10.label`, or `train.jsonl` and `test.jsonl` with `text` and `label`.
    """

    title = "Many-shot classification"
    note = "Classes learnt from as many examples as fit the prompt, with random numbers for labels."
    tasks = ("many_shot",)

    folder: str = ""

    def source(self, task: str) -> str:
        return self.folder

    def draw(self, task: str, spec: SampleSpec) -> Iterator[Sample]:
        command = TREC_COMMAND.format(path="FOLDER/train_5500.label", name="train_5500.label")
        what = "the folder of TREC's question classification"
        folder = named_path(self, "folder", what, f"{command}   # and TREC_10.label")
        own = os.path.isfile(folder / "train.jsonl")
        train, test = ("train.jsonl", "test.jsonl") if own else ("train_5500.label", "TREC_10.label")
        shown, asked = read_examples(folder / train), read_examples(folder / test)
        known = {example.label for example in shown}
        # A class that only the test texts have cannot be learnt from the prompt.
        return many_shot_samples(task, shown, [example for example in asked if example.label in known], spec)

    def score(self, sample: Sample, prediction: str) -> float:
        """1 if a prediction is the label, else 0: what follows `label:` on its line counts, or else the first line."""
        named = re.search(r"label:(.*)", prediction, re.IGNORECASE)
        said = named.group(1) if named else prediction.split("\n", 1)[0]
        said = re.sub(r"^label:", "", said.strip(), flags=re.IGNORECASE)
        return float(equals(said, sample.references[0]))


@dataclasses.dataclass(frozen=True)
class Example:
    """A text and its class."""

    text: str
    label: str


def read_examples(path: Path) -> tuple[Example, ...]:
    """Reads labelled texts, in the order of the file.

    A `.label` file of TREC's question classification has lines `COARSE:fine text`. A `.jsonl` file, also
    gzip, has `text` and `label` on each line.
    """
    path = Path(path)
    if not os.path.isfile(path):
        name = path.name if path.name.endswith(".label") else "train_5500.label (and TREC_10.label)"
        raise missing_file(
            path,
            "labelled texts, of TREC's question classification or as .jsonl with text and label",
            TREC_COMMAND.format(path=path, name=name.split()[0]),
        )
    examples = tuple(_read_lines(path) if ".jsonl" in path.suffixes else _read_trec(path))
    if not examples:
        raise InputError(f"{path} has no examples: download it again")
    return examples


def many_shot_samples(
    task: str, train: Sequence[Example], test: Sequence[Example], spec: SampleSpec
) -> Iterator[Sample]:
    """Generates samples, each with its own examples, classes in turn, and its own numbers for the classes.

    Of more texts to ask for than the samples wanted, classes are taken in turn. `details` holds the `class`, and as
    `units` the number of examples.
    """
    labels = sorted({example.label for example in train})
    unknown = {example.label for example in test} - set(labels)
    if len(labels) < 2 or unknown or not test:
        raise InputError(
            f"{task}: "
            + (f"the test texts have classes without an example: {', '.join(sorted(unknown))}" if unknown else "")
            + ("there are no test texts" if not test else "")
            + (f"the examples have {len(labels)} class, too few to tell apart" if len(labels) < 2 else "")
        )
    asked = list(test)
    if spec.count < len(asked):
        drawn = _in_turn(test, Random(f"many-shot {task} {spec.seed}"))
        asked = [next(drawn) for _ in range(spec.count)]

    def draft(index: int, rng: Random) -> Draft:
        numbers = dict(zip(labels, rng.sample(range(len(labels)), len(labels))))
        drawn = _in_turn(train, rng)
        shown: list[Example] = []

        def build(units: int) -> str:
            # Drawn as far as needed, so that fewer units are the first ones of more.
            shown.extend(next(drawn) for _ in range(units - len(shown)))
            examples = "\n\n".join(f"{example.text}\nlabel: {numbers[example.label]}" for example in shown[:units])
            return TEMPLATE.format(examples=examples, text=asked[index].text)

        label = asked[index].label
        return Draft(build, (str(numbers[label]),), least=len(labels), details={"class": label})

    return fitted_samples(
        draft,
        range(len(asked)),
        spec,
        benchmark="many-shot",
        task=task,
        max_new_tokens=MAX_NEW_TOKENS,
        stop=("\n",),
    )


def _in_turn(examples: Sequence[Example], rng: Random) -> Iterator[Example]:
    """Rounds of all classes in random order, an example of each; a class that runs out starts over."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.label, []).append(example)
    queues: dict[str, list[Example]] = {label: [] for label in groups}
    while True:
        for label in rng.sample(list(groups), len(groups)):
            if not queues[label]:
                queues[label] = rng.sample(groups[label], len(groups[label]))
            yield queues[label].pop()


def _read_lines(path: Path) -> Iterator[Example]:
    for where, row in read_json_lines(path):
        label = row.get("label")
        if not isinstance(row.get("text"), str) or isinstance(label, bool) or not isinstance(label, str | int):
            raise InputError(f'{where} must have a string "text" and a "label", a string or an integer')
        yield Example(row["text"], str(label))


def _read_trec(path: Path) -> Iterator[Example]:
    # TREC's files are Latin-1, in which every byte is a character.
    for number, line in enumerate(read_bytes(path).decode("latin-1").split("\n"), 1):
        if not line.strip():
            continue
        label, _, text = line.strip().partition(" ")
        if not re.fullmatch("[A-Z]+:[a-z]+", label) or not text:
            raise InputError(
                f"{path}:{number} is not `COARSE:fine text`, as lines of TREC's question classification are"
            )
        yield Example(text, label)
