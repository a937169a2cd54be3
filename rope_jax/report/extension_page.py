"""The page of a run of `extend`."""

from collections.abc import Mapping, Sequence

import numpy as np

from rope_jax.evaluation.recall import Recall
from rope_jax.report import figures
from rope_jax.report.page import Block, Command, Page, Section, Table, counted, reproduction, signed, with_interval
from rope_jax.report.styles import titled

STAGES = ("before", "after")
EXTRAPOLATION = "extrapolation"  # the model as it was


def extension_page(results: Mapping, curves: Mapping[str, Sequence[Mapping]]) -> Page:
    """A run's page, from the content of `results.json`, and for each method the rows of its `metrics.jsonl`."""
    context, methods, model, train = (results[name] for name in ("context", "methods", "model", "train"))
    scales = {name: method["scale"] for name, method in methods.items()}
    positions = {
        f"{stage} fine-tuning": {name: method[stage]["by_position"]["buckets"] for name, method in methods.items()}
        for stage in STAGES
    }
    introduction = (
        f"A model of {model['parameters']:,} parameters ({model['description']}), extended "
        f"{context['target'] / context['original']:g}-fold by {counted(len(methods), 'method')}: as they are "
        f"(*before*), and after {counted(train['steps'], 'step')} of fine-tuning on "
        f"{train['tokens_per_step']:,} tokens each{_sequences(train, context)} (*after*). "
        f"Text: {results['data']['description']}. Exported: {titled(results['export']['method'])}, in `export/`."
    )
    vectors = [
        figures.disturbance_per_pair({name: scale["disturbance"] for name, scale in scales.items()}),
        figures.factors_per_pair({name: scale["factors"] for name, scale in scales.items()}),
        f"Measured with {results['extension']['intervals']} angle intervals as KL(P_L || P_L') of float32 angles.",
    ]
    gradients = {name: scale["gradient"] for name, scale in scales.items() if "gradient" in scale}
    if gradients:
        factors = "; ".join(
            f"{titled(name)} {np.sum(found['attention_factor']):+.3g}" for name, found in gradients.items()
        )
        vectors += [
            figures.gradient_per_pair(gradients),
            "Mean gradient over the steps in which a vector was learned. In the logarithm of the attention factor: "
            f"{factors} nats per token.",
        ]
    return Page(
        f"{results['name']}: {context['original']:,} to {context['target']:,} tokens",
        [*_verdict(results), introduction, figures.perplexity_by_position(positions, context["original"])],
        [
            Section("Perplexity", _perplexity(results)),
            Section("Scale vectors and their disturbance", vectors),
            Section("Fine-tuning", [_training(train), figures.training_curves(curves)]),
            Section("Passkey retrieval", _passkey(methods)),
            Section(Recall.title, _recall(methods)),
            Section("What to do next", [Command(line) for line in results["next"]]),
            reproduction(results, "Losses per step: `methods/*/metrics.jsonl`, also for TensorBoard."),
        ],
    )


def _verdict(results: Mapping) -> list[Block]:
    """What the extension did: the exported model against the one before it, and against other methods."""
    exported, gain, rivals = (
        results["export"]["method"],
        results["comparisons"]["gain"],
        results["comparisons"]["after"],
    )
    original = EXTRAPOLATION if EXTRAPOLATION in gain else exported
    rows = {(method, "before"): gain[method]["regions"] for method in dict.fromkeys((original, exported))}
    rows |= {(method, "after"): found["regions"] for method, found in rivals.items()}
    places = next(iter(rows.values()))
    moved = "; ".join(
        f"at positions {_positions(places[name])} it {_moved(places[name])}"
        for name in ("long", "short")
        if name in places
    )
    rival = {method: found["regions"].get("long") for method, found in rivals.items()}
    better = [titled(method) for method, place in rival.items() if _apart(place) < 0]
    text = f"*{titled(exported)}, fine-tuned*, against *{titled(original)}, before fine-tuning*: {moved}."
    if any(place and place["interval"] for place in rival.values()):
        named = ", ".join(better) or "no other method"
        text += f" Better at {_positions(places['long'])} after the same fine-tuning: {named}."
    stages = {
        f"{titled(method)} {stage}": results["methods"][method][stage]
        for method, stage in dict.fromkeys(((original, "before"), (exported, "before"), (exported, "after")))
    }
    for what, retrieved in (("Keys found", _keys_found), ("Facts recalled in the longest texts", _facts_recalled)):
        said = {name: retrieved(record) for name, record in stages.items()}
        if all(said.values()):
            text += f" {what}: {', '.join(f'{name} {found}' for name, found in said.items())}."
    return [
        text,
        f"NLL in nats per token less that of {titled(exported)} after fine-tuning, by position, so that above 0 the "
        "exported model is better; paired, 95% intervals over documents:",
        Table(
            ["method", "stage", *map(_positions, places.values())],
            [
                [titled(m), stage, *(signed(p["difference"], p["interval"], 3) for p in found.values())]
                for (m, stage), found in rows.items()
            ],
        ),
    ]


