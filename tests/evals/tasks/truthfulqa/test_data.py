"""TruthfulQA's questions from each form in which they are published, and from files that are broken."""

import json
import re
import warnings
from pathlib import Path

import pytest

from decoding.errors import DecodingWarning, InputError
from decoding.evals.cli import main
from decoding.evals.tasks.truthfulqa.data import Targets, load

DATA = Path(__file__).resolve().parents[5] / "shared" / "data"
CSV = (
    "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"
    'Adversarial,Myths,"Is it so? ",It is not,"It is not; No.; It is not; ","Yes; It is",https://x\n'
    "Adversarial,Myths,Why?,Because,So; Because it is,Unknown; No reason,https://x\n"
)
TARGETS = [{"question": "Is it so?", "mc1_targets": {"No.": 1, "Yes.": 0}, "mc2_targets": {"No.": 1, "Yes.": 0}}]
CHOICES = [
    {
        "id": 7,
        "question": "¿Es así?",
        "mc1_targets": {"choices": ["No", "Sí "], "labels": [1, 0]},
        "mc2_targets": {"choices": ["No", "", "Nunca", "Sí "], "labels": [1, 1, 1, 0]},
        "best_answer": "No",
        "correct_answers": ["No", "", "Nunca"],
        "incorrect_answers": ["Sí "],
        "lang": "es",
    }
]
OKAPI = [
    {
        "question": "Ist es so?",
        "mc1_targets_choices": ["Nein.", "Ja."],
        "mc1_targets_labels": [1, 0],
        "mc2_targets_choices": ["Ja.", "Nein.", "Nie."],
        "mc2_targets_labels": [0, 1, 1],
    }
]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def published(name):
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path.name} is not here: published data are not part of the repository")
    return str(path)


def test_the_csv_is_split_and_closed_as_the_public_scripts_do(tmp_path):
    questions, bad = load(written(tmp_path, "any.csv", CSV))
    assert bad == []
    first, second = questions
    assert (first.id, first.question, first.best_answer, first.language) == ("1", "Is it so?", "It is not", "en")
    assert first.correct_answers == ("It is not", "No.", "It is not")
    # Twice listed is twice counted, and the end of the list is no answer.
    assert first.mc1 == Targets(("It is not.",), ("Yes.", "It is."))
    assert first.mc2 == Targets(("It is not.", "No.", "It is not."), ("Yes.", "It is."))
    assert first.answers == ("It is not.", "No.", "Yes.", "It is.")
    # A best answer that stands in no list is scored all the same.
    assert second.mc1.true == ("Because.",)
    assert second.answers == ("Because.", "So.", "Because it is.", "Unknown.", "No reason.")


def test_targets_are_used_as_they_stand(tmp_path):
    (question,), _ = load(written(tmp_path, "mc_task.json", TARGETS))
    assert (question.mc1, question.mc2) == (Targets(("No.",), ("Yes.",)),) * 2
    assert (question.best_answer, question.correct_answers, question.incorrect_answers) == ("No.", ("No.",), ("Yes.",))
    with pytest.warns(DecodingWarning, match=r"empty answers, .* in rows 1 \(columns .*\), are left out"):
        (question,), _ = load(written(tmp_path, "hitz.json", CHOICES))
    assert (question.id, question.language) == ("7", "es")
    assert question.mc2 == Targets(("No", "Nunca"), ("Sí ",))
    assert question.correct_answers == ("No", "Nunca")
    (question,), _ = load(written(tmp_path, "okapi_de.json", OKAPI))
    assert question.language == "de"
    assert question.mc1 == Targets(("Nein.",), ("Ja.",))
    assert question.mc2 == Targets(("Nein.", "Nie."), ("Ja.",))


def test_a_language_given_goes_before_that_of_the_data(tmp_path):
    (question,), _ = load(written(tmp_path, "okapi_de.json", OKAPI), language="nds")
    assert question.language == "nds"


