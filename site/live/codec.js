// The codec of dcae_lib.codec in plain JavaScript, in its order and with its names: context, integer, coder, bitstream,
// model, codec. What Python compresses is decompressed here to the same latents, and the other way round.

import {add, avgPool, decode as decodeLatent, encode as encodePicture, get, load as loadWeights, normActConv, scaleShift,
        zeros} from './dcae.js';

// ---- context.py: the causal window before each latent

const ROWS = 3, COLUMNS = 5;                 // two rows above the site, and two sites to its left
const SITES = (ROWS - 1) * COLUMNS + (COLUMNS >> 1);
const RADIUS = 64;                           // of the tables: a residual beyond it takes a second symbol
const STEPS = 8, SCALES = 64;                // fractions of an integer that a mean is rounded to; scales in the tables
const LOW = -3, HIGH = 4;                    // range of a distribution's log scale

// Latents {shape: [N, C, h, w], data} with two rows above and two columns on each side, and a channel that is 1 inside
// the image: {data: [(h + 2)·(w + 4), N, C + 1]}, a site after the other.
function pad({shape: [N, C, h, w], data}) {
    const width = w + COLUMNS - 1;
    const padded = {shape: [N, C, h, w], width, data: new Float64Array((h + ROWS - 1) * width * N * (C + 1))};
    inside(padded, (at, n, site) => {
        for (let c = 0; c < C; c++) padded.data[at + c] = data[(n * C + c) * h * w + site];
        padded.data[at + C] = 1;
    });
    return padded;
}

// Undo `pad`.
function unpad(padded) {
    const [N, C, h, w] = padded.shape, data = new Float32Array(N * C * h * w);
    inside(padded, (at, n, site) => {
        for (let c = 0; c < C; c++) data[(n * C + c) * h * w + site] = padded.data[at + c];
    });
    return {shape: padded.shape, data};
}

// Call visit(at, n, site) for each site of each image, where its channels begin at `at` in padded latents.
function inside({shape: [N, C, h, w], width}, visit) {
    for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) for (let n = 0; n < N; n++) {
        visit((((i + ROWS - 1) * width + j + (COLUMNS >> 1)) * N + n) * (C + 1), n, i * w + j);
    }
}

// ---- integer.py: the context model in integers, stored in doubles, exact below 2⁵³ in any order

const WEIGHT_BITS = 12, ACTIVATION_BITS = 8;  // fraction bits
const MAX_LATENT = 2 ** 15 - 1;
const MAX_ACTIVATION = 2 ** 20;              // in units of 2⁻⁸

// A context model at one quality. w: weights of a network; name: contexts.0 or contexts.1.
export class IntegerContext {
    constructor({tensors}, name, quality) {
        const [anchors, groups, hidden] = tensors[`${name}.quality`].shape;
        const position = quality * (anchors - 1);  // in hundredths of the distance between two anchors
        const low = Math.min(Math.floor(position / 100), anchors - 2), part = position - 100 * low;
        const anchor = fixed(tensors[`${name}.quality`], WEIGHT_BITS);
        const bits = WEIGHT_BITS + ACTIVATION_BITS;
        this.groups = [];
        for (let g = 0; g < groups; g++) {
            const [first, second, third] = ['first', 'second', 'third'].map(
                (layer, k) => linear(tensors, `${name}.${layer}.${g}`, k ? bits : WEIGHT_BITS));
            first.bias = first.bias.map((bias, j) => {
                const a = anchor[(low * groups + g) * hidden + j], b = anchor[((low + 1) * groups + g) * hidden + j];
                return bias + Math.floor((a * (100 - part) + b * part) / 100);
            });
            this.groups.push({first, second, third});
        }
        this.size = this.groups[0].third.outputs / 2;  // channels of a group
        this.hidden = hidden;
        this.inputs = SITES * (this.size * groups + 1);
        this.look = new Float64Array(this.inputs * groups * hidden);  // what all groups do with a window
        for (let i = 0; i < this.inputs; i++) this.groups.forEach(({first}, g) => this.look.set(
            first.weight.subarray(i * hidden, (i + 1) * hidden), (i * groups + g) * hidden));
    }

