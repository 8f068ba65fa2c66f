// Parts of the explorers: pictures, thumbnails, sliders, a board of sites. All are the browser's own controls, so that
// touch, mouse, keyboard and screen readers work.

import {show} from './pictures.js';

// Make an element; an attribute that is a function listens to the event of its name.
export function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (typeof value === 'function') element.addEventListener(name, value);
        else if (typeof value === 'boolean' && !name.startsWith('aria-')) element.toggleAttribute(name, value);
        else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
}

// An explorer in a place of the page. draw is called once per frame at most, and only after redraw was.
// pictures, controls: elements; draw returns the sentence that screen readers hear once the reader has moved something.
export class Explorer {
    constructor(place, name, {title, pictures, controls, draw}) {
        this.draw = draw;
        this.message = el('p', {class: 'dcae-message', role: 'alert'});
        this.heard = el('p', {class: 'dcae-heard', 'aria-live': 'polite'});
        const shown = el('div', {class: 'dcae-pictures'}, ...pictures);
        const both = el('div', {class: 'dcae-both'}, shown, el('div', {class: 'dcae-controls'}, ...controls));
        const attributes = {class: `dcae-explorer dcae-${name}`, 'aria-label': title};
        this.element = el('section', attributes, both, this.message, this.heard);
        place.replaceChildren(this.element);
        this.attempt(draw);
    }

    redraw() {
        this.frame ??= requestAnimationFrame(() => {
            this.frame = undefined;
            this.attempt(() => this.say(this.draw()));
        });
    }

    // Run something that may fail, and put what it throws into the message.
    async attempt(action) {
        try {
            this.message.textContent = '';
            await action();
        } catch (error) {
            this.message.textContent = error.message;
        }
    }

    // A slider that moves would say a sentence in every frame: wait until it rests.
    say(sentence = '') {
        clearTimeout(this.rest);
        this.rest = setTimeout(() => {
            if (this.heard.textContent !== sentence) this.heard.textContent = sentence;
        }, 500);
    }
}

// A canvas with a caption, its pixels visible.
export class Picture {
    constructor(name, caption = name) {
        this.canvas = el('canvas', {role: 'img', 'data-picture': name, width: 32, height: 32});
        this.caption = el('figcaption', {});
        this.element = el('figure', {class: 'dcae-picture'}, this.canvas, this.caption);
        this.title(caption);
    }

    title(caption) {
        this.caption.textContent = caption;
        this.canvas.setAttribute('aria-label', caption);
    }

    show(x, caption) {
        show(this.canvas, x);
        if (caption) this.title(caption);
    }
}

let count = 0;  // radio buttons belong together by a name of their own

// Pictures to choose one from. items: {name, x}; `item` is the chosen one. own(file) makes an item of a file.
export class Thumbnails {
    constructor(name, items, chosen, change, own) {
        Object.assign(this, {change, group: `${name}-${count++}`, item: items[chosen]});
        this.row = row();
        const attributes = {class: 'dcae-thumbnails', 'data-control': name};
        this.element = el('fieldset', attributes, el('legend', {}, name), this.row);
        items.forEach(item => this.add(item));
        if (own) {
            const add = event => { own(event.target.files[0]); event.target.value = ''; };  // the same one again, too
            const title = 'a picture of your own; it stays in this page';
            const input = el('input', {type: 'file', accept: 'image/*', 'aria-label': title, change: add});
            this.row.append(el('label', {title, class: 'dcae-own'}, input, '+'));
        }
    }

    add(item) {
        const canvas = el('canvas', {role: 'img', 'aria-label': item.name});
        const choose = () => { this.item = item; this.change(); };
        const input = el('input', {type: 'radio', name: this.group, checked: item === this.item, change: choose});
        const label = el('label', {title: item.name}, input, canvas), last = this.row.querySelector('.dcae-own');
        this.row.insertBefore(label, last);
        show(canvas, item.x);
        return input;
    }
}

// A slider as wide as its column, with its name and its value above it.
export function slider(name, {value, min, max, step, format = String, id = name}, change) {
    const output = el('output');
    const input = el('input', {type: 'range', min, max, step, value, 'data-control': id, 'aria-label': name});
    const element = el('label', {class: 'dcae-slider'}, el('span', {}, name, output), input);
    const write = () => {
        output.textContent = format(input.valueAsNumber);
        input.setAttribute('aria-valuetext', output.textContent);
    };
    input.addEventListener('input', () => { write(); change(); });
    write();
    return {
        element,
        input,
        get value() { return input.valueAsNumber; },
        set value(number) { input.value = number; write(); },
    };
}

export function checkbox(name, checked, id, change) {
    const input = el('input', {type: 'checkbox', checked, 'data-control': id, change});
    const element = el('label', {class: 'dcae-checkbox'}, input, name);
    return {element, get value() { return input.checked; }, set value(on) { input.checked = on; }};
}

export const button = (name, click) => el('button', {type: 'button', class: 'dcae-button', click}, name);

export const row = (...elements) => el('div', {class: 'dcae-row'}, ...elements);

