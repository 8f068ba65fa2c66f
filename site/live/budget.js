// The codec's page: the best picture within a budget of bytes, by our codec and by those that the browser has.

import {SMALL, toUint8} from './codec.js';
import {get} from './dcae.js';
import {fromBitmap, psnr, readPicture, show, toModel} from './pictures.js';
import {Explorer, Picture, Thumbnails, button, checkbox, choosers, el, row, slider} from './widgets.js';

const HERE = name => new URL(name, import.meta.url);
const SIDES = [32, 64, 128, 256, 384];       // pixels of the longer side that a picture can be scaled down to
// Bits per pixel at the ends of the slider, and where it begins.
const RANGE = {thumbnail: [0.4, 10, 3.2], photograph: [0.06, 4, 0.4]};

// ---- three codecs; each makes of a quality from 0 to 100 {data, image}, the bytes of a file and its pixels

// Start the worker. Returns ask(task, argument), which resolves to its answer.
function startWorker() {
    const worker = new Worker(HERE('codec-worker.js'), {type: 'module'}), waiting = new Map();
    worker.onmessage = ({data: {id, result, error}}) => {
        const {resolve, reject} = waiting.get(id);
        waiting.delete(id);
        if (error) reject(new Error(error)); else resolve(result);
    };
    let fails;
    worker.onerror = () => {  // it could not be started
        fails = ({reject}) => reject(new Error('this browser cannot run the codec'));
        waiting.forEach(fails);
    };
    return (task, argument) => new Promise((resolve, reject) => {
        const id = waiting.size ? Math.max(...waiting.keys()) + 1 : 0;
        waiting.set(id, {resolve, reject});
        fails?.({reject});
        worker.postMessage({id, task, argument});
    });
}

// Our codec for one picture. Its file is `shared` bytes shorter without those that all thumbnails' files share.
async function ours(ask, picture, shared) {
    await ask('open', picture);
    return quality => ask('compress', quality).then(made => ({...made, shared}));
}

// What the browser's own encoder makes of a canvas: without a colour profile, which it adds though it is sRGB's.
function theirs(type, canvas, strip) {
    return async quality => {
        const blob = await new Promise(resolve => canvas.toBlob(resolve, type, quality / 100));
        if (blob?.type !== type) throw new Error('this browser does not write it');
        const {data, shared} = strip(new Uint8Array(await blob.arrayBuffer()));
        const bitmap = await createImageBitmap(new Blob([data], {type}));
        const image = toUint8(fromBitmap(bitmap, Infinity));
        bitmap.close();
        return {data, shared, image};
    };
}

// A JPEG file is a row of segments: FF, a letter, a length, and so on; the last one is followed by the scan.
// Returns it without its profile, and how many bytes are neither Huffman tables (C4) nor scan: they depend on nothing
// but size and quality.
function stripJpeg(data) {
    const parts = [data.subarray(0, 2)];
    let at = 2, shared = 4;
    for (let letter = 0; letter !== 0xDA; ) {
        letter = data[at + 1];
        const end = at + 2 + data[at + 2] * 256 + data[at + 3];
        if (letter !== 0xE1 && letter !== 0xE2) {  // Exif, and the profile
            parts.push(data.subarray(at, end));
            if (letter !== 0xC4) shared += end - at;
        }
        at = end;
    }
    return {data: joinBytes([...parts, data.subarray(at)]), shared};
}

// A WebP file is RIFF, a length, WEBP, and chunks: four letters, a length, and bytes, an even number of them. Only the
// one with the picture stays.
function stripWebp(data, shared) {
    const view = new DataView(data.buffer, data.byteOffset);
    for (let at = 12; at < data.length; ) {
        const length = view.getUint32(at + 4, true), end = at + 8 + length + length % 2;
        if (String.fromCharCode(...data.subarray(at, at + 3)) === 'VP8' && data[at + 3] !== 0x58) {  // no VP8X
            const stripped = joinBytes([data.subarray(0, 12), data.subarray(at, end)]);
            new DataView(stripped.buffer).setUint32(4, stripped.length - 8, true);
            return {data: stripped, shared};
        }
        at = end;
    }
    throw new Error('this browser does not write it');
}

function joinBytes(parts) {
    const data = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
    parts.reduce((at, part) => (data.set(part, at), at + part.length), 0);
    return data;
}

// ---- which qualities are tried: those that the slider asks for first

// The next quality to try of those not tried yet: first what narrows down, in steps of 10, the best one within the
// budget; then other multiples of 10, for the curve; at last single ones. undefined: nothing is left to find out.
function next(tried, fits) {
    const qualities = [...tried.keys()].sort((a, b) => a - b);
    const low = qualities.findLast(q => fits(tried.get(q))) ?? -1;
    const high = qualities.find(q => q > low && !fits(tried.get(q))) ?? 101;
    const all = Array.from({length: 101}, (_, q) => q).filter(q => !tried.has(q));
    const between = all.filter(q => q > low && q < high), tens = all.filter(q => q % 10 === 0);
    const choices = [between.filter(q => q % 10 === 0), tens, between].find(list => list.length);
    return choices?.[choices.length >> 1];
}

