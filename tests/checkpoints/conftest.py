"""Listings of public checkpoints, and random tensors for them."""

import json
import math
import os
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

# Beside the checkout, or where this variable says.
SHARED = Path(os.environ.get("TINYSEED_SHARED") or Path(__file__).resolve().parents[3] / "shared")


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test here."""


@pytest.fixture(scope="session")
def listing():
    """Tensor names, shapes and dtypes of a public checkpoint, and the layout of the file around them."""
    folder = SHARED / "formats"
    if not folder.is_dir():
        pytest.skip("needs the shared listings of formats beside the checkout")
    return lambda name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def random_tensors():
    """Random values for a listing's tensors, such that activations neither vanish nor explode.

    Tensors whose names begin with one of `unused` are one number, repeated without memory.
    """

    def make(tensors, unused=(), seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {
            name: _repeated(shape, dtype)
            if name.startswith(unused)
            else _random(name, shape, dtype, generator)
            for name, (shape, dtype) in tensors.items()
        }

    return make


def _repeated(shape, dtype):
    return torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)


def _random(name, shape, dtype, generator):
    if dtype == "int64":
        return torch.ones(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
    if name.endswith("weight"):
        return 0.5 + 0.5 * torch.rand(shape, generator=generator)
    return 0.1 * torch.randn(shape, generator=generator)


@pytest.fixture(scope="session")
def wrapped():
    """A listing's tensors in the layout of their file."""

    def wrap(state, layout):
        if isinstance(layout, str):
            return state
        values = {
            "epoch": 200,
            "arch": "resnet50",
            "scaler": {"scale": 65536.0},
            "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}},
        }
        return {key: values.get(key, state) for key in layout}

    return wrap


