// A worker that compresses, so that the page never waits: it is sent {id, task, argument}, and answers {id, result}.

import {analyse, decompress, load, model, quantise, synthesise, unpack, write} from './codec.js';

const LARGEST = 2 ** 20;  // pixels of a file that is opened; more would take long, and gigabytes

let loading;
const codec = () => loading ??= load(new URL('weights/', import.meta.url)).catch(error => {
    loading = undefined;
    throw error;
});
let latest, now;  // the picture asked for last; the one that is compressed, its network, and its latents

const tasks = {
    async open(image) {
        latest = image;
        const w = await model(await codec(), ...image.shape.slice(1));
        if (latest === image) now = {image, w, z: analyse(w, image)[0]};  // z is the same at all qualities
    },

    async compress(quality) {
        const {image: {shape}, w, z} = now, y = quantise(w, z, quality);
        const data = write(await codec(), w, shape, [y], quality);
        return {data, image: synthesise(w, y, shape[1], shape[2], quality)};
    },

    async decompress(data) {
        const loaded = await codec(), [header] = unpack(data, loaded.identity), {height, width, images} = header;
        if (height * width * Math.max(images, 1) > LARGEST) {
            throw new Error(`${width}×${height} pixels are too many for a page; the command dcae decompress opens it`);
        }
        return {header, image: await decompress(loaded, data)};
    },
};

onmessage = async ({data: {id, task, argument}}) => {
    try {
        postMessage({id, result: await tasks[task](argument)});
    } catch (error) {
        postMessage({id, error: error.message});
    }
};