// The one with the highest PSNR, not always the longest, that fits; of equal ones the shortest.
function best(tried, fits) {
    return [...tried.values()].filter(fits).sort((a, b) => b.psnr - a.psnr || a.data.length - b.data.length)[0];
}

// ---- the page

const HINT = `JPEG and WebP are your browser's own encoders. They may store colour at half the resolution, which depends on
    the browser and the quality (at 100, WebP may be lossless), and spend less effort than those of notebook 08. The
    colour profile that a browser adds to each file is not counted. Without headers, the bytes that all thumbnails of a
    codec share are not counted either; JPEG's Huffman tables are not among them, since some browsers make new ones
    for each file.`;

// Fill a place of the page.
async function budget(place) {
    const ask = startWorker(), about = await (await weights('codec.json')).json();
    const items = await Promise.all(about.pictures.filter(name => name.endsWith('png')).map(sample));
    const pictures = Object.fromEntries(['original', 'DCAE', 'WebP', 'JPEG'].map(name => [name, new Picture(name)]));
    const shown = {};  // what is on the canvas of each
    let now;           // what is compressed: {name, kind, image, x, codecs}; image: bytes, x: the same as floats

    const strip = new Thumbnails('picture', items, 6, () => explorer.attempt(choose));
    const side = el('select', {change: () => explorer.attempt(open)});
    const sides = el('label', {}, 'longer side ', side, ' pixels');
    const amount = slider('budget', {value: 0, min: 0, max: 200, step: 1, id: 'budget', format: () => `${bytes()} bytes`}, draw);
    const headers = checkbox('count headers', true, 'headers', draw);
    const saving = button('save as .dcae', () => {
        const {quality, data} = now.codecs.DCAE.best;
        save(new Blob([data]), `${now.name.replace(/\.\w+$/, '')}-${quality}.dcae`);
    });
    const curve = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
    const progress = el('span', {class: 'dcae-hint'}), opened = el('div', {class: 'budget-file'});
    const explorer = new Explorer(place, 'budget', {
        title: 'The best picture within a budget of bytes', draw: paint,
        pictures: Object.values(pictures).map(({element}) => element),
        controls: [strip.element, row(...choosers(() => explorer, take, camera).children, opener(file => file && explorer.attempt(() => openFile(file))), sides),
            amount.element, headers.element],
    });
    curve.setAttribute('role', 'img');
    explorer.element.append(row(saving, progress), curve, el('p', {class: 'dcae-hint'}, HINT), opened);

    // ---- what the reader chooses

    // Another picture: how far it may be scaled down depends on it.
    function choose() {
        const longer = Math.max(...strip.item.x.shape), smaller = SIDES.filter(side => side < longer);
        side.replaceChildren(...[...smaller, longer].map(side => new Option(side, side)));
        side.value = smaller.includes(256) ? 256 : longer;
        sides.hidden = !smaller.length;
        open();
    }

    function open() {
        const {name, canvas: source} = strip.item, x = fromBitmap(source, Number(side.value)), [, H, W] = x.shape;
        const kind = Math.max(H, W) <= SMALL ? 'thumbnail' : 'photograph', last = now?.kind;
        const image = toUint8(x), canvas = canvasOf(x), {constants} = about;
        now = {name, kind, image, x, codecs: {
            DCAE: {encoder: () => ours(ask, image, constants.DCAE)},
            WebP: {encoder: () => theirs('image/webp', canvas, data => stripWebp(data, constants.WebP))},
            JPEG: {encoder: () => theirs('image/jpeg', canvas, stripJpeg)},
        }};
        for (const codec of Object.values(now.codecs)) codec.tried = new Map();
        const [low, high, start] = RANGE[kind];
        amount.value = kind === last ? amount.value : Math.round(200 * Math.log(start / low) / Math.log(high / low));
        headers.element.hidden = kind !== 'thumbnail';
        explorer.element.classList.toggle('photograph', kind === 'photograph');
        draw();
    }

    // A file that was chosen or dropped: a .dcae file is opened, a picture compressed.
    function take(file) {
        explorer.attempt(async () => {
            if (/\.dcae$/i.test(file?.name)) await openFile(file);
            else if (file) add(itemOf(file.name, await readPicture(file, SIDES.at(-1))));
        });
    }

    function camera(video) {
        add(itemOf('camera', fromBitmap(video, SIDES.at(-1))));
    }

    function add(item) {
        strip.add(item).click();
    }

    async function openFile(file) {
        opened.replaceChildren(`decoding ${file.name} …`);
        try {
            const data = new Uint8Array(await file.arrayBuffer());
            opened.replaceChildren(...contents(file.name, data.length, await ask('decompress', data)));
        } catch (error) {
            opened.replaceChildren();
            throw new Error(`${file.name} cannot be opened: ${error.message}.`);
        }
    }

    // ---- what is computed and shown

    function bytes() {
        if (!now) return 0;
        const [low, high] = RANGE[now.kind], [, H, W] = now.image.shape;
        return Math.round(H * W / 8 * low * (high / low) ** (amount.value / 200));
    }

    function size({data, shared}) {
        return data.length - (headers.value || now.kind !== 'thumbnail' ? 0 : shared);
    }

    function fits(made) {
        return size(made) <= bytes();
    }

    // Show the best of what is known, and find out what is missing.
    function draw() {
        explorer.redraw();
        for (const codec of Object.values(now.codecs)) work(codec);
    }

    // Try qualities with a codec until nothing is left to find out about this picture and this budget.
    async function work(codec) {
        if (codec.busy || codec.error) return;
        codec.busy = true;
        const mine = now;
        try {
            const encode = await (codec.started ??= codec.encoder());
            for (let quality; mine === now && (quality = next(codec.tried, fits)) !== undefined; ) {
                const made = await encode(quality);
                codec.tried.set(quality, {...made, quality, psnr: psnr(toModel(made.image), mine.x)});
                if (mine === now) paint();
            }
            if (mine === now) explorer.say(paint());
        } catch (error) {
            codec.error = error.message;
            if (mine === now) explorer.say(paint());
        }
        codec.busy = false;
    }

    function paint() {
        if (!now) return '';
        const [, H, W] = now.image.shape, found = [];
        put('original', now.image, `original\n${W}×${H} pixels\n${3 * H * W} bytes`);
        for (const [name, codec] of Object.entries(now.codecs)) {
            codec.best = best(codec.tried, fits);
            found.push([name, ...caption(codec)]);
            put(name, codec.best?.image, found.at(-1).join('\n'));
        }
        saving.disabled = !now.codecs.DCAE.best;
        const tens = [...now.codecs.DCAE.tried.keys()].filter(quality => quality % 10 === 0).length;
        progress.textContent = tens < 11 ? `${tens} of 11 points of our curve` : '';
        drawCurve(curve, now, bytes(), size);
        return `Within ${bytes()} bytes: ${found.map(lines => lines.join(', ')).join('; ')}`;
    }

    function put(name, image, caption) {
        const nothing = {...now.image, data: new Uint8Array(now.image.data.length).fill(128)};  // grey
        if (shown[name] !== image || !image) pictures[name].show(toModel(image ?? nothing));
        shown[name] = image;
        pictures[name].title(caption);
    }

    function caption({best, tried, error}) {
        if (error) return [error];
        if (best) return [`quality ${best.quality}, ${size(best)} bytes`, decibels(best)];
        if (!tried.has(0)) return ['…'];
        return ['does not fit', `its smallest file has ${Math.min(...[...tried.values()].map(size))} bytes`];
    }

    explorer.element.addEventListener('dragover', event => event.preventDefault());
    explorer.element.addEventListener('drop', event => { event.preventDefault(); take(event.dataTransfer.files[0]); });
    new ResizeObserver(() => { paint(); }).observe(place);
    choose();
    await now.codecs.DCAE.started.catch(() => {});  // the network before the photographs
    for (const name of about.pictures.slice(items.length)) {
        await explorer.attempt(async () => strip.add(await sample(name)));
    }
}

