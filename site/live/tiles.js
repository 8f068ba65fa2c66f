// Pictures of any size through a network that was trained on small ones, as in dcae_lib/tiles.py.

import {decode, encode, zeros} from './dcae.js';

const TILE = 32, OVERLAP = 8, STEP = TILE - OVERLAP;

// Encode and decode a picture [3, H, W] in tiles; each fades into its neighbours in a seam OVERLAP pixels wide.
// A row of tiles is the task of a worker, so that the page stays responsive and several cores help. After each,
// after(fraction, rows, top) is called with the rows that have changed; signal, of an AbortController, ends the work
// early, and then nothing is returned.
export function reconstruct(w, x, after, signal) {
    const [, H, W] = x.shape, padded = repeatEdges(x), [, rows, width] = padded.shape;
    const y = zeros(3, rows, width), tops = [], bands = (rows - OVERLAP) / STEP;
    for (let k = 0; k < bands; k++) tops.push(k * STEP);
    const workers = Array.from({length: Math.min(bands, 4, navigator.hardwareConcurrency ?? 1)}, newWorker);
    const end = () => workers.forEach(worker => worker.terminate());
    return new Promise((resolve, reject) => {
        let done = 0;
        const next = worker => {
            if (tops.length) worker.postMessage({top: tops[0], band: crop(padded, tops.shift(), 0, TILE, width)});
        };
        const receive = (worker, {top, band}) => {
            addTo(y, band, top);
            next(worker);
            done += 1;
            after(done / bands, crop(y, top, OVERLAP, TILE, W), top - OVERLAP);
            if (done === bands) end(), resolve(crop(y, OVERLAP, OVERLAP, H, W));
        };
        signal?.addEventListener('abort', () => (end(), resolve()));
        for (const worker of workers) {
            worker.onmessage = ({data}) => receive(worker, data);
            worker.onerror = event => (end(), reject(new Error(event.message ?? 'a worker could not be started')));
            worker.postMessage({tensors: w.tensors, config: w.config});
            next(worker);
        }
    });
}

const newWorker = () => new Worker(new URL('worker.js', import.meta.url), {type: 'module'});

// Reconstruct one row of tiles, each weighted so that weights sum to one where tiles overlap: [3, TILE, W] → same.
export function reconstructBand(w, band) {
    const [, , W] = band.shape, y = zeros(3, TILE, W);
    for (let left = 0; left + TILE <= W; left += STEP) {
        const tile = decode(w, encode(w, crop(band, 0, left, TILE, TILE)));
        tile.data.forEach((value, n) => {
            const row = Math.floor(n / TILE) % TILE, column = n % TILE, c = Math.floor(n / TILE ** 2);
            const weight = ramp(row) * ramp(column);
            y.data[(c * TILE + row) * W + left + column] += weight * Math.min(1, Math.max(-1, value));
        });
    }
    return y;
}

const ramp = j => Math.min(1, (j + 0.5) / OVERLAP) * Math.min(1, (TILE - j - 0.5) / OVERLAP);

// Repeat the pixels at the edges, so that whole tiles cover the picture and its borders are no tile's border.
function repeatEdges({shape: [C, H, W], data}) {
    const [below, right] = [H, W].map(side => OVERLAP + (STEP - (side + OVERLAP) % STEP) % STEP);
    const y = zeros(C, H + OVERLAP + below, W + OVERLAP + right), [, rows, width] = y.shape;
    const clip = (k, side) => Math.min(side - 1, Math.max(0, k - OVERLAP));
    for (let c = 0, n = 0; c < C; c++) {
        for (let row = 0; row < rows; row++) {
            const start = (c * H + clip(row, H)) * W;
            for (let column = 0; column < width; column++) y.data[n++] = data[start + clip(column, W)];
        }
    }
    return y;
}

// The rectangle of h × w pixels of a tensor whose upper left corner is given.
function crop({shape: [C, H, W], data}, top, left, h, w) {
    const y = zeros(C, h, w);
    for (let row = 0; row < C * h; row++) {
        const start = (Math.floor(row / h) * H + top + row % h) * W + left;
        y.data.set(data.subarray(start, start + w), row * w);
    }
    return y;
}

// Add a band of rows to a picture of the same width, from row `top` on.
function addTo(y, {shape: [C, h, W], data}, top) {
    const H = y.shape[1];
    for (let c = 0; c < C; c++) {
        for (let n = 0; n < h * W; n++) y.data[(c * H + top) * W + n] += data[c * h * W + n];
    }
}
