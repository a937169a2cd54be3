"""A page's HTML needs nothing else, says what the description says, and is as wide as its screen."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from rope_jax.report import figures
from rope_jax.report.html import html
from rope_jax.report.page import Command, Page, Section, Table
from tests.report.test_page import FIGURES, GRID

HOSTILE = "<script>alert(1)</script> ![x](http://example.org/x.png) [y](javascript:alert(1)) & \"'"
WIDE = Table([f"column {i}" for i in range(30)], [["-0.012 (-0.020 to -0.004)"] * 30])
PAGE = Page(
    f"A run {HOSTILE}",
    [f"First `a < b` and *second*. {HOSTILE}"],
    [
        Section("Figures", [FIGURES[0], FIGURES[4], FIGURES[6]]),
        Section("Nothing", []),
        Section(f"Tables {HOSTILE}", [WIDE, Table(["a"], [[HOSTILE]]), Command(f"python -m it {HOSTILE}")]),
    ],
)
VOID = {"meta"}


class Outline(HTMLParser):
    """Texts and attributes of each tag. Every tag is closed by its own."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def of(self, tag):
        return [text for where, text in self.texts if where == tag]


@pytest.fixture(scope="module")
def text():
    return html(PAGE)


def test_it_needs_no_other_file(text):
    outline = Outline(text)
    for tag, name, value in outline.attributes:
        assert tag not in ("img", "link", "iframe", "object", "a"), (tag, value)
        assert not name.startswith("on") and name != "src", (tag, name)
        if name.endswith("href"):
            assert value.startswith("#" if tag != "image" else "data:image/png;base64,"), (tag, value)
    assert "@import" not in text and set(re.findall(r"url\((.)", text)) == {"#"}
    ids = [value for _, name, value in outline.attributes if name == "id"]
    assert len(ids) == len(set(ids)) and set(re.findall(r"url\(#([^)]*)\)", text)) <= set(ids)


def test_text_is_text(text):
    outline = Outline(text)
    assert len(outline.of("script")) == 1 and "alert" not in outline.of("script")[0]
    assert outline.of("h1") == [PAGE.title] == outline.of("title")[:1]
    assert outline.of("h2") == ["Figures", PAGE.sections[2].title]
    assert outline.of("code") == ["a < b"] and outline.of("em") == ["second"]
    assert "".join(outline.of("p")) == f"First  and . {HOSTILE}"
    assert outline.of("pre") == [f"python -m it {HOSTILE}"]
    assert outline.of("td") == [*WIDE.rows[0], HOSTILE]


def test_figures_show_their_numbers():
    def titles(*blocks):
        return Outline(html(Page("A page", blocks, []))).of("title")[1:]

    pi, dprope = "PI: 0.1", "DPRoPE: 0"
    assert titles(FIGURES[0])[1] == f"frequency pair i (fast to slow): 1\n{pi}\n{dprope}"
    buckets = [{"start": 4, "end": 9, "perplexity": 5.125, "interval": [4.5, 6.25]}]
    by_position = figures.perplexity_by_position({name: {"pi": buckets} for name in ("before", "after")}, 16)
    assert titles(by_position) == ["position in the window (tokens): 6\nPI: 5.125 (4.5 to 6.25)"] * 2
    maps = figures.depth_maps("passkey", "Passkey", {"own": {"passkey": GRID}}, "key")
    assert titles(maps) == [
        *("4,096 tokens, key at 25%: 0%", "4,096 tokens, key at 75%: 100%", "8,192 tokens, key at 25%: 50%"),
    ]
    steps = figures.training_curves({"pi": [{"step": step, "loss": 1.0} for step in range(1001)], "yarn": []})
    assert 100 < len(titles(steps)) <= 200


@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_shows_it(text, width, tmp_path):
    """No message in the console, only tables and commands may scroll sideways, and a touched plot shows its numbers."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    touch = "const place = document.querySelector('.values path').getBoundingClientRect();"
    touch += (
        "document.elementFromPoint(place.x + 3, place.y + 3).dispatchEvent(new MouseEvent('click', {bubbles: true}));"
    )
    seen = "document.documentElement.scrollWidth, innerWidth, document.querySelector('output').textContent"
    (tmp_path / "page.html").write_text(text.replace("</body>", f"<script>{touch}console.log({seen})</script></body>"))
    options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    options += f"--disable-component-update --hide-scrollbars --enable-logging=stderr --window-size={width},900"
    places = [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={tmp_path / 'page.png'}"]
    done = subprocess.run(
        [browser, *options.split(), *places, (tmp_path / "page.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (message,) = re.findall(r"CONSOLE:\d+\] \"(.*)\", source", done.stderr, re.S)
    needed, given, shown = message.split(maxsplit=2)
    assert int(needed) <= int(given) and shown == "frequency pair i (fast to slow): 0\nPI: 0\nDPRoPE: 0"
