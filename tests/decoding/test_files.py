"""Files and folders that are written whole or not at all."""

import os

import pytest

from decoding import files
from decoding.files import cache_folder, expanded, remove_abandoned, workspace, write_whole


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


def test_a_workspace_is_hidden_and_goes_with_its_block(tmp_path):
    made = []

    def interrupted():
        with workspace(tmp_path / "model") as folder:
            made.extend(tmp_path.iterdir())
            (folder / "a").write_text("one")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [folder.name[:7] for folder in made] == [".model."]
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(files.fcntl is None, reason="there are no locks")
def test_workspaces_that_nobody_uses_are_removed(tmp_path):
    (tmp_path / ".model.left" / "inside").mkdir(parents=True)
    (tmp_path / ".model.new").mkdir()  # and not locked yet
    (tmp_path / ".other.left").mkdir()
    (tmp_path / ".model.file").write_text("no folder")
    with workspace(tmp_path / "model") as folder:
        remove_abandoned(tmp_path / "model")
        assert sorted(os.listdir(tmp_path)) == sorted([folder.name, ".model.file", ".model.new", ".other.left"])


@pytest.mark.parametrize("reason", ["no fcntl", "no locks on this file system"])
def test_without_locks_workspaces_are_removed_after_a_day(reason, tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(95, "Operation not supported")

    if reason == "no fcntl":
        monkeypatch.setattr(files, "fcntl", None)
    elif files.fcntl is None:
        pytest.skip("there is no fcntl")
    else:
        monkeypatch.setattr(files.fcntl, "flock", no_locks)
    with workspace(tmp_path / "model") as folder:
        remove_abandoned(tmp_path / "model")
        assert folder.is_dir()
        past = folder.stat().st_mtime - 2 * files.ABANDONED
        os.utime(folder, (past, past))
        remove_abandoned(tmp_path / "model")
        assert not folder.exists()


@pytest.mark.skipif(files.fcntl is None, reason="there are no locks")
def test_names_are_no_patterns(tmp_path):
    (tmp_path / ".out[1].left" / "inside").mkdir(parents=True)
    (tmp_path / ".out1.left" / "inside").mkdir(parents=True)
    remove_abandoned(tmp_path / "out[1]")
    assert os.listdir(tmp_path) == [".out1.left"]


def test_a_home_that_nobody_has_is_a_name_as_any_other(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(expanded("~/a")) == "/home/somebody/a"
    assert str(expanded("~nobody-is-called-so/a")) == "~nobody-is-called-so/a"


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("DECODING_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("DECODING_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "contrastive-decoding"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "contrastive-decoding"
