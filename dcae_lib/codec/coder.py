"""The entropy coder: rounded latents to bytes and back, range coded with the context model's integers."""

import constriction
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .bitstream import CorruptStream
from .context import COLUMNS, RADIUS, ROWS, STEPS, pad, windows
from .integer import MAX_LATENT, IntegerContext

BAR: dict = dict(delay=2, leave=False, disable=None)  # of tqdm: after two seconds, and only in a terminal
BATCH = 256  # tiles whose probabilities are computed together
CHUNK = 2**15  # symbols coded per call, so that their tables take at most 17 MB
CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
EXCESS_BITS = 18  # of a residual's distance beyond the tables: more than 2 · MAX_LATENT + RADIUS
EXCESS = constriction.stream.model.Uniform(2**EXCESS_BITS)


def encode(y: Tensor, mask: Tensor, sizes: list[int], context: IntegerContext) -> list[bytes]:
    """Encode latents, integers [N, C, h, w], at the sites of a mask [N, h, w]; stream k holds the next sizes[k] tiles.

    A stream goes site by site and group by group through all its tiles.
    """
    batches = [coded(*part, context) for part in zip(y.split(BATCH), mask.split(BATCH))]
    starts = np.cumsum(sizes)[:-1]
    arrays = [np.split(np.concatenate(parts), starts) for parts in zip(*batches)]  # symbols, rows, excesses
    groups, size = len(context.groups), context.size
    streams = []
    for part, *tiles in zip(mask.split(sizes), *arrays):
        n, h, w = part.shape
        # [n, h, w, C] → [h, w, groups, n, size], and of these the coded ones
        kept = part.permute(1, 2, 0)[:, :, None, :, None].expand(-1, -1, groups, -1, size).numpy()
        order = (array.reshape(n, h, w, groups, size).transpose(1, 2, 3, 0, 4)[kept] for array in tiles)
        streams.append(_write(kept.sum((3, 4)).cumsum(), context.tables, *order))
    return streams


def coded(y: Tensor, mask: Tensor, context: IntegerContext) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return for each latent its symbol in 0..128, the row of its table, and the excess beyond the table's radius.

    Integers [N, C, h, w], mask [N, h, w] → three arrays [N, h, w, C].
    """
    mean, scale = context.predict(y, mask)
    residual = y.permute(0, 2, 3, 1).long() - (mean // STEPS)
    symbol = residual.clamp(-RADIUS, RADIUS) + RADIUS
    row = scale * STEPS + mean % STEPS
    excess = (residual.abs() - RADIUS).clamp(min=0)
    return symbol.numpy().astype(np.uint8), row.numpy().astype(np.int16), excess.numpy().astype(np.int32)


def costs(y: Tensor, mask: Tensor, context: IntegerContext) -> Tensor:
    """Return each latent's cost in bits by the coder's tables: [N, C, h, w], [N, h, w] → [N, C, h, w], 0 outside."""
    symbol, row, _ = coded(y, mask, context)
    bits = np.log2(context.tables.sum(1))[row] - np.log2(context.tables[row, symbol])
    bits += EXCESS_BITS * ((symbol == 0) | (symbol == 2 * RADIUS))
    return torch.from_numpy(bits).permute(0, 3, 1, 2) * mask[:, None]


def _write(ends: np.ndarray, tables: np.ndarray, symbol: np.ndarray, row: np.ndarray, excess: np.ndarray) -> bytes:
    """Code symbols in order, with the excess of those at the radius after the group they belong to.

    ends: the number of symbols before the end of each group at each site.
    """
    encoder = constriction.stream.queue.RangeEncoder()
    escaped = np.flatnonzero((symbol == 0) | (symbol == 2 * RADIUS))
    stops = np.unique(ends[np.searchsorted(ends, escaped, side="right")])
    start = 0
    for stop in [*stops, len(symbol)]:
        for k in range(start, stop, CHUNK):
            part = slice(k, min(k + CHUNK, stop))
            encoder.encode(symbol[part].astype(np.int32), CATEGORICAL, tables[row[part]])
        within = escaped[(escaped >= start) & (escaped < stop)]
        if len(within):
            encoder.encode(excess[within], EXCESS)
        start = stop
    return _shortest(encoder)


def _shortest(encoder: constriction.stream.queue.RangeEncoder) -> bytes:
    """Return the fewest bytes that decode the same when zeros follow: any number in the coder's last interval does."""
    words = encoder.get_compressed().astype(">u4").tobytes()
    whole, (lower, width) = encoder.pos()
    if lower + width <= 2**64:  # otherwise a carry is pending: keep the library's ending
        for k in range(1, 9):
            unit = 2 ** (64 - 8 * k)
            point = -(-lower // unit) * unit
            if point < lower + width and point < 2**64:
                words = words[: 4 * whole] + point.to_bytes(8, "big")[:k]
                break
    return words.rstrip(b"\0")


def decode(streams: list[bytes], mask: Tensor, sizes: list[int], context: IntegerContext) -> Tensor:
    """Undo `encode`: float32 [N, C, h, w], 0 outside the mask. CorruptStream if the bytes are not a valid payload."""
    words = (np.frombuffer(stream + bytes(-len(stream) % 4), ">u4").astype(np.uint32) for stream in streams)
    decoders = [constriction.stream.queue.RangeDecoder(part) for part in words]
    N, h, w = mask.shape
    size, stream_ends = context.size, np.cumsum(sizes)
    padded = pad(torch.zeros(N, context.channels, h, w, dtype=torch.float32), mask)
    for i, j in tqdm(mask.any(0).nonzero().tolist(), desc="decoding", **BAR):
        tiles = mask[:, i, j].nonzero()[:, 0]
        ends = (np.searchsorted(tiles.numpy(), stream_ends) * size).tolist()  # of each stream's symbols here
        parts = [slice(a, b) for a, b in zip([0, *ends], ends)]
        window = windows(padded[tiles, :, i : i + ROWS, j : j + COLUMNS])[:, 0]
        for g in range(len(context.groups)):
            mean, scale = context(g, window, padded[tiles, : g * size, i + 2, j + 2])
            rows = context.tables[(scale * STEPS + mean % STEPS).numpy().ravel()]
            try:
                symbols = [decoder.decode(CATEGORICAL, rows[part]) for decoder, part in zip(decoders, parts)]
                residual = np.concatenate(symbols) - RADIUS
                escaped = np.abs(residual) == RADIUS
                if escaped.any():
                    counts = [int(escaped[part].sum()) for part in parts]
                    excess = [decoder.decode(EXCESS, n) for decoder, n in zip(decoders, counts)]
                    residual[escaped] += np.sign(residual[escaped]) * np.concatenate(excess)
            except AssertionError as error:  # constriction's way to report invalid data
                raise CorruptStream("not a valid payload for this model") from error
            y = torch.from_numpy(residual).view(-1, size) + mean // STEPS
            padded[tiles, g * size : (g + 1) * size, i + 2, j + 2] = y.clamp(-MAX_LATENT, MAX_LATENT).float()
    return padded[:, :-1, ROWS - 1 :, COLUMNS // 2 : COLUMNS // 2 + w]