    // Add to `seen` what the first layers of all groups make of a window's values from the k-th on: `count` of them,
    // which lie in values[at...].
    see(seen, values, at, count, k) {
        const {look} = this, n = seen.length;
        for (let i = 0; i < count; i++) {
            const x = values[at + i];  // often 0, and then adds nothing
            if (x) for (let j = 0, row = (k + i) * n; j < n; j++) seen[j] += x * look[row + j];
        }
    }

    // Predict one group of channels: from what was `seen`, and the site's earlier groups, which lie in values[at...].
    // Writes the mean in eighths and the index of the scale of each channel into `mean` and `scale`.
    predict(g, seen, values, at, mean, scale) {
        const {first, second, third} = this.groups[g], {hidden, size} = this;
        let x = first.bias.map((bias, j) => bias + seen[g * hidden + j]);
        for (let i = 0; i < g * size; i++) addRow(x, values[at + i], first.weight, (this.inputs + i) * hidden);
        x = leaky(x, WEIGHT_BITS - ACTIVATION_BITS);
        x = leaky(product(x, second), WEIGHT_BITS);
        x = product(x, third);
        const one = 2 ** ACTIVATION_BITS, span = (HIGH - LOW) * one;
        for (let c = 0; c < size; c++) {
            const m = Math.floor(x[c] / 2 ** WEIGHT_BITS), s = Math.floor(x[size + c] / 2 ** WEIGHT_BITS);
            mean[c] = clamp(Math.floor((m * STEPS + one / 2) / one), -MAX_LATENT * STEPS, MAX_LATENT * STEPS);
            scale[c] = clamp(Math.floor(((s - LOW * one) * (SCALES - 1) + span / 2) / span), 0, SCALES - 1);
        }
    }
}

// Round to so many fraction bits, halves to even: integers in doubles.
function fixed({data}, bits) {
    return new Float64Array(data).map(x => roundHalfToEven(x * 2 ** bits));
}

