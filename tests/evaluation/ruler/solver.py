"""Answers RULER's questions from their prompts alone: what a perfect reader would say."""

import re
from collections import Counter

DOCUMENT = re.compile(r"Document \d+:\n")


def solve(task, prompt):
    """The answer to a prompt of a task other than QA."""
    if task.startswith("niah"):
        return solve_needles(prompt)
    return {"vt": solve_variables, "cwe": solve_common, "fwe": solve_frequent}[task](prompt)


def solve_needles(prompt):
    question = re.search(
        r"\nWhat (?:is|are all) the special magic \w+ for (.*) mentioned in the provided text\?", prompt
    )
    asked = set(re.split(r", and |, ", question.group(1)))
    found = re.findall(r"One of the special magic \w+ for (.+?) is: (\S+)\.", prompt)
    return ", ".join(value for key, value in found if key in asked)


def solve_variables(prompt):
    # The worked example comes first and has an answer of its own.
    text = prompt[prompt.rindex("Memorize and track") :]
    value = re.search(r"assigned the value (\d+) in the text above", text).group(1)
    known = set()
    for name, source in re.findall(r"VAR ([A-Z]+) = (?:VAR )?(\w+)", text):
        if source == value or source in known:
            known.add(name)
    return " ".join(sorted(known))


def solve_common(prompt):
    text = prompt[prompt.rindex("Below is a numbered list") : prompt.rindex("\nQuestion:")]
    listed = re.split(r"(?:^|\s)\d+\. ", text.split("\n", 1)[1])[1:]
    return ", ".join(word for word, _ in Counter(listed).most_common(10))


def solve_frequent(prompt):
    text = prompt[prompt.index("coded words. ") + len("coded words. ") : prompt.index("\nQuestion:")]
    return " ".join(word for word, _ in Counter(w for w in text.split() if w != "...").most_common(3))


def documents(prompt):
    """The documents of a QA prompt, in their order."""
    start = prompt.index("The following are given documents.\n\n") + len("The following are given documents.\n\n")
    end = prompt.rindex("\n\nAnswer the question based on the given documents.")
    return [text.removesuffix("\n\n") for text in DOCUMENT.split(prompt[start:end])[1:]]


def question(prompt):
    """The question of a QA prompt."""
    return re.search(r"\n\nQuestion: (.*) Answer:$", prompt).group(1)