def test_a_folder_is_its_one_file_or_the_one_of_the_language(tmp_path):
    written(tmp_path, "x_de.json", OKAPI)
    assert load(str(tmp_path))[0][0].language == "de"
    written(tmp_path, "x_fr.json", TARGETS)
    assert load(str(tmp_path), "de")[0][0].question == "Ist es so?"
    for language in (None, "ru"):
        with pytest.raises(InputError, match=r"holds x_de\.json, x_fr\.json; name one of these files, or a language"):
            load(str(tmp_path), language)


@pytest.mark.parametrize(
    ("data", "languages", "message"),
    [
        ("", "ru", r"--languages ru: --data .* has no file of it; it has de, fr$"),
        ("", "", r"--languages '': a code is empty; expected codes"),
        ("", "de,,fr", r"--languages 'de,,fr': a code is empty"),
        ("", "de, de", r"--languages 'de, de': de is given twice"),
        ("x_de.json", "fr", r"--languages fr: --data .*x_de.json has no file of it; it has de$"),
        ("plain/truthful_qa.json", "xx", r"--languages 'xx'; expected one of ar, bn"),
        (
            "plain/truthful_qa.json",
            "de,fr",
            r"--languages de,fr: --data .*qa.json is one file; give its",
        ),
    ],
)
def test_languages_that_the_data_do_not_have_are_refused_before_a_model_is_loaded(
    tmp_path, capfd, data, languages, message
):
    (tmp_path / "plain").mkdir()
    for name in ("x_de.json", "x_fr.json", "plain/truthful_qa.json"):
        written(tmp_path, name, OKAPI)
    code = main(
        ["eval", "truthfulqa", "--data", str(tmp_path / data), "--languages", languages, "--model", "./nowhere",
         "--strategy", "greedy"]
    )  # fmt: skip
    (line,) = capfd.readouterr().err.splitlines()
    assert (code, bool(re.search(message, line))) == (2, True), line


def test_languages_need_data(capfd):
    assert main(["eval", "truthfulqa", "--languages", "de", "--strategy", "greedy"]) == 2
    assert "--languages de: expected with --data" in capfd.readouterr().err
    with pytest.raises(InputError, match="has a configuration already, and 'de' would be another"):
        load("truthfulqa/truthful_qa:generation", "de")


@pytest.mark.parametrize(("form", "content"), [("multiple_choice", CHOICES), ("generation", None)])
def test_hub_rows_are_read_as_files_are(tmp_path, form, content):
    datasets = pytest.importorskip("datasets")
    rows = content or [
        {"question": "Is it?", "best_answer": "No", "correct_answers": ["No", "Never."], "incorrect_answers": ["Yes"]}
    ]
    (tmp_path / form).mkdir()
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / form / "validation-0.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecodingWarning)
        (question,), _ = load(str(tmp_path / form))
    expected = Targets(("No", "Nunca"), ("Sí ",)) if content else Targets(("No.", "Never."), ("Yes.",))
    assert question.mc2 == expected
    datasets.Dataset.from_list([{**rows[0], "question": "In another split?"}]).to_parquet(tmp_path / form / "a.parquet")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / form / "test-00000-of-00001.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DecodingWarning)
        (chosen,), _ = load(str(tmp_path / form))
        (one,), _ = load(str(tmp_path / form / "validation-0.parquet"))
    assert chosen == one == question


