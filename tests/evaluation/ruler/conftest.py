"""Small files in the formats of SQuAD and HotpotQA, whose questions a reader can answer by rule."""

import json
from random import Random

import pytest

LINES = (
    "The {a} of {p} keeps a {b} in the cellar, as everybody in that part of the country has known for many years.",
    "In the spring of {n} a {b} was seen near {p} by a {a} who told nobody about it.",
    "Nothing of the old {a} is left but a wall of {n} stones, on which a {b} has its nest every summer.",
    "Travellers to {p} are advised to take the {b} road, since the {a} bridge has been closed since {n}.",
)


def paragraph(rng, place, code):
    """A paragraph on a place, of 80 to 250 tokens, which says its code."""
    draw = {"a": "tailor baker doctor mayor clerk", "b": "raven lantern barrel violin carpet", "n": "1820 1844 1901 77"}
    lines = [
        rng.choice(LINES).format(p=place, **{key: rng.choice(words.split()) for key, words in draw.items()})
        for _ in range(rng.randint(2, 7))
    ]
    lines.insert(rng.randint(0, len(lines)), f"The code of {place} is {code}.")
    return " ".join(lines)


@pytest.fixture(scope="session")
def squad_file(tmp_path_factory):
    """40 articles of 10 paragraphs with a question each, every third impossible, as in SQuAD 2.0."""
    rng = Random("squad")
    data = []
    for article in range(40):
        paragraphs = []
        for i in range(10):
            place, code = f"Town{article}x{i}", str(rng.randint(10**5, 10**6))
            asked = {"question": f"What is the code of {place}?", "id": place, "is_impossible": i % 3 == 2}
            asked["answers"] = [] if i % 3 == 2 else [{"text": code, "answer_start": 0}, {"text": f"the {code}"}]
            paragraphs.append({"context": paragraph(rng, place, code), "qas": [asked]})
        data.append({"title": str(article), "paragraphs": paragraphs})
    path = tmp_path_factory.mktemp("squad") / "dev-v2.0.json"
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


@pytest.fixture(scope="session")
def hotpotqa_file(tmp_path_factory):
    """60 questions with ten titled documents each, as in HotpotQA's distractor setting."""
    rng = Random("hotpotqa")
    data = []
    for i in range(60):
        places = [f"Village{i}x{j}" for j in range(10)]
        codes = [str(rng.randint(10**5, 10**6)) for _ in places]
        context = [[p, [line + " " for line in paragraph(rng, p, c).split(". ")]] for p, c in zip(places, codes)]
        pick = rng.randrange(10)
        data.append(
            {
                "_id": str(i),
                "question": f"What is the code of {places[pick]}?",
                "answer": codes[pick],
                "context": context,
            }
        )
    path = tmp_path_factory.mktemp("hotpotqa") / "hotpot_dev_distractor_v1.json"
    path.write_text(json.dumps(data))
    return path
