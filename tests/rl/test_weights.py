"""Weight updates: exact, on the right version, and the same hash on both sides."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from glm5.engine.weights import WeightStore
from glm5.errors import GLM5Error, UsageError
from glm5.rl.weights import WeightUpdate, hash_tensors, require_equal_hashes
from tests.model.shapes import perturbed, tiny_config

BITS = st.integers(-(2**31), 2**31 - 1)


def tensor(bits: list[int], dtype: torch.dtype) -> Tensor:
    """Any bit pattern: NaNs, infinities and both zeros among them."""
    return torch.tensor(bits, dtype=torch.int32).view(dtype)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.lists(BITS, min_size=1, max_size=4), st.booleans())),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_delta_on_its_base_is_exactly_the_new_weights(
    values: dict[str, tuple[list[int], bool]], dtype: torch.dtype
) -> None:
    old = {name: tensor(bits, dtype) for name, (bits, _) in values.items()}
    new = {name: tensor([b ^ 1 for b in bits] if changes else bits, dtype) for name, (bits, changes) in values.items()}
    changed = {name for name, (_, changes) in values.items() if changes}
    if not changed:
        with pytest.raises(GLM5Error, match="no tensor differs"):
            WeightUpdate.delta(old, new, 3)
        return
    update = WeightUpdate.delta(old, new, 3)
    assert set(update.tensors) == changed
    assert hash_tensors({**old, **update.tensors}.items()) == hash_tensors(new.items())
    assert hash_tensors(old.items()) != hash_tensors(new.items())
    update.check_base(3)
    with pytest.raises(UsageError, match="builds on version 3 and the engine has version 4"):
        update.check_base(4)


def test_minus_zero_is_a_change() -> None:
    assert WeightUpdate.delta({"a": torch.tensor(0.0)}, {"a": torch.tensor(-0.0)}, 0).tensors.keys() == {"a"}


def test_deltas_of_different_networks_are_refused() -> None:
    a, b = torch.zeros(3), torch.ones(4)
    with pytest.raises(UsageError, match="only one side has b"):
        WeightUpdate.delta({"a": a}, {"a": a, "b": b}, 0)
    with pytest.raises(UsageError, match=r"\[3\] in torch.float32 and is now \[4\]"):
        WeightUpdate.delta({"a": a}, {"a": b}, 0)
    with pytest.raises(UsageError, match="no tensors"):
        WeightUpdate({})


def test_the_hash_is_the_engines_and_does_not_depend_on_order() -> None:
    store = WeightStore(perturbed(tiny_config()))
    named = list(store.named_tensors())
    assert hash_tensors(reversed(named)) == hash_tensors(named) == store.hash()
    name, first = named[0]
    assert hash_tensors([(name, first + 1), *named[1:]]) != store.hash()
    assert hash_tensors([("other", first), *named[1:]]) != store.hash()


def test_engines_with_other_weights_are_named() -> None:
    require_equal_hashes("x", {"a": "x", "b": "x"})
    with pytest.raises(GLM5Error, match="b serve other weights"):
        require_equal_hashes("x", {"a": "x", "b": "y"})
