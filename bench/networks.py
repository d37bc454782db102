"""The time and memory of the networks themselves, without loss and data.

    python bench/networks.py engines      how a frozen teacher is computed
    python bench/networks.py students     forward and backward of students: layout, precision, batch, share of the peak
    python bench/networks.py optimizer    the optimizer's step, and its share of a training step
    python bench/networks.py compile      torch.compile of a student, and the time that it takes to begin
    python bench/networks.py memory       peak memory of a training step by phase, each case in a process of its own

Both sides of a comparison take turns in one process; medians of the turns' ratios. Weights are random, inputs are noise
where only time is measured. Each part writes bench/results/networks-PART.json. `memory --source DIR` measures another
checkout (its src folder).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if "--child" in sys.argv and "--source" in sys.argv:  # another checkout's package
    sys.path.insert(0, sys.argv[sys.argv.index("--source") + 1])

import torch
from torch import nn
from torch.nn.functional import cosine_similarity

from common import machine, write_results
from tinyseed.torchvision_ops import ensure_torchvision

ensure_torchvision()

BF16 = torch.bfloat16
ENGINE_CASES = [
    ("resnet50", 64, 128),
    ("resnet50", 224, 32),
    ("mobilenetv3_large_100", 64, 128),
    ("vit_small_patch16_224", 224, 32),
]
STUDENT_CASES = [
    ("resnet18", 64, 128),
    ("resnet18", 224, 32),
    ("mobilenetv3_large_100", 64, 128),
    ("mobilenetv3_large_100", 224, 32),
    ("efficientnet_b0", 64, 128),
    ("efficientnet_b0", 224, 32),
    ("vit_tiny_patch16_224", 224, 32),
]
MEMORY_CASES = [(256, "bf16"), (256, "32"), (64, "bf16"), (64, "32")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["engines", "students", "optimizer", "compile", "memory"])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument(
        "--case", default="", help="only networks whose name contains this; memory: `batch 256, bf16, kept`"
    )
    parser.add_argument("--source", help="src folder of another checkout (memory)")
    parser.add_argument("--name", help="name of the result, in place of the part's")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(memory_child(**json.loads(given.child))))
        return
    parts = {
        "engines": engines,
        "students": students,
        "optimizer": optimizers,
        "compile": compiled,
        "memory": memory,
    }
    results = parts[given.part](given)
    if not given.case:
        write_results(given.name or f"networks-{given.part}", {"machine": machine(), "results": results})


def in_turns(sides: dict[str, Callable[[], object]], turns: int) -> dict[str, list[float]]:
    """Seconds of each side in each turn, after one call for warming up."""
    for side in sides.values():
        side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(turns):
        for name, side in sides.items():
            began = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def compared(seconds: dict[str, list[float]], base: str, images: int, **more: object) -> list[dict]:
    """One row per side: ms per image, and how many times as fast as the base."""
    rows = []
    for name, own in seconds.items():
        faster = statistics.median(one / other for one, other in zip(seconds[base], own, strict=True))
        ms = 1000 * statistics.median(own) / images
        rows.append({**more, "side": name, "ms_per_image": round(ms, 4), "times_as_fast": round(faster, 3)})
        print(f"  {name:34s} {ms:8.3f} ms/image   {faster:5.2f}×", flush=True)
    return rows


def channels_last(images: torch.Tensor) -> torch.Tensor:
    return images.contiguous(memory_format=torch.channels_last)


# Engines


def engines(given: argparse.Namespace) -> list[dict]:
    rows = []
    for name, size, batch in ENGINE_CASES:
        if given.case in name:
            rows += engine_case(name, size, batch, given.turns)
    if given.case in "tinyseed/clothing-resnet18":
        rows += bundled_agreement()
    return rows


def engine_case(name: str, size: int, batch: int, turns: int) -> list[dict]:
    from tinyseed.models.backbones import build_backbone
    from tinyseed.models.encoder import Encoder
    from tinyseed.models.engines.catalog import ENGINES
    from tinyseed.models.engines.plain import TorchEngine
    from tinyseed.models.teacher import Teacher

    backbone = Teacher(Encoder(build_backbone(name, seed=0, image_size=size)), name).channels_last().backbone
    images = channels_last(torch.randn(batch, 3, size, size))
    packed = TorchEngine(backbone)
    sides = {}
    for precision, autocast in (("32", False), ("bf16", True)):
        for side, compute in (("torch, as it is", backbone), ("torch, packed, 32 at a time", packed)):
            sides[f"{side}, {precision}"] = under(autocast, compute, images)
    setup = {}
    for spec in (ENGINES["onnx"], ENGINES["int8"]):
        if spec.can_run() is None:
            began = time.perf_counter()
            engine = spec.build(backbone, images[: spec.images])
            setup[spec.name] = round(time.perf_counter() - began, 1)
            sides[spec.name] = under(False, engine, images)
    print(f"\n{name}, {size} px, batch {batch}; seconds to begin: {setup}")
    seconds = in_turns(sides, turns)
    facts = {"network": name, "size": size, "batch": batch, "setup_s": setup}
    rows = compared(seconds, "torch, as it is, 32", batch, **facts, compared_with="32")
    print("  compared with bf16:")
    return rows + compared(seconds, "torch, as it is, bf16", batch, **facts, compared_with="bf16")


def under(autocast: bool, compute: Callable, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    def side() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=BF16, enabled=autocast):
            return compute(images)

    return side


def bundled_agreement() -> list[dict]:
    """How far each engine agrees with torch in float32, for a trained teacher and photos that it was not built from."""
    from tinyseed.assets import clothing
    from tinyseed.checkpoints.load import load_teacher
    from tinyseed.data.render import normalize
    from tinyseed.data.sources import open_source
    from tinyseed.evaluation.features import view_batches
    from tinyseed.evaluation.health import neighbor_agreement
    from tinyseed.models.engines.catalog import ENGINES

    def photos(split: str, count: int) -> torch.Tensor:
        source = open_source([str(clothing(split))])
        chosen = torch.linspace(0, len(source) - 1, count).long().numpy()
        pixels = torch.cat([batch.pixels for batch in view_batches(source, chosen, teacher.input)])
        return channels_last(normalize(pixels.float() / 255, teacher.mean, teacher.std))

    teacher = load_teacher("tinyseed/clothing-resnet18", image_size=64).channels_last()
    known, new = photos("train", 256), photos("test", 512)
    wanted, rows = teacher(new), []
    for name in ("torch, bf16", "onnx", "int8"):
        spec = ENGINES.get(name)
        if spec is not None and spec.can_run() is not None:
            continue
        with torch.no_grad(), torch.autocast("cpu", dtype=BF16, enabled=spec is None):
            if spec is not None:
                teacher.use(spec.build(teacher.backbone, known[: spec.images]), name)
            given = teacher(new)
        row = {"network": "tinyseed/clothing-resnet18", "side": name, "images": len(new)}
        row["cosine"] = float(cosine_similarity(wanted, given).mean())
        row["neighbor_agreement"] = neighbor_agreement(wanted, given)
        rows.append(row)
        print(row)
    return rows


# Students


def students(given: argparse.Namespace) -> list[dict]:
    peaks = {"bf16": peak(BF16), "32": peak(torch.float32)}
    print("matrix peak, GFLOP/s:", {name: round(value / 1e9) for name, value in peaks.items()})
    rows: list[dict] = [
        {"side": "matrix peak", "gflops": {name: value / 1e9 for name, value in peaks.items()}}
    ]
    for name, size, batch in STUDENT_CASES:
        if given.case in name:
            rows += student_case(name, size, batch, given.turns, peaks)
    if given.case in "mobilenetv3_large_100":
        rows += batches("mobilenetv3_large_100", 64, given.turns)
    return rows


def peak(dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product."""
    left, right = torch.randn(4096, 2048).to(dtype), torch.randn(2048, 4096).to(dtype)
    seconds = in_turns({"": lambda: left @ right}, 5)[""]
    return 2 * 4096 * 2048 * 4096 / min(seconds)