def broken(record, **changes):
    return [{**record[0], **changes}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (CSV.replace("Best Answer", "Best"), r"row 1 (line 2), column best_answer: is missing; the row has Type, "),
        (CSV.replace("It is not,", ",", 1), "row 1 (line 2), column Best Answer: is empty"),
        (CSV.replace("So; Because it is", " ;; "), "row 2 (line 3), column Correct Answers: has no answer"),
        (CSV.replace("Unknown; No reason", ""), "row 2 (line 3), column Incorrect Answers: is empty"),
        (CSV.replace('"Is it so? "', ""), "row 1 (line 2), column Question: is empty"),
        ([{"question": "Why?"}], "row 1, column correct_answers: is missing; the row has question"),
        (broken(TARGETS, mc2_targets=None), "row 1, column mc2_targets: is missing"),
        (broken(TARGETS, mc1_targets=["No."]), "column mc1_targets: is list, not an object of answers and labels"),
        (broken(TARGETS, mc1_targets={"No.": 1, "Never.": 1, "Yes.": 0}), "column mc1_targets: has 2 true answers"),
        (broken(TARGETS, mc1_targets={"No.": 0, "Yes.": 0}), "column mc1_targets: has no true answer"),
        (broken(TARGETS, mc2_targets={"No.": 1}), "column mc2_targets: has no false answer"),
        (broken(TARGETS, mc1_targets={"": 1, "Yes.": 0}), "column mc1_targets: has no true answer"),
        (broken(TARGETS, mc2_targets={"No.": 2, "Yes.": 0}), "column mc2_targets: has the label 2; labels must be 1"),
        (broken(CHOICES, mc1_targets={"choices": ["No", "Sí"], "labels": [1]}), "has not as many labels as answers"),
        (broken(CHOICES, mc1_targets={"choices": ["No", 3], "labels": [1, 0]}), "an answer is int, not text"),
        (broken(CHOICES, best_answer=" "), "row 1, column best_answer: is empty"),
        (broken(OKAPI, mc1_targets_labels=None), "row 1, column mc1_targets_labels: is missing"),
        ([*TARGETS, {**CHOICES[0], "id": "1"}], "column id: 1 is there twice"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::decoding.errors.DecodingWarning")
def test_bad_questions_are_named(tmp_path, content, message):
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}.*{re.escape(message)}") as raised:
        load(written(tmp_path, "data.csv", content))
    assert "\n" not in str(raised.value)


def test_bad_questions_can_be_left_out_and_are_reported(tmp_path):
    path = written(tmp_path, "data.csv", CSV.replace("So; Because it is", ";"))
    questions, bad = load(path, skip_bad=True)
    assert [question.id for question in questions] == ["1"]
    assert bad == [f"{path}, row 2 (line 3), column Correct Answers: has no answer"]


@pytest.mark.parametrize(
    ("name", "count", "language", "blanks"),
    [
        ("truthfulqa/TruthfulQA.csv", 817, "en", 0),
        ("truthfulqa/mc_task.json", 817, "en", 0),
        ("truthfulqa_multilingual/hitz_en.json", 817, "en", 29),
        ("truthfulqa_multilingual/hitz_eu.json", 817, "eu", 29),
        ("truthfulqa_multilingual/okapi_fr.json", 787, "fr", 0),
        ("truthfulqa_multilingual/okapi_zh.json", 788, "zh", 0),
    ],
)
def test_published_files_load_whole(name, count, language, blanks):
    path = published(name)
    with warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        questions, bad = load(path)
    assert (len(questions), bad) == (count, [])
    assert {question.language for question in questions} == {language}
    assert len({question.id for question in questions}) == count
    rows = [str(warning.message).split("in rows ")[1].split(" (columns")[0].split(", ") for warning in noted]
    assert [len(row) for row in rows] == ([blanks] if blanks else [])


def test_the_csv_and_the_file_of_targets_agree():
    """But for five questions, where the authors' two files differ."""
    of_csv = load(published("truthfulqa/TruthfulQA.csv"))[0]
    of_targets = {question.question: question for question in load(published("truthfulqa/mc_task.json"))[0]}
    pairs = [(question, of_targets[question.question]) for question in of_csv]
    assert all(one.mc1.true == other.mc1.true for one, other in pairs)
    assert sum(one.mc2 != other.mc2 for one, other in pairs) == 5
