"""The checks behind `dcae_lib.course.check`: a function per exercise, True for a right answer. Solutions stand here!"""

import io
import itertools
import json
import math
import tarfile

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .blocks import MiddleStage, pool_down
from .codec import Codec
from .codec.bitstream import unpack
from .codec.compare import bd_rate
from .codec.model import trade
from .config import TrainConfig, learning_rate
from .data import batches, load_images, to_model
from .explore import latents
from .files import resource
from .metrics import psnr
from .model import DCAE
from .rearrange import space_to_channel
from .soap import SOAP


def _images(count: int = 50) -> Tensor:
    return to_model(load_images("sample").test.images[:count])


# 00


def check_00_1(fewest_bits):
    x, model = _images(500), DCAE.from_pretrained()
    with torch.no_grad():
        z = model.encode(x)
        low, exact = z.min(), psnr(model.decode(z), x).mean()
        steps = [(z.max() - low) / (2**bits - 1) for bits in (fewest_bits, fewest_bits - 1)]
        lost = [exact - psnr(model.decode(((z - low) / step).round() * step + low), x).mean() for step in steps]
    return lost[0] <= 1 < lost[1]


def check_00_2(most_costly):
    x, model = _images(500), DCAE.from_pretrained()
    with torch.no_grad():
        z = model.encode(x)
        means = z.mean((0, 2, 3))
        left_over = [
            psnr(model.decode(z.index_fill(1, torch.tensor(k), float(means[k]))), x).mean().item() for k in range(16)
        ]
    return most_costly == left_over.index(min(left_over))


def check_00_3(highest_quality):
    codec, ship = Codec.from_pretrained(), load_images("sample").test.images[8]
    return highest_quality == max(q for q in range(101) if len(codec.compress(ship, q)) <= 307)


# 01


def check_01_1(my_channel_to_space):
    x = _images(8)
    return all(torch.equal(my_channel_to_space(space_to_channel(x, r), r), x) for r in (2, 4))


def check_01_2(destination):
    numbered = torch.arange(3 * 8 * 16).view(1, 3, 8, 16)  # each pixel has a number of its own
    moved = {r: space_to_channel(numbered, r)[0] for r in (2, 4)}
    places = [(r, *place) for r in moved for place in (numbered[0] >= 0).nonzero().tolist()]
    return all(moved[r][tuple(destination(c, i, j, r))] == numbered[0, c, i, j] for r, c, i, j in places)


def check_01_3(new_order):
    x = _images(8)
    return torch.equal(space_to_channel(space_to_channel(x, 2), 2)[:, new_order], space_to_channel(x, 4))


# 02


def check_02_1(changed_of_8_groups, changed_of_1_group):
    before = torch.arange(1024.0).view(1, 16, 8, 8)
    after = before.clone()
    after[0, 5, 2, 3] += 100
    counts = [int((F.group_norm(before, g) != F.group_norm(after, g)).sum()) for g in (8, 1)]
    return [changed_of_8_groups, changed_of_1_group] == counts


def check_02_2(mirrored_up):
    z = torch.randn(2, 32, 8, 8)
    return torch.allclose(pool_down(mirrored_up(z, 16), 32), z, atol=1e-5)


def check_02_3(tensors_without_gradient):
    block = MiddleStage(32, 16)
    block(torch.randn(4, 32, 8, 8)).square().mean().backward()
    return tensors_without_gradient == sum(not p.grad.any() for p in block.parameters())


# 03


def check_03_1(error_first_coordinate, error_at_best):
    points = torch.tensor([[3.0, 1.0], [-3.0, -1.0], [1.0, 3.0], [-1.0, -3.0]])
    smallest = torch.linalg.eigvalsh(points.T @ points / 4)[0].item()
    expected = points[:, 1].square().mean().item(), smallest
    return all(math.isclose(*pair, rel_tol=1e-4) for pair in zip((error_first_coordinate, error_at_best), expected))


def check_03_2(middle_stage):
    sizes = ((32, 16), (16, 32), (24, 24), (8, 40))
    return all(middle_stage(i, o) == sum(p.numel() for p in MiddleStage(i, o).parameters()) for i, o in sizes)


def check_03_3(my_rank, pca, x, target):
    return psnr(pca(x, my_rank - 1), x).mean() <= target < psnr(pca(x, my_rank), x).mean()


# 04


def check_04_1(numbers_soap, numbers_adam):
    moments = 2 * 32 * 32 * 3 * 3
    return (numbers_soap, numbers_adam) == (moments + 2 * (32**2 + 32**2 + 3**2 + 3**2), moments)


def _walk(make, gradients: Tensor, **settings) -> Tensor:
    w = torch.zeros(gradients[0].shape, dtype=torch.float64, requires_grad=True)
    optimizer = make([w], lr=0.1, betas=(0.9, 0.9), eps=1e-12, **settings)
    for gradient in gradients:
        w.grad = gradient
        optimizer.step()
    return w.detach()