@pytest.fixture(scope="session")
def settled():
    """A function that gives a module random weights and batch norm statistics, and puts it into evaluation mode."""

    def settle(module, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for name, value in module.state_dict().items():
            value.copy_(_random(name, value.shape, str(value.dtype).removeprefix("torch."), generator))
        return module.eval().requires_grad_(False)

    return settle


@pytest.fixture(scope="session")
def noise():
    """Two images of a side, the second of more contrast and darker: random networks tell mere noise hardly apart."""

    def make(side):
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
        scale, shift = torch.tensor([1.0, 4.0]), torch.tensor([0.0, 2.0])
        return images * scale[:, None, None, None] - shift[:, None, None, None]

    return make


@pytest.fixture
def saved(tmp_path):
    """A function that saves what a checkpoint holds, as torch does, and returns the path."""

    def save(content, name="checkpoint.pth"):
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return save


@pytest.fixture
def published(saved):
    """A function that loads what a checkpoint holds and compares it with what its own code computes.

    It takes the file's content, images, the features that the authors' code gives for them, the head's output (None
    where no head is used), and fields of the description or of its input contract.
    """
    from tinyseed.checkpoints.public import load_file
    from tinyseed.models.spec import ModelSpec

    def compare(content, images, features, projected=None, *, converted=False, **expected):
        path = saved(content)
        encoder, described = load_file(path, ModelSpec(path))
        given = {
            key: getattr(described.input if hasattr(described.input, key) else described, key)
            for key in expected
        }
        assert given == expected
        if not converted:  # to other tensors, of another number
            counted = sum(described.used.values()) + sum(described.unused.values())
            assert counted == len(_tensors(content))
        scale = features.abs().max().item()
        with torch.no_grad():
            torch.testing.assert_close(encoder.features(images), features, rtol=1e-5, atol=1e-5 * scale)
            wanted = F.normalize(features if projected is None else projected, dim=1)
            # Two images must differ, or the comparison shows nothing.
            assert len(images) == 1 or (wanted[0] - wanted[1]).abs().max() > 1e-3
            torch.testing.assert_close(encoder(images), wanted, rtol=0, atol=1e-5)
        assert (described.head == "none") == (projected is None)
        return encoder, described

    return compare


@pytest.fixture
def refused(saved, monkeypatch):
    """A function that damages a tensor of a checkpoint in three ways, each of which has to be refused.

    It takes a function that makes the file's content from a state dict, the state dict, and the name of a tensor.
    Tensors become zeros without memory, but for position embeddings, whose values show what some networks are.
    """
    from tinyseed.checkpoints import recognition
    from tinyseed.checkpoints.public import load_file
    from tinyseed.errors import InputError
    from tinyseed.models.spec import ModelSpec

    # What it finds is tested on its own; it builds several networks for each file.
    monkeypatch.setattr(recognition, "nearest", lambda state: None)

    def refuse(wrap, state, name):
        state = {
            key: value if "pos_embed" in key else torch.zeros((), dtype=value.dtype).expand(value.shape)
            for key, value in state.items()
        }
        value = state[name]
        others = {key: each for key, each in state.items() if key != name}
        variants = {
            "missing": others,
            "extra": {**state, f"{name}s": value},
            "misshapen": {**state, name: value.new_zeros((*value.shape[:-1], value.shape[-1] + 1))},
        }
        for damaged in variants.values():
            path = saved(wrap(damaged), "damaged.pth")
            with pytest.raises(InputError) as caught:
                load_file(path, ModelSpec(path))
            message = str(caught.value)
            assert "\n" not in message
            assert "nothing was loaded" in message

    return refuse


def _tensors(content):
    """All tensors in a file, whatever they lie in."""
    if isinstance(content, torch.Tensor):
        return [content]
    values = (
        content.values()
        if isinstance(content, dict)
        else content
        if isinstance(content, list | tuple)
        else ()
    )
    return [tensor for value in values for tensor in _tensors(value)]


@pytest.fixture(scope="session")
def vit_tensors():
    """A function that makes the tensors of a ViT under the names of DINO's code, which timm's are, too."""

    def make(width, depth, patch, side, *, registers=0, scaled=False, mask="", seed=0):
        generator = torch.Generator().manual_seed(seed)

        def random(*shape, scale=0.02):
            return torch.randn(shape, generator=generator) * scale

        def affine(name, outputs, inputs=None):
            weight = random(outputs, inputs, scale=inputs**-0.5) if inputs else 1 + random(outputs, scale=0.1)
            return {f"{name}.weight": weight, f"{name}.bias": random(outputs, scale=0.1)}

        state = {
            "cls_token": random(1, 1, width),
            "pos_embed": random(1, 1 + (side // patch) ** 2, width, scale=0.5),
        }
        state |= {"register_tokens": random(1, registers, width)} if registers else {}
        state |= {mask: random(1, width)} if mask else {}
        state["patch_embed.proj.weight"] = random(width, 3, patch, patch, scale=(3 * patch * patch) ** -0.5)
        state["patch_embed.proj.bias"] = random(width, scale=0.1)
        for number in range(depth):
            at = f"blocks.{number}"
            state |= affine(f"{at}.norm1", width) | affine(f"{at}.attn.qkv", 3 * width, width)
            state |= affine(f"{at}.attn.proj", width, width)
            state |= {f"{at}.ls1.gamma": 0.5 + random(width, scale=0.1)} if scaled else {}
            state |= affine(f"{at}.norm2", width) | affine(f"{at}.mlp.fc1", 4 * width, width)
            state |= affine(f"{at}.mlp.fc2", width, 4 * width)
            state |= {f"{at}.ls2.gamma": 0.5 + random(width, scale=0.1)} if scaled else {}
        return state | affine("norm", width)

    return make


@pytest.fixture(scope="session")
def vit_tokens():
    """A function that computes all tokens of a ViT after its last norm, from its tensors."""

    def forward(state, images, heads, activation=F.gelu):
        patches = F.conv2d(
            images,
            state["patch_embed.proj.weight"],
            state["patch_embed.proj.bias"],
            stride=state["patch_embed.proj.weight"].shape[-1],
        )
        n = len(images)
        x = (
            torch.cat([state["cls_token"].expand(n, -1, -1), patches.flatten(2).mT], dim=1)
            + state["pos_embed"]
        )
        if "register_tokens" in state:
            x = torch.cat([x[:, :1], state["register_tokens"].expand(n, -1, -1), x[:, 1:]], dim=1)
        number = 0
        while f"blocks.{number}.norm1.weight" in state:
            x = _block(
                {key.removeprefix(f"blocks.{number}."): each for key, each in state.items()},
                x,
                heads,
                activation,
            )
            number += 1
        return F.layer_norm(x, x.shape[-1:], state["norm.weight"], state["norm.bias"], 1e-6)

    return forward


def _block(t, x, heads, activation):
    n, tokens, width = x.shape
    y = F.layer_norm(x, (width,), t["norm1.weight"], t["norm1.bias"], 1e-6)
    qkv = F.linear(y, t["attn.qkv.weight"], t["attn.qkv.bias"]).reshape(n, tokens, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
    y = F.linear(
        (weights @ v).transpose(1, 2).reshape(n, tokens, width), t["attn.proj.weight"], t["attn.proj.bias"]
    )
    x = x + t.get("ls1.gamma", 1) * y
    y = F.layer_norm(x, (width,), t["norm2.weight"], t["norm2.bias"], 1e-6)
    y = F.linear(
        activation(F.linear(y, t["mlp.fc1.weight"], t["mlp.fc1.bias"])),
        t["mlp.fc2.weight"],
        t["mlp.fc2.bias"],
    )
    return x + t.get("ls2.gamma", 1) * y


@pytest.fixture(scope="session")
def lightning():
    """A function that makes the content of a Lightning checkpoint around a state dict."""

    def wrap(state, **hyper_parameters):
        return {
            "epoch": 99,
            "global_step": 12345,
            "pytorch-lightning_version": "2.1.2",
            "state_dict": state,
            "loops": {
                "fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 100, "completed": 99}}}
            },
            "callbacks": {
                "ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(1.5), "kth": {}}
            },
            "optimizer_states": [
                {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
            ],
            "lr_schedulers": [{"last_epoch": 99}],
            "hyper_parameters": hyper_parameters,
        }

    return wrap


@pytest.fixture(scope="session")
def resnet():
    """A function that makes torchvision's ResNet-18 with any last layer, and its features without it."""
    from torchvision.models import resnet18

    def make(fc=None):
        network = resnet18()
        network.fc = nn.Identity() if fc is None else fc
        return network

    return make
