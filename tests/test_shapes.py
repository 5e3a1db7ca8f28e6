from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import twinlens
from twinlens.shapes import Float

UNCHECKED = os.environ.get("TWINLENS_CHECK_SHAPES") == "0"


def test_annotations_stand_without_jaxtyping() -> None:
    program = """
        import sys
        sys.modules["jaxtyping"] = None  # as in an environment that lacks it
        from twinlens.shapes import Bool, Float, Int, Num, Shaped

        def double(x: Float[int, "b p"]) -> Shaped[int, "b p"]:
            return 2 * x

        print(double(4))
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "8\n"


@pytest.mark.skipif(UNCHECKED, reason="TWINLENS_CHECK_SHAPES=0")
def test_a_number_may_be_a_tensor_without_axes_and_nothing_else() -> None:
    from tests.checked import checked

    def eps(value: float) -> float:
        return value

    assert checked(eps)(1) == 1
    assert checked(eps)(torch.tensor(2.0)) == 2.0
    for wrong in ("x", torch.ones(1), None):
        with pytest.raises(Exception, match="violates type hint"):
            checked(eps)(wrong)


@pytest.mark.skipif(UNCHECKED, reason="TWINLENS_CHECK_SHAPES=0")
def test_a_wrong_shape_is_refused() -> None:
    from jaxtyping import jaxtyped

    from tests.checked import checked

    @jaxtyped(typechecker=checked)
    def rows(x: Float[torch.Tensor, "b p"], w: Float[torch.Tensor, " p"]) -> torch.Tensor:
        return x * w

    rows(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(TypeCheckError, match="parameter 'w'"):
        rows(torch.ones(2, 3), torch.ones(1))


def test_every_room_whose_tensors_have_shapes_is_checked() -> None:
    from tests.checked import ROOMS

    source = Path(twinlens.__file__).parent
    annotated = {
        p.relative_to(source).with_suffix("").parts[0]
        for p in source.rglob("*.py")
        if "twinlens.shapes" in p.read_text("utf-8")
    }
    assert annotated == set(ROOMS)
