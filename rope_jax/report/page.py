"""A run's page: `report.md` with its pictures, made from `results.json` alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rope_jax.files import write_text
from rope_jax.report import plots
from rope_jax.report.plots import NAMES


def write_page(folder: Path, results: Mapping, curves: Mapping[str, list[dict]]) -> None:
    """Writes `report.md` and `plots/*.png`.

    Args:
        folder: the run's folder.
        results: content of `results.json`.
        curves: method to rows of its `metrics.jsonl`.
    """
    methods = results["methods"]
    original = results["context"]["original"]
    solved = {name: method["scale"] for name, method in methods.items()}
    plots.disturbance_per_pair(
        folder / "plots/disturbance.png", {name: scale["disturbance"] for name, scale in solved.items()}
    )
    plots.factors_per_pair(folder / "plots/factors.png", {name: scale["factors"] for name, scale in solved.items()})
    plots.losses(folder / "plots/loss.png", curves)
    plots.perplexity_by_position(
        folder / "plots/perplexity_by_position.png",
        {name: _curve(method["before"]) for name, method in methods.items()},
        {name: _curve(method["after"]) for name, method in methods.items()},
        original,
    )
    grids = {name: method["after"]["passkey"] for name, method in methods.items() if method["after"]["passkey"]}
    if grids:
        plots.passkey_grids(folder / "plots/passkey.png", {name: _grid(grid) for name, grid in grids.items()})
    write_text(folder / "report.md", _markdown(results))


def _markdown(results: Mapping) -> str:
    context, methods, model = results["context"], results["methods"], results["model"]
    original, target = str(context["original"]), str(context["target"])
    train = results["train"]
    exported = NAMES[results["export"]["method"]]
    lines = [
        f"# {results['name']}: {context['original']:,} to {context['target']:,} tokens",
        "",
        f"A model of {model['parameters']:,} parameters ({model['description']}), extended "
        f"{context['target'] / context['original']:g}-fold by {len(methods)} methods: as they are "
        f"(*before*), and after {train['steps']} steps of fine-tuning on {train['tokens_per_step']:,} tokens each "
        f"(*after*). Text: {results['data']['description']}. Exported: {exported}, in `export/`.",
        "",
        "![Perplexity by position](plots/perplexity_by_position.png)",
        "",
        "## Perplexity",
        "",
        f"Sliding window, stride {results['eval']['stride']}, token-weighted, with the 95% bootstrap interval over "
        f"documents. {original} is the window the model was trained with (did short context suffer?), {target} "
        "the extended one.",
        "",
        f"| method | disturbance x 1000 | interpolated dimensions | {original}, before | {original}, after "
        f"| {target}, before | {target}, after |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, method in methods.items():
        scale = method["scale"]
        cells = [
            _perplexity(method[stage]["perplexity"][window])
            for window in (original, target)
            for stage in ("before", "after")
        ]
        lines.append(
            f"| {NAMES[name]} | {scale['disturbance_e3']:.2f} | {scale['interpolated_dimensions']} of "
            f"{model['head_dim']} | {' | '.join(cells)} |"
        )
    first = next(iter(methods.values()))["after"]["perplexity"][target]
    lines += [
        "",
        f"{first['documents']} documents, {first['tokens']:,} scored tokens.",
    ]
    if first["bits_per_byte"] is not None:
        cells = "; ".join(
            f"{NAMES[name]} {method['before']['perplexity'][target]['bits_per_byte']:.3f} to "
            f"{method['after']['perplexity'][target]['bits_per_byte']:.3f}"
            for name, method in methods.items()
        )
        lines += [f"Bits per byte at {target}, before to after: {cells}."]
    lines += [
        "",
        "## Scale vectors and their disturbance",
        "",
        "![Disturbance per pair](plots/disturbance.png)",
        "",
        "![Scale vectors](plots/factors.png)",
        "",
        f"Measured with {results['extension']['intervals']} angle intervals as KL(P_L || P_L') of float32 angles.",
        "",
        "## Fine-tuning",
        "",
        "![Loss](plots/loss.png)",
        "",
        *_passkey(methods),
        "## How to repeat it",
        "",
        "```",
        results["command"],
        "```",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in results["versions"].items()) + ".",
        f"Seconds: {', '.join(f'{stage} {seconds:.0f}' for stage, seconds in results['seconds'].items())}.",
        "All numbers, with the full configuration: `results.json`. Losses per step: `methods/*/metrics.jsonl`, "
        "also for TensorBoard.",
        "",
    ]
    return "\n".join(lines)


def _passkey(methods: Mapping) -> list[str]:
    rows = []
    for name, method in methods.items():
        for stage in ("before", "after"):
            grid = method[stage]["passkey"]
            for length, rate in zip(grid["lengths"], grid["per_length"]) if grid else ():
                low, high = rate["interval"]
                rows.append(
                    f"| {NAMES[name]} | {stage} | {length:,} | {rate['successes']} of {rate['trials']} "
                    f"| {low:.0%} to {high:.0%} |"
                )
    if not rows:
        return []
    return [
        "## Passkey retrieval",
        "",
        "A five-digit key hidden in repeated filler; found means that the first number in the greedy answer is the "
        "key. 95% Wilson intervals.",
        "",
        "![Passkey](plots/passkey.png)",
        "",
        "| method | stage | tokens | found | interval |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def _perplexity(result: Mapping) -> str:
    if result["interval"] is None:
        return f"{result['perplexity']:.3f}"
    low, high = result["interval"]
    return f"{result['perplexity']:.3f} ({low:.2f} to {high:.2f})"


def _curve(measured: Mapping) -> dict:
    buckets = measured["by_position"]["buckets"]
    values = [bucket["perplexity"] for bucket in buckets]
    intervals = [bucket["interval"] or [value, value] for bucket, value in zip(buckets, values)]
    return {
        "starts": [bucket["start"] for bucket in buckets],
        "ends": [bucket["end"] for bucket in buckets],
        "perplexity": values,
        "low": [low for low, _ in intervals],
        "high": [high for _, high in intervals],
    }


def _grid(passkey: Mapping) -> dict:
    return {
        "lengths": passkey["lengths"],
        "depths": [(low + high) / 2 for low, high in passkey["depths"]],
        "rate": [[cell["rate"] if cell["trials"] else float("nan") for cell in row] for row in passkey["cells"]],
    }
