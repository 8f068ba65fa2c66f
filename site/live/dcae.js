// The DCAE in plain JavaScript, in the order and with the names of dcae_lib: rearrange, blocks, model.
// A tensor is {shape: [C, H, W], data: Float32Array}: one picture or latent, without a batch. Pixels are in [-1, 1].
// Weights are {tensors, config, norm}: tensors by PyTorch's names, and the function that stands for the norms.

// ---- rearrange

// Move every r×r patch of pixels into channels: [C, H, W] → [C·r², H/r, W/r].
export function spaceToChannel({shape: [C, H, W], data}, r) {
    const [h, w] = [H / r, W / r], y = zeros(C * r * r, h, w);
    for (let k = 0, t = 0; k < C * r * r; k++) {
        const c = Math.floor(k / (r * r)), i = Math.floor(k / r) % r, j = k % r;
        for (let row = 0; row < h; row++) {
            const start = (c * H + row * r + i) * W + j;
            for (let column = 0; column < w; column++) y.data[t++] = data[start + column * r];
        }
    }
    return y;
}

// Lay out every run of r² channels as an r×r patch of pixels: [C, H, W] → [C/r², H·r, W·r].
export function channelToSpace({shape: [C, H, W], data}, r) {
    const y = zeros(C / (r * r), H * r, W * r);
    for (let k = 0, t = 0; k < C; k++) {
        const c = Math.floor(k / (r * r)), i = Math.floor(k / r) % r, j = k % r;
        for (let row = 0; row < H; row++) {
            const start = ((c * H + row) * r + i) * W * r + j;
            for (let column = 0; column < W; column++) y.data[start + column * r] = data[t++];
        }
    }
    return y;
}

// Average runs of C/out consecutive channels: [C, H, W] → [out, H, W].
export function averageChannels({shape: [C, H, W], data}, out) {
    const y = zeros(out, H, W), sites = H * W, run = C / out;
    for (let k = 0; k < C; k++) {
        const start = Math.floor(k / run) * sites;
        for (let n = 0; n < sites; n++) y.data[start + n] += data[k * sites + n] / run;
    }
    return y;
}

// Repeat every channel out/C times, copies next to each other: [C, H, W] → [out, H, W].
export function duplicateChannels({shape: [C, H, W], data}, out) {
    const y = zeros(out, H, W), sites = H * W;
    for (let k = 0; k < out; k++) {
        const c = Math.floor(k * C / out);
        y.data.set(data.subarray(c * sites, (c + 1) * sites), k * sites);
    }
    return y;
}

// ---- what PyTorch has ready

export function zeros(...shape) {
    return {shape, data: new Float32Array(shape.reduce((a, b) => a * b))};
}

export function add(a, b) {
    return {shape: a.shape, data: a.data.map((value, n) => value + b.data[n])};
}

export function silu({shape, data}) {
    return {shape, data: data.map(value => value / (1 + Math.exp(-value)))};
}

// Surround each channel with zeros, so that the loops of a convolution need not ask where the border is.
export function pad({shape: [C, H, W], data}, margin) {
    const y = zeros(C, H + 2 * margin, W + 2 * margin);
    for (let row = 0; row < C * H; row++) {
        const c = Math.floor(row / H);
        y.data.set(data.subarray(row * W, (row + 1) * W), (row + (2 * c + 1) * margin) * (W + 2 * margin) + margin);
    }
    return y;
}

// Convolution with a kernel of 3×3 or 1×1, zeros around the picture: [i, H, W] → [o, H/stride, W/stride].
export function conv(w, name, x, stride = 1) {
    const {shape: [outputs, inputs, size], data: k} = w.tensors[`${name}.weight`];
    const bias = w.tensors[`${name}.bias`].data, [, H, W] = x.shape;
    const [h, width] = [H / stride, W / stride], y = zeros(outputs, h, width), out = y.data;
    const padded = pad(x, (size - 1) / 2), a = padded.data, [, rows, step] = padded.shape;
    for (let o = 0, n = 0; o < outputs; o++) {
        out.fill(bias[o], o * h * width, (o + 1) * h * width);
        for (let i = 0; i < inputs; i++, n += size * size) {
            const k0 = k[n], k1 = k[n + 1], k2 = k[n + 2], k3 = k[n + 3], k4 = k[n + 4];
            const k5 = k[n + 5], k6 = k[n + 6], k7 = k[n + 7], k8 = k[n + 8];
            for (let row = 0; row < h; row++) {  // all of the kernel along one row, its weights in registers
                let p = (i * rows + row * stride) * step, t = (o * h + row) * width;
                const end = t + width;
                if (size === 1) for (; t < end; p += stride) out[t++] += k0 * a[p];
                else for (; t < end; p += stride) {
                    const q = p + step, r = q + step;
                    out[t++] += k0 * a[p] + k1 * a[p + 1] + k2 * a[p + 2] + k3 * a[q] + k4 * a[q + 1] + k5 * a[q + 2]
                        + k6 * a[r] + k7 * a[r + 1] + k8 * a[r + 2];
                }
            }
        }
    }
    return y;
}

