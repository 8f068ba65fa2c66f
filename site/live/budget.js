// The codec's page: the best picture within a budget of bytes, by our codec and by those that the browser has.

import {toUint8} from './codec.js';
import {fromBitmap, psnr, readPicture, show, toModel} from './pictures.js';

const HERE = name => new URL(name, import.meta.url);
const SMALL = 64;                            // pixels of the longer side of thumbnails
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
        return {data, shared, image: toUint8(fromBitmap(bitmap, Infinity))};
    };
}

// A JPEG file is a row of segments: FF, a letter, a length, and so on; the last one is followed by the scan.
// Returns it without its profile, and how many bytes are neither Huffman tables (C4) nor scan: they depend on nothing
// but size and quality.
export function stripJpeg(data) {
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
export function stripWebp(data, shared) {
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
export function next(tried, fits) {
    const qualities = [...tried.keys()].sort((a, b) => a - b);
    const low = qualities.findLast(q => fits(tried.get(q))) ?? -1;
    const high = qualities.find(q => q > low && !fits(tried.get(q))) ?? 101;
    const all = Array.from({length: 101}, (_, q) => q).filter(q => !tried.has(q));
    const between = all.filter(q => q > low && q < high), tens = all.filter(q => q % 10 === 0);
    const choices = [between.filter(q => q % 10 === 0), tens, between].find(list => list.length);
    return choices?.[choices.length >> 1];
}

// The one with the highest PSNR, not always the longest, that fits; of equal ones the shortest.
export function best(tried, fits) {
    return [...tried.values()].filter(fits).sort((a, b) => b.psnr - a.psnr || a.data.length - b.data.length)[0];
}

// ---- the page

const PAGE = `
    <div class="budget-row" data-pictures role="group" aria-label="Pictures to compress"></div>
    <div class="budget-row">
        <label class="budget-button">your picture<input type="file" accept="image/*" data-choose></label>
        <label class="budget-button budget-touch">take a photo<input type="file" accept="image/*"
            capture="environment" data-choose></label>
        <label class="budget-button">open a .dcae file<input type="file" accept=".dcae" data-open></label>
        <label data-sides>longer side <select data-side></select> pixels</label>
    </div>
    <div class="budget-row">
        <label class="budget-slider">budget <b data-budget></b>
            <input type="range" min="0" max="200" data-slider></label>
        <label data-headers><input type="checkbox" checked> count headers</label>
    </div>
    <p class="budget-status" role="status" data-status></p>
    <div class="budget-pictures" data-results>${['original', 'DCAE', 'WebP', 'JPEG'].map(name => `
        <figure data-codec-name="${name}"><canvas role="img"></canvas><figcaption></figcaption></figure>`).join('')}
    </div>
    <div class="budget-row">
        <button type="button" class="budget-button" data-save>save as .dcae</button>
        <span class="budget-note" data-progress></span>
    </div>
    <svg class="budget-curve" role="img"></svg>
    <p class="budget-note">JPEG and WebP are your browser's own encoders. They store colour at half the resolution
        (except at quality 100, where some browsers do not, and WebP may be lossless), and spend less effort than those
        of notebook 08. The colour profile that a browser adds to each file is not counted.
        <span data-headers>Without headers, the bytes that all thumbnails of a codec share are not counted either;
        JPEG's Huffman tables are not among them, since this encoder makes new ones for each file.</span></p>
    <div class="budget-file" data-file hidden></div>`;

// Fill a box with the page.
export async function budget(box) {
    const about = await fetch(HERE('weights/codec.json')).then(answer => answer.json());
    const ask = startWorker();
    box.innerHTML = PAGE;
    box.classList.add('budget');
    const find = name => box.querySelector(`[data-${name}]`);
    const slider = find('slider'), side = find('side'), headers = find('headers').firstElementChild;
    const status = message => { find('status').textContent = message; };
    const shown = new Map();  // canvases, and what is on them
    let now;  // what is compressed now: {name, source, picture, pixels, kind, codecs}

    // ---- what the reader chooses

    // Compress a file; `source` is a Blob.
    async function choose(name, source) {
        const pixels = await readPicture(source, SIDES.at(-1)).catch(error => status(error.message));
        if (!pixels) return;
        const longer = Math.max(...pixels.shape.slice(1)), sides = SIDES.filter(s => s < longer);
        side.replaceChildren(...[...sides, longer].map(s => new Option(s, s)));
        side.value = sides.includes(256) ? 256 : longer;
        find('sides').hidden = !sides.length;
        for (const button of find('pictures').children) button.setAttribute('aria-pressed', button.title === name);
        await open(name, source);
    }

    async function open(name, source) {
        const pixels = await readPicture(source, Number(side.value)), [, H, W] = pixels.shape;
        const picture = toUint8(pixels), canvas = document.createElement('canvas');
        const kind = Math.max(H, W) <= SMALL ? 'thumbnail' : 'photograph', {constants} = about;
        show(canvas, pixels);
        if (now?.kind !== kind) {
            const [low, high, start] = RANGE[kind];
            slider.value = Math.round(200 * Math.log(start / low) / Math.log(high / low));
        }
        const webp = data => stripWebp(data, constants.WebP);
        const codecs = {
            DCAE: {encoder: () => ours(ask, picture, constants.DCAE)},
            WebP: {encoder: () => theirs('image/webp', canvas, webp)},
            JPEG: {encoder: () => theirs('image/jpeg', canvas, stripJpeg)},
        };
        for (const codec of Object.values(codecs)) codec.tried = new Map();
        now = {name, source, picture, pixels, kind, codecs};
        shown.clear();
        status('');
        for (const element of box.querySelectorAll('[data-headers]')) element.hidden = kind !== 'thumbnail';
        find('results').className = `budget-pictures ${kind}`;
        draw();
    }

    async function openFile(name, source) {
        status(`decoding ${name} …`);
        try {
            const data = new Uint8Array(await source.arrayBuffer());
            showFile(find('file'), name, data.length, await ask('decompress', data));
            status('');
        } catch (error) {
            status(`${name} cannot be opened: ${error.message}.`);
        }
    }

    const take = file => (/\.dcae$/i.test(file.name) ? openFile : choose)(file.name, file);

    // ---- what is computed and shown

    const bytes = () => {
        const [low, high] = RANGE[now.kind], [, H, W] = now.picture.shape;
        return Math.round(H * W / 8 * low * (high / low) ** (slider.value / 200));
    };
    const size = made => made.data.length - (headers.checked || now.kind !== 'thumbnail' ? 0 : made.shared);
    const fits = made => size(made) <= bytes();

    // Try qualities with a codec until nothing is left to find out about this picture and this budget.
    async function work(codec) {
        if (codec.busy || codec.error) return;
        codec.busy = true;
        const mine = now;
        try {
            const encode = await (codec.started ??= codec.encoder());
            for (let quality; mine === now && (quality = next(codec.tried, fits)) !== undefined; ) {
                const made = await encode(quality);
                codec.tried.set(quality, {...made, quality, psnr: psnr(toModel(made.image), mine.pixels)});
                if (mine === now) paint();
            }
        } catch (error) {
            codec.error = error.message;
            if (mine === now) paint();
        }
        codec.busy = false;
    }

    // Show the best of what is known, and find out what is missing.
    function draw() {
        paint();
        for (const codec of Object.values(now.codecs)) work(codec);
    }

    function paint() {
        const [, H, W] = now.picture.shape, budget = `${bytes().toLocaleString('en')} bytes`;
        find('budget').textContent = budget;
        slider.setAttribute('aria-valuetext', budget);
        figure('original', now.picture, `${W}×${H} pixels`, `${(3 * H * W).toLocaleString('en')} bytes`);
        for (const [name, codec] of Object.entries(now.codecs)) {
            const made = codec.best = best(codec.tried, fits);
            figure(name, made?.image, ...caption(codec, made));
        }
        find('save').disabled = !now.codecs.DCAE.best;
        const {tried} = now.codecs.DCAE, tens = [...tried.keys()].filter(quality => quality % 10 === 0).length;
        find('progress').textContent = tens < 11 ? `the curve: ${tens} of 11 qualities` : '';
        drawCurve(box.querySelector('svg'), now, bytes(), size);
    }

    function caption({tried, error}, made) {
        if (error) return [error];
        if (made) return [`quality ${made.quality}, ${size(made).toLocaleString('en')} bytes`, decibels(made)];
        if (!tried.has(0)) return ['…'];
        const least = Math.min(...[...tried.values()].map(size));
        return ['does not fit', `its smallest file has ${least.toLocaleString('en')} bytes`];
    }

    const grey = ({data}) => new Uint8Array(data.length).fill(128);  // where nothing fits

    function figure(name, image, ...lines) {
        const figure = box.querySelector(`[data-codec-name="${name}"]`), canvas = figure.querySelector('canvas');
        if (shown.get(canvas) !== image) show(canvas, toModel(image ?? {...now.picture, data: grey(now.picture)}));
        shown.set(canvas, image);
        figure.querySelector('figcaption').replaceChildren(...[name, ...lines].map(line => {
            const row = document.createElement(line === name ? 'strong' : 'span');
            row.textContent = line;
            return row;
        }));
        canvas.setAttribute('aria-label', [`${now.name}, ${name}`, ...lines].join(', '));
    }

    // ---- what happens when

    slider.addEventListener('input', draw);
    headers.addEventListener('input', draw);
    side.addEventListener('change', () => open(now.name, now.source));
    find('save').addEventListener('click', () => {
        const {quality, data} = now.codecs.DCAE.best;
        save(new Blob([data]), `${now.name.replace(/\.\w+$/, '')}-${quality}.dcae`);
    });
    for (const input of box.querySelectorAll('input[type=file]')) input.addEventListener('change', () => {
        if (input.files[0]) take(input.files[0]);
        input.value = '';
    });
    box.addEventListener('dragover', event => event.preventDefault());
    box.addEventListener('drop', event => {
        event.preventDefault();
        if (event.dataTransfer.files[0]) take(event.dataTransfer.files[0]);
    });
    new ResizeObserver(() => now && paint()).observe(box);
    find('pictures').append(...about.pictures.map(name => {
        const button = document.createElement('button'), image = new Image();
        Object.assign(button, {type: 'button', className: 'budget-sample', title: name});
        Object.assign(image, {fetchPriority: 'low', src: HERE(`weights/${name}`), alt: name.replace(/(-\d+)?\.\w+$/, '')});
        button.append(image);
        button.addEventListener('click', () => sample(name));
        return button;
    }));
    const sample = async name => choose(name, await (await fetch(HERE(`weights/${name}`))).blob());
    await sample(about.pictures[6]);
}

const decibels = ({psnr}) => psnr === Infinity ? 'without loss' : `${psnr.toFixed(1)} dB`;

function save(blob, name) {
    const link = Object.assign(document.createElement('a'), {href: URL.createObjectURL(blob), download: name});
    link.click();
    URL.revokeObjectURL(link.href);
}

// Show a .dcae file that was opened: its pictures and what its header says.
function showFile(box, name, length, {header: {height: H, width: W, images, quality}, image}) {
    const count = Math.max(images, 1), n = 3 * H * W, text = document.createElement('p');
    text.textContent = `${name}: ${images ? `a batch of ${images} × ` : ''}${W}×${H} pixels, quality ${quality}, `
        + `${length.toLocaleString('en')} bytes, ${(8 * length / (H * W * count)).toFixed(2)} bits per pixel`;
    box.replaceChildren(text, ...Array.from({length: count}, (_, k) => {
        const canvas = document.createElement('canvas');
        show(canvas, toModel({shape: [3, H, W], data: image.data.subarray(k * n, (k + 1) * n)}));
        canvas.className = Math.max(H, W) <= SMALL ? 'thumbnail' : '';
        canvas.setAttribute('role', 'img');
        canvas.setAttribute('aria-label', `${name}, decoded`);
        return canvas;
    }));
    box.hidden = false;
}

// ---- the curve: PSNR against bytes, a line for each codec and one for the budget

function drawCurve(svg, {kind, picture, codecs}, budget, size) {
    const width = svg.clientWidth || 640, height = 260, left = 28, right = 22, top = 26, bottom = 36;
    const [, H, W] = picture.shape, [low, high] = RANGE[kind].map(bpp => bpp * H * W / 8);
    const curves = Object.entries(codecs).map(([name, {tried, best}]) => {
        const points = [...tried.values()].filter(({psnr}) => psnr < Infinity).map(made => [size(made), made.psnr]);
        return {name, best, points: points.filter(([size]) => size <= high * 1.2).sort(([a], [b]) => a - b)};
    });
    const scores = curves.flatMap(({points}) => points.map(([, psnr]) => psnr));
    const least = Math.floor(Math.min(20, ...scores) / 5) * 5, most = Math.ceil(Math.max(30, ...scores) / 5) * 5;
    const x = size => left + (width - left - right) * Math.log(Math.max(size, low) / low) / Math.log(high / low);
    const y = psnr => height - bottom - (height - top - bottom) * (psnr - least) / (most - least);
    const digits = width < 500 ? [1, 3] : [1, 2, 5];
    const decades = [10, 100, 1000, 10000, 100000].flatMap(ten => digits.map(digit => digit * ten));
    const columns = decades.filter(tick => tick >= low && tick <= high).map(tick => `
        <line x1="${x(tick)}" x2="${x(tick)}" y1="${top}" y2="${height - bottom}"/>
        <text x="${x(tick)}" y="${height - bottom + 15}" text-anchor="middle">${tick.toLocaleString('en')}</text>`);
    const rows = Array.from({length: (most - least) / 5 + 1}, (_, k) => least + 5 * k).map(tick => `
        <line x1="${left}" x2="${width - right}" y1="${y(tick)}" y2="${y(tick)}"/>
        <text x="${left - 5}" y="${y(tick) + 4}" text-anchor="end">${tick}</text>`);
    const lines = curves.map(({name, best, points}) => `<g class="budget-${name}">
        <polyline points="${points.map(([size, psnr]) => `${x(size)},${y(psnr)}`).join(' ')}"/>
        ${best?.psnr < Infinity ? `<circle cx="${x(size(best))}" cy="${y(best.psnr)}" r="5"/>` : ''}</g>`);
    const legend = curves.map(({name}) => `<tspan dx="14" class="budget-${name}">● ${name}</tspan>`);
    svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    svg.setAttribute('aria-label', `PSNR against bytes. Within ${budget} bytes: ${curves.map(({name, best}) =>
        `${name} ${best ? decibels(best) : 'does not fit'}`).join(', ')}`);
    svg.innerHTML = `${columns.join('')}${rows.join('')}
        <text x="0" y="12">PSNR, dB</text><text x="${width - right}" y="12" text-anchor="end">${legend.join('')}</text>
        <text x="${width - right}" y="${height - 4}" text-anchor="end">bytes</text>
        <line class="budget-line" x1="${x(budget)}" x2="${x(budget)}" y1="${top}" y2="${height - bottom}"/>
        ${lines.join('')}`;
}

// ---- start: on the codec's page, and in notebook 08 in the place of a still, as soon as they come near

function start() {
    const still = [...document.querySelectorAll('.cell')].find(
        cell => cell.querySelector('.cell_input')?.textContent.includes('explore.budget('));
    const boxes = [...document.querySelectorAll('[data-codec]'), ...still ? [still.querySelector('.cell_output')] : []];
    const near = new IntersectionObserver(entries => {
        for (const {isIntersecting, target} of entries) if (isIntersecting) {
            near.unobserve(target);
            budget(target).catch(error => console.warn(`the still stays: ${error.message}`));
        }
    }, {rootMargin: '500px'});
    if (boxes.length) document.head.append(Object.assign(document.createElement('link'), {
        rel: 'stylesheet', href: HERE('budget.css')}));
    for (const box of boxes) near.observe(box);
}

start();
