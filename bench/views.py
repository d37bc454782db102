"""Views beside torchvision's transforms: milliseconds an image, both sides in one run.

    python bench/views.py
    python bench/views.py --repeats 5 --threads 1

Colours: jitter, gray, blur, flip and normalisation of images that are cropped already. tinyseed renders the batch at
once, drawing included; torchvision goes through its v2 transforms image by image, as in a DataLoader: on uint8
tensors, and on Pillow images with the conversion to a tensor. Its blur has the same 17 taps.

Crops: from the bytes of a JPEG to a random crop as a uint8 tensor, on one thread.

The sides take turns within each repetition, so that other load on the machine meets both alike; the table has medians
of the times and of the ratios within a repetition.

Prints a table and writes JSON.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common import machine, write_results
from tinyseed.data.addressed import permutation, uniforms
from tinyseed.data.augmentation import View, ViewSettings
from tinyseed.data.crop import CROP_DRAWS
from tinyseed.data.draws import draw_view
from tinyseed.data.loader import keep_freed_memory
from tinyseed.data.readers import RGB
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD, normalize, render_view
from tinyseed.torchvision_ops import ensure_torchvision

ensure_torchvision()

from torchvision.transforms import v2  # noqa: E402  (its operators have to be declared first)

SETTINGS = ViewSettings()
BATCHES = ((64, 128), (224, 64))
JPEGS = ((160, 213, 64), (500, 375, 224), (4000, 3000, 224))


@dataclass(frozen=True)
class Row:
    """One comparison. Times in milliseconds an image; ratio: torchvision's time by ours."""

    what: str
    threads: int
    tinyseed: float
    torchvision: float
    ratio: float


def take_turns(sides: dict[str, Callable[[], object]], repeats: int, images: int) -> dict[str, list[float]]:
    """Milliseconds an image of each side in each repetition."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repetition in range(repeats + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if repetition:  # the first warms up
                times[name].append((time.perf_counter() - start) / images * 1e3)
    return times


def compare(what: str, ours: list[float], theirs: list[float]) -> Row:
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    medians = [statistics.median(values) for values in (ours, theirs, ratios)]
    return Row(what, torch.get_num_threads(), *medians)


def photo(width: int, height: int, seed: int) -> Image.Image:
    """Smooth colors with some noise: JPEG and resize cost about what they do on a photo."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += rng.integers(-12, 13, pixels.shape, np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def color_rows(size: int, batch: int, repeats: int) -> list[Row]:
    photos = [photo(size, size, seed) for seed in range(batch)]
    tensors = [torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous() for image in photos]
    pixels, indices = torch.stack(tensors), np.arange(batch)
    steps = [
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(17, (0.1, 2.0))], 0.5),
        v2.RandomHorizontalFlip(),
    ]
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(IMAGENET_MEAN), list(IMAGENET_STD))]
    on_tensors, on_pillow = v2.Compose([*steps, *finish]), v2.Compose([*steps, v2.ToImage(), *finish])
    epoch = iter(range(10**9))

    def ours() -> Tensor:
        images = render_view(pixels, draw_view(SETTINGS, 0, next(epoch), indices, 0))
        return normalize(images, out=images)

    sides: dict[str, Callable[[], object]] = {
        "tinyseed": ours,
        "tensors": lambda: torch.stack([on_tensors(image) for image in tensors]),
        "pillow": lambda: torch.stack([on_pillow(image) for image in photos]),
    }
    times = take_turns(sides, repeats, batch)
    what = f"colors {size} px, batch {batch}"
    return [
        compare(f"{what}, v2 on {name}", times["tinyseed"], times[name]) for name in ("tensors", "pillow")
    ]


def crop_rows(width: int, height: int, size: int, repeats: int) -> list[Row]:
    stream = io.BytesIO()
    photo(width, height, 0).save(stream, "JPEG", quality=90)
    data = stream.getvalue()
    n = 3 if width > 1000 else 40
    random = v2.Compose([v2.RandomResizedCrop(size, SETTINGS.crop_scale), v2.PILToTensor()])
    middle = v2.Compose([v2.Resize(int(size * 256 / 224)), v2.CenterCrop(size), v2.PILToTensor()])
    draws, views = uniforms(0, 0, np.arange(n), "crop-0", CROP_DRAWS), [View(SETTINGS, size)]

    def theirs(transform: Callable) -> None:
        for _ in range(n):
            transform(Image.open(io.BytesIO(data)).convert("RGB"))

    sides: dict[str, Callable[[], object]] = {
        "random": lambda: [RGB.random_views(data, row[None], views) for row in draws],
        "v2 random": lambda: theirs(random),
        "evaluation": lambda: [RGB.evaluation_view(data, size) for _ in range(n)],
        "v2 evaluation": lambda: theirs(middle),
    }
    times = take_turns(sides, repeats, n)
    what = f"JPEG {width} × {height} → {size} px"
    return [compare(f"{what}, {kind}", times[kind], times[f"v2 {kind}"]) for kind in ("random", "evaluation")]


def addressed_times(repeats: int) -> dict[str, float]:
    """Milliseconds a call."""
    sides: dict[str, Callable[[], object]] = {
        "uniforms, 256 images × 40": lambda: uniforms(0, 0, np.arange(256), "crop-0", CROP_DRAWS),
        "draw_view, 256 images": lambda: draw_view(SETTINGS, 0, 0, np.arange(256), 0),
        "permutation of 1,281,167": lambda: permutation(0, 0, 1_281_167),
    }
    return {name: statistics.median(values) for name, values in take_turns(sides, repeats, 1).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    options = parser.parse_args()
    keep_freed_memory()
    about, rows = machine(), []
    for threads in dict.fromkeys(options.threads):
        torch.set_num_threads(threads)
        for size, batch in BATCHES:
            rows += color_rows(size, batch, options.repeats)
    torch.set_num_threads(1)
    for jpeg in JPEGS:
        rows += crop_rows(*jpeg, options.repeats)
    print(f"{'milliseconds an image':46} {'threads':>7} {'tinyseed':>9} {'torchvision':>11} {'ratio':>6}")
    for row in rows:
        print(f"{row.what:46} {row.threads:7} {row.tinyseed:9.3f} {row.torchvision:11.3f} {row.ratio:6.1f}")
    calls = addressed_times(options.repeats)
    print(f"\n{'milliseconds a call':46}")
    for name, value in calls.items():
        print(f"{name:46} {value:17.3f}")
    write_results("views", {"machine": about, "rows": [asdict(row) for row in rows], "calls": calls})


if __name__ == "__main__":
    main()
