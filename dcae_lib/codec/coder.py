"""The entropy coder: rounded latents to bytes and back, range coded with the context model's integers."""

from collections.abc import Iterator

import constriction
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .bitstream import CorruptStream
from .context import COLUMNS, RADIUS, ROWS, SITES, STEPS, pad
from .integer import MAX_LATENT, IntegerContext

BAR: dict = dict(delay=2, leave=False, disable=None)  # of tqdm: after two seconds, and only in a terminal
BATCH = 2**14  # sites whose probabilities are computed together
CHUNK = 2**15  # symbols coded per call, so that their tables take at most 17 MB
CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
EXCESS_BITS = 18  # of a residual's distance beyond the tables: more than 2 · MAX_LATENT + RADIUS
EXCESS = constriction.stream.model.Uniform(2**EXCESS_BITS)


def wavefront(h: int, w: int) -> list[np.ndarray]:
    """Return the steps in which the sites of a grid are coded, as indices into h·w: w + 3·(h - 1) of them.

    Site (i, j) is in step j + 3·i: the last of its window, (i - 1, j + 2) and (i, j - 1), are in the step before.
    """
    step = (np.arange(h)[:, None] * (COLUMNS // 2 + 1) + np.arange(w)).ravel()
    order = step.argsort(kind="stable")
    return np.split(order, np.flatnonzero(np.diff(step[order])) + 1)


def encode(y: list[Tensor], counts: list[int], contexts: list[IntegerContext]) -> list[bytes]:
    """Encode latents of N images, integers [N, C, h, w] for each level; stream k holds the next counts[k] images.

    A stream goes from level to level, there along the wavefront, and in each of its steps from group to group through
    all sites and images.
    """
    levels = [_in_order(*level, counts) for level in zip(y, contexts)]  # of each level, the arrays of each stream
    streams = []
    for parts in zip(*levels):
        lengths, residual, row = (np.concatenate(arrays) for arrays in zip(*parts))
        streams.append(_write(lengths.cumsum(), contexts[0].tables, residual, row))
    return streams


def _in_order(y: Tensor, context: IntegerContext, counts: list[int]) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield for each stream the number of residuals of each group in each step, the residuals and their rows."""
    (N, _, h, w), G = y.shape, len(context.groups)
    steps = wavefront(h, w)
    step = np.repeat(np.arange(len(steps)), lengths := [len(sites) for sites in steps])
    order = (step[:, None] * G + np.arange(G)).argsort(axis=None, kind="stable")  # (site, group) to (step, group, site)
    arrays = [part.reshape(N, h * w, G, context.size)[:, np.concatenate(steps)] for part in coded(y, context)]
    starts = np.cumsum(counts)[:-1]
    for n, *images in zip(counts, *(np.split(part, starts) for part in arrays)):
        yield (
            np.repeat(lengths, G) * n * context.size,
            *(part.transpose(1, 2, 0, 3).reshape(h * w * G, -1)[order].ravel() for part in images),
        )


def coded(y: Tensor, context: IntegerContext) -> tuple[np.ndarray, np.ndarray]:
    """Return each latent's distance from its mean, rounded down, and the row of its table.

    Integers [N, C, h, w] → two arrays [N, h·w, C].
    """
    h, w = y.shape[2:]
    images, rows, parts = max(1, BATCH // (h * w)), max(1, BATCH // w), []
    for part in y.split(images):
        padded, bands = pad(part), []
        for top in range(0, h, rows):  # rows that are predicted together, with the padding they need
            mean, scale = context.predict(padded[:, :, top : top + rows + ROWS - 1].double())
            residual = part[:, :, top : top + rows].flatten(2).mT.int() - (mean // STEPS).int()
            bands.append((residual.numpy(), (scale * STEPS + mean % STEPS).short().numpy()))
        parts.append([np.concatenate(arrays, 1) for arrays in zip(*bands)])
    residuals, table_rows = (np.concatenate(arrays) for arrays in zip(*parts))
    return residuals, table_rows


def costs(y: Tensor, context: IntegerContext) -> Tensor:
    """Return each latent's cost in bits by the coder's tables: [N, C, h, w] → [N, C, h, w]."""
    residual, row = coded(y, context)
    symbol = residual.clip(-RADIUS, RADIUS) + RADIUS
    bits = np.log2(context.tables.sum(1))[row] - np.log2(context.tables[row, symbol])
    bits += EXCESS_BITS * (np.abs(residual) >= RADIUS)
    return torch.from_numpy(bits).mT.reshape(y.shape)


def _write(ends: np.ndarray, tables: np.ndarray, residual: np.ndarray, row: np.ndarray) -> bytes:
    """Code residuals in order, what lies beyond the radius of the tables after the group it belongs to.

    ends: the number of residuals before the end of each group in each step.
    """
    encoder = constriction.stream.queue.RangeEncoder()
    symbol = (residual.clip(-RADIUS, RADIUS) + RADIUS).astype(np.uint8)
    escaped = np.flatnonzero(np.abs(residual) >= RADIUS)
    stops = np.unique(ends[np.searchsorted(ends, escaped, side="right")])
    start = 0
    for stop in [*stops, len(symbol)]:
        for k in range(start, stop, CHUNK):
            part = slice(k, min(k + CHUNK, stop))
            encoder.encode(symbol[part].astype(np.int32), CATEGORICAL, tables[row[part]])
        within = escaped[(escaped >= start) & (escaped < stop)]
        if len(within):
            encoder.encode(np.abs(residual[within]) - RADIUS, EXCESS)
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


def decode(
    streams: list[bytes], counts: list[int], sizes: list[tuple[int, int]], contexts: list[IntegerContext]
) -> list[Tensor]:
    """Undo `encode`: float32 [N, C, h, w] for each level, of these sizes. CorruptStream for an invalid payload."""
    words = (np.frombuffer(stream + bytes(-len(stream) % 4), ">u4").astype(np.uint32) for stream in streams)
    decoders = [constriction.stream.queue.RangeDecoder(part) for part in words]
    return [_decode_level(decoders, counts, *level) for level in zip(sizes, contexts)]


def _decode_level(decoders: list, counts: list[int], size: tuple[int, int], context: IntegerContext) -> Tensor:
    ends = np.cumsum(counts).tolist()
    parts = [slice(a, b) for a, b in zip([0, *ends], ends)]  # the images of each stream
    (h, w), N, C, grouped = size, ends[-1], context.channels, context.size
    padded = pad(torch.zeros(N, C, h, w, dtype=torch.float64)).permute(2, 3, 0, 1).flatten(0, 1).contiguous()
    width = w + COLUMNS - 1  # padded: [(h + 2)·(w + 4), N, C + 1], a site after the other
    before = torch.arange(ROWS * COLUMNS)[:SITES]
    before = before // COLUMNS * width + before % COLUMNS  # the window, from its first site on
    for sites in tqdm(wavefront(h, w), desc="decoding", **BAR):
        first = torch.from_numpy(sites // w * width + sites % w)
        here = first + (ROWS - 1) * width + COLUMNS // 2
        window = padded[first[:, None] + before].transpose(1, 2)  # [sites, N, 12, C + 1]
        y = torch.zeros(len(sites) * N, C, dtype=torch.float64)
        for g, seen in enumerate(context.seen(window.reshape(len(y), -1))):
            mean, scale = context(g, seen, y[:, : g * grouped])
            rows = context.tables[(scale * STEPS + mean % STEPS).numpy().reshape(len(sites), N, grouped)]
            residual = torch.from_numpy(_read(decoders, parts, rows)).view(-1, grouped)
            y[:, g * grouped : (g + 1) * grouped] = (residual + mean // STEPS).clamp(-MAX_LATENT, MAX_LATENT)
        padded[here, :, :C] = y.view(len(sites), N, C)
    inside = padded.view(h + ROWS - 1, width, N, -1)[ROWS - 1 :, COLUMNS // 2 : -(COLUMNS // 2), :, :C]
    return inside.permute(2, 3, 0, 1).float().contiguous()


def _read(decoders: list, parts: list[slice], rows: np.ndarray) -> np.ndarray:
    """Decode the residuals of a group in a step from all streams: tables [sites, N, size, 129] → [sites, N, size]."""
    residual = np.empty(rows.shape[:3], np.int64)
    try:
        for decoder, part in zip(decoders, parts):
            symbols = decoder.decode(CATEGORICAL, rows[:, part].reshape(-1, rows.shape[-1]))
            residual[:, part] = symbols.reshape(residual[:, part].shape) - RADIUS
        escaped = np.abs(residual) == RADIUS
        if escaped.any():
            for decoder, part in zip(decoders, parts):
                far = residual[:, part][escaped[:, part]]
                residual[:, part][escaped[:, part]] += np.sign(far) * decoder.decode(EXCESS, len(far))
    except AssertionError as error:  # constriction's way to report invalid data
        raise CorruptStream("not a valid payload for this model") from error
    return residual