// Transposed convolution with kernel 4, stride 2 and padding 1: [i, H, W] → [o, 2·H, 2·W].
// An even row of the result gets row 1 of the kernel from the input row of its place and row 3 from the one above;
// an odd row gets row 0 from the input row below and row 2 from that of its place. Columns likewise.
export function convTransposed(w, name, x) {
    const {shape: [inputs, outputs], data: k} = w.tensors[`${name}.weight`];
    const bias = w.tensors[`${name}.bias`].data, [, H, W] = x.shape;
    const y = zeros(outputs, 2 * H, 2 * W), out = y.data, {data: a} = pad(x, 1);
    for (let o = 0; o < outputs; o++) {
        out.fill(bias[o], o * 4 * H * W, (o + 1) * 4 * H * W);
        for (let i = 0; i < inputs; i++) {
            for (let row = 0; row < 2 * H; row++) {
                const odd = row % 2, n = (i * outputs + o) * 16 + 4 * (3 - odd), m = n - 8;  // above, below
                const n0 = k[n], n1 = k[n + 1], n2 = k[n + 2], n3 = k[n + 3];
                const m0 = k[m], m1 = k[m + 1], m2 = k[m + 2], m3 = k[m + 3];
                let p = (i * (H + 2) + (row + odd) / 2) * (W + 2), q = p + W + 2, t = (o * 2 * H + row) * 2 * W;
                let a0 = a[p++], a1 = a[p++], b0 = a[q++], b1 = a[q++];  // left, here, right: 0, 1, 2
                for (const end = t + 2 * W; t < end; t += 2) {
                    const a2 = a[p++], b2 = a[q++];
                    out[t] += n3 * a0 + n1 * a1 + m3 * b0 + m1 * b1;
                    out[t + 1] += n2 * a1 + n0 * a2 + m2 * b1 + m0 * b2;
                    a0 = a1, a1 = a2, b0 = b1, b1 = b2;
                }
            }
        }
    }
    return y;
}

// Means of squares of size² pixels: [C, H, W] → [C, H/size, W/size].
export function avgPool(x, size) {
    return averageChannels(spaceToChannel(x, size), x.shape[0]);
}

// Repeat every pixel in a square of size² pixels: [C, H, W] → [C, H·size, W·size].
export function upsample(x, size) {
    return channelToSpace(duplicateChannels(x, x.shape[0] * size * size), size);
}

// GroupNorm (gcd(groups, C) groups): each group of channels minus its mean, divided by its standard deviation.
export function groupNorm(w, name, x) {
    return normalise(w, name, x, statistics(w, x));
}

// A scale and a shift per channel: a GroupNorm whose statistics are constants.
export function scaleShift(w, name, {shape, data}) {
    const scale = w.tensors[`${name}.weight`].data, shift = w.tensors[`${name}.bias`].data;
    const sites = shape[1] * shape[2], y = zeros(...shape);
    for (let c = 0, n = 0; c < shape[0]; c++) {
        for (const end = n + sites; n < end; n++) y.data[n] = scale[c] * data[n] + shift[c];
    }
    return y;
}

// A norm that keeps the statistics of the first input that each layer sees.
export function frozenNorm() {
    const kept = new Map();
    return (w, name, x) => {
        if (!kept.has(name)) kept.set(name, statistics(w, x));
        return normalise(w, name, x, kept.get(name));
    };
}

// The mean and 1 / the standard deviation of each group of channels, summed in doubles.
function statistics({config}, {shape: [C, H, W], data}) {
    const groups = gcd(config.groups, C), size = C / groups * H * W;
    return Array.from({length: groups}, (_, g) => {
        let sum = 0, squares = 0;
        for (let n = g * size; n < (g + 1) * size; n++) sum += data[n];
        const mean = sum / size;
        for (let n = g * size; n < (g + 1) * size; n++) squares += (data[n] - mean) ** 2;
        return [mean, 1 / Math.sqrt(squares / size + 1e-5)];
    });
}

function normalise(w, name, {shape, data}, groups) {
    const weight = w.tensors[`${name}.weight`].data, bias = w.tensors[`${name}.bias`].data;
    const sites = shape[1] * shape[2], y = zeros(...shape);
    for (let c = 0, n = 0; c < shape[0]; c++) {
        const [mean, scale] = groups[Math.floor(c * groups.length / shape[0])];
        for (const end = n + sites; n < end; n++) y.data[n] = (data[n] - mean) * scale * weight[c] + bias[c];
    }
    return y;
}

