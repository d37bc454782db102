"""A model by its name, whatever it is: a run, a public checkpoint, a file at a URL, or a library's model."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyseed.assets import CLOTHING_TEACHER
from tinyseed.checkpoints.entries import read_weights
from tinyseed.checkpoints.fit import fit_network
from tinyseed.checkpoints.folders import library_folder, load_folder
from tinyseed.checkpoints.huggingface import PREFIX, load_transformers
from tinyseed.checkpoints.pretrained import build_pretrained
from tinyseed.checkpoints.public import ModelDescription, describe, load_file, with_output
from tinyseed.checkpoints.remote import is_url, local_file
from tinyseed.checkpoints.saved import is_export, load_encoder, model_file
from tinyseed.errors import InputError, argument
from tinyseed.models.backbones import Backbone, as_backbone, build_backbone, probe_width, seeded
from tinyseed.models.encoder import Encoder, Projector, embedding_as_features
from tinyseed.models.libraries import create, create_on_meta
from tinyseed.models.names import find_model, is_model_name
from tinyseed.models.spec import RANDOM, ModelSpec
from tinyseed.models.teacher import Teacher
from tinyseed.text import public

BUNDLED = {"tinyseed/clothing-resnet18": CLOTHING_TEACHER}
"""Teachers that come with the package."""

_PATH = re.compile(
    r"^[./~]|^(?!timm/|torchvision/|swav/|seed/|moco/|dinov3/|transformers:).*/|\.(safetensors|pth|pt|ckpt|tar|bin)$"
)
# Another stream than a student's of the same seed: a random teacher has to be another network.
_TEACHER_STREAM = 0x7EAC4E5


def load_teacher(spec: ModelSpec | str | Path, **fields: Any) -> Teacher:  # noqa: ANN401
    """A frozen teacher from a tinyseed run, a public checkpoint, or a model's name.

    A teacher by a library's name has no projector: its rows are the normalized features. An image size that it cannot
    take is raised to the next that it can; `Teacher.input.size` has it.

    Args:
        spec: which model.
        fields: fields of `ModelSpec` that replace those of `spec`.

    Raises:
        InputError: no such model, weights that do not fit or cannot be downloaded, or a size that it cannot take.
    """
    spec = _as_spec(spec, **fields)
    seed = None if spec.seed is None else spec.seed ^ _TEACHER_STREAM
    encoder = load_model(replace(spec, seed=seed, round_size=True))
    name, weights = (public(str(each)) for each in (spec.name, spec.weights))
    return Teacher(encoder, name if spec.weights is None else f"{name}, weights {weights}")


def load_model(spec: ModelSpec | str | Path) -> Encoder:
    """An encoder as `load_teacher` finds it, in evaluation mode.

    Raises:
        InputError: as `load_teacher`.
    """
    spec = _as_spec(spec)
    encoder = _load_model(spec)
    return encoder.with_input(spec.expected(encoder.input))


def _load_model(spec: ModelSpec) -> Encoder:
    text = str(spec.name)
    if text.startswith(RANDOM):
        text = text.removeprefix(RANDOM)
        spec = replace(spec, name=text, weights="random")
    path = path_of(text)
    if path is not None:
        if spec.weights is not None and path.exists():
            why = f"{text} has weights of its own; leave these out"
            raise InputError(spec.weights, why, argument="weights")
        return _open(path, spec)[0]
    if spec.arch is not None:
        why = f"is for files that do not say what they are; {text} does"
        raise InputError(spec.arch, why, argument="arch")
    if spec.prefix is not None and spec.weights in (None, "random"):
        raise InputError(spec.prefix, f"is for checkpoint files; {text} is a name", argument="prefix")
    encoder = load_transformers(spec) if text.startswith(PREFIX) else Encoder(_library_backbone(text, spec))
    return with_output(encoder, spec.output, text)


def describe_model(spec: ModelSpec | str | Path, **fields: Any) -> ModelDescription:  # noqa: ANN401
    """What a model's file, folder or name is; files are loaded, so that what does not fit is reported.

    Args:
        spec: which model.
        fields: fields of `ModelSpec` that replace those of `spec`.

    Raises:
        InputError: as `load_teacher`.
    """
    spec = _as_spec(spec, **fields)
    described = _describe(spec)
    return replace(described, spec=public(str(spec.name)), input=spec.expected(described.input))


def _describe(spec: ModelSpec) -> ModelDescription:
    text = str(spec.name)
    path = path_of(text)
    if path is not None:
        return _open(path, spec)[1]
    if text.startswith(PREFIX):
        return describe(load_transformers(ModelSpec(text)), text, "transformers")
    return describe(Encoder(build_backbone(text, seed=0)), text, "a name")


def random_init(encoder: Encoder, seed: int) -> Encoder:
    """The encoder's backbone with fresh weights and the same input contract, in evaluation mode, without projector.

    Where the encoder's features are an embedding (`embedding_as_features`), the head is drawn anew, too.
    """
    whole, build = encoder.backbone.network, encoder.backbone.build
    if isinstance(whole, Encoder):
        fresh, head = random_init(whole, seed), whole.projector
        if head is not None:
            with seeded(seed):
                fresh.projector = Projector(head.kind, head.width, head.dim, head.hidden)
        return embedding_as_features(fresh.eval())
    backbone = build_backbone(
        build.name,
        small_stem=build.small_stem,
        image_size=build.built_size,
        channels=build.channels,
        seed=seed,
    )
    return Encoder(backbone).eval().with_input(encoder.input)


def _as_spec(spec: ModelSpec | str | Path, **fields: Any) -> ModelSpec:  # noqa: ANN401
    return replace(spec if isinstance(spec, ModelSpec) else ModelSpec(spec), **fields)


def _library_backbone(name: str, spec: ModelSpec) -> Backbone:
    """A library's model with its pre-trained weights, random ones, or those of a file."""
    if spec.weights is None and spec.small_stem:
        why = f"the pre-trained weights of {name} have no small stem; leave it out"
        raise InputError(True, why, argument="small_stem")
    if spec.weights is None:
        return build_pretrained(spec)
    library, plain = find_model(name)
    if spec.weights == "random":
        size = spec.image_size
        if size is not None and spec.round_size:
            size = create_on_meta(library, plain).contract.fitting(size)
        return build_backbone(name, small_stem=spec.small_stem, image_size=size, seed=spec.seed)
    with argument("weights"):
        weights = str(spec.weights)
        file = local_file(weights) if is_url(weights) else Path(weights).expanduser()
        state = read_weights(file, spec.prefix)
    # Position embeddings are of the library's own size; networks with dynamic ones then take others.
    with seeded(0):
        made = create(library, plain, small_stem=spec.small_stem)
    with argument("weights"):
        fit_network(made, state, file)
    return as_backbone(made, spec.side(made.contract))


