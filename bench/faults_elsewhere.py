"""What LightlyTrain does on some of the faults of docs/trust.md.

Needs an environment of its own: pip install lightly-train timm (tried with 0.18.0, torch 2.13.0). Run it with that
environment's Python:

    python bench/faults_elsewhere.py

Each fault starts a short distillation (DINOv2 "test" teacher with random weights, ResNet-10t student, 64 noise images)
in a process of its own and reports what can be seen from outside: exit code, lines written, what is left on the disk.
Where torchvision cannot be imported beside a CPU-only torch, give the folder of tinyseed's sources as TINYSEED_SRC: its
`torchvision_ops.py` then declares the missing operators.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RUN = """
import os, sys
if os.environ.get("TINYSEED_SRC"):
    sys.path.append(os.environ["TINYSEED_SRC"])
    from tinyseed.torchvision_ops import ensure_torchvision
    ensure_torchvision()
import lightly_train
if __name__ == "__main__":
    given = eval(sys.argv[1])
    method_args = {"teacher": "dinov2/_vittest14", **given.pop("method_args", {})}
    lightly_train.pretrain(**{"model": "timm/resnet10t", "method": "distillationv1", "method_args": method_args,
        "batch_size": 8, "num_workers": 0, "accelerator": "cpu", "loader_args": None, **given})
