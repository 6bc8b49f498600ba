"""What several test modules use."""

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """Tiny layers: with more threads most of the time goes into waiting for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