def _apart(place: Mapping | None) -> int:
    """The sign of a difference whose interval excludes 0, else 0."""
    low, high = (place and place["interval"]) or (0, 0)
    return int(low > 0) - int(high < 0)


def _moved(place: Mapping) -> str:
    """What became of the NLL, from the difference of what was before."""
    apart, interval = place["difference"], place["interval"]
    if apart is None:
        return "was not measured"
    sign = _apart(place)
    if not sign:
        change = signed(-apart, interval and [-end for end in reversed(interval)], 3)
        return f"changes the NLL by {change} nats per token{', which may be no change' if interval else ''}"
    change = with_interval(abs(apart), sorted(map(abs, interval)), (3, 3))
    return f"{'lowers' if sign > 0 else 'raises'} the NLL by {change} nats per token"


def _positions(place: Mapping) -> str:
    return f"{place['start']:,} to {place['end'] - 1:,}"


def _keys_found(stage: Mapping) -> str:
    """Keys found at all lengths; empty if they were not asked for."""
    rates = stage["passkey"]["per_length"] if stage["passkey"] else ()
    return f"{sum(r['successes'] for r in rates)} of {sum(r['trials'] for r in rates)}" if rates else ""


def _facts_recalled(stage: Mapping) -> str:
    """Facts recalled at the last length; empty if they were not asked for."""
    cells = list(stage["recall"]["table"]["recall"].values()) if stage.get("recall") else ()
    return f"{cells[-1]['mean']:.0f}%" if cells else ""


def _training(train: Mapping) -> str:
    """Recipe and cost of a method's fine-tuning."""
    memory = (
        f" The last process held at most {train['peak_bytes'] / 2**30:.1f} GiB on a device."
        if train["peak_bytes"]
        else ""
    )
    return f"{train['description']} This takes {train['flops']:.3g} FLOPs for each method.{memory}"


def _sequences(train: Mapping, context: Mapping) -> str:
    """How sequences differ from documents at the extended context, if they do."""
    lengths = f", in sequences of {train['length']:,}" if train["length"] != context["target"] else ""
    skips = f", whose positions skip up to {train['reach']:,}" if train["reach"] > train["length"] else ""
    mix = (
        f"; {train['mix']:.2g} of the microbatches hold documents of at most {context['original']:,} tokens, under the "
        "original scale vector"
        if train["mix"]
        else ""
    )
    return f"{lengths}{skips}{mix}"