def network(
    name: str, size: int, *, fixed: bool = True, last: bool = True, checkpoint: bool = False
) -> nn.Module:
    """A student as tinyseed trains it, or without float32 gradients of depthwise convolutions."""
    from tinyseed.models.backbones import build_backbone
    from tinyseed.models.checkpointing import checkpoint_blocks
    from tinyseed.models.depthwise import gradients_in_float32

    built = build_backbone(name, seed=0, image_size=size).network.train()
    if fixed:
        gradients_in_float32(built)
    if checkpoint:
        checkpoint_blocks(built)
    return built.to(memory_format=torch.channels_last) if last else built  # pyright: ignore[reportCallIssue]


def forward_backward(trained: nn.Module, images: torch.Tensor, *, bf16: bool = True) -> Callable[[], None]:
    def side() -> None:
        with torch.autocast("cpu", dtype=BF16, enabled=bf16):
            loss = trained(images).float().square().mean()
        loss.backward()
        for parameter in trained.parameters():
            parameter.grad = None

    return side


def student_case(name: str, size: int, batch: int, turns: int, peaks: dict[str, float]) -> list[dict]:
    from tinyseed.evaluation.cost import multiply_adds

    images = torch.randn(batch, 3, size, size)
    last = channels_last(images)
    plain = network(name, size, fixed=False)
    has_depthwise = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in plain.modules())
    sides = {"bf16, channels last": forward_backward(plain, last)}
    if has_depthwise:
        sides["bf16, depthwise gradients in float32"] = forward_backward(network(name, size), last)
    sides["float32, channels last"] = forward_backward(plain, last, bf16=False)
    sides["bf16, contiguous"] = forward_backward(network(name, size, last=False), images)
    sides["bf16, checkpointed"] = forward_backward(network(name, size, checkpoint=True), last)
    flops = 6 * multiply_adds(plain.eval(), last[:1])  # two for each, forward and twice that backward
    plain.train()
    print(f"\n{name}, {size} px, batch {batch}: {flops / 6e6:.0f} M multiply-adds")
    rows = compared(
        in_turns(sides, turns), "bf16, channels last", batch, network=name, size=size, batch=batch
    )
    for row in rows:
        limit = peaks["32" if row["side"].startswith("float32") else "bf16"]
        row["share_of_peak"] = round(flops / (row["ms_per_image"] / 1000) / limit, 3)
        print(f"  {row['side']:38s} {100 * row['share_of_peak']:5.1f} % of the matrix peak")
    return rows


