"""How many views a second, beside kornia, torchvision and lightly, in the same run.

    pip install kornia lightly
    python benchmarks/views.py                # on a GPU too, where there is one

SimCLR's views: at 32×32 RandomResizedCrop, flip, colour jitter of strength 0.5 and grey; at 224×224 strength 1, and
blur as well. Pictures lie in memory as uint8; each contender is given them as it likes them best. nearfar and kornia
work on whole batches with all threads; torchvision and lightly work picture by picture in as many processes as there
are cores, and are spared handing the pictures from one process to another. Rounds are interleaved; figures are medians
over rounds, ratios are medians of each round's ratio. The floor: raw bytes read once and views written once at the
speed at which this machine copies, and the resampling products at the speed at which it multiplies.
"""

import argparse
import dataclasses
import multiprocessing
import statistics
import time
import warnings

import numpy as np
import torch

from nearfar.build import has_fast_bf16
from nearfar.training.memory import keep_freed
from nearfar.views.image import ImageViews
from nearfar.views.policies import named

SIZES = {32: ("simclr-small", 256), 224: ("simclr", 64)}  # side -> policy, images a batch


def pictures(side: int, n: int) -> np.ndarray:
    """Smooth colours with some noise, as pictures are: (n, side, side, 3) uint8."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.random((n, 3, 8, 8), dtype=np.float32))
    x = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    x = x * 255 + torch.from_numpy(rng.normal(0, 8, (n, 3, side, side)).astype(np.float32))
    return x.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()


def policy_for(side: int):
    """Bilinear for all, as the peers resample by default."""
    return dataclasses.replace(named(SIZES[side][0])[0], bicubic=False)


def _torchvision(side: int, p):
    from torchvision.transforms import v2

    ops = [v2.RandomResizedCrop(side, scale=(p.crop_min, p.crop_max)), v2.RandomHorizontalFlip(p.flip),
           v2.RandomApply([v2.ColorJitter(p.brightness, p.contrast, p.saturation, p.hue)], p.colour),
           v2.RandomGrayscale(p.grey)]  # fmt: skip
    if p.blur:
        ops.append(v2.RandomApply([v2.GaussianBlur(23, (p.blur_min, p.blur_max))], p.blur))
    return v2.Compose([*ops, v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def _kornia(side: int, p):
    import kornia.augmentation as k

    ops = [k.RandomResizedCrop((side, side), scale=(p.crop_min, p.crop_max), align_corners=False),
           k.RandomHorizontalFlip(p=p.flip), k.ColorJitter(p.brightness, p.contrast, p.saturation, p.hue, p=p.colour),
           k.RandomGrayscale(p=p.grey)]  # fmt: skip
    if p.blur:
        ops.append(k.RandomGaussianBlur((23, 23), (p.blur_min, p.blur_max), p=p.blur))
    return torch.nn.Sequential(*ops)


_HELD: dict = {}


def _prepare(side: int) -> None:
    """In a worker: the pictures and the transforms, once."""
    if side in _HELD:
        return
    from lightly.transforms import SimCLRTransform
    from PIL import Image

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    x, p = pictures(side, 24 if side > 100 else 128), policy_for(side)
    pil = [Image.fromarray(i) for i in x]
    tensors = [torch.from_numpy(i).permute(2, 0, 1).contiguous() for i in x]
    transform = _torchvision(side, p)
    theirs = SimCLRTransform(input_size=side, cj_strength=p.hue / 0.2, gaussian_blur=p.blur, min_scale=p.crop_min,
                             normalize=None)  # fmt: skip
    _HELD[side] = {
        "torchvision, PIL": lambda: (len(pil), [transform(i) for i in pil]),
        "torchvision, tensors": lambda: (len(tensors), [transform(i) for i in tensors]),
        "lightly": lambda: (2 * len(pil), [theirs(i) for i in pil]),
    }


def _work(given: tuple[str, int, float]) -> tuple[int, float]:
    """Views made and seconds taken, for at least so many seconds."""
    name, side, seconds = given
    _prepare(side)
    _HELD[side][name]()
    start, made = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        made += _HELD[side][name]()[0]
    return made, time.perf_counter() - start


def batched(make, n: int, seconds: float, sync) -> float:
    """Views a second of a callable that makes n of them."""
    for _ in range(3):
        make()
    sync()
    start, made = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        make()
        made += n
        sync()
    return made / (time.perf_counter() - start)


def floors(side: int, p, device: torch.device, sync) -> tuple[float, float]:
    """Seconds a view at the speed of copying, and at the speed of multiplying float32."""
    a = torch.empty(2**26, device=device).fill_(1.0)
    b = torch.empty_like(a).fill_(1.0)
    m = torch.randn(8, 1024, 1024, device=device)

    def best(job) -> float:
        took = []
        for _ in range(5):
            sync()
            start = time.perf_counter()
            job()
            sync()
            took.append(time.perf_counter() - start)
        return min(took)

    copied = 2 * a.numel() * 4 / best(lambda: b.copy_(a))  # bytes a second, read and written
    multiplied = 2 * 8 * 1024**3 / best(lambda: torch.bmm(m, m))
    d = ImageViews(p, (side, side), 0, 255, n=1).draws(4096, torch.Generator().manual_seed(0))[0]
    h, w = d.height * side, d.width * side
    products = 2 * 3 * (h * w * side + w * side * side).mean()  # the part that is seen, along both axes
    moved = (3 * h * w).mean() + 3 * side * side * 4
    return float(moved / copied), float(products / multiplied)


def measure(side: int, device: torch.device, rounds: int, seconds: float, pool, processes: int) -> None:
    p, n = policy_for(side), SIZES[side][1]
    if device.type == "cuda":
        n = 1024 if side == 32 else 256
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    content = torch.from_numpy(pictures(side, n)).to(device)
    planes = content.permute(0, 3, 1, 2).contiguous()
    theirs, generator = _kornia(side, p).to(device), torch.Generator().manual_seed(0)
    kinds = {"nearfar, float32": torch.float32}
    if device.type == "cuda" or has_fast_bf16():
        kinds["nearfar, bfloat16 products"] = torch.bfloat16
    jobs = {}
    for name, dtype in kinds.items():
        views = ImageViews(p, (side, side), 0, 255, dtype=dtype)
        jobs[name] = (lambda views=views: views(content, generator, device), 2 * n)
    jobs["kornia"] = (lambda: [theirs(planes.float().div_(255)) for _ in range(2)], 2 * n)
    if device.type == "cuda":
        whole = _torchvision(side, p)
        jobs["torchvision v2, one drawing for the whole batch"] = (lambda: [whole(planes) for _ in range(2)], 2 * n)
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, (make, made) in jobs.items():
            rates.setdefault(name, []).append(batched(make, made, seconds, sync))
        for name in ("torchvision, PIL", "torchvision, tensors", "lightly"):
            got = pool.map(_work, [(name, side, seconds)] * processes, 1)
            rates.setdefault(f"{name}, {processes} processes", []).append(sum(m / t for m, t in got))
    moved, multiplied = floors(side, p, device, sync)
    print(f"\n{side}×{side}, batch {n}, {device}\n\n| | views/s | nearfar float32 / it | floor: bytes | products |")
    print("|---|---:|---:|---:|---:|")
    ours = rates["nearfar, float32"]
    for name, r in rates.items():
        rate = statistics.median(r)
        ratio = statistics.median(a / b for a, b in zip(ours, r))
        share = f"{moved * rate:.0%} | {multiplied * rate:.0%}" if name.startswith("nearfar") else " | "
        print(f"| {name} | {rate:,.0f} | {ratio:.1f} | {share} |", flush=True)


def encoders(device: torch.device) -> None:
    """Views' share of a training step on a GPU: ResNet-18 at 32×32 and ResNet-50 at 224×224 in bfloat16."""
    import torchvision

    for side, name, n in ((32, "resnet18", 512), (224, "resnet50", 256)):
        net = getattr(torchvision.models, name)().to(device, memory_format=torch.channels_last)
        if side == 32:
            net.conv1, net.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False).to(device), torch.nn.Identity()
        content = torch.from_numpy(pictures(side, n)).to(device)
        views = ImageViews(policy_for(side), (side, side), 0, 255, dtype=torch.bfloat16)
        generator = torch.Generator().manual_seed(0)
        held = torch.cat(views(content, generator, device)).contiguous(memory_format=torch.channels_last)

        def step(net=net, held=held):
            with torch.autocast("cuda", torch.bfloat16):
                net(held).float().square().mean().backward()

        rates = [batched(job, 2 * n, 5.0, torch.cuda.synchronize)
                 for job in (lambda v=views, c=content, g=generator: v(c, g, device), step)]  # fmt: skip
        share = rates[1] / (rates[0] + rates[1])
        print(f"{name} at {side}×{side}: views {rates[0]:,.0f}/s, encoder {rates[1]:,.0f}/s: {share:.1%} of a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="each contender, each round")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIZES))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    kept = keep_freed()  # as training does; kornia gains by it too
    processes = multiprocessing.cpu_count()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {processes} processes, memory kept: {kept}")
    devices = [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for device in devices:
            for side in given.sides:
                measure(side, device, given.rounds, given.seconds, pool, processes)
    if len(devices) > 1:
        encoders(devices[1])


if __name__ == "__main__":
    main()