function roundHalfToEven(x) {
    const rounded = Math.round(x);  // halves up
    return rounded - x === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// The transposed weight of a linear layer [inputs, outputs], and its bias with so many fraction bits.
function linear(tensors, name, bits) {
    const [outputs, inputs] = tensors[`${name}.weight`].shape;
    const stored = fixed(tensors[`${name}.weight`], WEIGHT_BITS), weight = new Float64Array(stored.length);
    for (let o = 0; o < outputs; o++) for (let i = 0; i < inputs; i++) weight[i * outputs + o] = stored[o * inputs + i];
    return {weight, outputs, bias: fixed(tensors[`${name}.bias`], bits)};
}

function product(x, {weight, bias, outputs}) {
    const out = bias.slice();
    for (let i = 0; i < x.length; i += 4) {  // four rows at a time: fewer loads and stores
        const x0 = x[i], x1 = x[i + 1], x2 = x[i + 2], x3 = x[i + 3];
        const k0 = i * outputs, k1 = k0 + outputs, k2 = k1 + outputs, k3 = k2 + outputs;
        for (let j = 0; j < outputs; j++) {
            out[j] += x0 * weight[k0 + j] + x1 * weight[k1 + j] + x2 * weight[k2 + j] + x3 * weight[k3 + j];
        }
    }
    return out;
}

function addRow(out, x, weight, row) {
    if (x) for (let j = 0; j < out.length; j++) out[j] += x * weight[row + j];
}

// Divide by 2^shift, and by 8 below zero, each time rounding down.
function leaky(x, shift) {
    for (let j = 0; j < x.length; j++) {
        const y = Math.floor(x[j] / 2 ** shift);
        x[j] = clamp(y < 0 ? Math.floor(y / 8) : y, -MAX_ACTIVATION, MAX_ACTIVATION);
    }
    return x;
}

function clamp(x, low, high) {
    return x < low ? low : x > high ? high : x;
}

// ---- coder.py, and the range coder of the library `constriction`: words of 32 bits, a state of 64

const PRECISION = 24;                        // bits of a probability
const EXCESS_BITS = 18;                      // of a residual's distance beyond the tables
const ROW = 2 * RADIUS + 2;                  // where each of the symbols begins, and where the last one ends
const FULL = 2n ** 64n, WORD = 2n ** 32n;

// Integers for each symbol of each row, [512·129] → probabilities of 24 bits, added up: [512·130].
// The library scales float32 sums and rounds down; each symbol gets at least 2⁻²⁴.
function cumulative(tables) {
    const symbols = ROW - 1, rows = tables.length / symbols, out = new Int32Array(rows * ROW);
    for (let row = 0; row < rows; row++) {
        const table = tables.subarray(row * symbols, (row + 1) * symbols);
        const scale = Math.fround((2 ** PRECISION - symbols) / table.reduce((a, b) => a + b));
        let sum = 0;
        for (let k = 0; k < symbols; k++) {
            out[row * ROW + k] = Math.floor(Math.fround(sum * scale)) + k;
            sum += table[k];
        }
        out[row * ROW + symbols] = 2 ** PRECISION;
    }
    return out;
}

export class RangeEncoder {
    constructor(tables) {
        Object.assign(this, {tables, words: [], lower: 0n, range: FULL - 1n});
    }

    symbol(row, symbol) {
        const at = row * ROW + symbol;
        this.#encode(this.tables[at], this.tables[at + 1] - this.tables[at]);
        return symbol;
    }

    excess(value) {
        const probability = 2 ** (PRECISION - EXCESS_BITS);
        this.#encode(value * probability, probability);
        return value;
    }

    #encode(left, probability) {
        const scale = this.range >> 24n;
        this.lower += scale * BigInt(left);
        this.range = scale * BigInt(probability);
        if (this.lower >= FULL) this.#carry();
        if (this.range < WORD) {
            this.words.push(Number(this.lower / WORD));
            this.lower = this.lower % WORD * WORD;
            this.range *= WORD;
        }
    }

    #carry() {
        this.lower -= FULL;
        let k = this.words.length - 1;
        while (this.words[k] === 2 ** 32 - 1) this.words[k--] = 0;
        this.words[k]++;
    }

    // The fewest bytes that decode the same when zeros follow: any number in the coder's last interval does.
    finish() {
        let end = '';
        if (this.lower + this.range <= FULL) {
            for (let k = 1n; !end; k++) {
                const unit = 2n ** (64n - 8n * k), point = (this.lower + unit - 1n) / unit * unit;
                if (point < this.lower + this.range && point < FULL) {
                    end = point.toString(16).padStart(16, '0').slice(0, 2 * Number(k));
                }
            }
        } else {  // a carry is pending: the library's ending
            const upper = (this.lower + this.range - FULL) / WORD;
            this.lower += WORD - 1n;
            if (this.lower >= FULL) this.#carry();
            end = hex(this.lower / WORD) + (this.lower / WORD === upper ? '00000000' : '');
        }
        const digits = (this.words.map(hex).join('') + end).replace(/(00)+$/, '');
        return Uint8Array.from(digits.match(/../g) ?? [], digit => parseInt(digit, 16));
    }
}

function hex(word) {
    return word.toString(16).padStart(8, '0');
}

class RangeDecoder {
    constructor(tables, bytes) {
        Object.assign(this, {tables, bytes, at: 0, lower: 0n, range: FULL - 1n});
        this.point = this.#word() * WORD + this.#word();
    }

    // The symbol whose interval in a row of the tables holds the quantile.
    symbol(row) {
        const {tables} = this, first = row * ROW, quantile = this.#quantile();
        let low = 0, high = ROW - 1;
        while (high - low > 1) {
            const middle = (low + high) >> 1;
            if (tables[first + middle] <= quantile) low = middle; else high = middle;
        }
        this.#decode(tables[first + low], tables[first + low + 1] - tables[first + low]);
        return low;
    }

    excess() {
        const probability = 2 ** (PRECISION - EXCESS_BITS), value = Math.floor(this.#quantile() / probability);
        this.#decode(value * probability, probability);
        return value;
    }

    #quantile() {
        const quantile = Number(BigInt.asUintN(64, this.point - this.lower) / (this.range >> 24n));
        if (quantile >= 2 ** PRECISION) throw new CorruptStream('not a valid payload for this model');
        return quantile;
    }

