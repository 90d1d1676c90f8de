"""Write a safetensors file tensor by tensor, in an order of one's own.

The format (https://github.com/huggingface/safetensors#format): the header's length as a little-endian u64,
a JSON header of names, shapes and byte ranges, then the bytes. The library's own writer wants all tensors in
memory at once, which for a converted model is several times its file.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

_ALIGN_BYTES = 64  # a cache line, so that mapped tensors start on one


def write_safetensors(path: Path, entries: Iterable[tuple[str, tuple[int, ...], Callable[[], FloatArray]]]) -> None:
    """Write float32 tensors given as (name, shape, reader), calling one reader at a time."""
    listed = list(entries)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape, _ in listed:
        end = offset + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN_BYTES)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, shape, read in listed:
            values = np.ascontiguousarray(read(), dtype="<f4")
            assert values.shape == shape
            file.write(values.data)
