// Explorers of the latents, as in dcae_lib/explore/explorers.py, without a kernel: the network runs in the page.

import {decode, encode, get, load} from './dcae.js';
import {bitsOf, each, frozenAt, lerp, levelsOf, logChange, reach, scaleChannels} from './latents.js';
import {
    clamp, decibels, errorMap, fromBitmap, readPicture, show, showInColours, toImageData, toModel,
} from './pictures.js';
import {reconstruct} from './tiles.js';
import {Board, Explorer, Picture, Thumbnails, button, checkbox, choosers, el, row, slider} from './widgets.js';

const LEVELS = [2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256];
const SIDE = 1024;  // pixels, of a photograph at most: on a phone, a few seconds

const EXPLORERS = {hero, channels, interpolation, directions, quantisation, damage, brush, upload};

// Put an explorer in a place of the page, once all is there that it needs.
export async function explore(name, place) {
    const lab = await (loaded ??= loadAll().catch(error => { loaded = undefined; throw error; }));
    if (name !== 'hero' && !lab.measured.moves) Object.assign(lab.measured, (await weights('statistics')).tensors);
    EXPLORERS[name](place, lab);
}

let loaded;  // forgotten when it fails: the next explorer tries again

const weights = name => load(new URL(`weights/${name}.safetensors`, import.meta.url));

// The network, a gallery of items {name, x, z}, and what was measured on 500 pictures (tools/export_live.py).
async function loadAll() {
    const [w, {tensors: measured, metadata}] = await Promise.all(['dcae', 'pictures'].map(weights));
    const names = JSON.parse(metadata.names), classes = JSON.parse(metadata.classes);
    const gallery = rows(measured.images).map((x, k) => ({name: names[k], x: toModel(x)}));
    return {w, measured, gallery, classes, strips: []};
}

// The pictures, latents or channels of which a tensor is made.
function rows({shape: [count, ...shape], data}) {
    const size = data.length / count;
    return Array.from({length: count}, (_, k) => ({shape, data: data.subarray(k * size, (k + 1) * size)}));
}

// The latent of an item, and what the decoder makes of a latent.
const latent = (lab, item) => item.z ??= encode(lab.w, item.x);
const picture = (w, z) => clamp(decode(w, z));

// Thumbnails of the gallery, to which the reader can add pictures of their own: cut to a square, 32×32 pixels. They
// are then in the gallery of all explorers, and chosen in this one.
function thumbnails(lab, name, chosen, explorer, items = lab.gallery) {
    const add = file => explorer().attempt(async () => {
        if (!file) return;
        const item = {name: file.name, x: await readPicture(file, 32, true)};
        lab.gallery.push(item);
        const inputs = new Map(lab.strips.map(each => [each, each.add(item)]));
        inputs.get(strip).click();
    });
    const strip = new Thumbnails(name, items, chosen, () => explorer().redraw(), add);
    lab.strips.push(strip);
    return strip;
}

// An original, a result and four times their difference; returns the sentence for screen readers.
function compare(pictures, x, y, title) {
    const text = `${title}, ${decibels(y, x)}`;
    pictures.original.show(x);
    pictures.result.show(y, text);
    pictures.difference.show(errorMap(y, x));
    return text;
}

const compared = () => ({
    original: new Picture('original'),
    result: new Picture('result'),
    difference: new Picture('difference', 'difference × 4'),
});
const elements = parts => Object.values(parts).map(part => part.element);

// ---- the front page: a picture, its sixteen maps, and the picture again; a map that is pressed is switched off

function hero(place, lab) {
    const {mean} = lab.measured, maps = Array.from(mean.data, () => el('canvas', {role: 'presentation'}));
    const pick = thumbnails(lab, 'image', 2, () => explorer);
    const original = new Picture('original', 'a picture: 3,072 numbers'), result = new Picture('result');
    const buttons = maps.map((map, k) => el('button', {
        type: 'button', 'aria-pressed': true, 'aria-label': `channel ${k}`, 'data-control': `switch-${k}`,
        click: () => turn(k, buttons[k].getAttribute('aria-pressed') !== 'true'),
    }, map));
    const turn = (k, on) => {
        buttons[k].setAttribute('aria-pressed', on);
        explorer.redraw();
    };
    const draw = () => {
        const gains = buttons.map(button => button.getAttribute('aria-pressed') === 'true' ? 1 : 0), x = pick.item.x;
        const z = scaleChannels(latent(lab, pick.item), gains, mean), y = picture(lab.w, z);
        showMaps(lab, maps, z);
        original.show(x);
        const on = gains.filter(Boolean).length;
        result.show(y, `back again, from ${on === 16 ? 'all 16' : on} channels: ${decibels(y, x)}`);
        return result.caption.textContent;
    };
    const middle = el('figure', {class: 'dcae-picture'}, el('div', {class: 'dcae-maps', role: 'group'}, ...buttons),
        el('figcaption', {}, 'its latent: 16 channels of 8×8 numbers; press one to switch it off'));
    const all = on => button(on ? 'all on' : 'all off', () => maps.forEach((_, k) => turn(k, on)));
    const explorer = new Explorer(place, 'hero', {
        title: 'A picture through the autoencoder', draw,
        pictures: [original.element, middle, result.element],
        controls: [pick.element, row(all(true), all(false))],
    });
}

