"""A source string prints back as it was read, and a wrong one says what to write."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinlens.errors import SourceError
from twinlens.sources.parse import ATTENTIONS, DTYPES, SourceString, parse

NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,8}[a-z0-9]", fullmatch=True)
CLAUSES = st.from_regex(r"(==|>=|<|~=)[0-9]{1,2}\.[0-9]{1,2}", fullmatch=True)
REQUIREMENTS = st.lists(
    st.tuples(NAMES, st.lists(CLAUSES, max_size=2)).map(lambda r: r[0] + ",".join(r[1])), max_size=3
).map(tuple)
PATHS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=20)
OPTIONS = st.fixed_dictionaries({}, optional={"dtype": st.sampled_from(DTYPES), "attn": st.sampled_from(ATTENTIONS)})


@given(st.sampled_from(["hf", "native"]), PATHS, OPTIONS, REQUIREMENTS)
def test_what_is_printed_is_read_again(kind: str, path: str, options: dict[str, str], requirements: tuple[str, ...]):
    source = SourceString(kind, path, options, requirements)
    assert parse(str(source)) == source


@given(PATHS, st.dictionaries(NAMES.filter(str.isalnum), NAMES, max_size=2), REQUIREMENTS)
def test_a_torch_file_keeps_its_function_and_its_arguments(
    path: str, options: dict[str, str], requirements: tuple[str, ...]
):
    source = SourceString("torch", f"{path}.py:make", options, requirements)
    assert parse(str(source)) == source


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str):
    with contextlib.suppress(SourceError):
        source = parse(text)
        assert parse(str(source)) == source


def test_the_forms():
    pair = ("transformer-lens==2.3.0", "transformers==4.43.2")
    assert parse(f"tl:g2@{','.join(pair)}") == SourceString("tl", "g2", {}, pair)
    assert parse("hf:m?attn=sdpa&dtype=bfloat16@transformers>=4.43,<5,accelerate") == SourceString(
        "hf",
        "m",
        {"attn": "sdpa", "dtype": "bfloat16"},
        ("transformers>=4.43,<5", "accelerate"),
    )
    assert parse("torch:port.py:make?layers=4").options == {"layers": "4"}
    assert parse("hf:cache/models@main/snapshot").path == "cache/models@main/snapshot"


def test_a_bare_path_is_what_the_disk_says(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    assert parse(str(tmp_path)).kind == "hf"
    (tmp_path / "manifest.json").write_text(json.dumps({"name": "not ours"}))
    assert parse(str(tmp_path)).kind == "hf"
    (tmp_path / "manifest.json").write_text(json.dumps({"twinlens": 1}))
    assert parse(str(tmp_path)).kind == "recording"
    assert parse("small.gguf").kind == "hf"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vllm:model", "kinds are hf:PATH"),
        ("hf:", "names no path"),
        ("torch:port.py", "torch:FILE.py:make"),
        ("hf:m?attn=flash", "eager or sdpa"),
        ("hf:m?kernel=sdpa", "takes attn, dtype"),
        ("tl:m?attn=sdpa", "takes dtype, model"),
        ("hf:m?attn", "key=value"),
        ("hf:m?attn=sdpa&attn=eager", "twice"),
        ("hf:m@transformers=4.43.2", "NAME==VERSION"),
        ("/no/such/folder", "does not exist"),
    ],
)
def test_a_mistake_says_what_to_write(text: str, says: str):
    with pytest.raises(SourceError, match=says):
        parse(text)
