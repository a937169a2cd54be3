"""A report's page as plain data, and its Markdown."""

import dataclasses
from collections.abc import Mapping, Sequence

from rope_jax.report.figures import Figure


@dataclasses.dataclass(frozen=True)
class Table:
    """Names of `[C]` columns, and rows of `[C]` cells."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line, shown as it is."""

    line: str


# Text is one paragraph, which may mark `code` and *emphasis*.
Block = str | Table | Figure | Command


@dataclasses.dataclass(frozen=True)
class Section:
    """A titled part of a page; one without blocks is left out."""

    title: str
    blocks: Sequence[Block]


@dataclasses.dataclass(frozen=True)
class Page:
    """A title, an introduction and sections."""

    title: str
    introduction: Sequence[Block]
    sections: Sequence[Section]


def markdown(page: Page) -> str:
    """The page as Markdown, with figures as `plots/NAME.png`."""
    parts = [f"# {page.title}", *map(_markdown, page.introduction)]
    for section in page.sections:
        if section.blocks:
            parts += [f"## {section.title}", *map(_markdown, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case str():
            return block
        case Table():
            rows = (block.head, ["---"] * len(block.head), *block.rows)
            return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)
        case Command():
            return f"```\n{block.line}\n```"
    return f"![{block.title or block.name.replace('_', ' ').capitalize()}](plots/{block.name}.png)"


def with_interval(value: float | None, interval: Sequence[float] | None, digits: tuple[int, int]) -> str:
    """A number with its confidence interval, such as `5.123 (4.90 to 5.35)` with (3, 2) decimals; `-` for None."""
    if value is None:
        return "-"
    text = f"{value:.{digits[0]}f}"
    return text if interval is None else f"{text} ({interval[0]:.{digits[1]}f} to {interval[1]:.{digits[1]}f})"


def signed(difference: float | None, interval: Sequence[float] | None, digits: int) -> str:
    """A difference with its confidence interval, such as `-0.012 (-0.020 to -0.004)`; `-` for None."""
    if difference is None:
        return "-"
    text = f"{difference:+.{digits}f}"
    return text if interval is None else f"{text} ({interval[0]:+.{digits}f} to {interval[1]:+.{digits}f})"


def counted(number: int, noun: str) -> str:
    """`1 document`, `2 documents`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def reproduction(results: Mapping, files: str) -> Section:
    """How a run is repeated, from the content of its `results.json` and a sentence on further files."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    seconds = ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in results["seconds"].items())
    text = f"All numbers, with the full configuration: `results.json`. {files}"
    blocks: list[Block] = [Command(results["command"]), f"Versions: {versions}.", f"Seconds: {seconds}.", text]
    if results["changed"]:
        rows = [
            [f"`{name}`", *(f"`{found[key]!r}`" for key in ("value", "default"))]
            for name, found in results["changed"].items()
        ]
        blocks += ["Fields of the config that differ from their defaults:", Table(["field", "value", "default"], rows)]
    return Section("How to repeat it", blocks)
