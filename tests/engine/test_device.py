"""Every tensor the engine makes says on which device: one forgotten is a crash on a GPU and nothing at all on a CPU."""

import ast
from pathlib import Path

import pytest

import glm5.engine

FACTORIES = {"arange", "empty", "full", "ones", "rand", "randn", "tensor", "zeros"}
FOLDER = Path(glm5.engine.__file__).parent


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_no_tensor_is_made_without_a_device(file: Path) -> None:
    """`randn` with a CPU generator is the exception: such a tensor is moved afterwards."""
    without = [
        node.lineno
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in FACTORIES
        and not {keyword.arg for keyword in node.keywords} & {"device", "generator"}
    ]
    assert not without
