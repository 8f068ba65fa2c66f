// Finds the places for explorers in a page, and loads them, the network and its weights when one comes near.
// A place is <div data-explorer="NAME">, or the output of a notebook's cell with explore.NAME( in its source: there,
// a live explorer takes the place of a still picture, which stays where scripts do not run or something fails.

const CALL = /\bexplore\.(channels|interpolation|directions|quantisation|damage|brush|upload)\(/;

const places = new Map();  // element → name
for (const place of document.querySelectorAll('[data-explorer]')) places.set(place, place.dataset.explorer);
for (const cell of document.querySelectorAll('div.cell')) {
    const name = cell.querySelector('.cell_input')?.textContent.match(CALL)?.[1];
    if (name) places.set(cell.querySelector('.cell_output'), name);
}

const observer = new IntersectionObserver(entries => {
    for (const {isIntersecting, target} of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        fill(target, places.get(target));
    }
}, {rootMargin: '400px'});
for (const place of places.keys()) observer.observe(place);

async function fill(place, name) {
    try {
        const {explore} = await import('./explorers.js');
        await explore(name, place);
    } catch (error) {
        const line = document.createElement('p');
        line.textContent = `The live explorer cannot be shown: ${error.message}`;
        place.append(line);
    }
}
