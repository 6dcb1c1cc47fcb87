"""Files that are written whole or not at all."""

import os

import pytest

from decoding.files import write_whole


def test_a_text_replaces_what_the_file_held(tmp_path):
    file = tmp_path / "a.json"
    write_whole(file, "one")
    write_whole(file, "zwei é 字\n")
    assert file.read_text(encoding="utf-8") == "zwei é 字\n"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failure_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    file = tmp_path / "a.json"
    write_whole(file, "one")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def fail(*_):
                raise OSError(28, "No space left on device")

            patch.setattr(os, name, fail) if name == "fsync" else patch.setattr("pathlib.Path.replace", fail)
            with pytest.raises(OSError, match="No space"):
                write_whole(file, "two")
        assert file.read_text() == "one"
        assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_that_is_absent_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "absent" / "a.json", "one")
