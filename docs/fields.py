"""python docs/fields.py > docs/fields.md: the page of all config fields, from the list that the commands check."""

from rope_jax.commands.field import Field
from rope_jax.commands.fields import FIELDS


def page() -> str:
    """Markdown with a table of the fields of each section."""
    lines = [
        "# All fields",
        "",
        "[`rope_jax/commands/fields.py`](../rope_jax/commands/fields.py) is the list that this page is made from, by",
        "`python docs/fields.py > docs/fields.md`. [Configuration](configuration.md) says how to set a field.",
    ]
    section = None
    for field in sorted(FIELDS, key=_section):
        if _section(field) != section:
            section = _section(field)
            lines += ["", f"## {section or 'The run'}", "", "| field | default | meaning |", "|---|---|---|"]
        limits = f"; {field.check}" if field.check else ""
        lines.append(f"| `config.{field.name}` | `{field.default!r}` | {field.meaning}{limits} |")
    return "\n".join(lines) + "\n"


def _section(field: Field) -> str:
    return field.name.rpartition(".")[0].partition(".")[0]


if __name__ == "__main__":
    print(page(), end="")
