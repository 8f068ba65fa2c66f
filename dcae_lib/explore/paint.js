// Paint sites by dragging: the first turns into its opposite, and those that follow become what it became.
// This only clicks buttons; where it may not run, a click still paints one site.
window.dcaePaint ??= event => {
    const site = event.target.closest?.('.dcae-site');
    if (event.type == 'click') {  // the site has turned when it was pressed; keys, of detail 0, still count
        if (site && event.isTrusted && event.detail) { event.stopPropagation(); event.preventDefault(); }
        return;
    }
    const {clientX: x, clientY: y} = event;
    if (event.type == 'pointerdown') {
        window.dcaeStroke = site && event.button == 0
            ? {board: site.parentElement, on: !site.classList.contains('mod-active'), x, y} : null;
        if (site) event.target.releasePointerCapture(event.pointerId);  // a finger would hold on to the first site
    }
    const stroke = window.dcaeStroke;
    if (!stroke || !(event.buttons & 1)) return;
    for (let k = 0; k <= 16; k++) {  // along the line: a fast pointer jumps over sites
        const point = [stroke.x + (x - stroke.x) * k / 16, stroke.y + (y - stroke.y) * k / 16];
        const under = document.elementFromPoint(...point)?.closest('.dcae-site');
        if (under?.parentElement == stroke.board && under.classList.contains('mod-active') != stroke.on) under.click();
    }
    Object.assign(stroke, {x, y});
};
for (const type of ['pointerdown', 'pointermove', 'click']) document.addEventListener(type, window.dcaePaint, true);