def check_04_2(gradients_for_adam):
    some = torch.randn(10, 4, 4, dtype=torch.float64)
    soap = _walk(SOAP, some, weight_decay=0, max_precondition_dim=1)
    return torch.allclose(soap, _walk(torch.optim.Adam, gradients_for_adam(some)))


def check_04_3(U_for_adam):
    U, one = U_for_adam.double(), torch.eye(8, dtype=torch.float64)
    some = torch.randn(10, 8, 8, dtype=torch.float64)
    turned = _walk(torch.optim.Adam, U @ some)
    same = torch.allclose(turned, U @ _walk(torch.optim.Adam, some)) and torch.allclose(U @ U.T, one)
    return same and (U - one).abs().max() > 0.1


# 05


def _start(config: TrainConfig):
    torch.manual_seed(config.seed)
    model = DCAE(**config.model)
    return model, SOAP(model.parameters(), lr=config.lr), torch.Generator().manual_seed(config.seed)


def _go_on(config: TrainConfig, epochs: int, model, optimizer, order, step=0) -> int:
    images = load_images("sample").train.images[:64]
    rate = learning_rate(config, config.epochs * math.ceil(len(images) / config.batch_size))
    for x in [x for _ in range(epochs) for x in batches(images, config.batch_size, order)]:
        optimizer.param_groups[0]["lr"] = rate(step)
        F.l1_loss(model(x), x).backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
    return step


def check_05_1(mended_loop):
    images, expected = load_images("sample").train.images[:160], []
    torch.manual_seed(0)
    model = DCAE()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for x in batches(images, 16, torch.Generator().manual_seed(0)):
        optimizer.zero_grad()
        loss = F.l1_loss(model(x), x)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    return torch.allclose(torch.tensor(mended_loop(images, 10)), torch.tensor(expected), rtol=1e-3)


def check_05_2(my_rates):
    for epochs, batch_size, warmup, count in ((2, 32, 0.05, 2000), (3, 8, 0.2, 100), (1, 10, 0.0, 25)):
        config = TrainConfig(epochs=epochs, batch_size=batch_size, warmup=warmup)
        steps = epochs * math.ceil(count / batch_size)
        expected = [learning_rate(config, steps)(step) for step in range(steps)]
        if (mine := my_rates(config, count)) is None or len(mine) != steps or not np.allclose(mine, expected):
            return False
    return True


def check_05_3(keep, resume):
    config, file = TrainConfig.preset("tuned", epochs=4, batch_size=16), io.BytesIO()
    whole, half = _start(config), _start(config)
    _go_on(config, 4, *whole)
    step = _go_on(config, 2, *half)
    torch.save(keep(*half, step), file)
    for p in half[0].parameters():  # what was not kept is lost
        p.data.zero_()
    half[1].state.clear()
    half[2].manual_seed(1)
    again = resume(torch.load(io.BytesIO(file.getvalue()), weights_only=True), config)
    _go_on(config, 2, *again)
    return all(torch.equal(a, b) for a, b in zip(whole[0].state_dict().values(), again[0].state_dict().values()))


# 06


def _channel(model, z, k, gain):
    gains = torch.ones(16)
    gains[k] = gain
    return latents.decode_all(model, latents.scale_channels(z, gains, z.mean((0, 2, 3))))


def check_06_1(turns_yellow, can_go):
    model = DCAE.from_pretrained()
    z = latents.encode_all(model, _images(64))
    birds = torch.stack([_channel(model, z, k, -2)[2].mean((1, 2)) for k in range(16)])  # [16, 3]
    yellow = birds[:, :2].amin(1) - birds[:, 2]  # the lesser of red and green, over blue
    return (turns_yellow, can_go) == (yellow.argmax(), latents.effects(model, z)[1].argmax())


def check_06_2(missed_most):
    model = DCAE.from_pretrained()
    z = latents.encode_all(model, _images(500))
    found = {k: int(missed_most(k)) for k in (2, 8, 15)}
    whole = latents.decode_all(model, z)
    close = {k: psnr(_channel(model, z, k, 0), whole) for k in found}
    return all(close[k][answer] < close[k].min() + 0.3 for k, answer in found.items())


def check_06_3(reach_of):
    model, sites = DCAE.from_pretrained(), torch.eye(64, dtype=torch.bool).view(8, 8, 8, 8)
    z = latents.encode_all(model, _images(1))[0]
    places = ((0, 0), (3, 5), (7, 2))
    return all(torch.equal(reach_of(*place), latents.reach(model, z, sites[place])) for place in places)


# 07


def check_07_1(extra, p, q):
    paid, least = ((p * (1 / code).log2()).sum() for code in (q, p))
    return abs(paid - least - extra) < 0.01


