"""Each thing that a recording refuses is one sentence that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twinlens.errors import InputError, RecordingError
from twinlens.recording import Recording
from twinlens.recording.hashes import fastest

EMBED = torch.randn(2, 4, 3)
TOKENS = torch.ones(2, 4, dtype=torch.int64)


def one_sentence(message: str) -> bool:
    return "\n" not in message and message.endswith(".") and 20 < len(message) < 600


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([], "tokens are empty"),
        ([[]], "tokens are empty"),
        (torch.ones(2, 0, dtype=torch.int64), r"tokens are empty \(shape \[2, 0\]\)"),
        (torch.ones(2, 4), "tokens are float32 where integers"),
        (torch.full((2, 4), float("nan")), "tokens are float32 where integers"),
        (torch.ones(2, 4, dtype=torch.bool), "tokens are bool where integers"),
        ([[1, 2], [3]], "tokens cannot be read as one tensor"),
        ("text", "tokens cannot be read as one tensor"),
        ([[1, 2**70]], "tokens cannot be read as one tensor"),
        (torch.ones(2, 2, 4, dtype=torch.int64), r"\[2, 2, 4\] where \[batch, position\]"),
        ([[3, -1]], "tokens hold -1"),
    ],
)
def test_tokens(tokens: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Recording.from_tensors({"hook_embed": EMBED}, tokens)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"mask": torch.ones(2, 5, dtype=torch.int64)}, r"mask has shape \[2, 5\] where tokens"),
        ({"mask": torch.zeros(2, 4)}, "mask is 0 everywhere.*additive"),
        ({"mask": torch.full((2, 4), -1e9)}, r"mask holds -1e\+09 where 1 .*not an additive one"),
        ({"mask": torch.full((2, 4), float("-inf"))}, "mask holds -inf where 1"),
        ({"mask": torch.full((2, 4), -9)}, r"mask holds -9 where 1 \(a real token\)"),
        ({"mask": torch.zeros(2, 4, dtype=torch.bool)}, "mask is 0 everywhere"),
        ({"positions": [0, 1, 2]}, r"positions has shape \[2, 3\] where tokens"),
        ({"positions": torch.rand(2, 4)}, "positions are float32 where integers"),
        ({"about": {"when": object()}}, "about cannot be written as JSON"),
        ({"config": {"x": {1, 2}}}, "config cannot be written as JSON"),
        ({"weights": {"w": torch.ones(2).to_sparse()}}, "w is a torch.sparse_coo float32"),
    ],
)
def test_what_comes_with_the_tokens(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Recording.from_tensors({"hook_embed": EMBED}, TOKENS, **given)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    ("site", "tensor", "says"),
    [
        ("hook_embed", torch.ones(2, 5, 3), r"\[2, 5, 3\] where \[b=2, p=4, d\]"),
        ("hook_embed", torch.ones(1, 4, 3), r"\[1, 4, 3\] where \[b=2, p=4, d\]"),
        ("hook_embed", torch.ones(8, 3), r"\[8, 3\] where"),
        ("blocks.0.attn.hook_q", torch.ones(2, 2, 4, 3), r"where \[b=2, p=4, h, e\]"),
        ("blocks.0.attn.hook_pattern", torch.ones(2, 2, 4, 5), r"where \[b=2, h, p=4, s=4\]"),
        ("logits", torch.ones(2, 4, 3, device="meta"), "logits is a meta tensor"),
        ("logits", torch.ones(2, 4, 3, dtype=torch.complex64), "complex64 tensor where a dense"),
    ],
)
def test_sites(site: str, tensor: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        Recording.from_tensors({site: tensor}, TOKENS)
    assert one_sentence(str(caught.value))
    assert site in str(caught.value)


def test_no_known_site_at_all() -> None:
    given = {f"layers.{n}.output": EMBED for n in range(9)}
    with pytest.raises(InputError, match=r"given: layers\.0\.output.*hook_embed") as caught:
        Recording.from_tensors(given, TOKENS)
    assert one_sentence(str(caught.value))
    with pytest.raises(InputError, match="given: nothing"):
        Recording.from_tensors({}, TOKENS)


def test_unknown_names_beside_known_ones_are_listed() -> None:
    recording = Recording.from_tensors({"hook_embed": EMBED, "mine": EMBED}, TOKENS)
    assert (list(recording.sites), recording.unknown) == (["hook_embed"], ["mine"])


def test_inputs_may_be_among_the_tensors_but_not_contradict() -> None:
    tensors = {"hook_embed": EMBED, "mask": TOKENS, "positions": TOKENS, "tokens": TOKENS}
    recording = Recording.from_tensors(tensors, TOKENS)
    assert recording.positions.equal(TOKENS)
    assert list(recording.sites) == ["hook_embed"]
    with pytest.raises(InputError, match="mask is given twice"):
        Recording.from_tensors(tensors, TOKENS, mask=TOKENS)
    with pytest.raises(InputError, match="other tokens"):
        Recording.from_tensors(tensors, TOKENS + 1)


def test_defaults_and_plain_lists() -> None:
    recording = Recording.from_tensors({"hook_embed": EMBED[:1]}, [5, 6, 7, 8])
    assert recording.tokens.tolist() == [[5, 6, 7, 8]]
    assert recording.positions.tolist() == [[0, 1, 2, 3]]
    assert recording.mask.tolist() == [[1, 1, 1, 1]]
    assert recording.calls[0].placed == {"hook_embed": "given"}


def test_a_missing_batch_axis_is_put_back_only_where_it_can_mean_one_thing() -> None:
    kept = Recording.from_tensors({"hook_embed": torch.ones(4, 3)}, [1, 2, 3, 4])
    assert kept.sites["hook_embed"].shape == (1, 4, 3)
    with pytest.raises(InputError):  # might as well be [b p h·e] of one text and one position
        Recording.from_tensors({"blocks.0.attn.hook_q": torch.ones(1, 1, 6)}, [1])
    with pytest.raises(InputError):  # [b p h·e], not [p h e]
        Recording.from_tensors({"blocks.0.attn.hook_q": torch.ones(1, 4, 6)}, [1, 2, 3, 4])


def test_tables_may_be_computed_once_for_the_batch() -> None:
    table = torch.rand(4, 6)
    for given in (table, table[None]):
        recording = Recording.from_tensors({"rotary.hook_cos": given}, TOKENS)
        assert recording.sites["rotary.hook_cos"].equal(table.expand(2, 4, 6))


def test_values_that_are_not_finite_are_findings_not_errors(tmp_path: Path) -> None:
    values = torch.tensor([float("nan"), float("inf"), -0.0]).expand(2, 4, 3)
    Recording.from_tensors({"hook_embed": values}, TOKENS).save(tmp_path / "r")
    assert Recording.load(tmp_path / "r").sites["hook_embed"].isnan().any()


# ------------------------------------------------------------------------------- what lies on disk


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Recording.from_tensors({"hook_embed": EMBED}, TOKENS).save(tmp_path / "r")
    return tmp_path / "r"


def shard_of(folder: Path) -> Path:
    said = json.loads((folder / "manifest.json").read_text())
    return folder / said["calls"][0]["sites"]["hook_embed"]["shard"]


def said(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))

    return apply


def flip(folder: Path) -> None:
    data = bytearray(shard_of(folder).read_bytes())
    data[-1] ^= 1
    shard_of(folder).write_bytes(data)


def cut(folder: Path) -> None:
    shard_of(folder).write_bytes(shard_of(folder).read_bytes()[:-4])


def embed(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["calls"][0]["sites"]["hook_embed"]


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (flip, r"shard shard-00001\.safetensors .* has the hash"),
        (cut, r"shard shard-00001\.safetensors .* has \d+ bytes where the manifest says \d+"),
        (lambda f: shard_of(f).unlink(), r"shard shard-00001\.safetensors .* is missing"),
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json, so it is no recording"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read as JSON"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "cannot be read as JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "has the format None where 1"),
        (said(lambda m: m["twinlens"].update(format=2)), "has the format 2 where 1 was expected"),
        (said(lambda m: m.pop("calls")), "is damaged .*calls"),
        (said(lambda m: m.update(calls=3)), "is damaged"),
        (said(lambda m: m["calls"][0]["inputs"].pop("mask")), "is damaged"),
        (said(lambda m: m.update(config=[1])), r"is damaged .*\[1\] where a dict was expected"),
        (said(lambda m: m.update(checkpoint={"path": 5})), "is damaged .*5 where a str was expected"),
        (said(lambda m: m.update(unknown=[None])), "is damaged .*None where a str"),
        (said(lambda m: m["shards"]["shard-00000.safetensors"].update({fastest(): 0})), "is damaged .*0 where a str"),
        (said(lambda m: embed(m).update(key=["x"])), "is damaged .* where a str"),
        (said(lambda m: embed(m).update(placed=1)), "is damaged .*1 where a str"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (
            said(lambda m: m.update(shards={"../x": {"sha256": "", "bytes": 0}})),
            "no name of a shard",
        ),
        (said(lambda m: m["shards"].popitem()), "which is not listed"),
        (said(lambda m: embed(m).update(shape=[2, 9, 3])), "contradicts itself: hook_embed"),
        (said(lambda m: embed(m).update(shape=[2, 4, 9])), "where the manifest says float32"),
        (said(lambda m: embed(m).update(dtype="float16")), "where the manifest says float16"),
        (said(lambda m: embed(m).update(key="nowhere")), "holds no readable tensor nowhere"),
    ],
)
def test_damage(folder: Path, harm: Callable[[Path], object], says: str) -> None:
    assert Recording.load(folder).sites["hook_embed"].equal(EMBED)
    harm(folder)
    with pytest.raises(RecordingError, match=says) as caught:
        _ = Recording.load(folder).sites["hook_embed"]
    assert one_sentence(str(caught.value))


def test_a_hash_may_be_left_unverified(folder: Path) -> None:
    flip(folder)
    assert not Recording.load(folder, verify=False).sites["hook_embed"].equal(EMBED)


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, says in ((tmp_path / "none", "does not exist"), (tmp_path / "file", "is a file")):
        with pytest.raises(RecordingError, match=says) as caught:
            Recording.load(path)
        assert one_sentence(str(caught.value))


def test_sites_of_a_later_version_are_listed_as_unknown(folder: Path) -> None:
    said(lambda m: m["calls"][0]["sites"].update(hook_new=embed(m)))(folder)
    recording = Recording.load(folder)
    assert (list(recording.sites), recording.unknown) == (["hook_embed"], ["hook_new"])


def test_a_recording_without_a_call_says_so() -> None:
    with pytest.raises(RecordingError, match="has no call") as caught:
        _ = Recording(calls=[], partial=True).tokens
    assert one_sentence(str(caught.value))