    #decode(left, probability) {
        const scale = this.range >> 24n;
        this.lower = BigInt.asUintN(64, this.lower + scale * BigInt(left));
        this.range = scale * BigInt(probability);
        if (this.range < WORD) {
            this.lower = BigInt.asUintN(64, this.lower * WORD);
            this.range *= WORD;
            this.point = BigInt.asUintN(64, this.point * WORD) + this.#word();
        }
    }

    #word() {  // zeros follow the last byte
        let word = 0;
        for (let k = 0; k < 4; k++) word = word * 256 + (this.bytes[this.at++] ?? 0);
        return BigInt(word);
    }
}

// The steps in which the sites of a grid are coded, as lists of [i, j]: site (i, j) is in step j + 3·i.
function wavefront(h, w) {
    const steps = Array.from({length: w + 3 * (h - 1)}, () => []);
    for (let i = 0; i < h; i++) for (let j = 0; j < w; j++) steps[j + 3 * i].push([i, j]);
    return steps;
}

// Latents of each level {shape: [N, C, h, w], data: integers} → the bytes of the range coder.
export function encode(levels, contexts, tables) {
    const encoder = new RangeEncoder(tables);
    levels.forEach((level, k) => walk(encoder, pad(level), contexts[k]));
    return encoder.finish();
}

// Undo `encode`; sizes: [h, w] of each level. CorruptStream for an invalid payload.
export function decode(bytes, N, sizes, contexts, tables) {
    const decoder = new RangeDecoder(tables, bytes);
    return sizes.map(([h, w], k) => {
        const C = contexts[k].size * contexts[k].groups.length;
        const padded = pad({shape: [N, C, h, w], data: new Float32Array(N * C * h * w)});
        walk(decoder, padded, contexts[k]);
        return unpad(padded);
    });
}

// Go through padded latents in the order of the stream, along the wavefront and in each of its steps from group to
// group through all sites and images. An encoder codes what it finds there, a decoder writes what it reads.
function walk(coder, {shape: [N, C, h, w], width, data}, context) {
    const {size, hidden, groups} = context, mean = new Float64Array(size), scale = new Float64Array(size);
    const channels = C + 1;
    const here = (ROWS - 1) * width + (COLUMNS >> 1);  // from the first site of a window to the site that is coded
    for (const sites of wavefront(h, w)) {
        const windows = sites.flatMap(([i, j]) => Array.from({length: N}, (_, n) => (i * width + j) * N + n));
        const seen = windows.map(start => {
            const sums = new Float64Array(groups.length * hidden);
            for (let k = 0; k < SITES; k++) {
                const site = Math.floor(k / COLUMNS) * width + k % COLUMNS;
                context.see(sums, data, (start + site * N) * channels, channels, k * channels);
            }
            return sums;
        });
        for (let g = 0; g < groups.length; g++) {
            const escaped = [];  // what lies beyond the radius of the tables comes after the group
            windows.forEach((start, m) => {
                const at = (start + here * N) * channels;
                context.predict(g, seen[m], data, at, mean, scale);
                for (let c = 0; c < size; c++) {
                    const base = Math.floor(mean[c] / STEPS), row = scale[c] * STEPS + mean[c] - base * STEPS;
                    const residual = data[at + g * size + c] - base;
                    const coded = coder.symbol(row, clamp(residual, -RADIUS, RADIUS) + RADIUS) - RADIUS;
                    if (Math.abs(coded) === RADIUS) escaped.push([at + g * size + c, base, Math.sign(coded), residual]);
                    else data[at + g * size + c] = clamp(base + coded, -MAX_LATENT, MAX_LATENT);
                }
            });
            for (const [at, base, sign, residual] of escaped) {
                const distance = RADIUS + coder.excess(Math.abs(residual) - RADIUS);
                data[at] = clamp(base + sign * distance, -MAX_LATENT, MAX_LATENT);
            }
        }
    }
}

// ---- bitstream.py: the header, the range coder's bytes and a checksum

const MAGIC = 0xD0, VERSION = 2;             // upper and lower half of the first byte
const MAX_SIDE = 2 ** 16 - 1;
const MAX_PIXELS = 2 ** 26;                  // of all images in a file

// The bytes are not what a codec wrote: truncated, damaged, or not a compressed image.
class CorruptStream extends Error {}

