"""Many small matrices: linear algebra takes one thread, as it does in the commands."""

import pytest

from mergekit.lora.blas import one_thread_each


@pytest.fixture(autouse=True, scope="session")
def single_threaded():
    with one_thread_each():
        yield