// Each channel of a latent in colours, blue below zero and red above.
function showMaps(lab, canvases, z) {
    const {bounds, colours} = lab.measured;
    rows(z).forEach((map, k) => {
        const data = map.data.map(value => (value / bounds.data[k] + 1) / 2);
        showInColours(canvases[k], {shape: map.shape, data}, rows(colours)[0]);
    });
}

// ---- notebook 06

function channels(place, lab) {
    const {mean, stamps, costs} = lab.measured, pictures = compared();
    const pick = thumbnails(lab, 'image', 0, () => explorer), redraw = () => explorer.redraw();
    const maps = [], switches = [], gains = [];
    const cells = rows(stamps).map((stamp, k) => {
        const map = el('canvas', {role: 'img', 'aria-label': `map of channel ${k}`});
        const effect = el('canvas', {role: 'img', 'aria-label': `stamp of channel ${k}`});
        const format = value => value.toFixed(1).replace('-', '−');
        const name = `without it ${costs.data[k].toFixed(0)} dB`;
        const gain = slider(name, {value: 1, min: -2, max: 2, step: 0.1, format, id: `gain-${k}`}, redraw);
        gain.input.setAttribute('aria-label', `gain of channel ${k}`);
        const on = checkbox(String(k), true, `switch-${k}`, redraw);
        show(effect, stamp);
        maps.push(map), switches.push(on), gains.push(gain);
        return el('div', {class: 'dcae-channel'}, on.element, map, effect, gain.element);
    });
    const draw = () => {
        const factors = gains.map((gain, k) => switches[k].value ? gain.value : 0);
        const z = scaleChannels(latent(lab, pick.item), factors, mean);
        showMaps(lab, maps, z);
        return compare(pictures, pick.item.x, picture(lab.w, z), 'reconstruction');
    };
    const all = on => () => {
        gains.forEach((gain, k) => { gain.value = 1; switches[k].value = on; });
        redraw();
    };
    const buttons = row(button('reset', all(true)), button('all off', all(false)));
    const explorer = new Explorer(place, 'channels', {
        title: 'Channels of the latent', draw,
        pictures: elements(pictures), controls: [pick.element, buttons, ...cells],
    });
}

function interpolation(place, lab) {
    const redraw = () => explorer.redraw();
    const first = thumbnails(lab, 'from', 3, () => explorer), second = thumbnails(lab, 'to', 7, () => explorer);
    const options = {value: 50, min: 0, max: 100, step: 1, id: 'percent'};
    const percent = slider('of the way', {...options, format: n => `${n} %`}, () => { stop(); redraw(); });
    const through = new Picture('latents', 'through the latents'), across = new Picture('pixels');
    const strip = new Picture('strip', 'above through the latents, below through the pixels');
    strip.element.classList.add('dcae-wide');
    const walk = t => {
        const [a, b] = [first.item, second.item];
        return [picture(lab.w, lerp(latent(lab, a), latent(lab, b), t)), lerp(a.x, b.x, t)];
    };
    let shown = [];  // the two pictures of which the strip is
    const draw = () => {
        const [y, pixels] = walk(percent.value / 100);
        through.show(y);
        across.show(pixels, `through the pixels, ${decibels(y, pixels)} between them`);
        if (shown[0] !== first.item || shown[1] !== second.item) {
            shown = [first.item, second.item];
            showStrip(strip.canvas, Array.from({length: 8}, (_, k) => walk(k / 7)));
        }
        return `${percent.value} % of the way; ${across.caption.textContent}`;
    };
    let since;  // when the walk was at 0 %; undefined while it stands
    const step = now => {
        if (since === undefined) return;
        percent.value = Math.floor((now - since) / 40) % 101;  // 4 seconds from one to the other
        redraw();
        requestAnimationFrame(step);
    };
    const stop = () => {
        since = undefined;
        play.textContent = 'play';
    };
    const play = button('play', () => {
        if (since !== undefined) return stop();
        since = performance.now() - 40 * percent.value;
        play.textContent = 'stop';
        requestAnimationFrame(step);
    });
    const still = matchMedia('(prefers-reduced-motion: reduce)').matches;
    new IntersectionObserver(([{isIntersecting}]) => isIntersecting || stop()).observe(place);
    const explorer = new Explorer(place, 'interpolation', {
        title: 'A walk from one picture to another', draw,
        pictures: elements({through, across, strip}),
        controls: [first.element, second.element, percent.element, ...still ? [] : [row(play)]],
    });
}

