// Browsers load no module from a folder on the disk: say what makes the explorers live.
if (location.protocol === 'file:') {
    document.querySelector('article h1').insertAdjacentHTML('afterend', `<p class="admonition">The explorers on this page
        are live when the folder is served: <code>python -m http.server -d build/site</code>, then
        <code>http://localhost:8000</code>.</p>`);
}
