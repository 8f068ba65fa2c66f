// A worker of tiles.js: takes the weights once, then rows of tiles.

import {groupNorm} from './dcae.js';
import {reconstructBand} from './tiles.js';

let weights;

onmessage = ({data}) => {
    if (data.tensors) weights = {...data, norm: groupNorm};
    else postMessage({top: data.top, band: reconstructBand(weights, data.band)});
};
