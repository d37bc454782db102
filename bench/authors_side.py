"""SEED as its authors published it, restated in its operations, to be measured beside tinyseed.

What is restated, after github.com/jacobswan1/SEED (main.py, seed/builder.py, tools/utils.py): a DataLoader whose
items are decoded by Pillow and transformed by torchvision image by image; teacher in evaluation mode without gradients,
student in training mode; the queue as [d, k], cloned for each of the two products; the own row put before the k scores;
softmax and log-softmax over all of them; `loss.item()` each step; SGD with momentum; the learning rate once per epoch;
a checkpoint of everything after each epoch.

Differs: images are files rather than rows of a TSV in base 64; the published code calls `.cuda()` and CUDA's mixed
precision, which do nothing on a CPU, so it runs in float32. "Tuned" is what a user might add on a CPU: channels-last
memory and autocast to bfloat16.
"""

import argparse
import math
import random
from pathlib import Path

import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from tinyseed.torchvision_ops import ensure_torchvision
from turns import Stamper

ensure_torchvision()

from torchvision import transforms  # noqa: E402  (its operators have to be declared first)

from tinyseed.checkpoints.load import load_model  # noqa: E402
from tinyseed.data.render import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from tinyseed.models.backbones import build_backbone  # noqa: E402
from tinyseed.models.encoder import Encoder, build_projector, freeze  # noqa: E402


class PillowBlur:
    """Gaussian blur of a random width."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """The blurred image."""
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def moco_v2(size: int) -> transforms.Compose:
    """The published augmentation, at a side of `size` pixels."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([PillowBlur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD)),
        ]
    )


class Photos(Dataset):
    """All JPEG files below a folder."""

    def __init__(self, folder: Path, size: int) -> None:
        self.files = sorted(folder.rglob("*.jpg"))
        self.transform = moco_v2(size)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB"))


class Published(nn.Module):
    """Student, teacher and queue in one module."""

    def __init__(self, student: nn.Module, teacher: nn.Module, dim: int, rows: int) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.register_buffer("queue", functional.normalize(torch.randn(dim, rows), dim=0))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, images: Tensor, temperature: float, sharpness: float) -> tuple[Tensor, Tensor]:
        """The student's scores and the teacher's distribution, [n, k + 1] each."""
        student = self.student(images)
        with torch.no_grad():
            teacher = self.teacher(images)
        by_student = torch.einsum("nd,dk->nk", student, self.queue.clone().detach())
        by_teacher = torch.einsum("nd,dk->nk", teacher, self.queue.clone().detach())
        own_student = torch.einsum("nd,nd->n", student, teacher).unsqueeze(-1)
        own_teacher = torch.einsum("nd,nd->n", teacher, teacher).unsqueeze(-1)
        by_student = torch.cat([own_student, by_student], dim=1)
        by_teacher = torch.cat([own_teacher, by_teacher], dim=1)
        by_student = by_student / temperature
        target = functional.softmax(by_teacher / sharpness, dim=1)
        self.enqueue(teacher)
        return by_student, target

    @torch.no_grad()
    def enqueue(self, rows: Tensor) -> None:
        """The oldest rows leave; the queue has to be a multiple of the batch."""
        start = int(self.place)
        assert self.queue.shape[1] % len(rows) == 0
        self.queue[:, start : start + len(rows)] = rows.T
        self.place[0] = (start + len(rows)) % self.queue.shape[1]


def soft_cross_entropy(scores: Tensor, target: Tensor) -> Tensor:
    return -(target * functional.log_softmax(scores, 1)).sum() / scores.shape[0]


def rate(epoch: int, epochs: int, base: float, batch: int) -> float:
    """Learning rate of an epoch: linear from the unscaled one, then a cosine over the whole run."""
    peak, warmup = base * batch / 256, min(5, epochs / 10)
    if epoch < warmup:
        return base + (peak - base) / warmup * epoch
    return peak * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def main() -> None:
    parser = argparse.ArgumentParser(description="One side of bench/end_to_end.py; see there.")
    for name in ("data", "out", "teacher", "student"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("size", "batch", "queue", "epochs", "workers", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--snapshots", action="store_true", help="keep the student after each epoch")
    train(parser.parse_args())


def networks(given: argparse.Namespace) -> Published:
    """Teacher and student with the weights that tinyseed's run begins with."""
    torch.manual_seed(given.seed)
    teacher = freeze(load_model(given.teacher))
    backbone = build_backbone(given.student, image_size=given.size, seed=given.seed)
    head = build_projector("mlp", backbone.width, teacher.dim, seed=given.seed)
    return Published(Encoder(backbone, head), teacher, teacher.dim, given.queue)


def train(given: argparse.Namespace) -> None:
    stamper, out = Stamper(), Path(given.out)
    out.mkdir(parents=True)
    model = networks(given)
    if given.tuned:
        model = model.to(memory_format=torch.channels_last)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, given.lr, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(
        Photos(Path(given.data), given.size),
        batch_size=given.batch,
        shuffle=True,
        num_workers=given.workers,
        drop_last=True,
    )
    for epoch in range(given.epochs):
        for group in optimizer.param_groups:
            group["lr"] = rate(epoch, given.epochs, given.lr, given.batch)
        model.train()
        model.teacher.eval()
        for images in loader:
            step(model, optimizer, images, tuned=given.tuned)
            stamper.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save(state, out / "checkpoint.pth")
        if given.snapshots:
            with stamper.away():
                torch.save(model.student.backbone.network.state_dict(), out / f"epoch-{epoch + 1}.pth")


def step(model: Published, optimizer: torch.optim.Optimizer, images: Tensor, *, tuned: bool) -> None:
    if tuned:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=tuned):
        scores, target = model(images, 0.2, 0.01)
        loss = soft_cross_entropy(scores, target)
    loss.item()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


if __name__ == "__main__":
    main()