// A file's bytes. header: {height, width, images, quality}, where 0 images is one that is not a batch; model: the
// SHA-256 of the weights.
function pack({height, width, images, quality}, payload, model) {
    let size = [height];
    if (height !== width || height > 255 || images) {
        const bytes = new DataView(new ArrayBuffer(8));
        bytes.setUint16(0, height, true);
        bytes.setUint16(2, width, true);
        bytes.setUint32(4, images, true);
        size = [0, ...new Uint8Array(bytes.buffer)];
    }
    const body = [MAGIC | VERSION, model[0], ...size, quality, ...payload], checksum = crc32([...model, ...body]);
    return Uint8Array.from([...body, ...[0, 8, 16, 24].map(shift => checksum >>> shift & 255)]);
}

// Header and payload, checksum verified. CorruptStream, and a plain Error for what another model, or another version
// of the codec, wrote.
export function unpack(data, model) {
    if (data.length < 8) throw new CorruptStream(`a compressed image has at least 8 bytes, this has ${data.length}`);
    const first = data[0].toString(16).toUpperCase().padStart(2, '0');
    if ((data[0] & 0xF0) !== MAGIC) {
        throw new CorruptStream(`not a compressed image: it begins with 0x${first}, not 0xD2`);
    }
    const version = data[0] & 0x0F;
    if (version !== VERSION) {
        const wrote = `version ${version} of the codec${version === 1 ? ' (dcae-lib 0.1)' : ''}`;
        throw new Error(`written by ${wrote}, this is version ${VERSION}: decompress it with the one that wrote it`);
    }
    if (data[1] !== model[0]) {
        const begins = data[1].toString(16).padStart(2, '0');
        throw new Error(`written with another model, whose hash begins with ${begins}; load its own codec`);
    }
    const body = data.subarray(0, -4), view = new DataView(data.buffer, data.byteOffset, data.length);
    if (crc32([...model, ...body]) !== view.getUint32(body.length, true)) {
        throw new CorruptStream('the checksum does not match: bytes were lost or changed, or another model wrote them');
    }
    let height = body[2], width = body[2], images = 0, start = 3;
    if (height === 0 && body.length > 11) {
        [height, width, images] = [view.getUint16(3, true), view.getUint16(5, true), view.getUint32(7, true)];
        start = 11;
    }
    if (body[start] > 100) throw new CorruptStream('the header holds no quality from 0 to 100');
    try {
        checkSize(height, width, images);
    } catch (error) {
        throw new CorruptStream(`invalid size in the header: ${error.message}`);
    }
    return [{height, width, images, quality: body[start]}, body.subarray(start + 1)];
}

// An Error for images without pixels, or with more than a file may hold.
function checkSize(H, W, count) {
    if (!H || !W) throw new Error(`images of ${H}×${W} pixels: there is nothing to compress`);
    if (Math.max(H, W) > MAX_SIDE || H * W * Math.max(count, 1) > MAX_PIXELS) {
        const most = `${Math.round(MAX_PIXELS / 1e6)} megapixels, no side above ${MAX_SIDE.toLocaleString('en')}`;
        throw new Error(`${Math.max(count, 1)} × ${H}×${W} pixels; a file holds at most ${most}: split the images`);
    }
}

function crc32(bytes) {
    let crc = -1;
    for (const byte of bytes) {
        crc ^= byte;
        for (let k = 0; k < 8; k++) crc = crc >>> 1 ^ (crc & 1 ? 0xEDB88320 : 0);
    }
    return (crc ^ -1) >>> 0;
}

// ---- model.py: the latents of the DCAE become a pyramid of two levels, the coarser one first

// Means of 4×4 sites, after a branch: [C, h, w] → [C, ⌈h/4⌉, ⌈w/4⌉].
function down(w, name, x) {
    x = replicate(x, 4);
    return avgPool(add(x, branch(w, `${name}.branch`, x)), 4);
}

// Straight lines between sites, then a branch: [C, h, w] → [C, 4·h, 4·w].
function up(w, name, x) {
    x = interpolate(x, 4);
    return add(x, branch(w, `${name}.branch`, x));
}

