"""A user's own file gives a module, or a module and a call; its mistakes are named by line."""

from pathlib import Path

import pytest
import torch

from twinlens.errors import SourceError
from twinlens.sources.build import build
from twinlens.sources.parse import parse
from twinlens.sources.torch_file import build as build_file

PORT = """
import torch
from neighbour import WIDTH

class Port(torch.nn.Module):
    def __init__(self, vocabulary=7):
        super().__init__()
        self.table = torch.nn.Embedding(vocabulary, WIDTH)
    def forward(self, tokens):
        return self.table(tokens)

def make(vocabulary="7"):
    return Port(int(vocabulary))

def pair():
    port = Port()
    return port, lambda tokens: port(tokens) * 2

def masked():
    port = Port()
    return port, lambda tokens, mask: port(tokens) * mask[..., None]

def broken():
    return 1 / 0

def wrong():
    return "a model", 3
"""


@pytest.fixture
def port(tmp_path: Path) -> str:
    (tmp_path / "neighbour.py").write_text("WIDTH = 3")
    (tmp_path / "port.py").write_text(PORT)
    return str(tmp_path / "port.py")


def test_options_are_arguments(port: str):
    built = build(parse(f"torch:{port}:make?vocabulary=9"))
    assert built.call is None
    assert built.module(torch.tensor([[8]])).shape == (1, 1, 3)
    assert not built.module.training
    assert built.about["implementation"] == "torch:port.py:make"


def test_a_pair_is_a_module_and_its_call(port: str):
    tokens, mask = torch.tensor([[1, 2]]), torch.tensor([[0, 1]])
    built = build_file(f"{port}:pair")
    assert built.call is not None
    assert torch.equal(built.call(tokens, None), 2 * built.module(tokens))
    with pytest.raises(SourceError, match="takes no mask"):
        built.call(tokens, mask)
    built = build_file(f"{port}:masked")
    assert built.call is not None
    assert built.call(tokens, mask)[0, 0].eq(0).all()


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("broken", r"line \d+ failed with ZeroDivisionError: division by zero"),
        ("wrong", "returned tuple"),
        ("absent", "no function absent; it has broken, make"),
    ],
)
def test_a_mistake_is_named(port: str, function: str, says: str):
    with pytest.raises(SourceError, match=says):
        build_file(f"{port}:{function}")


def test_a_file_must_exist():
    with pytest.raises(SourceError, match="does not exist"):
        build_file("absent.py:make")
