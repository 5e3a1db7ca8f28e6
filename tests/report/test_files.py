from pathlib import Path

import pytest

from twinlens.report import files


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    files.check(path)
    assert not list(tmp_path.iterdir())
    files.write(path, "first")
    with pytest.raises(UnicodeEncodeError):
        files.write(path, "second \ud800")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["first"]


def test_an_error_names_what_the_user_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent" / "report.json"):
        with pytest.raises(OSError, match=r".") as caught:
            files.check(path)
        assert caught.value.filename == str(path)


def test_a_full_disk_is_an_error() -> None:
    with pytest.raises(OSError, match="No space"):
        files.write(Path("/dev/full"), "text")