const decibels = ({psnr}) => psnr === Infinity ? 'without loss' : `${psnr.toFixed(1)} dB`;

const weights = name => get(HERE(`weights/${name}`));

// A picture to choose: {name, x, canvas}, from which it can be scaled down.
const itemOf = (name, x) => ({name, x, canvas: canvasOf(x)});

async function sample(name) {
    const x = await readPicture(await (await weights(name)).blob(), SIDES.at(-1));
    return itemOf(name.replace(/-\d+\.\w+$/, ''), x);
}

function canvasOf(x) {
    const canvas = el('canvas', {role: 'img'});
    show(canvas, x);
    return canvas;
}

function opener(take) {
    const change = event => { take(event.target.files[0]); event.target.value = ''; }, name = 'open a .dcae file …';
    const input = el('input', {type: 'file', accept: '.dcae', 'aria-label': name, change});
    return el('label', {class: 'dcae-button'}, name, input);
}

function save(blob, name) {
    const link = el('a', {href: URL.createObjectURL(blob), download: name});
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// What a .dcae file says in its header, and its pictures.
function contents(name, length, {header: {height: H, width: W, images, quality}, image}) {
    const count = Math.max(images, 1), n = 3 * H * W, bpp = 8 * length / (H * W * count);
    const canvases = Array.from({length: count}, (_, k) => {
        const canvas = canvasOf(toModel({shape: [3, H, W], data: image.data.subarray(k * n, (k + 1) * n)}));
        canvas.setAttribute('aria-label', `picture ${k + 1} of ${name}`);
        canvas.classList.toggle('photograph', Math.max(H, W) > SMALL);
        return canvas;
    });
    const pictures = `${images ? `a batch of ${images} × ` : ''}${W}×${H} pixels`;
    const text = `${name}: ${pictures}, quality ${quality}, ${length} bytes, ${bpp.toFixed(2)} bits per pixel`;
    const first = button('save as PNG', () => canvases[0].toBlob(blob => save(blob, name.replace(/dcae$/i, 'png'))));
    return [el('p', {}, text), row(...canvases), ...images ? [] : [row(first)]];
}

// ---- the curve: PSNR against bytes, a line for each codec and one for the budget

function drawCurve(svg, {kind, image, codecs}, budget, size) {
    const width = svg.clientWidth || 640, height = 260, left = 28, right = 22, top = 26, bottom = 36;
    const [, H, W] = image.shape, [low, high] = RANGE[kind].map(bpp => bpp * H * W / 8);
    const curves = Object.entries(codecs).map(([name, {tried, best, error}]) => {
        const points = [...tried.values()].filter(({psnr}) => psnr < Infinity).map(made => [size(made), made.psnr]);
        return {name, best, tried, error, points: points.filter(([size]) => size <= high * 1.2).sort(([a], [b]) => a - b)};
    });
    const scores = curves.flatMap(({points}) => points.map(([, psnr]) => psnr));
    const least = Math.floor(Math.min(20, ...scores) / 5) * 5, most = Math.ceil(Math.max(30, ...scores) / 5) * 5;
    const x = size => left + (width - left - right) * Math.log(Math.max(size, low) / low) / Math.log(high / low);
    const y = psnr => height - bottom - (height - top - bottom) * (psnr - least) / (most - least);
    const digits = width < 500 ? [1, 3] : [1, 2, 5];
    const decades = [10, 100, 1000, 10000, 100000].flatMap(ten => digits.map(digit => digit * ten));
    const columns = decades.filter(tick => tick >= low && tick <= high).map(tick => `
        <line x1="${x(tick)}" x2="${x(tick)}" y1="${top}" y2="${height - bottom}"/>
        <text x="${x(tick)}" y="${height - bottom + 15}" text-anchor="middle">${tick}</text>`);
    const rows = Array.from({length: (most - least) / 5 + 1}, (_, k) => least + 5 * k).map(tick => `
        <line x1="${left}" x2="${width - right}" y1="${y(tick)}" y2="${y(tick)}"/>
        <text x="${left - 5}" y="${y(tick) + 4}" text-anchor="end">${tick}</text>`);
    const lines = curves.map(({name, best, points}) => `<g class="budget-${name}">
        <polyline points="${points.map(([size, psnr]) => `${x(size)},${y(psnr)}`).join(' ')}"/>
        ${best?.psnr < Infinity ? `<circle cx="${x(size(best))}" cy="${y(best.psnr)}" r="5"/>` : ''}</g>`);
    const legend = curves.map(({name}) => `<tspan dx="14" class="budget-${name}">● ${name}</tspan>`);
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    svg.setAttribute('aria-label', `PSNR against bytes. Within ${budget} bytes: ${curves.map(({name, best, tried, error}) =>
        `${name} ${best ? decibels(best) : error ?? (tried.has(0) ? 'does not fit' : '…')}`).join(', ')}`);
    svg.innerHTML = `${columns.join('')}${rows.join('')}
        <text x="0" y="12">PSNR, dB</text><text x="${width - right}" y="12" text-anchor="end">${legend.join('')}</text>
        <text x="${width - right}" y="${height - 4}" text-anchor="end">bytes</text>
        <line class="budget-line" x1="${x(budget)}" x2="${x(budget)}" y1="${top}" y2="${height - bottom}"/>
        ${lines.join('')}`;
}

// ---- start: on the codec's page, and in notebook 08 in the place of a still, as soon as they come near

const still = [...document.querySelectorAll('div.cell')].find(
    cell => cell.querySelector('.cell_input')?.textContent.includes('explore.budget('));
const places = [...document.querySelectorAll('[data-codec]'), ...still ? [still.querySelector('.cell_output')] : []];
const observer = new IntersectionObserver(entries => {
    for (const {isIntersecting, target} of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        budget(target).catch(error => target.append(el('p', {}, `The codec cannot be shown: ${error.message}`)));
    }
}, {rootMargin: '400px'});
if (places.length) document.head.append(el('link', {rel: 'stylesheet', href: HERE('budget.css')}));
for (const place of places) observer.observe(place);
