// Operations on latents, as in dcae_lib/explore/latents.py. A latent is a tensor [C, h, w].

import {decode, frozenNorm} from './dcae.js';

// The result of f at every number of a latent, called with it, its place and its channel.
export function each({shape, data}, f) {
    const sites = shape[1] * shape[2];
    return {shape, data: data.map((value, n) => f(value, n, Math.floor(n / sites)))};
}

// Multiply each channel's distance from its mean by a gain.
export const scaleChannels = (z, gains, {data: mean}) =>
    each(z, (value, n, c) => mean[c] + gains[c] * (value - mean[c]));

// A straight line from a to b: a where t is 0, b where it is 1.
export const lerp = (a, b, t) => ({shape: a.shape, data: a.data.map((value, n) => value + t * (b.data[n] - value))});

// Round each channel to equally spaced values from low to high; returns the values and the level of each.
export function levelsOf(z, levels, low, high) {
    const step = low.data.map((value, c) => Math.max(1e-12, (high.data[c] - value) / (levels - 1)));
    const level = (value, c) => Math.min(levels - 1, Math.max(0, Math.round((value - low.data[c]) / step[c])));
    const index = each(z, (value, n, c) => level(value, c));
    return {values: each(index, (value, n, c) => low.data[c] + value * step[c]), index};
}

// The bits of all numbers in an ideal code, given the bits of each level in each channel: [C, levels].
export function bitsOf(index, {shape: [, levels], data: bits}) {
    return each(index, (level, n, c) => bits[c * levels + level]).data.reduce((a, b) => a + b);
}

// A network whose norms are frozen at their statistics for z, and the pixels that it makes of z.
export function frozenAt(w, z) {
    const frozen = {...w, norm: frozenNorm()};
    return {frozen, before: decode(frozen, z)};
}

// Find the pixels that convolutions connect with chosen sites (an array of h·w booleans): an array of H·W booleans.
export function reach({frozen, before}, z, sites) {
    const after = decode(frozen, each(z, (value, n) => value + sites[n % sites.length]));
    const pixels = before.data.length / 3, near = new Array(pixels).fill(false);
    before.data.forEach((value, n) => { near[n % pixels] ||= value !== after.data[n]; });
    return near;
}

// Each pixel's change on a log scale, from 0 for 0.1 level to 1 for 255, as a square of scale² pixels; NaN, two pixels
// wide, around the region `near`: [scale·H, scale·W].
export function logChange(y, x, near, scale = 8) {
    const [, H, W] = x.shape, shape = [scale * H, scale * W], data = new Float32Array(scale * H * scale * W);
    const place = n => Math.floor(n / scale), sites = H * W;
    const inside = (row, column) => near[place(row) * W + place(column)];
    const brightness = Array.from({length: sites}, (_, k) => {
        const change = Math.max(...[k, k + sites, k + 2 * sites].map(n => Math.abs(y.data[n] - x.data[n])));
        return (Math.log10(Math.min(255, Math.max(0.1, 127.5 * change))) + 1) / (Math.log10(255) + 1);
    });
    for (let row = 0, n = 0; row < shape[0]; row++) {
        const above = Math.max(0, row - 2), below = Math.min(shape[0] - 1, row + 2);
        for (let column = 0; column < shape[1]; column++, n++) {  // what is two pixels away, in any direction?
            const left = Math.max(0, column - 2), right = Math.min(shape[1] - 1, column + 2);
            const beside = inside(above, left) || inside(above, right) || inside(below, left) || inside(below, right);
            data[n] = beside && !inside(row, column) ? NaN : brightness[place(row) * W + place(column)];
        }
    }
    return {shape, data};
}