const gcd = (a, b) => b ? gcd(b, a % b) : a;

// ---- blocks

// Shrink by 4 without parameters: spaceToChannel(2) → averageChannels(out) → avgPool(2).
export const poolDown = (x, out) => avgPool(averageChannels(spaceToChannel(x, 2), out), 2);

// Grow by 4 without parameters: channelToSpace(2) → upsample(2) → duplicateChannels(out).
export const poolUp = (x, out) => duplicateChannels(upsample(channelToSpace(x, 2), 2), out);

// Norm → SiLU → convolution: [i, H, W] → [o, H/stride, W/stride].
export const normActConv = (w, name, x, stride = 1) =>
    conv(w, `${name}.2`, silu(w.norm(w, `${name}.0`, x)), stride);

// Norm → SiLU → transposed convolution of stride 2: [i, H, W] → [o, 2·H, 2·W].
export const normActUp = (w, name, x) => convTransposed(w, `${name}.2`, silu(w.norm(w, `${name}.0`, x)));

// Two units plus identity, or plus a 1×1 convolution where the width changes.
export function residualBlock(w, name, x) {
    const y = normActConv(w, `${name}.branch.1`, normActConv(w, `${name}.branch.0`, x));
    return add(`${name}.shortcut.weight` in w.tensors ? conv(w, `${name}.shortcut`, x) : x, y);
}

// Two residual blocks plus one unit around both.
export function middleStage(w, name, x) {
    const y = residualBlock(w, `${name}.branch.1`, residualBlock(w, `${name}.branch.0`, x));
    return add(normActConv(w, `${name}.shortcut`, x), y);
}

// Two units of stride 2 plus the shortcut: [i, H, W] → [o, H/4, W/4].
export function downBlock(w, name, x) {
    const y = normActConv(w, `${name}.branch.1`, normActConv(w, `${name}.branch.0`, x, 2), 2);
    return add(y, poolDown(x, y.shape[0]));
}

// Two transposed units of stride 2 plus the shortcut: [i, H, W] → [o, 4·H, 4·W].
export function upBlock(w, name, x) {
    const y = normActUp(w, `${name}.branch.1`, normActUp(w, `${name}.branch.0`, x));
    return add(y, poolUp(x, y.shape[0]));
}

// ---- model

// Pixels in [-1, 1], [3, H, W], H and W multiples of 4 → latent [16, H/4, W/4]. prefix: where in a larger network.
export function encode(w, x, prefix = '') {
    const [, H, W] = x.shape, name = `${prefix}encoder`;
    if (H % 4 || W % 4) throw new Error(`height and width must be multiples of 4, got ${H}×${W}`);
    return middleStage(w, `${name}.stage`, downBlock(w, `${name}.down.0`, conv(w, `${name}.stem`, x)));
}

// Latent [16, h, w] → pixels [3, 4·h, 4·w], not clamped.
export function decode(w, z, prefix = '') {
    const name = `${prefix}decoder`;
    return normActConv(w, `${name}.head`, upBlock(w, `${name}.up.0`, middleStage(w, `${name}.stage`, z)));
}

// ---- files

// Read a file of weights, with the network's config in its metadata.
export async function load(url) {
    const {tensors, metadata} = readSafetensors(await (await get(url)).arrayBuffer());
    const config = JSON.parse(metadata.config ?? '{}');
    return {tensors, metadata, config, norm: groupNorm};
}

// Fetch a file, or say why it is not there.
export async function get(url) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${url} cannot be loaded: the server says ${answer.status} ${answer.statusText}`);
    return answer;
}

// A safetensors file: the length of a header, the header in JSON, the numbers. Halves become floats.
function readSafetensors(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const text = new TextDecoder().decode(new Uint8Array(buffer, 8, length));
    const {__metadata__: metadata = {}, ...header} = JSON.parse(text);
    const tensors = {};
    for (const [name, {dtype, shape, data_offsets: [start, end]}] of Object.entries(header)) {
        const bytes = buffer.slice(8 + length + start, 8 + length + end);  // a copy: views must begin at whole numbers
        tensors[name] = {shape, data: READERS[dtype](bytes)};
    }
    return {tensors, metadata};
}

const READERS = {
    F16: bytes => Float32Array.from(new Uint16Array(bytes), half),
    F32: bytes => new Float32Array(bytes),
    U8: bytes => new Uint8Array(bytes),
    I32: bytes => new Int32Array(bytes),
};

// 1 bit of sign, 5 of exponent, 10 of fraction → a number.
function half(bits) {
    const sign = bits >> 15 ? -1 : 1, exponent = bits >> 10 & 31, fraction = bits & 1023;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * fraction / 1024);
}
