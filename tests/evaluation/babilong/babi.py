"""Small files in bAbI's format, and a reader that answers their questions from the prompt alone."""

import re
from random import Random

PEOPLE = ["Mary", "John", "Daniel", "Sandra"]
GIVERS = ["Bill", "Fred", "Jeff", "Mary"]
PLACES = ["bathroom", "bedroom", "garden", "hallway", "kitchen", "office"]
THINGS = ["apple", "football", "milk"]
MOVE = ["moved to", "went to", "journeyed to", "travelled to", "went back to"]
WAYS = {"north": "south", "south": "north", "east": "west", "west": "east"}


def story(task, rng):
    """Lines of a story: sentences, and (question, answer) last."""
    if task == "qa4":
        a, b, c = rng.sample(PLACES, 3)
        one, two = rng.choice([("north", "east"), ("south", "west"), ("east", "north")])
        lines = [f"The {a} is {one} of the {b}.", f"The {c} is {two} of the {b}."]
        return lines, (f"What is {one} of the {b}?", a)
    if task == "qa5":
        who, whom, other = rng.sample(GIVERS, 3)
        what, else_ = rng.sample(THINGS, 2)
        lines = [
            f"{who} took the {what} there.",
            f"{who} gave the {what} to {whom}.",
            f"{other} got the {else_} there.",
        ]
        questions = [(f"Who gave the {what} to {whom}?", who), (f"What did {who} give to {whom}?", what)]
        asked = rng.choice([*questions, (f"Who received the {what}?", whom)])
        return lines, asked
    person = rng.choice(PEOPLE)
    path = rng.sample(PLACES, 3)
    lines = [f"{person} {rng.choice(MOVE)} the {place}." for place in path]
    for other in PEOPLE:
        if other != person:
            lines.insert(rng.randint(0, len(lines)), f"{other} {rng.choice(MOVE)} the {rng.choice(PLACES)}.")
    if task == "qa1":
        return lines, (f"Where is {person}?", path[-1])
    what = rng.choice(THINGS)
    lines.insert(0, f"{person} {rng.choice(['took', 'grabbed', 'picked up', 'got'])} the {what} there.")
    if task == "qa2":
        return lines, (f"Where is the {what}?", path[-1])
    return lines, (f"Where was the {what} before the {path[-1]}?", path[-2])


def write(folder, task, count=40):
    """Writes a file of two questions a story, the first on the first sentence of a person."""
    rng = Random(task)
    lines = []
    for _ in range(count):
        told, (question, answer) = story(task, rng)
        number = 0
        for number, sentence in enumerate(told, 1):
            lines.append(f"{number} {sentence}")
        lines.append(f"{number + 1} {question} \t{answer}\t{number}")
        if task == "qa1":
            lines.append(f"{number + 2} Daniel went to the office.")
            lines.append(f"{number + 3} Where is Daniel? \toffice\t{number + 2}")
    path = folder / f"{task}_some-name_test.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def solve(prompt):
    """The answer to a prompt."""
    context = re.search(r"<context>\n(.*)\n</context>", prompt, re.DOTALL).group(1)
    question = re.search(r"\n\nQuestion: (.*)$", prompt).group(1)
    if way := re.match(r"What is (\w+) of the (\w+)\?", question):
        return re.search(rf"The (\w+) is {way.group(1)} of the {way.group(2)}\.", context).group(1)
    given = re.search(r"(\w+) gave the (\w+) to (\w+)\.", context)
    if question.startswith("Who gave"):
        return given.group(1)
    if question.startswith("What did"):
        return given.group(2)
    if question.startswith("Who received"):
        return given.group(3)
    moves = re.findall(rf"({'|'.join(PEOPLE)}) (?:{'|'.join(MOVE)}) the (\w+)\.", context)
    person = (re.match(r"Where is ([A-Z]\w+)\?", question) or [None, None])[1]
    if person is None:
        thing = re.search(r"Where (?:is|was) the (\w+)", question).group(1)
        person = re.search(rf"({'|'.join(PEOPLE)}) (?:took|grabbed|picked up|got) the {thing} there\.", context)[1]
    path = [place for who, place in moves if who == person]
    return path[-2] if " before " in question else path[-1]