def batches(name: str, size: int, turns: int) -> list[dict]:
    """Batch sizes, one thread, and flushing subnormal numbers to zero."""
    trained, rows = network(name, size), []
    print(f"\n{name}, {size} px: batch sizes")
    for batch in (32, 64, 128, 256):
        images = channels_last(torch.randn(batch, 3, size, size))
        seconds = in_turns({f"batch {batch}": forward_backward(trained, images)}, turns)
        rows += compared(seconds, f"batch {batch}", batch, network=name, size=size, batch=batch)
    plain = forward_backward(trained, channels_last(torch.randn(128, 3, size, size)))

    def flushed() -> None:
        torch.set_flush_denormal(True)
        plain()
        torch.set_flush_denormal(False)

    seconds = in_turns({"as it is": plain, "subnormals flushed": flushed}, turns)
    return rows + compared(seconds, "as it is", 128, network=name, size=size, batch=128)


# Optimizer


def optimizers(given: argparse.Namespace) -> list[dict]:
    from torch.optim import SGD

    from tinyseed.engine.optim import build_optimizer
    from tinyseed.methods.seed import SeedSettings

    rows = []
    for name in ("resnet18", "mobilenetv3_large_100"):
        if given.case not in name:
            continue
        networks = [network(name, 64) for _ in range(4)]
        for each in networks:
            for parameter in each.parameters():
                parameter.grad = torch.randn_like(parameter)
        settings = SeedSettings(data=(), out=Path(), teacher="", student="")
        common = {"lr": 1e-4, "momentum": 0.9, "weight_decay": 1e-4}
        used = build_optimizer(settings, networks[0])
        choices = {
            "SGD, fused (used)": used,
            "SGD, foreach": SGD(networks[1].parameters(), foreach=True, **common),
            "SGD, one by one": SGD(networks[2].parameters(), foreach=False, **common),
            "LARS (timm's)": build_optimizer(settings.replaced(optimizer="lars"), networks[3]),
        }
        print(f"\n{name}: ms per step")
        seconds = in_turns({side: choice.step for side, choice in choices.items()}, 5 * given.turns)
        found = compared(seconds, "SGD, foreach", 1, network=name)
        step = in_turns(
            {"": forward_backward(network(name, 64), channels_last(torch.randn(128, 3, 64, 64)))}, 2
        )
        for row in found:
            row["share_of_forward_and_backward"] = round(row["ms_per_image"] / 1000 / min(step[""]), 4)
            print(f"  {row['side']:34s} {100 * row['share_of_forward_and_backward']:.1f} % of 128 × 64 px")
        rows += found
    return rows


