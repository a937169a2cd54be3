"""Prints docs/engines.md from docs/engines.json: `python docs/engines.py > docs/engines.md`."""

import json
from pathlib import Path

HEAD = """# Engines

What serving engines compute with exported models, against this package: the mean absolute difference of log
probabilities in nats per token, of {tokens:,} tokens, half of them just below and half just above the original context.
Engines and this package compute in float32. Figures of one cell are: below / above the original context.

The tiny models have random weights, whose attention is sharp, so that a wrong vector shows. Of the methods, `ntk` is
written as another `rope_theta`, `yarn` as `yarn`, and `dprope` as `longrope`; `dprope+af` is that with an attention
factor of 1.2, and `fine-tuned` a DPRope export after training. Figures in bold are of an engine that applies another
vector than the model's; a note says which. An empty cell was not measured.

SmolLM2-135M is extended from 8,192 to 16,384 tokens. llama.cpp reads its quantised weights as they are, and multiplies
them with activations of 8 bits; the others read the same weights in float32. mlx-lm on a CPU takes more than half an
hour for it.

"""

TAIL = """
## Repeat

```
python -m tests.engines.environments ENGINES       # virtual environments: some GB, minutes
python -m tests.engines.measure ENGINES docs/engines.json
python docs/engines.py > docs/engines.md
```

With `ROPE_JAX_SMOLLM2` set to the GGUF file of [a real model](a_real_model.md), SmolLM2 is measured too. `pytest -m
engines` asserts the same, with `ROPE_JAX_ENGINES=ENGINES`. Whether an engine applies the vector of any other model
folder: [Export](export.md#what-an-engine-really-applies).
"""


def page(found: dict) -> str:
    """The page that a measurement gives."""
    rows = found["rows"]
    engines = list(dict.fromkeys(row["engine"] for row in rows))
    text = HEAD.format(tokens=max(row.get("tokens", 0) for row in rows))
    text += f"| model | method | {' | '.join(engines)} |\n|---|---|{'---|' * len(engines)}\n"
    notes: list[str] = []
    for family, method in dict.fromkeys((row["family"], row["method"]) for row in rows):
        cells = []
        for engine in engines:
            match = [r for r in rows if (r["family"], r["method"], r["engine"]) == (family, method, engine)]
            cells.append(cell(match[0], notes) if match else "")
        text += f"| {family} | {method} | {' | '.join(cells)} |\n"
    text += "".join(f"\n{number}. {note}" for number, note in enumerate(notes, 1)) + "\n" if notes else ""
    return text + f"\nMeasured on {found['machine']}.\n" + TAIL


def cell(row: dict, notes: list[str]) -> str:
    """Figures of one engine and model, with the number of the note that says what is wrong."""
    if "refused" in row:
        text, note = "refused", row["refused"].replace("`", "").strip().splitlines()[0]
    else:
        text, note = f"{row['below']:.1g} / {row['above']:.1g}", ""
        if row["applied"] != "the model's own":
            text, note = f"**{text}**", f"what it computes with is the vector {row['applied'] or 'of no known formula'}"
    if not note:
        return text
    if note not in notes:
        notes.append(note)
    return f"{text} ({notes.index(note) + 1})"


if __name__ == "__main__":
    print(page(json.loads((Path(__file__).parent / "engines.json").read_text(encoding="utf-8"))), end="")
