"""The files of a hosted Space: what they name is there, and the app is the page of ``decoding play``."""

from __future__ import annotations

import importlib.util
import re
import runpy
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPACE = ROOT / "examples" / "space"


def test_the_front_matter_and_the_requirements_name_what_is_there() -> None:
    _, front, _ = (SPACE / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    settings = dict(re.findall(r'^(\w+): "?(.*?)"?$', front, flags=re.MULTILINE))
    pinned = re.findall(r"^gradio==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert settings["sdk"] == "gradio"
    assert [settings["sdk_version"]] == pinned
    assert (SPACE / settings["app_file"]).is_file()
    assert f">={settings['python_version']}" == project["requires-python"]
    assert settings["license"] == project["license"].lower()
    assert len(settings["short_description"]) <= 60  # the hub refuses longer ones
    (requirement,) = (SPACE / "requirements.txt").read_text(encoding="utf-8").split()
    name, extra = re.fullmatch(r"(.*)\[(.*)\]", requirement).groups()  # type: ignore[union-attr]
    assert name == project["name"]
    assert extra in project["optional-dependencies"]


def test_the_app_is_a_page_whose_visitors_name_no_models() -> None:
    app = SPACE / "app.py"
    if importlib.util.find_spec("gradio") is None:
        compile(app.read_text(encoding="utf-8"), str(app), "exec")
        pytest.skip("the page is made with gradio: the extra play; the app was compiled only")
    made = runpy.run_path(str(app))
    assert made["playground"].limits.only_named_models
    assert made["playground"].models == ("expert", "amateur")
    assert type(made["demo"]).__name__ == "Blocks"