// Pairs of pictures in columns.
function showStrip(canvas, pairs) {
    Object.assign(canvas, {width: 32 * pairs.length, height: 64});
    pairs.forEach((pair, column) => pair.forEach((x, k) => {
        canvas.getContext('2d').putImageData(toImageData(x), 32 * column, 32 * k);
    }));
}

function directions(place, lab) {
    const axes = rows(lab.measured.moves), result = new Picture('picture');
    const decoded = (z, name) => ({name, z, x: picture(lab.w, z)});
    const mean = decoded(lab.measured.mean_latent, 'the mean');
    const means = rows(lab.measured.class_means).map((z, k) => decoded(z, `the mean ${lab.classes[k]}`));
    const items = [mean, ...lab.gallery, ...means];
    const pick = thumbnails(lab, 'start', 0, () => explorer, items), redraw = () => explorer.redraw();
    const format = value => `${value > 0 ? '+' : value < 0 ? '−' : ''}${Math.abs(value).toFixed(1)} σ`;
    const steps = axes.map((_, k) => slider(`direction ${k + 1}`, {
        value: 0, min: -3, max: 3, step: 0.1, format, id: `step-${k}`}, redraw));
    const draw = () => {
        const z = axes.reduce((z, axis, k) => each(z, (value, n) => value + steps[k].value * axis.data[n]),
            latent(lab, pick.item));
        result.show(picture(lab.w, z), `${pick.item.name}, moved`);
        return result.caption.textContent;
    };
    const reset = button('reset', () => {
        for (const step of steps) step.value = 0;
        redraw();
    });
    const explorer = new Explorer(place, 'directions', {
        title: 'Directions that images prefer', draw,
        pictures: [result.element], controls: [pick.element, row(reset), ...elements(steps)],
    });
}

function quantisation(place, lab) {
    const {measured} = lab, pictures = compared(), spent = el('p', {});
    const pick = thumbnails(lab, 'image', 0, () => explorer), format = k => LEVELS[k];
    const options = {value: LEVELS.indexOf(16), min: 0, max: LEVELS.length - 1, step: 1, format};
    const levels = slider('levels', options, () => explorer.redraw());
    const draw = () => {
        const n = LEVELS[levels.value], {x} = pick.item;
        const {values, index} = levelsOf(latent(lab, pick.item), n, measured.low, measured.high);
        const bits = bitsOf(index, measured[`bits.${n}`]) / (x.shape[1] * x.shape[2]);
        spent.textContent = `about ${bits.toFixed(2)} bits per pixel; the picture itself has 24`;
        return `${compare(pictures, x, picture(lab.w, values), `${n} levels`)}, ${spent.textContent}`;
    };
    const explorer = new Explorer(place, 'quantisation', {
        title: 'Rounding the latent to a few levels', draw,
        pictures: elements(pictures), controls: [pick.element, levels.element, spent],
    });
}

function damage(place, lab) {
    const {mean, std, noise} = lab.measured;
    const strength = slider('noise', {
        value: 0, min: 0, max: 2, step: 0.05, format: value => `${value.toFixed(2)} σ`}, () => explorer.redraw());
    const change = (z, sites) => each(z, (value, n, c) =>
        sites[n % sites.length] ? mean.data[c] : value + strength.value * noise.data[n] * std.data[c]);
    const title = 'Holes and noise in a latent', hint = 'punch holes: click or drag';
    const explorer = onSites(place, lab, 'damage', {title, hint, change, control: () => strength});
}

function brush(place, lab) {
    let paint;
    const change = (z, sites) => {
        const other = latent(lab, paint.item).data;
        return each(z, (value, n) => sites[n % sites.length] ? other[n] : value);
    };
    const control = () => paint = thumbnails(lab, 'paint', 7, () => explorer);
    const title = 'Painting one latent into another', hint = 'paint: click or drag';
    const explorer = onSites(place, lab, 'brush', {title, hint, change, control});
}

