"""``decoding eval multilingual`` as a user runs it, in languages of every script; its table, plot and report."""

import html
import json
import re
import subprocess
from html.parser import HTMLParser

import pytest
from browsers import CHROMIUM
from command_results import refused

from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine import text_generation
from decoding.evals.tasks.multilingual.languages import LANGUAGES
from decoding.models import loading

pytestmark = [
    pytest.mark.skipif(
        not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
    ),
    pytest.mark.usefixtures("models_loaded_once"),
]
# Of the sixteen: every k, both units, right-to-left text, and scripts of one to three bytes a letter.
TEXTS = {
    "ja": "古い時計屋さんは", "ar": "يضيء القمر فوق", "de": "Der <alte> Uhrmacher & saß", "th": "ช่างนาฬิกาชรา",
    "id": "Tukang jam tua itu",
}  # fmt: skip
STRATEGIES = ("greedy", "nucleus", "contrastive-search")


def rows(path, *given):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in given), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for code, text in TEXTS.items():
        rows(
            folder / f"{code}.jsonl",
            {"prefix_text": text, "reference_text": f" {text[::-1]}"},
            {"prefix_text": text[: len(text) // 2 + 2], "reference_text": " …"},
        )
    return folder


@pytest.fixture(scope="module")
def command(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    strategies = [word for name in STRATEGIES for word in ("--strategy", name)]
    report = ["--report", str(output / "report.html")]
    return output, ["eval", "multilingual", "--data", str(data), "--max-new-tokens", "3", *strategies, "--output",
                    str(output), *report]  # fmt: skip


@pytest.fixture(scope="module")
def ran(command):
    output, arguments = command
    assert main([*arguments, "--json"]) == 0
    return output


def test_every_language_runs_with_its_own_k_and_units(ran):
    found = json.loads((ran / "multilingual_open-ended.json").read_text(encoding="utf-8"))
    assert list(found["languages"]) == [code for code in LANGUAGES if code in TEXTS]
    for code, language in found["languages"].items():
        labels = list(language["strategies"])
        assert labels[0] == "greedy"
        assert labels[2] == f"contrastive-search(penalty_alpha=0.6, top_k={LANGUAGES[code].top_k})"
        assert all(0 <= figures["diversity"]["value"] <= 100 for figures in language["strategies"].values())
        assert language["counts"]["evaluated"] == 2
    for path in ran.glob("results_*.json"):
        settings = json.loads(path.read_text(encoding="utf-8"))["task_settings"]
        assert settings["units"] == LANGUAGES[settings["task"].rpartition("-")[2]].units
    assert len(list(ran.glob("samples_open-ended-*.jsonl"))) == len(TEXTS)
    pytest.importorskip("matplotlib")
    assert (ran / "multilingual_open-ended.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_second_run_writes_nothing_anew_and_ends_with_the_same(ran, command, monkeypatch, capfd):
    before = json.loads((ran / "multilingual_open-ended.json").read_text(encoding="utf-8"))

    def generate(*_):
        raise AssertionError("it was generated before")

    monkeypatch.setattr(text_generation.TextGenerator, "generate", generate)
    monkeypatch.setattr("decoding.evals.tasks.multilingual.report.as_svg", lambda figure: "<svg></svg>")
    assert main(command[1][:-2]) == 0  # without the report
    out, err = capfd.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    assert "Indonesian" in out
    assert json.loads((ran / "multilingual_open-ended.json").read_text(encoding="utf-8")) == before


def test_strategies_that_draw_do_so_from_the_seed(ran, command, tmp_path):
    _, arguments = command
    other = [
        "eval", "multilingual", *arguments[2:4], "--languages", "de", "--strategy", "nucleus", "--max-new-tokens", "3",
    ]  # fmt: skip
    assert main([*other, "--output", str(tmp_path), "--json"]) == 0

    def texts(folder):
        lines = (folder / "samples_open-ended-de.jsonl").read_text(encoding="utf-8").splitlines()
        return [sample["text"] for sample in map(json.loads, lines) if sample["strategy"].startswith("nucleus")]

    assert texts(tmp_path) == texts(ran)


# --- the report ------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Open or badly closed tags, what is fetched from elsewhere, and the language and direction of each text."""

    def __init__(self):
        super().__init__()
        self.open, self.wrong, self.fetched, self.texts = [], [], [], {}
        self.inside = None

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        found = dict(attributes)
        self.fetched += [
            found[name]
            for name in ("src", "href", "xlink:href", "srcset")
            if name in found and not found[name].startswith(("#", "data:"))
        ]
        self.inside = found if tag == "p" else self.inside

    def handle_data(self, text):
        if self.inside and "dir" in self.inside:
            self.texts[text] = (self.inside.get("lang"), self.inside["dir"])

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.wrong.append(tag)
        self.inside = None if tag == "p" else self.inside


def test_the_report_stands_alone_and_says_in_which_language_texts_are(ran):
    page = (ran / "report.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    assert (outline.open, outline.wrong, outline.fetched) == ([], [], [])
    assert "<script" not in page
    assert not re.search(r"url\((?!#)|@import", page)
    assert "<alte>" not in page
    for code, text in TEXTS.items():
        assert outline.texts[text] == (code, "auto")  # the prompt
        assert outline.texts[f" {text[::-1]}"] == (code, "auto")  # what people wrote
    for name in STRATEGIES:
        assert page.count(f"<h3>{name}</h3>") == 2 * len(TEXTS)


def browse(path, tmp_path):
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


# Right-to-left texts begin at the right edge of their box, the others at the left; and no box is empty.
LAID_OUT = """<script>
document.body.dataset.laid = JSON.stringify([...document.querySelectorAll("p[dir=auto][lang]")].map(paragraph => {
  const range = document.createRange(); range.selectNodeContents(paragraph);
  const [line, box] = [range.getClientRects()[0], paragraph.getBoundingClientRect()];
  return {lang: paragraph.lang, text: paragraph.textContent, right: box.right - line.right < line.left - box.left,
          direction: getComputedStyle(paragraph).direction, height: line.height, width: line.width};
}));</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_a_browser_shows_every_script_from_its_side_without_an_error(ran, tmp_path):
    page = (ran / "report.html").read_text(encoding="utf-8")
    scripted = tmp_path / "scripted.html"
    scripted.write_text(re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</main>", f"</main>{LAID_OUT}"), "utf-8")
    dom, errors = browse(scripted, tmp_path)
    assert errors == []
    laid = json.loads(html.unescape(re.search(r'data-laid="([^"]*)"', dom)[1]))
    prompts = {paragraph["lang"]: paragraph for paragraph in laid if paragraph["text"] == TEXTS[paragraph["lang"]]}
    assert set(prompts) == set(TEXTS)
    for code, paragraph in prompts.items():
        assert paragraph["direction"] == ("rtl" if code == "ar" else "ltr")
        assert paragraph["right"] == (code == "ar")
        assert min(paragraph["height"], paragraph["width"]) > 10


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
def test_the_browser_would_tell_of_an_error_and_the_report_runs_no_script(ran, tmp_path):
    page = (ran / "report.html").read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(page.replace("</main>", "</main><script>undefined_name()</script>"), encoding="utf-8")
    _, (error,) = browse(broken, tmp_path)  # the report itself has none
    assert "Content Security Policy" in error


# --- the other tasks -------------------------------------------------------------------------------------------------


def test_each_language_may_have_its_model_which_is_loaded_once(data, monkeypatch, capfd):
    loaded, load = [], loading.load
    monkeypatch.setattr(
        loading, "load", lambda spec, *rest, **placed: loaded.append(spec) or load(spec, *rest, **placed)
    )
    arguments = ["eval", "multilingual", "--data", str(data), "--languages", "ja,de,id", "--strategy", "greedy"]
    assert main([*arguments, "--models", "ja=amateur", "--max-new-tokens", "2", "--limit", "1", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["languages"]
    models = {code: language["model"]["name"] for code, language in found.items()}
    assert models == {"ja": "amateur", "de": "expert", "id": "expert"}
    assert loaded == ["amateur", "expert"]


def test_guidance_is_in_each_texts_language(data, capfd):
    spec = "lol:amateur=amateur,lower_layers=0.5,guidance=default"
    arguments = ["eval", "multilingual", "--data", str(data), "--languages", "de,ja", "--max-new-tokens", "3"]
    assert main([*arguments, "--strategy", spec, "--json"]) == 0
    printed = capfd.readouterr().out
    assert [language in printed for language in ("language=de", "language=ja", "language=en")] == [True, True, False]


def test_several_processes_need_a_folder_to_meet_in(data, monkeypatch, capfd):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["eval", "multilingual", "--data", str(data), "--strategy", "greedy"]) == 2
    assert "--output DIR" in capfd.readouterr().err


def test_whole_texts_are_read_up_to_sixteen_tokens(tmp_path, capfd):
    (tmp_path / "en.txt").write_text("The town lies by the sea. " * 20, encoding="utf-8")
    output = tmp_path / "out"
    arguments = ["eval", "multilingual", "--data", str(tmp_path), "--strategy", "greedy", "--max-new-tokens", "4"]
    assert main([*arguments, "--output", str(output), "--coherence-model", "amateur"]) == 0
    assert "coherence" in capfd.readouterr().out
    (sample,) = map(json.loads, (output / "samples_open-ended-en.jsonl").read_text(encoding="utf-8").splitlines())
    _, tokenizer = miniature.load("expert")
    assert len(tokenizer(sample["prefix"], add_special_tokens=False)["input_ids"]) == 16
    assert sample["prefix"] + sample["reference"] == "The town lies by the sea. " * 20
    assert sample["coherence"] < 0
    # The same judge by another name is the same evaluation.
    samples = (output / "samples_open-ended-en.jsonl").read_bytes()
    named = str(miniature.folder("amateur"))
    assert main([*arguments, "--output", str(output), "--coherence-model", named]) == 0
    assert (output / "samples_open-ended-en.jsonl").read_bytes() == samples
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(output.glob("results_*.json"))]
    assert [found["coherence_model"]["name"] for found in results] == ["amateur", named]


def test_mauve_through_a_local_model(data, tmp_path, capfd):
    pytest.importorskip("mauve")
    arguments = ["eval", "multilingual", "--data", str(data), "--languages", "th", "--strategy", "greedy"]
    more = ["--mauve-model", str(miniature.folder("amateur")), "--max-new-tokens", "4", "--output", str(tmp_path)]
    assert main([*arguments, *more, "--json"]) == 0
    (figures,) = json.loads(capfd.readouterr().out)["languages"]["th"]["strategies"].values()
    assert 0 <= figures["MAUVE"]["value"] <= 100
    (results,) = tmp_path.glob("results_*.json")
    assert json.loads(results.read_text())["mauve_model"]["name"] == str(miniature.folder("amateur"))


def test_translations_take_their_examples_from_the_data(tmp_path, capfd):
    rows(tmp_path / "de.jsonl", *({"de": f"Ein Haus {i}", "en": f"a house {i}"} for i in range(3)))
    arguments = ["eval", "multilingual", "--task", "translation", "--data", str(tmp_path), "--max-new-tokens", "5"]
    assert main([*arguments, "--strategy", "greedy", "--strategy", "contrastive-search", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["languages"]["de"]
    assert list(found["strategies"]) == ["greedy", "contrastive-search(penalty_alpha=0.4, top_k=3)"]
    assert found["counts"]["evaluated"] == 2
    assert {"BLEU", "chrF", "sentence chrF"} <= set(found["strategies"]["greedy"])


def test_summaries_with_a_file_of_examples(tmp_path, capfd):
    examples = rows(tmp_path / "examples.jsonl", {"context": "Article: a\nSummarization: ", "completion": " b"})
    file = rows(tmp_path / "articles.jsonl", {"document": "The town lies by the sea.", "summary": "A town."})
    arguments = ["eval", "multilingual", "--task", "summarization", "--data", str(file), "--languages", "en"]
    more = ["--examples", str(examples), "--max-new-tokens", "5", "--strategy", "contrastive-search:top_k=7"]
    assert main([*arguments, *more, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["languages"]["en"]["strategies"]
    assert list(found) == ["contrastive-search(penalty_alpha=0.6, top_k=7)"]


def test_code_runs_only_where_that_is_allowed(tmp_path, capfd):
    problem = {"task_id": "T/0", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f):\n    f()\n"}
    file = rows(tmp_path / "problems.jsonl", problem)
    arguments = ["eval", "multilingual", "--task", "code", "--data", str(file), "--max-new-tokens", "4"]
    assert main([*arguments, "--strategy", "greedy"]) == 2
    assert "--allow-code-execution" in capfd.readouterr().err
    code = main([*arguments, "--strategy", "greedy", "--strategy", "nucleus", "--samples", "2", "--k", "1,2",
                 "--allow-code-execution", "--json", "--output", str(tmp_path / "out")])  # fmt: skip
    out, err = capfd.readouterr()
    if code == 2 and "the kernel cannot" in err:
        pytest.skip(err)
    assert (code, err) == (0, "")
    found = json.loads(out)["languages"]["python"]["strategies"]
    assert {"pass@1", "pass@2"} <= set(found["greedy"])
    (results,) = (tmp_path / "out").glob("results_*.json")
    assert json.loads(results.read_text())["isolation"]["missing"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "poetry"], "expected one of open-ended, translation, summarization, code"),
        (["--languages", "vi"], "--languages 'vi'; did you mean it or id? expected one of en, zh"),
        (["--languages", ""], "--languages '': a code is empty"),
        (["--languages", "de,,fr"], "--languages 'de,,fr': a code is empty"),
        (["--languages", "de, de"], "--languages 'de, de': de is given twice"),
        (["--task", "translation", "--mauve-model", "expert"], "--mauve-model: expected with --task open-ended"),
        (["--languages", "de", "--models", "fr=expert"], "--models fr: is no language of the data"),
        (["--models", "expert"], "expected CODE=NAME"),
        (["--strategy", "gredy"], "did you mean greedy"),
        (["--strategy", "contrastive-search:top_k=0"], "top_k"),
        (["--languages", "de", "--max-new-tokens", "100000"], "must fit the model's context"),
        (["--languages", "de", "--units", "syllables"], "units='syllables'"),
        (["--task", "code", "--allow-code-execution", "--k", "x"], "--k 'x'"),
        (["--task", "translation", "--languages", "de"], "column de: is missing"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(data, arguments, message, capfd):
    assert message in refused(main(["eval", "multilingual", "--data", str(data), *arguments]), *capfd.readouterr())


def test_help_has_an_example(capfd):
    assert main(["eval", "multilingual", "--help"]) == 0
    assert "Example: decoding eval multilingual" in capfd.readouterr().out
