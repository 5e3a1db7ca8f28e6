"""The first case: its checkpoints, its measures, its page; the whole of it with its environments."""

import json
import math

import pytest
import torch

from twinlens import declare, open_checkpoint
from twinlens.comparison import run as compared
from twinlens.first_case import __main__ as first_case
from twinlens.first_case import case, checkpoints, measure, page
from twinlens.first_case.checkpoints import Size
from twinlens.model import Model
from twinlens.recording import Recording
from twinlens.repair import wanted
from twinlens.subjects import Recorded, declared_at

SIZE = Size(2, 32, 48, 4, 2, 8, 64, positions=64, window=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoints.gemma2(tmp_path_factory.mktemp("first") / "gemma", SIZE)


def test_the_checkpoint_is_whole_seeded_and_read_in_both_spellings(folder, tmp_path):
    checkpoint = open_checkpoint(folder)
    config = dict(checkpoint.config)
    checkpoint.check(declare(config))
    assert checkpoint.unused(declare(config)) == ()
    old = {k: v for k, v in config.items() if k != "rope_parameters"}
    new = {k: v for k, v in config.items() if k != "rope_theta"}
    assert declare(old) == declare(new) == declare(config)
    again = checkpoints.gemma2(tmp_path / "again", SIZE)
    assert checkpoints.digest(again) == checkpoints.digest(folder)


def test_a_whole_checkpoint_is_kept_and_an_unfinished_one_made_anew(tmp_path):
    folder = checkpoints.gemma2(tmp_path, SIZE)
    before, times = checkpoints.digest(folder), checkpoints.listing(folder)
    checkpoints.gemma2(folder, SIZE)
    assert checkpoints.listing(folder) == times
    (folder / "config.json").unlink()
    checkpoints.gemma2(folder, SIZE)
    assert checkpoints.digest(folder) == before


def test_a_changed_byte_changes_the_digest(tmp_path):
    folder = checkpoints.gemma2(tmp_path, SIZE)
    before = checkpoints.digest(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}, indent=1))
    assert checkpoints.digest(folder) != before


def test_no_room_on_the_disk_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(OSError, match="are needed"):
        checkpoints.check_room(tmp_path, 1e18)


def test_the_llama_has_the_rotary_settings_of_the_release(tmp_path):
    path = checkpoints.llama32(tmp_path, Size(1, 32, 48, 2, 1, 16, 64, positions=64))
    table = declare(dict(open_checkpoint(path).config)).at["rotary.hook_cos"].op
    assert (table.base, table.scaling, table.factor) == (500000.0, "llama3", 32.0)
    assert (table.low_freq_factor, table.high_freq_factor) == (1.0, 4.0)


def test_scores_are_of_realistic_size(tmp_path):
    path = checkpoints.gemma2(tmp_path, checkpoints.SMALL)
    tokens = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(0))
    recording = _recorded(path, tokens, lambda spec: spec)
    spread = measure.scores_spread(declared_at(str(path)).spec, recording)
    assert spread is not None
    assert 3 < spread.std < 20
    assert max(-spread.low, spread.high) > 25


def _recorded(path, tokens, edit):
    declared = declared_at(str(path))
    spec = edit(declared.spec)

    _, cache = Model(spec, declared.weights).run_with_cache(tokens)
    return Recording.from_tensors({s: t for s, t in cache.items() if s in spec.at}, tokens)


def _as_shipped(spec):
    """What TransformerLens 2.3.0 does, in this project's own words."""
    scores = [s for s in spec.sites if s.endswith("hook_attn_scores")]
    spec = spec.set_fields(scores, "scale", math.sqrt(20))
    spec = spec.set_fields(scores[::2], "window", None).set_fields(scores[1::2], "window", 8)
    norms = [s for s in spec.sites if s.endswith("normalized")]
    return spec.set_fields(norms, "division", "sqrt")


def _shipped(path, tokens):
    declared = declared_at(str(path))
    sides = (
        Recorded(_recorded(path, tokens, lambda spec: spec)),
        Recorded(_recorded(path, tokens, _as_shipped)),
    )
    return compared(sides, declared, tokens, None)


@pytest.fixture(scope="module")
def report(folder):
    return _shipped(folder, torch.arange(24)[None] * 5 % 64)


def test_each_stage_is_what_the_candidate_would_compute(report):
    """With nothing mended the target is the candidate, with everything the reference."""
    these = wanted(report, order=True)
    reference = report.judge.computed.spec
    assert case.target(reference, these, these) == reference
    sites = report.judge.candidate.sites
    shipped = case.target(reference, these, [])
    for site in (s for s in shipped.sites if s.endswith(("hook_attn_scores", "hook_normalized"))):
        step = shipped.at[site]
        assert torch.equal(step(sites, report.judge.weights), sites[site]), site