"""
ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS="1", LIGHTLY_TRAIN_TELEMETRY_DISABLED="1")
PATIENCE = 150


class Trial:
    """A folder of its own with images, and runs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.script = folder / "run.py"
        self.script.write_text(RUN)
        self.fill(range(64))

    def fill(self, seeds: range) -> None:
        """Write one noise image for each seed."""
        import numpy as np
        from PIL import Image

        shutil.rmtree(self.folder / "images", ignore_errors=True)
        for seed in seeds:
            folder = self.folder / "images" / "ab"[seed % 2]
            folder.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{seed % 1000}.jpg")

    def start(self, **given: object) -> subprocess.Popen[str]:
        """Begin a run."""
        settings = {"out": str(self.out), "data": str(self.folder / "images"), "epochs": 2, **given}
        log = (self.folder / f"log{len(list(self.folder.glob('log*')))}").open("w+")
        command = [sys.executable, str(self.script), repr(settings)]
        begun = subprocess.Popen(
            command, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        begun.log = log  # pyright: ignore[reportAttributeAccessIssue]
        return begun

    def end(self, begun: subprocess.Popen[str]) -> str:
        """Wait for a run; what could be seen of it."""
        try:
            code = str(begun.wait(PATIENCE))
        except subprocess.TimeoutExpired:
            os.killpg(begun.pid, signal.SIGKILL)
            code = f"hangs (killed after {PATIENCE} s)"
        begun.log.seek(0)  # pyright: ignore[reportAttributeAccessIssue]
        text = begun.log.read()  # pyright: ignore[reportAttributeAccessIssue]
        last = next((line for line in reversed(text.splitlines()) if line.strip(" -\x1b[0m.")), "")
        traceback = ", traceback" if "Traceback" in text else ""
        return f"exit {code}{traceback}, {text.count(chr(10))} lines; last: {last[:150]}"

    def run(self, **given: object) -> str:
        """A run from its start to its end."""
        return self.end(self.start(**given))

    def reached(self, begun: subprocess.Popen[str], lines: int) -> None:
        """Wait until metrics.jsonl has at least this many lines."""
        metrics, limit = self.out / "metrics.jsonl", time.time() + PATIENCE
        while begun.poll() is None and time.time() < limit:
            if metrics.exists() and metrics.read_text().count("\n") >= lines:
                return
            time.sleep(0.2)

    def left(self) -> str:
        """Checkpoints and exports on the disk."""
        found = sorted(
            str(each.relative_to(self.out)) for each in self.out.rglob("*") if each.suffix in (".ckpt", ".pt")
        )
        return ", ".join(found) or "no checkpoint"


LONG = {"epochs": 5000, "trainer_args": {"log_every_n_steps": 1}}


def sigterm_to_group(trial: Trial) -> str:
    begun = trial.start(**LONG, num_workers=2)
    trial.reached(begun, 6)
    os.killpg(begun.pid, signal.SIGTERM)
    return f"{trial.end(begun)}; on the disk: {trial.left()}"


def worker_killed(trial: Trial) -> str:
    begun = trial.start(**LONG, num_workers=2)
    trial.reached(begun, 6)
    children = Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
    workers = [each for each in children if "run.py" in Path(f"/proc/{each}/cmdline").read_text()]
    if workers:
        os.kill(int(workers[0]), signal.SIGKILL)
    return trial.end(begun)


def two_runs_one_folder(trial: Trial) -> str:
    first, second = trial.start(epochs=20, overwrite=True), trial.start(epochs=20, overwrite=True)
    return f"{trial.end(first)} | {trial.end(second)}"


def killed_and_resumed(trial: Trial) -> str:
    """The weights of a resumed run against those of an unbroken one."""
    import torch

    trial.run(epochs=6, seed=1)
    whole = torch.load(trial.out / "exported_models" / "exported_last.pt", weights_only=True)
    shutil.rmtree(trial.out)
    begun = trial.start(epochs=6, seed=1, trainer_args={"log_every_n_steps": 1})
    while begun.poll() is None and not list(trial.out.rglob("last.ckpt")):
        time.sleep(0.05)
    time.sleep(0.5)
    os.killpg(begun.pid, signal.SIGKILL)
    trial.end(begun)
    seen = trial.run(epochs=6, seed=1, resume_interrupted=True)
    if not (trial.out / "exported_models" / "exported_last.pt").exists():
        return seen
    again = torch.load(trial.out / "exported_models" / "exported_last.pt", weights_only=True)
    equal = sum(torch.equal(whole[name], again[name]) for name in whole)
    return f"{equal} of {len(whole)} tensors equal those of the unbroken run; {seen}"


def resumed_on_other_images(trial: Trial) -> str:
    begun = trial.start(**LONG)
    while begun.poll() is None and not list(trial.out.rglob("last.ckpt")):
        time.sleep(0.05)
    os.killpg(begun.pid, signal.SIGKILL)
    trial.end(begun)
    trial.fill(range(1000, 1064))
    return trial.run(epochs=3, resume_interrupted=True)


def constant_teacher(trial: Trial) -> str:
    import torch

    code = RUN.split("if __name__", maxsplit=1)[0] + (
        "from lightly_train._methods.distillation.distillation import get_teacher\nimport torch\n"
        "state = get_teacher('dinov2/_vittest14', 3).state_dict()\n"
        "torch.save({k: torch.zeros_like(v) for k, v in state.items()}, sys.argv[1])\n"
    )
    weights = trial.folder / "zeros.pth"
    subprocess.run([sys.executable, "-c", code, weights], env=ENVIRONMENT, capture_output=True, check=True)
    assert torch.load(weights, weights_only=True)
    return trial.run(method_args={"teacher_weights": str(weights)})


def html_as_teacher(trial: Trial) -> str:
    weights = trial.folder / "teacher.pth"
    weights.write_text("<!doctype html><html>Quota exceeded</html>")
    return trial.run(method_args={"teacher_weights": str(weights)})


def diverged(trial: Trial) -> str:
    """A learning rate at which the loss becomes NaN."""
    import torch

    seen = trial.run(epochs=6, optim="sgd", optim_args={"lr": 1e30})
    exported = trial.out / "exported_models" / "exported_last.pt"
    if not exported.exists():
        return seen
    weights = torch.load(exported, weights_only=True)
    bad = sum(not bool(torch.isfinite(value.float()).all()) for value in weights.values())
    return f"{bad} of {len(weights)} exported tensors are not finite; {seen}"


def formats_left_out(trial: Trial) -> str:
    from PIL import Image

    for suffix in (".avif", ".heic", ".jfif", ".ppm"):
        for number, path in enumerate(list((trial.folder / "images" / "a").glob("*.jpg"))[:8]):
            target = trial.folder / "images" / "c" / f"{number}{suffix}"
            target.parent.mkdir(exist_ok=True)
            if suffix in (".ppm", ".avif"):
                Image.open(path).save(target)
            else:
                shutil.copy(path, target)
    seen = trial.run()
    log = "".join(each.read_text() for each in trial.folder.glob("log*"))
    said = [suffix for suffix in (".avif", ".heic", ".jfif", ".ppm") if suffix in log]
    return f"named on the terminal: {said or 'none of the four suffixes'}; {seen}"


def broken_image(trial: Trial) -> str:
    (trial.folder / "images" / "a" / "0.jpg").write_bytes(b"\xff\xd8\xff" + b"\0" * 500)
    seen = trial.run()
    log = "".join(each.read_text() for each in trial.folder.glob("log*"))
    return f"the file is named: {'0.jpg' in log}; {seen}"


def full_disk(trial: Trial) -> str:
    """A file system of 24 MB; needs the right to mount."""
    trial.out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "none", str(trial.out)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return "not run: no right to mount"
    try:
        return trial.run(overwrite=True, epochs=4)
    finally:
        subprocess.run(["umount", "-l", trial.out], check=False)


def network(trial: Trial) -> str:
    """Sockets of a run as it is by default; needs strace."""
    if shutil.which("strace") is None:
        return "not run: strace is missing"
    settings = {"out": str(trial.out), "data": str(trial.folder / "images"), "epochs": 1}
    record = trial.folder / "sockets"
    command = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto",
        "-o",
        str(record),
        sys.executable,
        str(trial.script),
        repr(settings),
    ]
    environment = {name: value for name, value in ENVIRONMENT.items() if "TELEMETRY" not in name}
    subprocess.run(command, env=environment, capture_output=True, check=False, timeout=2 * PATIENCE)
    opened = [line for line in record.read_text().splitlines() if "AF_INET" in line]
    return f"{len(opened)} connections; {opened[0].split(' ', 1)[1][:120] if opened else ''}"


FAULTS: tuple[Callable[[Trial], str], ...] = (
    sigterm_to_group, worker_killed, two_runs_one_folder, killed_and_resumed, resumed_on_other_images,
    constant_teacher, html_as_teacher, diverged, formats_left_out, broken_image, full_disk, network,
)  # fmt: skip


def main() -> None:
    wanted = sys.argv[1:]
    for fault in FAULTS:
        if wanted and fault.__name__ not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                seen = fault(Trial(Path(folder)))
            except (OSError, AssertionError, subprocess.SubprocessError) as error:
                seen = f"could not be tried: {error}"
        print(json.dumps({"fault": fault.__name__, "lightly-train": seen}), flush=True)


if __name__ == "__main__":
    main()
