"""The config that is opened is another one; the keys that are looked at are noted."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.lint.conftest import Checkpoint
from twinlens.lint.instead import instead
from twinlens.lint.trace import tracing
from twinlens.sources import hf


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "link.json").symlink_to(tmp_path / "config.json")
    return tmp_path / "config.json"


def test_whoever_opens_the_file_finds_another(place: Path) -> None:
    original = open
    with instead(place, '{"a": 2}') as opened:
        assert json.loads(place.read_text()) == {"a": 2}
        assert json.loads(place.read_bytes()) == {"a": 2}
        with open(str(place)) as file, io.open(place.parent / "link.json") as link:  # noqa: UP020  what pathlib asks
            assert file.read() == link.read() == '{"a": 2}'
        place.with_name("other.json").write_text("{}")
        assert place.with_name("other.json").read_text() == "{}"
    assert opened.times == 4
    assert open is original
    assert place.read_text() == '{"a": 1}'


def test_what_is_written_is_written_to_the_file_itself(place: Path) -> None:
    with instead(place, "{}"):
        place.write_text('{"a": 3}')
    assert place.read_text() == '{"a": 3}'


def test_keys_of_a_dict_that_are_looked_at(place: Path) -> None:
    text = '{"a": 1, "b": {"c": 2, "d": 3}, "e": 4}'
    with tracing(text) as names:
        said = json.loads(text)
        assert said["a"] == 1
        assert said.get("b")["c"] == 2
        assert "absent" not in said
        assert json.loads('{"e": 5}')["e"] == 5
        assert dict(**said) == said
    assert names == {"a", "b", "b.c", "absent"}
    assert type(json.loads(text)) is dict


def test_keys_that_a_model_of_transformers_looks_at(checkpoint: Checkpoint) -> None:
    path = checkpoint("llama")
    hf.build(str(path))
    with tracing((path / "config.json").read_text()) as names:
        hf.build(str(path))
    assert {"rms_norm_eps", "rope_parameters.rope_theta", "num_key_value_heads", "hidden_act"} <= names
    assert not {"transformers_version", "architectures"} & names
