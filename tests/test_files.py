"""The package finds its own files, and writes others whole or not at all."""

import runpy
import shutil

from dcae_lib import files
from dcae_lib.files import write_whole


def test_an_installed_package_is_no_clone_whatever_lies_next_to_it(tmp_path):
    (tmp_path / "pyproject.toml").touch()  # of a careless package
    (tmp_path / "dcae_lib" / "shipped").mkdir(parents=True)
    copy = runpy.run_path(shutil.copy(files.__file__, tmp_path / "dcae_lib"))
    assert copy["CLONE"] is None and copy["resource"]("sample") == tmp_path / "dcae_lib" / "shipped" / "sample"


def test_a_file_may_have_the_longest_name(tmp_path):
    write_whole({tmp_path / ("n" * 255): b"1"})
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]
