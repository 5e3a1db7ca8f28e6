"""Whatever anybody hands to the library in Python is taken, or refused in a sentence: never a traceback of ours.

The rest of the suite runs with checked annotations, which refuse a wrong type before our own doors see it; users run
without, and so does the process that asks here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import copy, json, sys
import torch
from torch import nn
import twinlens
from twinlens.museum.tiny import left_padded, tiny_llama
from twinlens import Recording, TwinlensError, compare, load

model = tiny_llama(num_hidden_layers=1)
twin, native = copy.deepcopy(model), load(model)
tokens, mask = left_padded(model)
logits, ids, deep = torch.zeros(1, 3, 103), [1, 2, 3], []
for _ in range(5000):
    deep = [deep]

class Wrapper(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = copy.deepcopy(model)

    def forward(self, tokens, **kwargs):
        return self.inner(tokens, **kwargs).logits

class Ends(Wrapper):
    def forward(self, tokens):
        raise SystemExit(0)

def hooked(hook):
    return native.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_z", hook)])

said = {}
for case in json.load(sys.stdin):
    try:
        made = eval(case)
        said[case] = "taken: " + str(getattr(made, "verdict", type(made).__name__))
    except TwinlensError as error:
        said[case] = f"{type(error).__name__}: {error}"
    except BaseException as error:
        said[case] = f"TRACEBACK of {type(error).__name__}: {error}"
json.dump(said, sys.stdout)
"""

CASES = {
    "load(5)": "SourceError: a int cannot be loaded",
    "load(None)": "SourceError: a NoneType cannot be loaded",
    "load(model, attention='flash')": "eager or sdpa",
    "load(model, dtype='float32')": "no dtype in which a model computes",
    "load(copy.deepcopy(model).to('meta'))": "embed_tokens.weight of LlamaForCausalLM lies on the meta device",
    "compare(5, model)": "SourceError: a int cannot be recorded",
    "compare(model, copy.deepcopy(model).to('meta'))": "lies on the meta device",
    "compare(copy.deepcopy(model).to('meta'), model)": "lies on the meta device",
    "compare(model, twin, sites=['logits'])": "InputError: sites=['logits'] is none of",
    "compare(model, twin, tokens=[[None]])": "InputError: tokens cannot be read",
    "compare(model, twin, tokens={})": "InputError: tokens cannot be read",
    "compare(model, twin, tokens=object())": "InputError: tokens cannot be read",
    "compare(model, twin, tokens=deep)": "InputError: tokens cannot be read",
    "compare(model, twin, tokens=[[1, 2], [3]])": "padded to one length",
    "compare(model, twin, tokens=tokens.to('meta'))": "InputError: tokens are a meta tensor",
    "compare(model, twin, tokens=tokens.to_sparse())": "InputError: tokens are a sparse_coo tensor",
    "compare(model, twin, tokens=tokens, mask=mask.tolist())": "taken: identical",
    "compare(model, twin, tokens=tokens, mask=mask.float())": "taken: identical",
    "compare(model, twin, tokens=tokens, mask=(1 - mask) * -1e9)": "not an additive one",
    "compare(model, twin, tokens=tokens, mask=[[None]])": "InputError: mask cannot be read",
    "compare(model, twin, tokens=tokens, mask={})": "InputError: mask cannot be read",
    "compare(model, Wrapper(), tokens=tokens, mask=mask)": "taken: identical",
    "compare(model, Ends(), tokens=tokens)": "CaptureError: Ends failed on tokens of shape [2, 13] with SystemExit",
    "native(tokens, mask.tolist())": "taken: Tensor",
    "native(tokens, mask * -1e9)": "attention_mask holds -1e+09",
    "native(tokens, None, torch.rand(tokens.shape))": "InputError: positions are float32",
    "hooked(lambda z, hook: 'x')": "InputError: the hook at blocks.0.attn.hook_z returned str",
    "hooked(lambda z, hook: z.long())": "returned torch.int64 [2, 24, 4, 12] where a tensor like its own",
    "hooked(lambda z, hook: z[:, :5])": "returned torch.float32 [2, 5, 4, 12]",
    "hooked(lambda z, hook: z[:1])": "taken: Tensor",
    "hooked(5)": "InputError: fwd_hooks hold ('blocks.0.attn.hook_z', 5) where pairs",
    "native.run_with_hooks(tokens, fwd_hooks=5)": "InputError: fwd_hooks hold 5",
    "native.run_with_hooks(tokens, fwd_hooks=[('tokens', lambda x, hook: x + 103)])": "this model's ids are 0 to 102",
    "native.run_with_hooks(tokens, fwd_hooks=[(5, print)])": "InputError: 5 is no site",
    "native.run_with_cache(tokens, names=5)": "InputError: names=5 is no list",
    "compare(model, Recording.from_tensors({'logits': logits.long()}, ids))": "logits of the candidate is int64 where",
    "compare(Recording.from_tensors({'logits': logits.bool()}, ids), model)": "logits of the reference is bool where",
    "compare(model, Recording.from_tensors({'logits': logits.to(torch.float8_e4m3fn)}, ids))": "float8_e4m3fn where",
    "Recording.from_tensors([logits], ids)": "InputError: tensors are a list where a dict",
    "Recording.from_tensors({5: logits}, ids)": "InputError: tensors have the name 5",
    "Recording.from_tensors({'logits': logits}, ids, weights=[1])": "InputError: weights are a list",
    "Recording.from_tensors({'logits': logits}, ids, config=[1])": "InputError: config is a list",
    "Recording.from_tensors({'logits': logits}, ids, mask=[1.0, 0.0, 1.0])": "taken: Recording",
    "Recording.from_tensors({'logits': logits}, torch.ones(1, 3).long().to('meta'))": "tokens are a meta tensor",
    "Recording.load(5)": "InputError: 5 is no path",
    "Recording.from_tensors({'logits': logits}, ids).save('a\\0b')": "is no path",
    "compare(model, Recording.from_tensors({'logits': logits + 1}, ids, config={'model_type': [1]}))": "taken",
    "twinlens.declare([])": "ConfigError: a config is an object with keys",
    "twinlens.open_checkpoint(5)": "InputError: 5 is no path",
    "native.spec.edit(5)": "SpecError: 5 is no edit",
    "native.spec.edit(twinlens.Set(5, 'scale', 3.0))": "SpecError: 5 fits no site",
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, str]:
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root / "src"), str(root)])
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(list(CASES)),
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize(("case", "says"), CASES.items())
def test_in_python(outcomes: dict[str, str], case: str, says: str) -> None:
    assert says in outcomes[case]
    assert "\n" not in outcomes[case]