// `damage` or `brush`: choose sites, and see the picture and, on a log scale, where it changes.
function onSites(place, lab, name, {title, hint, change, control}) {
    const redraw = () => explorer.redraw(), [h, w] = lab.measured.noise.shape.slice(1);
    const pick = thumbnails(lab, 'image', 0, () => explorer);
    const result = new Picture('result', hint), changes = new Picture('change'), status = el('p', {});
    const corner = Array.from({length: h * w}, (_, k) => k % w < 2 && k < 2 * w);
    const board = new Board(result.canvas, h, w, corner, redraw);
    result.element.prepend(board.element);
    const freeze = checkbox('freeze the norms', false, 'freeze', redraw);
    let known = {};  // {item, sites, near}: what the convolutions reached the last time, which few moves change
    const draw = () => {
        const {item} = pick, z = latent(lab, item), moved = change(z, board.sites);
        item.frozen ??= frozenAt(lab.w, z);
        const before = clamp(item.frozen.before), y = picture(freeze.value ? item.frozen.frozen : lab.w, moved);
        const touched = new Array(h * w).fill(false);
        z.data.forEach((value, n) => { touched[n % touched.length] ||= value !== moved.data[n]; });
        const sites = String(touched);
        if (known.item !== item || known.sites !== sites) known = {item, sites, near: reach(item.frozen, z, touched)};
        const {near} = known, outside = y.data.filter((_, n) => !near[n % near.length]);
        const were = before.data.filter((_, n) => !near[n % near.length]);
        const far = outside.reduce((most, value, n) => Math.max(most, 127.5 * Math.abs(value - were[n])), 0);
        result.show(y);
        showInColours(changes.canvas, logChange(y, before, near), rows(lab.measured.colours)[1]);
        status.textContent = `${decibels(y, item.x)} from the original`;
        if (!outside.length) status.textContent += '; from here the convolutions reach the whole picture';
        else if (near.some(Boolean)) status.textContent += `; outside the line at most ${far.toFixed(1)} of 255 levels`;
        return status.textContent;
    };
    const clear = button('clear', () => board.clear());
    const explorer = new Explorer(place, name, {
        title, draw, pictures: elements({result, changes}),
        controls: [pick.element, control().element, row(clear, freeze.element), status],
    });
    return explorer;
}

// Your own picture: it never leaves the page.
function upload(place, lab) {
    const views = ['original', 'reconstruction', 'error × 8'], canvases = views.map(name => new Picture(name).canvas);
    const status = el('p', {}), bar = el('progress', {max: 1, value: 0, 'aria-label': 'progress'});
    const save = el('a', {class: 'dcae-button', hidden: true}, 'save the result');
    let view = 1, work = new AbortController();
    const draw = () => canvases.forEach((canvas, k) => { canvas.hidden = k !== view; });
    const take = async (x, name) => {
        work.abort();
        const {signal} = work = new AbortController();
        const [, H, W] = x.shape;
        save.hidden = true;
        bar.style.visibility = 'visible';
        show(canvases[0], x);
        for (const canvas of canvases.slice(1)) Object.assign(canvas, {width: W, height: H});
        status.textContent = `${name}: ${W}×${H} pixels`;
        const y = await reconstruct(lab.w, x, (fraction, rows, top) => {
            bar.value = fraction;
            canvases[1].getContext('2d').putImageData(toImageData(rows), 0, top);
        }, signal);
        if (!y) return;  // another picture has come in between
        bar.style.visibility = 'hidden';
        show(canvases[1], y);
        show(canvases[2], errorMap(y, x, 8));
        status.textContent = `${name}: ${W}×${H} pixels, ${decibels(y, x)}`;
        explorer.say(status.textContent);
        canvases[1].toBlob(blob => {
            URL.revokeObjectURL(save.href);
            const download = `${name.replace(/\.\w+$/, '')}-dcae.png`;
            Object.assign(save, {href: URL.createObjectURL(blob), download, hidden: false});
        });
    };
    const file = chosen => explorer.attempt(async () => {
        if (chosen) await take(await readPicture(chosen, SIDE), chosen.name);
    });
    const camera = video => explorer.attempt(() => take(fromBitmap(video, SIDE), 'camera'));
    const choice = el('fieldset', {class: 'dcae-row', 'aria-label': 'view'}, ...views.map((name, k) => {
        const choose = () => { view = k; explorer.redraw(); };
        const radio = el('input', {type: 'radio', name: 'dcae-view', checked: k === view, change: choose});
        return el('label', {}, radio, name);
    }));
    const explorer = new Explorer(place, 'upload', {
        title: 'Your own picture', draw, pictures: [el('div', {}, ...canvases)],
        controls: [choosers(() => explorer, file, camera), choice, bar, status, row(save),
            el('p', {class: 'dcae-hint'}, 'Choose a picture, take one, or drop one here. It stays in this page.')],
    });
    explorer.element.addEventListener('dragover', event => event.preventDefault());
    explorer.element.addEventListener('drop', event => { event.preventDefault(); file(event.dataTransfer.files[0]); });
    const start = work;
    explorer.attempt(async () => {
        const x = await readPicture(await (await get(new URL('weights/cat.webp', import.meta.url))).blob(), SIDE);
        if (work === start) await take(x, 'cat.webp');  // unless the reader was quicker
    });
}