def check_07_2(mystery, side, quality):
    header, _ = unpack(mystery, Codec.from_pretrained().identity)
    return (side, quality) == (header.height, header.quality)


def check_07_3(saved):
    codec, album = Codec.from_pretrained(), load_images("sample").test.images
    apart, together = codec.compress_each(album, quality=40), codec.compress(album, quality=40)
    return abs(saved - (sum(map(len, apart)) - len(together)) / len(album)) < 0.1


# 08


def check_08_1(quality):
    return 0 <= quality <= 100 and abs(trade(torch.tensor(float(quality))) - 1000) < 25


def check_08_2(times):
    codec, images = Codec.from_pretrained(), load_images("sample").test.images[:100]
    noise = torch.randint(256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    mean = np.mean([len(data) for data in codec.compress_each(images, quality=40)])
    return abs(times - len(codec.compress(noise, quality=40)) / mean) < 0.2


def check_08_3(mine):
    curves = json.loads((resource("recorded") / "codec.json").read_text())["curves"]
    pair = [[(p["bpp"], p["psnr"]) for p in curves[name]["stripped"]] for name in ("DCAE", "AVIF")]
    return abs(mine - bd_rate(*pair, 26, 34)) < 0.01


# 09


def check_09_1(from_the_middle, from_the_corner):
    model, x, counts = DCAE.from_pretrained().double(), _images(1).double(), []
    with latents.frozen_norms(model.encoder, x), torch.no_grad():
        for place in (16, 0):
            changed = x.clone()
            changed[..., place, place] += 1
            counts.append(int(((model.encode(changed) - model.encode(x)).abs().amax(1) > 1e-9).sum()))
    return [from_the_middle, from_the_corner] == counts


def check_09_2(squares_with):
    found, counts = [], []
    for side in (1, 4, 6):
        count = torch.zeros(6, 9, dtype=torch.int64)
        for top, left in itertools.product(range(7 - side), range(10 - side)):
            count[top : top + side, left : left + side] += 1
        counts += count.flatten().tolist()
        found += [squares_with(row, column, 6, 9, side) for row, column in itertools.product(range(6), range(9))]
    return found == counts


# 09a


def check_09a_1(epoch_of_crops):
    seen = []

    def read(i):
        seen.append(i)
        return torch.arange(24 * 24).view(1, 24, 24) + 1000 * i

    def epoch(seed, skip):
        seen.clear()
        return torch.stack(list(epoch_of_crops(read, 12, seed, skip)))

    whole, other = epoch(1, 0), epoch(2, 0)
    places = whole[:, 0, 0, 0] % 1000
    varied = len(places.unique()) > 6 and not torch.equal(whole, other) and sorted(seen) == list(range(12))
    return varied and all(torch.equal(epoch(1, k), whole[k:]) and len(seen) == 12 - k for k in (0, 1, 5, 11))


def check_09a_2(members):
    data, places = io.BytesIO(), []
    with tarfile.open(fileobj=data, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, size in (("a.png", 700), ("b.png", 512), ("c.png", 1), ("d.png", 1025)):
            info = tarfile.TarInfo(name)
            info.size = size
            places.append((name, tar.offset + 512, size))
            tar.addfile(info, io.BytesIO(b"x" * size))
    return [tuple(place) for place in members(data.getvalue())] == places


# 09b


def check_09b_1(whole_gradient):
    generator = torch.Generator().manual_seed(0)
    images = [torch.randn(7, 5, generator=generator), torch.randn(5, 3, generator=generator)]
    return all(
        torch.allclose(whole_gradient([part.mean(0) for part in parts], list(map(len, parts))), x.mean(0), atol=1e-6)
        for x in images
        for parts in ([x[n::3] for n in range(3)], [x[:1], x[1:]])
    )


def check_09b_2(best_processes):
    def seconds(N, B, image, sent, bandwidth, latency):
        return B / N * image + 2 * (N - 1) / N * sent / bandwidth + 2 * (N - 1) * latency

    for case in ((256, 1.3e-3, 4e5, 1.25e9, 5e-5), (256, 1.3e-3, 4e5, 1.25e8, 2e-4), (4096, 1e-5, 4e6, 1e9, 1e-5)):
        times = [seconds(N, *case) for N in range(1, 1000)]
        if abs(best_processes(*case) - 1 - times.index(min(times))) > 1:
            return False
    return True


# 09c


def check_09c_1(luck):
    best = torch.randn(100_000, 16, generator=torch.Generator().manual_seed(0)).amax(1).mean()
    return abs(luck - 0.1 * best) < 0.005


def check_09c_2(grid):
    settings = dict(lr=[1, 2, 3], groups=[4, 5], seed=[6])
    wanted = [dict(lr=lr, groups=groups, seed=6) for lr in (1, 2, 3) for groups in (4, 5)]
    found = grid(settings)
    return len(found) == 6 and all(row in found for row in wanted)
