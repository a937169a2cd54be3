"""What a command starts from, where that is not the default of a field."""

from collections.abc import Mapping
from typing import Any

STARTS: Mapping[str, Mapping[str, Any]] = {
    "analyze": {"context.target": 0},  # twice the original
    "evaluate": {
        "model.param_dtype": "auto",
        "rope.method": "own",
        "context.target": 0,  # the model's context; with a method twice that
        "eval.split": "test",
    },
    "export": {"context.target": 0},
    # Any model and any texts: twice the context in a short fine-tune.
    "extend": {
        "compare": ("extrapolation", "pi", "yarn"),
        "context.target": 0,
        "train.steps": 100,
        "train.global_batch": 8,
        "train.accumulation": 1,
        "train.checkpoint_every": 50,
        "eval.max_tokens": 100_000,
        "eval.position_tokens": 100_000,
        "eval.document_tokens": 20_000,
    },
    "study": {
        "model.dtype": "float32",
        "model.remat": "none",
        "model.scan_unroll": 8,
        "rope.base": 10000.0,
        "rope.head_dim": 64,
        # The paper has 11 positions to an interval; so few intervals as 256 positions then allow would tell nothing.
        "angles.intervals": 90,
        "study.models": ("2x128:256:2000000", "4x256:256:3000000", "4x256:512:3000000", "7x384:256:1500000"),
        "study.methods": (
            *("yarn", "extrapolation", "pi", "ntk", "mrrope_pro", "cope"),
            *("dprope_argmin", "dprope", "dprope_robust", "two_term", "two_term@yarn", "minimal", "learned"),
        ),
        "study.zero_shot": (
            *(f"{name}@{factor}" for name in ("two_term", "dprope_robust") for factor in ("yarn", "longrope")),
            *("yarn@1", "yarn@longrope", "mrrope_pro@longrope", "dprope@yarn", "dprope_argmin@yarn", "ntk@yarn"),
            *("yarn_paper", "llama3", "dynamic_ntk", "critical_base", "mrrope_uni", "tailspline"),
            *("hard_cut", "longrope2", "proportional"),
            *(f"two_term@{factor}" for factor in (1.05, 1.1, 1.2, 1.3)),
            *("two_term_w3", "two_term_w10", "two_term_w100", "two_term_w300"),
            *("dprope_argmin_t2", "dprope_argmin_t4", "dprope_robust_t2", "dprope_robust_t4"),
        ),
        # The paper's 56 to 96 of 128 dimensions, and 90 to 720 intervals.
        "study.n_hats": (28, 32, 36, 40, 44, 48),
        "study.intervals": (22, 45, 180, 360),
        "study.random": 40,
        "study.windows": 3,
        "study.recall_rows": 6,
        # Adam's step does not depend on the scale of the gradient: as the paper's, a fifteenth of the peak of
        # pre-training.
        "train.learning_rate": 2e-4,
        "learn.steps": 20,
    },
    "verify": {"model.dtype": "float32"},
}

# What `--quick` changes.
QUICK: Mapping[str, Mapping[str, Any]] = {
    # One method and few tokens: whether model, texts and memory fit, not how good the model becomes.
    "extend": {
        "compare": (),
        "train.steps": 10,
        "train.checkpoint_every": 10,
        "eval.max_tokens": 20_000,
        "eval.position_tokens": 20_000,
        "eval.passkey_trials": 5,
        "eval.passkey_depths": 5,
    },
    # The same pages from one small model.
    "study": {
        "study.models": ("2x128:128:1000000",),
        "study.seeds": 2,
        "study.extensions": (4,),
        "study.shares": (0.5,),
        "study.random": 16,
        "study.vocab_size": 1024,
        "study.tune_share": 0.03,
        "learn.steps": 5,
    },
}