const branch = (w, name, x) => normActConv(w, `${name}.1`, normActConv(w, `${name}.0`, x));

// Latents of the encoder [C, h, w] → rounded latents of each level; each knows the rounded ones of those before it.
export function quantise(w, z, quality) {
    const levels = [z], y = [];
    for (let k = 1; k < w.config.hidden.length; k++) levels.unshift(down(w, `down.${k - 1}`, levels[0]));
    let known;
    for (const [k, level] of levels.entries()) {
        known = expand(w, k, known, level.shape);
        y.push(perChannel(level, gain(w, 'log_gain', k, quality), (value, gain, n) =>
            clamp(roundHalfToEven((value - known.data[n]) * gain) || 0, -MAX_LATENT, MAX_LATENT)));  // NaN: 0
        known = add(known, perChannel(y[k], gain(w, 'log_inverse', k, quality), (value, gain) => value * gain));
    }
    return y;
}

// Rounded latents of each level → latents for the decoder, [C, h, w].
function dequantise(w, y, quality) {
    return y.reduce((known, level, k) => add(
        expand(w, k, known, level.shape),
        perChannel(level, gain(w, 'log_inverse', k, quality), (value, gain) => value * gain)), null);
}

// What the levels before level k say about it: nothing about the first one.
function expand(w, k, known, shape) {
    return k ? crop(up(w, `up.${k - 1}`, known), shape[1], shape[2]) : zeros(...shape);
}

// A gain per channel: the exponential of lines between the anchors of a table [levels, anchors, C].
function gain(w, name, k, quality) {
    const {shape: [, anchors, C], data} = w.tensors[name], position = quality * (anchors - 1) / 100;
    const low = Math.min(Math.floor(position), anchors - 2), first = (k * anchors + low) * C;
    return Array.from({length: C}, (_, c) =>
        Math.exp(data[first + c] + (position - low) * (data[first + C + c] - data[first + c])));
}

function perChannel({shape, data}, values, change) {
    const sites = shape[1] * shape[2];
    return {shape, data: data.map((value, n) => change(value, values[Math.floor(n / sites)], n))};
}

// Repeat the last row and column until height and width are multiples of r.
function replicate(x, r) {
    const [C, H, W] = x.shape, rows = Math.ceil(H / r) * r, columns = Math.ceil(W / r) * r;
    return resample(x, rows, columns, (c, i, j) => x.data[(c * H + Math.min(i, H - 1)) * W + Math.min(j, W - 1)]);
}

const crop = (x, H, W) => resample(x, H, W, (c, i, j) => x.data[(c * x.shape[1] + i) * x.shape[2] + j]);

// F.interpolate(mode="bilinear"): pixels lie in the middle of their squares.
function interpolate(x, r) {
    const [C, H, W] = x.shape, along = size => Array.from({length: size * r}, (_, n) => {
        const at = Math.max((n + 0.5) / r - 0.5, 0), low = Math.floor(at);
        return [low, Math.min(low + 1, size - 1), at - low];
    });
    const rows = along(H), columns = along(W);
    return resample(x, H * r, W * r, (c, i, j) => {
        const [above, below, y] = rows[i], [left, right, t] = columns[j], at = (i, j) => x.data[(c * H + i) * W + j];
        return (1 - y) * ((1 - t) * at(above, left) + t * at(above, right))
            + y * ((1 - t) * at(below, left) + t * at(below, right));
    });
}

function resample({shape: [C]}, H, W, value) {
    const y = zeros(C, H, W);
    for (let c = 0, n = 0; c < C; c++) {
        for (let i = 0; i < H; i++) for (let j = 0; j < W; j++) y.data[n++] = value(c, i, j);
    }
    return y;
}

// ---- codec.py: images to bytes and back

export const SMALL = 64;                            // pixels of the longer side of thumbnails
const FACTOR = 4;                            // pixels along the side of a site of the finest level

// Load the codec from a folder; its two networks are loaded when they are needed.
export async function load(folder) {
    const [about, {tensors}] = await Promise.all([
        get(new URL('codec.json', folder)).then(answer => answer.json()),
        loadWeights(new URL('tables.safetensors', folder))]);
    const identity = Uint8Array.from(about.identity.match(/../g), digits => parseInt(digits, 16));
    return {folder, identity, tables: cumulative(tensors.tables.data), models: {}};
}