def _open(path: Path, spec: ModelSpec) -> tuple[Encoder, ModelDescription]:
    """The encoder in a folder or file, and what that is."""
    if not path.exists():
        raise InputError(path, "no such file or folder (models are named as in timm, or torchvision/NAME)")
    folder = None if path.is_dir() and model_file(path) is not None else library_folder(path)
    if folder is not None:
        return load_folder(folder, spec)
    if not (path.is_dir() or is_export(path)):
        return load_file(path, spec)
    if spec.arch is not None:
        raise InputError(spec.arch, f"{path} states its architecture; leave this out", argument="arch")
    if spec.prefix is not None:
        raise InputError(spec.prefix, f"{path} holds one network; leave this out", argument="prefix")
    encoder = load_encoder(path)
    if spec.image_size is not None:
        contract = replace(encoder.input, size=spec.side(encoder.input))
        probe_width(encoder.backbone.network, contract, encoder.backbone.name)
        encoder = encoder.with_input(contract)
    file = model_file(path) if path.is_dir() else path
    described = describe(encoder, path, "tinyseed", encoder.projector)
    size = None if file is None else file.stat().st_size
    return with_output(encoder, spec.output, path), replace(described, size=size)


def path_of(text: str) -> Path | None:
    """The file or folder that a text means, downloaded where it is a URL; None where it is a model's name.

    Raises:
        InputError: it cannot be downloaded.
    """
    if text in BUNDLED:
        return BUNDLED[text]
    if is_url(text):
        return local_file(text)
    return Path(text).expanduser() if _is_path(text) else None


def _is_path(text: str) -> bool:
    """A path by its looks, or because it exists; a model's name wins over a folder without a model."""
    path = Path(text).expanduser()
    if text.startswith(PREFIX):
        return False
    if _PATH.search(text) or (path.is_dir() and model_file(path) is not None):
        return True
    return path.exists() and not is_model_name(text)
