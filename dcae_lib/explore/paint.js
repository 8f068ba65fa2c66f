// Paint sites by dragging: the first turns into its opposite, and those that follow become what it became.
// It only clicks buttons; where it may not run, a click still paints one site.
window.dcaePaint ??= event => {
    const site = event.target.closest?.('.dcae-site');
    if (event.type == 'click') {  // the site has turned when it was pressed; keys, of detail 0, still count
        if (site && event.isTrusted && event.detail) { event.stopPropagation(); event.preventDefault(); }
        return;
    }
    if (event.type == 'pointerdown') {
        window.dcaePaints = site && event.button == 0 ? !site.classList.contains('mod-active') : null;
        if (site) event.target.releasePointerCapture(event.pointerId);  // a finger would hold on to the first site
    }
    if (site && window.dcaePaints != null && event.buttons & 1
        && site.classList.contains('mod-active') != window.dcaePaints) site.click();
};
for (const type of ['pointerdown', 'pointerover', 'click']) document.addEventListener(type, window.dcaePaint, true);