// The network for images of this size.
export function model(codec, H, W) {
    const name = Math.max(H, W) <= SMALL ? 'thumbnails' : 'photographs';
    codec.models[name] ??= loadWeights(new URL(`${name}.safetensors`, codec.folder)).then(
        w => ({...w, norm: scaleShift}),  // the norms measure nothing
        error => { delete codec.models[name]; throw error; });  // so that the next picture tries again
    return codec.models[name];
}

// uint8 image [3, H, W], or a batch [B, 3, H, W], and a quality from 0 (fewest bytes) to 100 → the bytes of a file.
export async function compress(codec, image, quality) {
    const [H, W] = image.shape.slice(-2), w = await model(codec, H, W);
    return write(codec, w, image.shape, analyse(w, image).map(z => quantise(w, z, quality)), quality);
}

// The bytes of `compress`, or of Python → the image or batch. An Error, whose message is a sentence, for other bytes.
export async function decompress(codec, data) {
    const {y, header: {height, width, images, quality}} = await read(codec, data);
    const w = await model(codec, height, width);
    const pictures = y.map(levels => synthesise(w, levels, height, width, quality));
    return images ? {shape: [images, 3, height, width], data: join(pictures)} : pictures[0];
}

// uint8 [3, H, W] or [B, 3, H, W], repeated beyond their edges → latents of the encoder [C, h, w], of each image.
export function analyse(w, {shape, data}) {
    const [H, W] = shape.slice(-2), size = 3 * H * W;
    return Array.from({length: data.length / size}, (_, n) => {
        const x = Float32Array.from(data.subarray(n * size, (n + 1) * size), byte => Math.fround(byte / 127.5) - 1);
        return encodePicture(w, replicate({shape: [3, H, W], data: x}, FACTOR), 'autoencoder.');
    });
}

// Rounded latents of each level of an image → uint8 [3, H, W].
export function synthesise(w, y, H, W, quality) {
    return toUint8(crop(decodeLatent(w, dequantise(w, y, quality), 'autoencoder.'), H, W));
}

// Floats, clamped to [-1, 1] → bytes, rounded as in PyTorch.
export function toUint8({shape, data}) {
    const byte = x => roundHalfToEven(Math.fround(Math.fround(clamp(x, -1, 1) + 1) * 127.5));
    return {shape, data: Uint8Array.from(data, byte)};
}

// Rounded latents y[n][level] of the images of a shape → a file.
export function write(codec, w, shape, y, quality) {
    const [H, W] = shape.slice(-2), images = shape.length === 4 ? shape[0] : 0;
    const levels = y[0].map(({shape}, k) => ({shape: [y.length, ...shape], data: join(y.map(image => image[k]))}));
    const payload = encode(levels, contexts(w, quality), codec.tables);
    return pack({height: H, width: W, images, quality}, payload, codec.identity);
}

// A file → its header and rounded latents y[n][level].
export async function read(codec, data) {
    const [header, payload] = unpack(data, codec.identity), {height: H, width: W, images, quality} = header;
    const w = await model(codec, H, W), N = Math.max(images, 1);
    const levels = decode(payload, N, sizes(w, H, W), contexts(w, quality), codec.tables);
    const part = ({shape: [, ...shape], data}, n) => {
        const size = data.length / N;
        return {shape, data: data.subarray(n * size, (n + 1) * size)};
    };
    return {header, y: Array.from({length: N}, (_, n) => levels.map(level => part(level, n)))};
}

// The context models of all levels at a quality, in integers.
const contexts = (w, quality) => w.config.hidden.map((_, k) => new IntegerContext(w, `contexts.${k}`, quality));

// Rows and columns of latents of each level, for an image of H×W pixels.
const sizes = (w, H, W) => w.config.hidden.map((_, k, {length}) => FACTOR * 4 ** (length - 1 - k)).map(
    factor => [Math.ceil(H / factor), Math.ceil(W / factor)]);

function join(parts) {
    const {length, constructor} = parts[0].data, data = new constructor(length * parts.length);
    parts.forEach((part, n) => data.set(part.data, n * length));
    return data;
}