def _perplexity(results: Mapping) -> list[Block]:
    original, target = str(results["context"]["original"]), str(results["context"]["target"])
    methods, windows = results["methods"], dict.fromkeys((original, target))
    rows = []
    for name, method in methods.items():
        scale = method["scale"]
        cells = [method[stage]["perplexity"][window] for window in windows for stage in STAGES]
        rows.append(
            [
                titled(name),
                f"{scale['disturbance_e3']:.2f}",
                f"{scale['interpolated_dimensions']} of {results['model']['head_dim']}",
                *(with_interval(cell["perplexity"], cell["interval"], (3, 2)) for cell in cells),
            ]
        )
    first = next(iter(methods.values()))["after"]["perplexity"][target]
    scored = f"{counted(first['documents'], 'document')}, {first['tokens']:,} scored tokens."
    if first["bits_per_byte"] is not None:
        bits = {
            name: [f"{method[stage]['perplexity'][target]['bits_per_byte']:.3f}" for stage in STAGES]
            for name, method in methods.items()
        }
        changes = "; ".join(f"{titled(name)} {' to '.join(values)}" for name, values in bits.items())
        scored += f" Bits per byte at {target}, before to after: {changes}."
    return [
        f"Sliding window, stride {results['eval']['stride']}, token-weighted, with the 95% bootstrap interval over "
        f"documents. {original} is the window the model was trained with (did short context suffer?), {target} "
        "the extended one.",
        Table(
            [
                *("method", "disturbance x 1000", "interpolated dimensions"),
                *(f"{window}, {stage}" for window in windows for stage in STAGES),
            ],
            rows,
        ),
        scored,
        *_differences(results),
    ]


def _differences(results: Mapping) -> list[Block]:
    """NLL of the other methods less that of the exported one, before and after fine-tuning."""
    stages = {stage: results["comparisons"][stage] for stage in STAGES if results["comparisons"][stage]}
    if not stages:
        return []
    places = next(iter(stages["after"].values()))["regions"].values()
    rows = [
        [titled(m), stage, *(signed(p["difference"], p["interval"], 3) for p in found["regions"].values())]
        for stage, by_method in stages.items()
        for m, found in by_method.items()
    ]
    return [
        f"NLL in nats per token less that of {titled(results['export']['method'])}, by position in windows of "
        f"{results['context']['target']:,}; paired, 95% intervals over documents:",
        Table(["method", "stage", *map(_positions, places)], rows),
    ]


def _passkey(methods: Mapping[str, Mapping]) -> list[Block]:
    """Passkey retrieval of every method; empty if it was not measured."""
    grids = {name: {stage: method[stage]["passkey"] for stage in STAGES} for name, method in methods.items()}
    rows = [
        [
            *(titled(name), stage, f"{length:,}", f"{rate['successes']} of {rate['trials']}"),
            f"{rate['interval'][0]:.0%} to {rate['interval'][1]:.0%}",
        ]
        for name, stages in grids.items()
        for stage, grid in stages.items()
        if grid
        for length, rate in zip(grid["lengths"], grid["per_length"])
    ]
    if not rows:
        return []
    maps = {name: {"passkey": _percent(stages["after"])} for name, stages in grids.items() if stages["after"]}
    return [
        "A five-digit key hidden in repeated filler; found means that the first number in the greedy answer is the "
        "key. 95% Wilson intervals.",
        figures.depth_maps("passkey", "Keys found after fine-tuning", maps, "key"),
        Table(["method", "stage", "tokens", "found", "interval"], rows),
    ]


def _recall(methods: Mapping[str, Mapping]) -> list[Block]:
    """Recall of every method before and after; empty if it was not measured."""
    found = {(name, stage): method[stage].get("recall") for name, method in methods.items() for stage in STAGES}
    if not all(found.values()):
        return []
    tables = {key: record["table"]["recall"] for key, record in found.items()}
    rows = [
        [titled(name), stage, *(with_interval(cell["mean"], cell["interval"], (1, 1)) for cell in table.values())]
        for (name, stage), table in tables.items()
    ]
    maps = {
        name: {f"{stage} fine-tuning": found[name, stage]["grids"]["recall"] for stage in STAGES} for name in methods
    }
    head = [f"{int(length):,} tokens" for length in next(iter(tables.values()))]
    return [
        f"{Recall.note} Percentages, with 95% intervals over texts.",
        figures.depth_maps("recall", "Facts recalled", maps, "fact"),
        Table(["method", "stage", *head], rows),
    ]


def _percent(passkey: Mapping) -> dict:
    """Rates by length and depth in percent; None where there was no trial."""
    return {
        "lengths": passkey["lengths"],
        "depths": [(low + high) / 2 for low, high in passkey["depths"]],
        "mean": [[100 * cell["rate"] if cell["trials"] else None for cell in row] for row in passkey["cells"]],
    }
