// Pictures in a page: read from files, drawn on canvases, compared. Tensors as in dcae.js, pixels in [-1, 1].

import {zeros} from './dcae.js';

// Bytes of a picture [3, H, W] → floats in [-1, 1].
export const toModel = ({shape, data}) => ({shape, data: Float32Array.from(data, byte => byte / 127.5 - 1)});

export const clamp = ({shape, data}) => ({shape, data: data.map(value => Math.min(1, Math.max(-1, value)))});

// Read a file that the reader chose, upright and on white, scaled down to at most maxSide pixels a side.
// square: cut out the middle and scale it to maxSide × maxSide. Nothing leaves the page.
export async function readPicture(file, maxSide, square = false) {
    let bitmap;
    try {
        bitmap = await createImageBitmap(file, {imageOrientation: 'from-image'});
    } catch {
        const name = file.name ?? 'this';
        throw new Error(`${name} is not a picture that this browser can read. Choose a PNG, JPEG or WebP.`);
    }
    const x = fromBitmap(bitmap, maxSide, square);
    bitmap.close();
    return x;
}

// A bitmap, or a video's picture of this moment, as a tensor.
export function fromBitmap(bitmap, maxSide, square = false) {
    let width = bitmap.videoWidth || bitmap.width, height = bitmap.videoHeight || bitmap.height;
    const smaller = Math.min(width, height), larger = Math.max(width, height);
    const cut = square ? [(width - smaller) / 2, (height - smaller) / 2, smaller, smaller] : [0, 0, width, height];
    const scale = square ? maxSide / smaller : Math.min(1, maxSide / larger);
    [width, height] = cut.slice(2).map(side => Math.max(1, Math.round(side * scale)));
    const canvas = document.createElement('canvas');
    Object.assign(canvas, {width, height});
    const context = canvas.getContext('2d', {willReadFrequently: true});
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, height);
    context.imageSmoothingQuality = 'high';
    context.drawImage(bitmap, ...cut, 0, 0, width, height);
    return fromImageData(context.getImageData(0, 0, width, height));
}

function fromImageData({width, height, data}) {
    const x = zeros(3, height, width), sites = width * height;
    for (let n = 0; n < sites; n++) {
        for (let c = 0; c < 3; c++) x.data[c * sites + n] = data[4 * n + c] / 127.5 - 1;
    }
    return x;
}

// Draw a picture [3, H, W], rounded to bytes, with one pixel of the canvas for each of its own.
export const show = (canvas, x) => draw(canvas, toImageData(x));

export function toImageData({shape: [, H, W], data}) {
    const sites = H * W, image = new ImageData(W, H);
    for (let n = 0; n < sites; n++) {  // a clamped array rounds, and clamps to 0 … 255
        for (let c = 0; c < 3; c++) image.data[4 * n + c] = (data[c * sites + n] + 1) * 127.5;
        image.data[4 * n + 3] = 255;
    }
    return image;
}

// Draw numbers from 0 to 1, [H, W], in the 256 colours of a map [256, 3]; NaN is white.
export function showInColours(canvas, {shape: [H, W], data}, {data: colours}) {
    const image = new ImageData(W, H), pixels = new Uint32Array(image.data.buffer), table = new Uint32Array(256);
    for (let k = 0; k < 256; k++) {  // red in the lowest byte: all machines with a browser are little-endian
        table[k] = 255 << 24 | colours[3 * k + 2] << 16 | colours[3 * k + 1] << 8 | colours[3 * k];
    }
    for (let n = 0; n < pixels.length; n++) {
        pixels[n] = Number.isNaN(data[n]) ? 0xffffffff : table[Math.min(255, Math.max(0, Math.floor(256 * data[n])))];
    }
    draw(canvas, image);
}

function draw(canvas, image) {
    if (canvas.width !== image.width) canvas.width = image.width;
    if (canvas.height !== image.height) canvas.height = image.height;
    canvas.getContext('2d', {willReadFrequently: true}).putImageData(image, 0, 0);  // on the CPU: small and often new
}

// Peak signal-to-noise ratio in dB of two pictures, y clamped to [-1, 1]; infinite if they are equal.
export function psnr(y, x) {
    let sum = 0;
    for (let n = 0; n < x.data.length; n++) sum += ((Math.min(1, Math.max(-1, y.data[n])) - x.data[n]) / 2) ** 2;
    return -10 * Math.log10(sum / x.data.length);
}

export const decibels = (y, x) => `${psnr(y, x).toFixed(1).replace('Infinity', '∞')} dB`;

// |y - x| times gain, from black to white.
export function errorMap(y, x, gain = 4) {
    return {shape: x.shape, data: x.data.map((value, n) => Math.min(1, Math.abs(y.data[n] - value) * gain - 1))};
}
