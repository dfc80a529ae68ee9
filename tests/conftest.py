"""Shared fixtures. One torch thread: two busy threads on a shared two-core machine are slower than one."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
