"""Gemma-2 in TransformerLens 2.3.0, as released: named, mended in its own process, nothing on disk changed."""

from pathlib import Path

import pytest

from twinlens.comparison import compare
from twinlens.environments.make import make
from twinlens.environments.plan import plan
from twinlens.first_case import checkpoints
from twinlens.first_case.case import HF, TL


def listings() -> list[str]:
    return [checkpoints.listing(plan(tuple(r.split(","))).folder) for r in (HF, TL)]


@pytest.mark.environment
def test_its_two_faults_are_named_and_mended(tmp_path: Path) -> None:
    for requirements in (HF, TL):
        make(tuple(requirements.split(",")), lambda _: None)
    path = checkpoints.gemma2(tmp_path / "gemma-2", checkpoints.SMALL)
    before = checkpoints.digest(path), listings()
    report = compare(f"hf:{path}@{HF}", f"tl:{path}@{TL}")
    assert report.verdict == "different"
    assert report.unexplained == []
    scale, *windows = sorted(report.causes, key=lambda c: c.parameter)
    assert (scale.parameter, tuple(scale.layers), scale.reference) == ("attn.scale", (0, 1, 2, 3), 16.0)
    assert scale.candidate == pytest.approx(224**0.5, rel=1e-5)
    found = {(c.parameter, tuple(c.layers), c.reference, c.candidate) for c in windows}
    assert found == {("attn.window", (0, 2), 32, None), ("attn.window", (1, 3), None, 32)}
    after = report.fix(order=True)
    assert after.verdict == "identical"
    assert {f.status for f in after.findings} == {"equal"}
    assert (checkpoints.digest(path), listings()) == before
