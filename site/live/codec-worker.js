// A worker that compresses, so that the page never waits: it is sent {id, task, argument}, and answers {id, result}.

import {analyse, decompress, load, model, quantise, synthesise, unpack, write} from './codec.js';

const LARGEST = 2 ** 20;  // pixels of a file that is opened; more would take long, and gigabytes

const loading = load(new URL('weights/', import.meta.url));
let image, w, z;  // the picture that is compressed now, its network, and its latents, of all qualities the same

const tasks = {
    async open(picture) {
        image = picture;
        w = await model(await loading, ...image.shape.slice(1));
        z = analyse(w, image)[0];
    },

    async compress(quality) {
        const y = quantise(w, z, quality), [, H, W] = image.shape;
        return {data: write(await loading, w, image.shape, [y], quality), image: synthesise(w, y, H, W, quality)};
    },

    async decompress(data) {
        const codec = await loading, [header] = unpack(data, codec.identity), {height, width, images} = header;
        if (height * width * Math.max(images, 1) > LARGEST) {
            throw new Error(`${width}×${height} pixels are too many for a page; the command dcae decompress opens it`);
        }
        return {header, image: await decompress(codec, data)};
    },
};

onmessage = async ({data: {id, task, argument}}) => {
    try {
        postMessage({id, result: await tasks[task](argument)});
    } catch (error) {
        postMessage({id, error: error.message});
    }
};
