"""A page as one HTML file, which needs no other file and no network."""

from html import escape

from markdown_it import MarkdownIt

from rope_jax.report import plots
from rope_jax.report.page import Block, Command, Page, Table

# `code` and *emphasis* only. Names of models and files are text: neither tags, nor links, nor pictures.
_TEXT = MarkdownIt("zero").enable(["backticks", "emphasis"])

# Cells of at most so many characters stay on one line.
_SHORT = 48

_STYLE = """
:root { color-scheme: light }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: #fff; color: #1a1a1a; overflow-wrap: anywhere;
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2 }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ccc; font-size: 1.2rem }
p { max-width: 48rem }
code, pre { font-family: ui-monospace, monospace; font-size: .9em }
pre, .scroll { overflow-x: auto }
pre { padding: .7rem; background: #f4f4f4 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  overflow-wrap: normal }
th { vertical-align: bottom }
.short { white-space: nowrap }
figure { margin: 1rem 0 }
figcaption { margin-bottom: .5rem; font-weight: 600 }
.panels { display: flex; flex-wrap: wrap; gap: 1rem }
svg { flex: 1 1 24rem; min-width: 0; max-width: 44rem; height: auto }
svg text { font-family: system-ui, sans-serif !important }
.values path { pointer-events: all }
.values:hover path { fill: #000 !important; fill-opacity: .08 }
output:not(:empty) { position: fixed; inset: auto 0 0; padding: .6rem 1rem; background: #222; color: #fff;
  font-size: .85rem; white-space: pre-line; max-height: 40vh; overflow-y: auto }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt }
  pre { white-space: pre-wrap }
  pre, .scroll { overflow: visible }
  table { font-size: 7pt }
  .short { white-space: normal }
  svg { flex-basis: 8cm; max-width: 11cm }
  svg, tr { break-inside: avoid }
  h2 { break-after: avoid }
  output { display: none }
}
"""

# A screen that is touched shows no <title>.
_SCRIPT = """
const shown = document.querySelector("output");
addEventListener("click", (event) => {
  shown.textContent = event.target.closest(".values")?.querySelector("title").textContent ?? "";
});
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
<output></output>
<script>{script}</script>
</body>
</html>
"""


def html(page: Page) -> str:
    """The page as HTML, with figures as vector graphics whose numbers show where one points."""
    parts = [*map(_html, page.introduction)]
    for section in page.sections:
        if section.blocks:
            parts += [f"<h2>{escape(section.title)}</h2>", *map(_html, section.blocks)]
    return _PAGE.format(title=escape(page.title), style=_STYLE, script=_SCRIPT, body="\n".join(parts))


def _html(block: Block) -> str:
    match block:
        case str():
            return f"<p>{_TEXT.renderInline(block)}</p>"
        case Table():
            head = "".join(f'<th scope="col">{_TEXT.renderInline(name)}</th>' for name in block.head)
            rows = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in block.rows)
            return (
                f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>'
            )
        case Command():
            return f"<pre>{escape(block.line)}</pre>"
    caption = f"<figcaption>{escape(block.title)}</figcaption>" if block.title else ""
    return f'<figure>{caption}<div class="panels">{"".join(plots.svg(block))}</div></figure>'


def _cell(text: str) -> str:
    style = ' class="short"' if len(text) <= _SHORT else ""
    return f"<td{style}>{_TEXT.renderInline(text)}</td>"
