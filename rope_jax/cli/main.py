"""The command `rope-jax`. JAX is imported once a request is complete, so that help takes no time."""

import argparse
import ast
import os
import re
import runpy
import sys
from importlib.resources import files
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, NoReturn

from rope_jax.cli.ending import stop
from rope_jax.cli.starts import QUICK, STARTS
from rope_jax.cli.subcommands import COMMANDS
from rope_jax.errors import InputError, nearest

_FIELDS = "all fields: rope-jax fields [WORD]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        stop(message)


def main() -> None:
    """The console script."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "fields":
        print_fields(arguments[0] if arguments else "")
    elif name not in COMMANDS:
        stop(f"there is no command {name!r}: {nearest(name, [*COMMANDS, 'fields'])}rope-jax --help lists all")
    elif not arguments:
        command = COMMANDS[name]
        stop(f"{' and '.join(command.given)} missing; for example: {example(name)}")
    else:
        run(name, parse(name, arguments))


def overview() -> str:
    lines = [f"  {name:9} {command.does}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: rope-jax COMMAND ...\n\nExtends the context window of RoPE language models.\n",
            *lines,
            "  fields    All fields that --set and a config file set, or those that contain a word.",
            f"\n{example('analyze')}\n{example('extend')}\n\nrope-jax COMMAND --help: fields and examples; {_FIELDS}",
        ]
    )


def example(name: str, which: int = 0) -> str:
    return f"rope-jax {name} {COMMANDS[name].examples[which]}"


def parser(name: str) -> argparse.ArgumentParser:
    command, listed = COMMANDS[name], listed_fields()
    found = _Parser(
        prog=f"rope-jax {name}",
        description=command.does,
        epilog=f"examples:\n  {example(name)}\n  {example(name, 1)}\n\n{_FIELDS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for word, field in {**command.given, **command.options}.items():
        default, meaning = listed[field]
        shown = STARTS[name].get(field, default)
        shown = ",".join(map(str, shown)) if isinstance(shown, tuple) else str(shown)
        said = f"{field}: {meaning}" + f" (default {shown})" * bool(shown)
        said += "; more than one are compared with the first" * (word == "--method" and name != "export")
        place: dict[str, Any] = {"dest": field} if word in command.options else {"nargs": "?"}
        found.add_argument(
            word if word in command.options else field,
            metavar=word.strip("-").replace("-", "_").upper(),
            help=said.replace("%", "%%"),
            **place,
        )
    for switch, meaning in command.switches.items():
        found.add_argument(switch, action="store_true", help=meaning)
    for option, meaning in command.words.items():
        found.add_argument(option, default="", help=meaning)
    found.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="any field; 16k is 16384")
    found.add_argument("--config", metavar="FILE.py", help="start from the get_config() of a file")
    if "--methods" not in command.options:
        found.add_argument("--methods", metavar="FILE.py", help="run a file that defines methods of your own")
    found.add_argument(
        "-o", "--output", "--workdir", metavar="OUT", default=f"runs/{name}", help="folder to write to (%(default)s)"
    )
    found.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return found


def parse(name: str, arguments: list[str]) -> argparse.Namespace:
    """What is typed after a command's name."""
    # Spelled as flags of `python -m experiments.NAME`, too.
    arguments = [re.sub(r"^--[^=]+", lambda flag: flag[0].replace("_", "-"), word) for word in arguments]
    typed, unknown = parser(name).parse_known_args(arguments)
    if unknown:
        known = [
            *COMMANDS[name].options,
            *COMMANDS[name].switches,
            *COMMANDS[name].words,
            "--set",
            "--config",
            "--methods",
            "--output",
            "--debug",
            "--help",
        ]
        word = unknown[0].partition("=")[0]
        stop(f"{word} is unknown: {nearest(word, known)}rope-jax {name} --help lists all, and --set sets any field")
    typed.named = bool(vars(typed).get("model.path"))
    return typed


def listed_fields() -> dict[str, tuple[Any, str]]:
    """Default and meaning of fields, from the source of their list: importing it imports JAX."""
    source = files("rope_jax").joinpath("commands/fields.py").read_text(encoding="utf-8")
    calls = (node.args for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and len(node.args) > 2)
    return {
        ast.literal_eval(name): (ast.literal_eval(default), ast.literal_eval(meaning))
        for name, default, meaning, *_ in calls
        if isinstance(name, ast.Constant) and isinstance(meaning, ast.Constant)
    }


