// What test_live.py does in the page.

import {decode, encode, load} from '/live/dcae.js';
import {toImageData, toModel} from '/live/pictures.js';

const explorer = name => document.querySelector(`.dcae-${name}`);

export async function twelve() {
    const w = await load('/live/weights/dcae.safetensors');
    const {images: {data}} = (await load('/live/weights/pictures.safetensors')).tensors;
    return Array.from({length: 12}, (_, k) => {
        const x = toModel({shape: [3, 32, 32], data: data.subarray(3072 * k, 3072 * (k + 1))});
        return [...toImageData(decode(w, encode(w, x))).data];
    });
}

export function move(name, id, value) {
    const section = explorer(name), control = section.querySelector(`[data-control="${id}"]`), [kind, k] = id.split('-');
    if (kind === 'site') section.querySelectorAll('.dcae-sites button')[k].click();
    else if (control.matches('fieldset')) control.querySelectorAll('input')[value].click();
    else if (control.type === 'checkbox') control.click();
    else {
        control.value = value;
        control.dispatchEvent(new Event('input'));
    }
}

// What the canvases show after the next frame, by name: [width, height, bytes].
export async function pictures(name) {
    for (let k = 0; k < 2; k++) await new Promise(requestAnimationFrame);
    return Object.fromEntries([...explorer(name).querySelectorAll('[data-picture]')].map(canvas => {
        const {width, height} = canvas, {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
        return [canvas.dataset.picture, [width, height, [...data]]];
    }));
}

// Milliseconds from an event to the end of the frame in which the pixels have changed, thirty times.
export async function waits(name, selector) {
    const control = explorer(name).querySelector(selector), found = [];
    for (let k = 0; k < 30; k++) {
        await new Promise(resolve => setTimeout(resolve, 20));
        const start = performance.now();
        if (control.type !== 'range') control.click();
        else {
            k % 2 ? control.stepUp() : control.stepDown();
            control.dispatchEvent(new Event('input'));
        }
        await new Promise(resolve => requestAnimationFrame(() => setTimeout(resolve)));
        found.push(performance.now() - start);
    }
    return found;
}
