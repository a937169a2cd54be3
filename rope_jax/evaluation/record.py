"""What a run keeps of a model before and after fine-tuning."""

from rope_jax.evaluation.benchmark import Subject
from rope_jax.evaluation.engine import Evaluation
from rope_jax.evaluation.passkey import Passkey, retrieval_grid


def stage_record(evaluation: Evaluation, subject: Subject) -> dict:
    """Measures a model with `perplexity`, token-weighted, and with `passkey` and `recall` if the evaluation has them.

    Returns:
        JSON-able: `perplexity` by window, `by_position`, and retrieval by length and depth, or None: `passkey` as
        `retrieval_grid` has it, `recall` as its `table` and `grids`.
    """
    measured = evaluation.run("perplexity", subject)
    for record in measured.values():
        del record["seconds"]
    passkey = evaluation.benchmarks.get("passkey")
    grid = None
    if isinstance(passkey, Passkey):
        grid = retrieval_grid(passkey, *evaluation.answers("passkey", subject), evaluation.setting.seed)
    recall = evaluation.run("recall", subject) if "recall" in evaluation.benchmarks else None
    if recall:
        recall = {name: recall[name] for name in ("table", "grids")}
    by_window = {str(window): measured[f"{window} token"] for window in evaluation.setting.lengths}
    return {"perplexity": by_window, "by_position": measured["by_position"], "passkey": grid, "recall": recall}