def test_the_stages_end_with_everything_and_name_no_cap_that_is_not_there(report):
    steps = case.steps(report)
    these = wanted(report, order=True)
    chosen = [[i for i in these if wants(i)] for _, wants in steps]
    assert chosen[0] == []
    assert chosen[-1] == these
    assert not any("cap" in title or "kernel" in title for title, _ in steps)
    assert {i.parameter for i in chosen[1]} == {"attn.scale"}
    assert {i.parameter for i in chosen[2]} == {"attn.window"}


def test_equal_recordings_are_apart_by_exactly_nothing(report):
    a, spec = report.judge.first, report.declared.spec
    same = measure.apart(spec, a.sites, a.sites, a.mask)
    assert (same.logits_max, same.residual_max, same.unequal, same.first) == (0, 0, (), "–")
    assert same.sites == len(a.sites)
    assert measure.growth(spec, a, a) == [0.0] * SIZE.layers
    assert measure.predictions(a, a) == measure.Predictions(1.0, 0.0, 0.0)


def test_distances_are_those_of_the_tensors(report):
    spec, judge = report.declared.spec, report.judge
    a, b = judge.reference.sites, judge.candidate.sites
    found = measure.apart(spec, a, b, judge.mask)
    error = (a["logits"].double() - b["logits"].double()).abs()
    assert found.logits_max == float(error.max())
    assert found.logits_mean == float(error.mean())
    assert found.first == "blocks.0.ln1.hook_normalized"
    assert "hook_embed" not in found.unequal


def test_kl_is_that_of_the_reference_from_the_candidate():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    a, b = (Recording.from_tensors({"logits": x.log()[None, None]}, tokens) for x in (p, q))
    found = measure.predictions(a, b)
    assert found.kl_mean == pytest.approx(0.25 * math.log(2), rel=1e-6)
    assert found.top1 == 0.0


def _measured(report, **changes):
    judge = report.judge
    recordings = judge.first, _candidate(report)
    apart = measure.apart(report.declared.spec, recordings[0].sites, recordings[1].sites, judge.mask)
    same = measure.apart(report.declared.spec, recordings[0].sites, recordings[0].sites, judge.mask)
    stages = [case.Stage(title, apart, recordings[1]) for title, _ in case.steps(report)]
    stages[-1] = case.Stage("everything", same, recordings[0])
    sides = Recorded(recordings[0]), Recorded(recordings[0])
    after = compared(sides, report.declared, report.tokens, None)
    one = case.Case("eager", *recordings, report, stages, after, True)
    settings = {"checkpoint_unchanged": True, "environments_unchanged": True} | changes
    return page.Measured(SIZE, 24, [one], [], **settings)


def _candidate(report):
    sites = {s: t for s, t in report.judge.candidate.sites.items() if s in report.declared.spec.at}
    return Recording.from_tensors(sites, report.tokens)


def test_the_page_says_what_was_measured(report):
    measured = _measured(report)
    text, written = page.text(measured), page.markdown(measured)
    assert measured.as_promised
    assert max(map(len, text.splitlines())) < 600
    for words in ("attn.scale", "attn.window", "sqrt(20)", "0.1159", "is not reproduced"):
        assert words in text
        assert words in written
    first = measured.cases[0].stages[0].apart
    assert f"{first.logits_max:.2g} / {first.logits_mean:.2g}" in written


@pytest.mark.parametrize("broken", ["checkpoint_unchanged", "environments_unchanged"])
def test_a_changed_file_is_no_success(report, broken):
    measured = _measured(report, **{broken: False})
    assert not measured.as_promised
    assert "CHANGED" in page.text(measured)


def test_einsum_is_tried_as_a_field(report):
    changed, total = case.tried(_measured(report).cases[0], "product", "einsum")
    assert total == SIZE.layers
    assert 0 <= changed <= total


@pytest.mark.environment
def test_both_cases_end_identical(tmp_path, monkeypatch):
    monkeypatch.setattr(first_case.second, "run", lambda folder, say: [])
    measured = first_case.measure(tmp_path, lambda words: None)
    assert measured.as_promised
    for one in measured.cases:
        named = {c.parameter for c in one.report.causes}
        cap = {"attn.softcap"} if one.attention == "sdpa" else set()
        assert named == {"attn.scale", "attn.window"} | cap
        assert not one.stages[-1].apart.unequal


def test_the_full_checkpoint_is_kept_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TWINLENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(first_case, "ROOM", 0.0)
    path = first_case.checkpoint(tmp_path, SIZE, full=True)
    assert path.is_relative_to(tmp_path / "cache")
    before = checkpoints.listing(path)
    assert first_case.checkpoint(tmp_path, SIZE, full=True) == path
    assert checkpoints.listing(path) == before
