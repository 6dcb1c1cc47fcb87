"""The report stands alone, opens in a browser without an error, and shows every script."""

import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from browsers import CHROMIUM

from decoding.evals import miniature
from decoding.evals.engine.pages import as_svg
from decoding.evals.isotropy import Settings, analyse, analyse_each, html_report, plots
from decoding.evals.isotropy.heat_map import colour, heat_map_svg
from decoding.evals.isotropy.results import HeatMap

pytest.importorskip("matplotlib", reason="figures need matplotlib: the extra report")
TEXTS = {
    "ar": "يضيء القمر فوق النهر القديم.", "th": "ช่างนาฬิกาชรายิ้มอย่างใจดี", "zh": "老钟表匠慢慢地笑了。",
    "ko": "늙은 시계공이 조용히 웃었다.", "en": "The old <clockmaker> & his cat smiled.",
}  # fmt: skip


@pytest.fixture(scope="module")
def results():
    if not (miniature.folder("expert") / "config.json").is_file():
        pytest.skip("the embedded models have not been trained here")
    data = {language: [text, text[: len(text) // 2]] for language, text in TEXTS.items()}
    return analyse_each(*miniature.load("expert"), data, name="<expert>")


@pytest.fixture(scope="module")
def page(results, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "isotropy.html"
    path.write_text(html_report(results), encoding="utf-8")
    return path


class Outline(HTMLParser):
    """Tags that are open at the end or closed in the wrong order, and what is fetched from elsewhere."""

    EMPTY = ("meta", "link", "br", "img")

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.fetched = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset") and not value.startswith(("#", "data:")):
                self.fetched.append(value)

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)


def test_it_stands_alone_and_is_well_formed(page):
    text = page.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    assert (outline.open, outline.wrong, outline.fetched) == ([], [], [])
    assert "<script" not in text
    assert not re.search(r"url\((?!#)|@import", text)
    assert "&lt;expert&gt;" in text
    assert "<expert>" not in text
    assert "nan" not in re.sub(r"<[^>]+>", " ", text).lower().split()


def browse(path, tmp_path):
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_browser_opens_it_without_an_error_and_shows_every_script(page, tmp_path):
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8").replace("</body>", "<script>undefined_name()</script></body>")
    assert "undefined_name" in text
    broken.write_text(text, encoding="utf-8")
    dom, errors = browse(broken, tmp_path)
    assert len(errors) == 1  # that of the script, which shows that the browser tells of errors
    shown = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", dom))
    for text in TEXTS.values():
        assert text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in shown
    for language, label in (("zh", "钟"), ("th", "ฬ"), ("ko", "늙"), ("ar", "ض")):
        assert f">{label}</text>" in dom, f"no label of the heat map for {language}"
    for heading in (
        "Verdict",
        "Isotropy of the last layer",
        "Layer by layer",
        "Rogue dimensions",
        "How it was measured",
    ):
        assert heading in shown


def test_plots_have_a_line_or_bar_for_each_analysis(results):
    layers = plots.plot_layers(results)
    assert {len(axes.lines) for axes in layers.axes} == {len(results)}
    assert all(axes.get_title(loc="left") for axes in layers.axes)
    comparison = plots.plot_comparison(results).axes[0]
    assert [label.get_text() for label in comparison.get_yticklabels()] == list(TEXTS)
    bars = [patch.get_width() for patch in comparison.patches if 0.6 < patch.get_height() < 0.7]
    assert bars == pytest.approx([result.last.isotropy.value for result in results])
    spectrum = plots.plot_spectrum(results).axes[0]
    assert len(spectrum.get_legend().get_texts()) == len(results)
    assert "rank" in spectrum.get_xlabel()
    rogue = plots.plot_rogue(results).axes[0]
    assert len(rogue.patches) == sum(len(result.last.rogue) for result in results)
    svg = as_svg(comparison.figure)
    assert svg.startswith("<svg")
    assert "isotropy of the last layer" in svg  # text, not outlines of letters
    assert svg == as_svg(plots.plot_comparison(results))


def test_several_models_are_told_apart_by_their_lines(results):
    others = [replace(result, model="models/other", depth=8) for result in results]
    lines = plots.plot_layers([*results, *others]).axes[0].lines
    assert {line.get_linestyle() for line in lines[: len(results)]} == {"-"}
    assert {line.get_linestyle() for line in lines[len(results) :]} == {"--"}
    assert "other, ar" in [line.get_label() for line in lines]


def test_a_single_layer_and_text_still_make_a_report(monkeypatch):
    """Whose figures are made, and not drawn."""
    monkeypatch.setattr("decoding.evals.isotropy.report.as_svg", lambda figure: "<svg></svg>")
    if not (miniature.folder("expert") / "config.json").is_file():
        pytest.skip("the embedded models have not been trained here")
    settings = Settings(layers=(1,), skip_bos=True)
    only = analyse(*miniature.load("expert"), ["The old clockmaker smiled at his cat."], settings)
    text = html_report([only])
    assert "Layer by layer" not in text
    assert "the last layer was left out" in text


def test_the_heat_map_has_a_cell_a_pair_that_tells_its_cosine():
    svg = heat_map_svg(HeatMap(3, "a<b", ("a<", "b"), ((1.0, -0.25), (-0.25, 1.0))))
    assert svg.count("<rect") == 4
    assert "<title>a&lt; × b: -0.25</title>" in svg
    assert svg.count(f'fill="{colour(1.0)}"') == 2


def test_colours_darken_with_likeness():
    def light(cosine):
        return sum(int(colour(cosine)[place : place + 2], 16) for place in (1, 3, 5))

    steps = [light(step / 10) for step in range(11)]
    assert steps == sorted(steps, reverse=True)
    assert colour(-1) not in (colour(0), colour(1))