def compiled(given: argparse.Namespace) -> list[dict]:
    rows = []
    for name, size, batch in (("resnet18", 64, 128), ("mobilenetv3_large_100", 64, 128)):
        if given.case not in name:
            continue
        images = channels_last(torch.randn(batch, 3, size, size))
        faster = torch.compile(network(name, size, fixed=False))
        began = time.perf_counter()
        step = forward_backward(faster, images)
        step()
        setup = round(time.perf_counter() - began, 1)
        print(f"\n{name}, {size} px, batch {batch}: {setup} s to compile")
        sides = {"as it is": forward_backward(network(name, size), images), "torch.compile": step}
        facts = {"network": name, "size": size, "batch": batch, "setup_s": setup}
        rows += compared(in_turns(sides, given.turns), "as it is", batch, **facts)
    return rows


# Memory


def memory(given: argparse.Namespace) -> list[dict]:
    rows = []
    for batch, precision in MEMORY_CASES:
        for checkpoint, keep in ((False, True), (False, False), (True, True)):
            text = f"batch {batch}, {precision}" + (", checkpointed" if checkpoint else "")
            if (checkpoint and given.source) or given.case not in text + (", kept" if keep else ""):
                continue
            case = {"batch": batch, "precision": precision, "checkpoint": checkpoint, "keep": keep}
            source = ["--source", given.source] if given.source else []
            command = [sys.executable, __file__, "memory", "--child", json.dumps(case), *source]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(case, "failed:", done.stderr[-300:])
                continue
            row = {**case, **json.loads(done.stdout.splitlines()[-1])}
            print(row, flush=True)
            rows.append(row)
    return rows


def peak_mib() -> int:
    """The most memory since the last `reset_peak`, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_child(batch: int, precision: str, checkpoint: bool, keep: bool) -> dict:
    """A training step by phase, ResNet-50 to ResNet-18 at 224 px, after the first evaluation of the teacher.

    With `keep` as a run does it: memory that was freed stays with the process, so later phases show earlier peaks.
    """
    from step import Case, enlarged, teacher_with_head
    from tinyseed.data.render import render_view
    from tinyseed.engine import shared
    from tinyseed.engine.runs import open_runs
    from tinyseed.methods.seed import SeedSettings
    from tinyseed.models.teacher import Teacher

    if not keep:
        shared.keep_freed_memory = lambda: None
    peaks = {"import": peak_mib()}
    case = Case("memory", "resnet50", "resnet18", 224, batch, 65536, 0)
    with tempfile.TemporaryDirectory() as folder:
        settings = SeedSettings(
            data=(str(enlarged(Path(folder) / "large")),),
            out=Path(folder) / "run",
            teacher=str(teacher_with_head(case, Path(folder))),
            student="resnet18",
            batch_size=batch,
            precision=precision,
            queue_size=65536,
            validation_images=8,
            log_every=10**9,
            **({"checkpoint_activations": True} if checkpoint else {}),
        )
        with open_runs({"": settings}, quiet=True) as runs:
            (run,) = runs.all
            peaks["start, teacher's evaluation included"] = peak_mib()
            loaded = runs.batches()
            reset_peak()
            data = next(loaded)
            peaks["batch"] = peak_mib()
            reset_peak()
            views = tuple(render_view(*pair) for pair in zip(data.pixels, data.draws, strict=True))
            peaks["views"] = peak_mib()
            plain = Teacher.__call__

            def noted(self: Teacher, images: torch.Tensor) -> torch.Tensor:
                peaks["student, forward"] = peak_mib()
                reset_peak()
                rows = plain(self, images)
                peaks["teacher"] = peak_mib()
                reset_peak()
                return rows

            Teacher.__call__ = noted
            with run.runtime.autocast():
                output = run.method.step(run.learner.forward, views, 1)
            peaks["loss"] = peak_mib()
            reset_peak()
            run.runtime.fabric.backward(output.loss)
            peaks["backward"] = peak_mib()
            reset_peak()
            run.learner.optimizer.step()
            peaks["optimizer"] = peak_mib()
    return {"peak_mib": peaks, "most_mib": max(peaks.values())}


if __name__ == "__main__":
    os.environ.setdefault("TINYSEED_CACHE", tempfile.mkdtemp(prefix="tinyseed-networks-"))
    main()