def print_fields(word: str) -> None:
    from rope_jax.commands.fields import FIELDS

    for field in FIELDS:
        if word in field.name or word in field.meaning:
            print(f"{field.name} = {field.default!r}: {field.meaning}" + f"; {field.check}" * bool(field.check))


def request(name: str, typed: argparse.Namespace) -> Any:
    """The locked ConfigDict of a request: a file's or what the command starts from, then `--quick`, options, `--set`.

    Raises:
        InputError: naming the field or file that cannot be used.
    """
    from rope_jax.cli.config import change, start

    config = load(Path(typed.config)) if typed.config else start(name)
    if getattr(typed, "quick", False):
        change(config, QUICK[name])
    command = COMMANDS[name]
    texts = {field: vars(typed)[field] for field in [*command.given.values(), *command.options.values()]}
    if texts.get("rope.method") and name != "export":
        texts["rope.method"], _, texts["compare"] = texts["rope.method"].partition(",")
    texts["methods"] = vars(typed).get("methods")
    for assignment in typed.set:
        field, equals, text = assignment.partition("=")
        if not equals:
            raise InputError(f"--set {assignment}: write FIELD=VALUE")
        texts[field] = text
    if getattr(typed, "verify", False):
        texts["verify"] = "true"
    change(config, {field: parsed(field, text) for field, text in texts.items() if text is not None})
    return config.lock()


def load(file: Path) -> Any:
    """The config of a file; what it imports is found beside its folder, as `configs` is in the repository."""
    sys.path.insert(0, str(file.resolve().parent.parent))
    try:
        return runpy.run_path(str(file))["get_config"]()
    except Exception as error:
        raise InputError(f"--config {file}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def parsed(name: str, text: str) -> Any:
    """The value of a field as it is typed: lists as `a,b`, `16k` as 16384."""
    from rope_jax.commands.fields import FIELDS

    known = {field.name: field for field in FIELDS}
    if name not in known:
        raise InputError(f"there is no field {name}: {nearest(name, known)}{_FIELDS}")
    kind = type(known[name].default)
    element = known[name].element if kind is tuple else kind
    words = [word.strip() for word in text.split(",") if word.strip()] if kind is tuple else [text]
    try:
        values = tuple(_scalar(element, word) for word in words)
    except (ValueError, KeyError):
        expected = "a list of " * (kind is tuple) + {bool: "true or false"}.get(element, element.__name__)
        raise InputError(f"`{name}` is {text!r}: it must be {expected}") from None
    return values if kind is tuple else values[0]


def _scalar(kind: type, word: str) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[word.lower()]
    return int(word[:-1]) * 1024 if kind is int and word[-1:] in ("k", "K") else kind(word)


def spelled(message: str, name: str) -> str:
    """A message of the library's command in this one's words."""
    from rope_jax.commands.fields import DEFAULTS

    command = COMMANDS[name]
    words = {field: word for word, field in {**command.given, **command.options}.items()}
    words |= {"methods": "--methods"} if "--methods" not in command.options else {}
    words |= {"compare": "--method"} if "rope.method" in words and name != "export" else {}
    pattern = r"(?:\bconfig\.([a-z_]+(?:\.[a-z_0-9]+)*))|`([\w.]+)`"

    def typed(match: re.Match[str]) -> str:
        field = match[1] or match[2]
        return words.get(field, field if field in DEFAULTS else match[0])

    message = re.sub(pattern, typed, message).replace("--workdir", "-o").replace("experiments.", "rope-jax ")
    empty = any(f"{word} is empty" in message for word in command.given)
    return message + f"; for example: {example(name)}" * empty


def run(name: str, typed: argparse.Namespace) -> None:
    """Runs a command; what a user can correct is one line."""
    from importlib import import_module

    from rope_jax.cli.shell import guarded

    try:
        config = request(name, typed)
    except InputError as error:
        stop(spelled(str(error), name), debug=typed.debug)
    label = Path(typed.config).stem if typed.config else name
    folder = Path(os.path.abspath(typed.output))
    module = import_module(f"rope_jax.cli.{name}")
    # Keyword arguments are the flags of a command.
    command = getattr(module, "command", None) or getattr(module, name)
    taken = [p.name for p in signature(command).parameters.values() if p.kind is Parameter.KEYWORD_ONLY]
    beside = {word: vars(typed)[word] for word in taken}

    def call() -> None:
        try:
            command(config, folder, label, **beside)
        except InputError as error:
            raise InputError(spelled(str(error), name)) from error

    guarded(call, config, folder, several=name == "extend", debug=typed.debug)
