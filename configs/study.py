"""python -m experiments.study --config.data.path=TEXTS

Whether the disturbance tells a good scale vector: small models trained on texts mixed with synthetic recall, extended
by every method, before and after a short fine-tuning. `--quick` shows the same pages in a quarter of an hour.
"""

from configs import defaults


def get_config():
    config = defaults.get_config()
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.scan_unroll = 8
    config.rope.base = 10000.0
    config.rope.head_dim = 64
    # The paper has 11 positions to an interval; so few intervals as 256 positions then allow would tell nothing.
    config.angles.intervals = 90

    s = config.study
    s.models = ("2x128:256:2000000", "4x256:256:3000000", "4x256:512:3000000", "7x384:256:1500000")
    s.methods = (
        *("yarn", "extrapolation", "pi", "ntk", "mrrope_pro", "cope"),
        *("dprope_argmin", "dprope", "dprope_robust", "two_term", "two_term@yarn", "minimal", "learned"),
    )
    s.zero_shot = (
        *(f"{name}@{factor}" for name in ("two_term", "dprope_robust") for factor in ("yarn", "longrope")),
        *("yarn@1", "yarn@longrope", "mrrope_pro@longrope", "dprope@yarn", "dprope_argmin@yarn", "ntk@yarn"),
        *("yarn_paper", "llama3", "dynamic_ntk", "critical_base", "mrrope_uni", "tailspline"),
        *("hard_cut", "longrope2", "proportional"),
        *(f"two_term@{factor}" for factor in (1.05, 1.1, 1.2, 1.3)),
        *("two_term_w3", "two_term_w10", "two_term_w100", "two_term_w300"),
        *("dprope_argmin_t2", "dprope_argmin_t4", "dprope_robust_t2", "dprope_robust_t4"),
    )
    # The paper's 56 to 96 of 128 dimensions, and 90 to 720 intervals.
    s.n_hats = (28, 32, 36, 40, 44, 48)
    s.intervals = (22, 45, 180, 360)
    s.random = 40
    s.windows, s.recall_rows = 3, 6

    # Adam's step does not depend on the scale of the gradient: as the paper's, a fifteenth of the peak of pre-training.
    config.train.learning_rate = 2e-4
    config.learn.steps = 20
    return config


def quick(config):
    """The same study, small enough for a quarter of an hour on two cores."""
    s = config.study
    s.models = ("2x128:128:1000000",)
    s.seeds = 2
    s.extensions, s.shares = (4,), (0.5,)
    s.random = 16
    s.vocab_size = 1024
    s.tune_share = 0.03
    config.learn.steps = 5
    return config
