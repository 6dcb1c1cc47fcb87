"""Public names of a package that are imported when they are first used."""

import sys

import pytest

import decoding
from decoding.lazy import lazy_names


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("WANTED = object()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = type(sys)("some_package")
    monkeypatch.setitem(sys.modules, "some_package", module)
    module.__getattr__, module.__dir__ = lazy_names("some_package", {"WANTED": "slow_module", "LATER": "slow_module"})
    yield module
    sys.modules.pop("slow_module", None)


def test_a_name_is_imported_when_it_is_used_and_kept(package):
    assert {"WANTED", "LATER"} <= set(dir(package))
    assert "slow_module" not in sys.modules
    assert package.WANTED is sys.modules["slow_module"].WANTED
    assert vars(package)["WANTED"] is package.WANTED


def test_another_name_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match="module 'some_package' has no attribute 'absent'"):
        package.absent  # noqa: B018
    assert "slow_module" not in sys.modules


def test_every_public_name_of_the_package_is_found():
    for name in decoding.__all__:
        assert getattr(decoding, name) is not None
        assert name in dir(decoding)
