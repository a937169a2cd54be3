"""A run that takes seconds: a few kilobytes of text, a model of a few thousand parameters."""

import random

import jax

from configs import defaults
from configs import eval as eval_config
from rope_jax.commands.reporter import Silent


def write_texts(folder):
    """A train and a validation split of made-up sentences."""
    words = ("the", "model", "turns", "every", "pair", "by", "an", "angle", "that", "grows", "with", "its", "token")
    generator = random.Random(0)
    for split, count in (("train", 6), ("validation", 3)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            text = " ".join(generator.choice(words) for _ in range(800))
            (folder / split / f"{i}.txt").write_text(text)
    return folder


def small_config(texts):
    """`configs/tiny.py` in miniature, on one of the test session's eight virtual devices."""
    config = defaults.get_config()
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.model.attention_chunk = 64
    config.rope.base = 10000.0
    config.rope.head_dim = 16
    config.compare = ("yarn", "learned")
    config.learn.steps = 3
    config.learn.joint = True
    config.context.original = 64
    config.context.target = 128
    config.angles.intervals = 16
    config.solve.n_hat = 8
    config.data.path = str(texts)
    config.pretrain.hidden_size = 32
    config.pretrain.intermediate_size = 48
    config.pretrain.num_layers = 2
    config.pretrain.num_heads = 2
    config.pretrain.num_kv_heads = 1
    config.pretrain.steps = 4
    config.pretrain.warmup_steps = 1
    config.pretrain.checkpoint_every = 2
    config.pretrain.global_batch = 8
    config.pretrain.recall = 0.25
    config.train.steps = 4
    config.train.learning_rate = 1e-3
    config.train.global_batch = 8
    config.train.accumulation = 1
    config.train.mix = 0.5
    config.train.checkpoint_every = 2
    config.eval.max_tokens = 2_000
    config.eval.position_tokens = 2_000
    config.eval.stride = 32
    config.eval.passkey_trials = 0
    config.eval.recall_texts = 8
    config.lock()
    return config


def run_small(folder, texts, devices):
    """The whole run, in a process of its own with this many virtual devices."""
    from rope_jax.cli.extend import extend  # configs of that command import this file, and define no flag twice

    jax.config.update("jax_num_cpu_devices", devices)
    extend(small_config(texts), folder, "small", reporter=Silent())


def run_evaluation(folder, fields):
    """`configs/eval.py` with other fields, in a process of its own."""
    from rope_jax.cli.evaluate import evaluate

    evaluate(assigned(eval_config.get_config(), fields), folder, "eval", reporter=Silent())


def assigned(config, values):
    """A config with fields set to values of any type."""
    with config.unlocked(), config.ignore_type():
        for name, value in values.items():
            *sections, last = name.split(".")
            place = config
            for section in sections:
                place = place[section]
            with place.ignore_type():
                place[last] = value
    return config
