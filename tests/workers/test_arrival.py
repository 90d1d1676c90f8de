"""Where blocks land that others send: also those that are here already and come all the same, as in a handover."""

import random

from homing.workers.arrival import ArrivalSink
from homing.workers.engine.sequence import Sequence, Waiting
from homing.workers.transfer import BufferMemory, Piece

BLOCK_TOKENS, BLOCKS, LAYERS, LAYER_BLOCK_BYTES = 16, 6, 2, 64


def sink_of(cached: int):
    """A sequence that has its first blocks, and a sink for all of them."""
    sequence = Sequence(
        "r", BLOCKS * BLOCK_TOKENS + 1, keys=range(BLOCKS), block_tokens=BLOCK_TOKENS, max_output_tokens=4
    )
    sequence.begin(list(range(BLOCKS + 1)), cached)
    sequence.expect(0, BLOCKS, Waiting.FOR_ALL)
    size = (BLOCKS + 1) * LAYERS * LAYER_BLOCK_BYTES
    memory = BufferMemory(bytearray(size), format="f", layers=LAYERS, layer_block_bytes=LAYER_BLOCK_BYTES)
    arrived = []
    return ArrivalSink(sequence, range(BLOCKS), memory, arrived.append), memory, arrived


def test_all_blocks_of_a_piece_can_be_filled_before_any_is_checked():
    for cached in range(BLOCKS):
        sink, memory, arrived = sink_of(cached)
        piece = Piece(layer_first=0, layer_count=LAYERS, block_first=0, block_count=BLOCKS)
        assert sink.wanted(piece)
        buffers = sink.buffers(piece)
        sent = [random.Random(i).randbytes(LAYERS * LAYER_BLOCK_BYTES) for i in range(BLOCKS)]
        for buffer, data in zip(buffers, sent, strict=True):
            buffer[:] = data
        assert [bytes(buffer) for buffer in buffers] == sent, "each block was received into a place of its own"
        sink.arrived(piece)
        assert arrived == list(range(cached, BLOCKS))
        assert [bytes(memory.view(i, 0, LAYERS)) for i in range(cached, BLOCKS)] == sent[cached:]
        assert all(not any(memory.view(i, 0, LAYERS)) for i in range(cached)), "what is here is left as it is"