// A grid of switches over a picture: painted by dragging, with a finger too, or by the arrow keys and space.
// The first site turns into its opposite, and those that follow become what it became. `sites`: an array of booleans.
export class Board {
    constructor(picture, h, w, sites, change) {
        this.sites = sites;
        this.change = change;
        this.buttons = sites.map((on, k) => el('button', {
            type: 'button', 'aria-pressed': on, tabindex: k ? -1 : 0,
            'aria-label': `row ${Math.floor(k / w) + 1}, column ${k % w + 1}`,
        }));
        const grid = el('div', {class: 'dcae-sites', role: 'group', 'aria-label': 'sites of the latent',
            style: `grid-template: repeat(${h}, 1fr) / repeat(${w}, 1fr)`}, ...this.buttons);
        const at = event => {  // the place of the pointer, in sites
            const box = grid.getBoundingClientRect();
            return [(event.clientX - box.left) / box.width * w, (event.clientY - box.top) / box.height * h];
        };
        const siteAt = ([x, y]) => x >= 0 && y >= 0 && x < w && y < h ? Math.floor(y) * w + Math.floor(x) : undefined;
        let stroke, pressed = false;  // {on, last}: what sites become, and where the pointer was
        grid.addEventListener('pointerdown', event => {
            const site = siteAt(at(event));
            if (event.button || site === undefined) return;
            grid.setPointerCapture(event.pointerId);
            pressed = true;
            stroke = {on: !this.sites[site], last: at(event)};
            this.set(site, stroke.on);
            this.focus(site);
        });
        grid.addEventListener('pointermove', event => {
            if (!stroke) return;
            const [x, y] = stroke.last, [u, v] = stroke.last = at(event);
            for (let t = 1; t <= 16; t++) {  // along the line: a fast pointer jumps over sites
                this.set(siteAt([x + (u - x) * t / 16, y + (v - y) * t / 16]), stroke.on);
            }
        });
        for (const type of ['pointerup', 'pointercancel']) grid.addEventListener(type, () => { stroke = undefined; });
        grid.addEventListener('click', event => {  // of a key or a screen reader; a pointer has painted by now
            const site = this.buttons.indexOf(event.target);
            if (site >= 0 && (event.detail === 0 || !pressed)) this.set(site, !this.sites[site]);
            pressed = false;
        });
        grid.addEventListener('keydown', event => {
            const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
            if (!(event.key in moves)) return;
            const [x, y] = moves[event.key];
            const from = this.buttons.indexOf(event.target), to = siteAt([from % w + x, Math.floor(from / w) + y]);
            if (to === undefined) return;
            event.preventDefault();
            this.focus(to);
        });
        this.element = el('div', {class: 'dcae-board'}, picture, grid);
    }

    set(site, on) {
        if (site === undefined || this.sites[site] === on) return;
        this.sites[site] = on;
        this.buttons[site].setAttribute('aria-pressed', on);
        this.change();
    }

    // The tab key stops at one site only; arrows lead to the others.
    focus(site) {
        this.buttons.forEach((button, k) => { button.tabIndex = k === site ? 0 : -1; });
        this.buttons[site].focus({preventScroll: true});
    }

    clear() {
        this.sites.forEach((_, site) => this.set(site, false));
    }
}

// Buttons that take a picture from a file or from the camera. explorer reports what goes wrong; file(file) and
// camera(video) take what was chosen. On phones, the system asks for the camera; elsewhere the page shows what it sees.
export function choosers(explorer, file, camera) {
    const choose = (name, attributes) => {
        const change = event => { file(event.target.files[0]); event.target.value = ''; };
        const input = el('input', {type: 'file', accept: 'image/*', 'aria-label': name, change, ...attributes});
        return el('label', {class: 'dcae-button'}, name, input);
    };
    const buttons = [choose('your picture …', {})];
    if (matchMedia('(pointer: coarse)').matches) buttons.push(choose('camera', {capture: 'environment'}));
    else if (navigator.mediaDevices?.getUserMedia) buttons.push(cameraButton(explorer, camera));
    return row(...buttons);
}

// The first press asks for the camera, the second takes a picture and lets go of it, as "cancel" does.
function cameraButton(explorer, take) {
    const video = el('video', {playsinline: true, hidden: true}), quit = button('cancel', () => stop());
    quit.hidden = true;
    const stop = () => {
        video.srcObject?.getTracks().forEach(track => track.stop());
        video.srcObject = null;
        video.hidden = quit.hidden = true;
        press.textContent = 'camera';
    };
    const press = button('camera', () => explorer().attempt(async () => {
        if (video.srcObject) {
            take(video);
            return stop();
        }
        press.disabled = true;  // until there is something to take; a second press would ask for a second camera
        try {
            video.srcObject = await navigator.mediaDevices.getUserMedia({video: true});
            video.hidden = quit.hidden = false;
            await video.play();
            press.textContent = 'take the picture';
        } catch (error) {
            stop();
            throw new Error(`The camera cannot be used: ${error.message.replace(/\.$/, '')}.`);
        } finally {
            press.disabled = false;
        }
    }));
    return el('span', {class: 'dcae-camera'}, press, quit, video);
}
