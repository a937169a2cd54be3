"""Errors speak of arguments; callers rename them."""

from rope_jax.errors import InputError


def test_renaming_replaces_every_argument_in_backticks():
    error = InputError("`target` is 8, not above `original` (16); see `--help`")
    renamed = error.renamed({"target": "config.context.target", "original": "config.context.original"})
    assert str(renamed) == "config.context.target is 8, not above config.context.original (16); see `--help`"
    assert renamed.field == "config.context.target"


def test_unknown_arguments_keep_their_names():
    renamed = InputError("`rank` is 0: it must be at least 1", field="rank").renamed({})
    assert (str(renamed), renamed.field) == ("`rank` is 0: it must be at least 1", "rank")
    assert InputError("no such file").field == ""


def test_the_argument_that_a_message_begins_with_is_at_fault_unless_another_is_named():
    assert InputError("`mesh.data` is 3, and `batch` 8").field == "mesh.data"
    assert InputError("`mesh.data` is 3, and `batch` 8", field="batch").field == "batch"
    assert InputError("the factors of `rope` differ").field == ""


def test_values_of_any_length_do_not_fill_the_terminal():
    message = str(InputError(f"a.json: key is {'x' * 10**6}: give a number"))
    assert len(message) < 5000 and message.startswith("a.json: key") and message.endswith(": give a number")
