"""The matrix product that a device does quickest."""

from collections.abc import Callable
from typing import cast

import torch
from torch.nn import functional

Linear = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def linear_for(device: torch.device) -> Linear:
    """A function `(inputs [.., in], weight [out, in]) -> [.., out]` for tensors on `device`."""
    if device.type == "cpu" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return _onednn_linear
    return functional.linear


def _onednn_linear(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """OneDNN's float32 product: on AMD CPUs, where MKL leaves AVX-512 unused, it takes half of MKL's time."""
    out = torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")  # noqa: SLF001 - no public name
    return cast("torch.Tensor", out)
