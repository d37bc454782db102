"""What a finished run leaves: the model in its library's own format, and the final figures. Imports models."""

import torch

from tinyseed.checkpoints.saved import save_encoder
from tinyseed.engine.config import DistillConfig, RunConfig, verb
from tinyseed.engine.run_folder import Figures, RunFolder
from tinyseed.engine.runtime import Runtime
from tinyseed.methods.method import Method
from tinyseed.methods.seed import Seed
from tinyseed.models.encoder import Encoder


def finish(
    config: RunConfig,
    folder: RunFolder,
    method: Method,
    runtime: Runtime,
    *,
    step: int,
    elapsed: float,
    bad: int,
) -> Figures:
    """Write the model's files and summary.json; returns the summary's figures."""
    encoder = method.encoder
    summary = summarise(config, folder, encoder, method, step=step, elapsed=elapsed, bad=bad)
    if runtime.is_main:
        save_encoder(folder.path, encoder, file=model_file(config), metadata={"method": verb(config)})
        folder.write_json(folder.summary, summary)
    runtime.barrier()
    return summary


def model_file(config: RunConfig) -> str:
    """A distilled model is a student; a pre-trained one is an encoder."""
    return "student.safetensors" if isinstance(config, DistillConfig) else "encoder.safetensors"


def summarise(
    config: RunConfig,
    folder: RunFolder,
    encoder: Encoder,
    method: Method,
    *,
    step: int,
    elapsed: float,
    bad: int,
) -> Figures:
    """The last evaluation beside the one before the first step (the random network), and what the run took."""
    evaluations = [line for line in folder.logged() if "loss" not in line]
    losses = [line["loss"] for line in folder.logged() if "loss" in line]
    figures: Figures = {"command": verb(config), "steps": step, "minutes": round(elapsed / 60, 2)}
    if evaluations:
        last = {name: value for name, value in evaluations[-1].items() if name not in {"step", "epoch"}}
        figures |= {"epochs": evaluations[-1]["epoch"], **last}
        untrained = ("knn_top1", "neighbour_agreement", "effective_rank")
        figures |= {f"{name}_random": evaluations[0][name] for name in untrained if name in evaluations[0]}
    if losses:
        figures["loss"] = losses[-1]
    figures["parameters"] = _count(encoder.backbone)
    if isinstance(method, Seed):
        figures["parameters_teacher"] = method.teacher.parameters_count
    figures["unreadable_images"] = bad
    return figures


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
