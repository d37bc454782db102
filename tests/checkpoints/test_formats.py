"""Every listed public format: a checkpoint built from it is loaded, and embeds as an independent forward does."""

import math
import re

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tinyseed.checkpoints.public import load_file
from tinyseed.models.spec import ModelSpec
from tinyseed.models.teacher import Teacher

IMAGENET = (0.229, 0.224, 0.225)
UNUSED = (
    "module.queue", "module.small_queue", "module.encoder_k.", "module.teacher.", "module.prototypes.",
    "module.momentum_encoder.", "module.predictor.",
)  # fmt: skip
CASES = {
    # listing: method, architecture, backbone's and head's prefix in the file, kind of head, std, interpolation
    "moco_v1_resnet50": ("MoCo v1", "torchvision/resnet50", "module.encoder_q.", "fc.", "linear", IMAGENET, "bilinear"),
    "moco_v2_resnet18": ("MoCo v2", "torchvision/resnet18", "module.encoder_q.", "fc.", "mlp", IMAGENET, "bilinear"),
    "moco_v2_resnet50": ("MoCo v2", "torchvision/resnet50", "module.encoder_q.", "fc.", "mlp", IMAGENET, "bilinear"),
    "simclr_resnet50": ("SimCLR", "torchvision/resnet50", 3 * "module.", "fc.", "mlp-bn", IMAGENET, "bilinear"),
    "seed_resnet18_from_moco_resnet50": (
        "SEED", "torchvision/resnet18", "module.student.", "fc.", "mlp", IMAGENET, "bilinear",
    ),
    "seed_mobilenetv3_large_from_moco_resnet50": (
        "SEED", "seed/mobilenetv3_large", "module.student.", "fc.", "mlp", IMAGENET, "bilinear",
    ),
    **{
        f"more/seed_{name}": ("SEED", architecture, "module.student.", "fc.", "mlp", IMAGENET, "bilinear")
        for name, architecture in {
            "smallpatch_rn18_from_swav": "torchvision/resnet18",
            "efficientnet_b0": "seed/efficientnet_b0",
            "efficientnet_b1": "seed/efficientnet_b1",
            "mobilenetv3_small": "seed/mobilenetv3_small",
        }.items()
    },
    "more/moco_v3_vits": (
        "MoCo v3", "moco/vit_small", "module.base_encoder.", "head.", "moco-v3", IMAGENET, "bilinear",
    ),
    "more/moco_v3_vits_convert_to_deit": (
        "MoCo v3 (its backbone)", "moco/vit_small", "", "", "none", IMAGENET, "bilinear",
    ),
    "more/moco_lincls": ("state dict", "torchvision/resnet50", "module.", "", "none", IMAGENET, "bilinear"),
    "more/simclr_sthalles": (
        "SimCLR (sthalles)", "torchvision/resnet18", "backbone.", "fc.", "mlp", (1.0, 1.0, 1.0), "bilinear",
    ),
    "dino_resnet50": ("DINO", "torchvision/resnet50", "", "", "none", IMAGENET, "bicubic"),
    "dino_vits16": ("DINO", "vit_small_patch16_224.dino", "", "", "none", IMAGENET, "bicubic"),
    **{
        f"swav_resnet50{width}": (
            "SwAV", f"swav/resnet50{width}", "module.", "projection_head.", "mlp-bn", (0.228, 0.224, 0.225), "bilinear",
        )
        for width in ("", "w2", "w4")
    },
}  # fmt: skip
KINDS = {"moco-v3": "linear:4096-plain bn relu linear:4096-plain bn relu linear:256-plain bn-plain"}
QUICK = [name for name in CASES if name != "swav_resnet50w4"]


def sine_cosine(side, width):
    """MoCo v3's position embeddings, number by number: the row in the grid, then the column; zeros for the class."""
    quarter = width // 4
    rows = [[0.0] * width]
    for row in range(side):
        for column in range(side):
            angles = [
                place / 10_000 ** (each / quarter) for place in (row, column) for each in range(quarter)
            ]
            halves = angles[:quarter], angles[quarter:]
            rows.append(
                [function(angle) for half in halves for function in (math.sin, math.cos) for angle in half]
            )
    return torch.tensor(rows)


def noise(side):
    """Two images, the second of more contrast and darker: random networks tell mere noise hardly apart."""
    images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    return images * torch.tensor([1.0, 4.0]).reshape(2, 1, 1, 1) - torch.tensor([0.0, 2.0]).reshape(
        2, 1, 1, 1
    )


def batch_norm(x, t, name):
    mean, var, weight, bias = (
        t[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)


def resnet(t, x):
    """A ResNet of any width from its tensors: bottleneck blocks where there is a third convolution, else basic ones."""
    x = F.relu(batch_norm(F.conv2d(x, t["conv1.weight"], stride=2, padding=3), t, "bn1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for layer in range(1, 5):
        block = 0
        while f"layer{layer}.{block}.conv1.weight" in t:
            x = residual_block(t, x, f"layer{layer}.{block}", 2 if layer > 1 and block == 0 else 1)
            block += 1
    return x.mean(dim=(2, 3))


def residual_block(t, x, at, stride):
    bottleneck = f"{at}.conv3.weight" in t
    strides = (1, stride, 1) if bottleneck else (stride, 1)
    y = x
    for number, step in enumerate(strides, start=1):
        weight = t[f"{at}.conv{number}.weight"]
        y = batch_norm(F.conv2d(y, weight, stride=step, padding=weight.shape[-1] // 2), t, f"{at}.bn{number}")
        y = F.relu(y) if number < len(strides) else y
    if f"{at}.downsample.0.weight" in t:
        x = batch_norm(F.conv2d(x, t[f"{at}.downsample.0.weight"], stride=stride), t, f"{at}.downsample.1")
    return F.relu(x + y)


def hard_swish(x):
    return x * F.relu6(x + 3) / 6


def mobilenet(t, x):
    """SEED's MobileNetV3 from its tensors; strides and activations by number, kernels by the tensors' shapes."""
    x = hard_swish(batch_norm(F.conv2d(x, t["features.0.0.weight"], stride=2, padding=1), t, "features.0.1"))
    large = "features.15.conv.0.weight" in t
    halving, swish_from, last = ((2, 4, 7, 13), 7, 15) if large else ((1, 2, 4, 9), 4, 11)
    for number in range(1, last + 1):
        x = inverted_residual(
            t, x, f"features.{number}.conv", 2 if number in halving else 1, number >= swish_from
        )
    x = hard_swish(batch_norm(F.conv2d(x, t["conv.0.weight"]), t, "conv.1")).mean(dim=(2, 3))
    return hard_swish(F.linear(x, t["classifier.0.weight"], t["classifier.0.bias"]))


def inverted_residual(t, x, at, stride, swish):
    activate = hard_swish if swish else F.relu
    y, first = x, 0
    if f"{at}.7.weight" in t:
        y, first = activate(batch_norm(F.conv2d(y, t[f"{at}.0.weight"]), t, f"{at}.1")), 3
    kernel = t[f"{at}.{first}.weight"]
    y = F.conv2d(y, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=len(kernel))
    y = batch_norm(y, t, f"{at}.{first + 1}")
    if first:
        y = activate(squeezed_and_excited(t, y, f"{at}.5.fc"))
    else:  # the other way around where nothing is expanded
        y = squeezed_and_excited(t, activate(y), f"{at}.3.fc")
    last = 7 if first else 4
    y = batch_norm(F.conv2d(y, t[f"{at}.{last}.weight"]), t, f"{at}.{last + 1}")
    return x + y if stride == 1 and x.shape == y.shape else y


def squeezed_and_excited(t, y, at):
    if f"{at}.0.weight" not in t:
        return y
    squeezed = F.relu(F.linear(y.mean(dim=(2, 3)), t[f"{at}.0.weight"], t[f"{at}.0.bias"]))
    weights = F.relu6(F.linear(squeezed, t[f"{at}.2.weight"], t[f"{at}.2.bias"]) + 3) / 6
    return y * weights[:, :, None, None]


def efficientnet(t, x, side):
    """SEED's EfficientNets from their tensors; zeros as TensorFlow's SAME puts them around images of `side` px."""

    def convolution(x, weight, stride=1):
        nonlocal side
        kernel, depthwise = weight.shape[-1], weight.shape[1] == 1 and weight.shape[0] == x.shape[1]
        out = math.ceil(side / stride)
        zeros = max(0, (out - 1) * stride + kernel - side)
        before, after = zeros // 2, zeros - zeros // 2
        side = out
        x = F.pad(x, (before, after, before, after))
        return F.conv2d(x, weight, stride=stride, groups=len(weight) if depthwise else 1)

    def norm(x, at):
        mean, var, weight, bias = (t[f"{at}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-3)

    def swish(x):
        return x * torch.sigmoid(x)

    x = swish(norm(convolution(x, t["_conv_stem.weight"], 2), "_bn0"))
    blocks = {int(name.split(".")[1]) for name in t if name.startswith("_blocks.")}
    widths = [t[f"_blocks.{block}._project_conv.weight"].shape[0] for block in sorted(blocks)]
    # The first block of a stage halves the maps, but for the stages of 16, 112 and 320 channels.
    for block in sorted(blocks):
        at, y = f"_blocks.{block}", x
        first = block == 0 or widths[block] != widths[block - 1]
        stride = 2 if first and widths[block] in (24, 40, 80, 192) else 1
        if f"{at}._expand_conv.weight" in t:
            y = swish(norm(convolution(y, t[f"{at}._expand_conv.weight"]), f"{at}._bn0"))
        y = swish(norm(convolution(y, t[f"{at}._depthwise_conv.weight"], stride), f"{at}._bn1"))
        squeezed = y.mean(dim=(2, 3), keepdim=True)
        reduce, expand = (
            (t[f"{at}.{part}.weight"], t[f"{at}.{part}.bias"]) for part in ("_se_reduce", "_se_expand")
        )
        y = y * torch.sigmoid(F.conv2d(swish(F.conv2d(squeezed, *reduce)), *expand))
        y = norm(convolution(y, t[f"{at}._project_conv.weight"]), f"{at}._bn2")
        x = x + y if stride == 1 and x.shape == y.shape else y
    return swish(norm(convolution(x, t["_conv_head.weight"]), "_bn1")).mean(dim=(2, 3))


def torchvision_resnet(name, t, x):
    from torchvision import models

    network = getattr(models, name)()
    network.fc = torch.nn.Identity()
    network.load_state_dict(t, strict=True)
    return network.eval()(x)


def vision_transformer(t, x, heads):
    """torchvision's VisionTransformer with timm's tensors under its names."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        x.shape[-1], 16, 12, heads, 384, 1536, norm_layer=lambda width: torch.nn.LayerNorm(width, 1e-6)
    )
    network.heads = torch.nn.Identity()
    renamed = {"class_token": t["cls_token"], "encoder.pos_embedding": t["pos_embed"]}
    renamed |= {f"conv_proj.{part}": t[f"patch_embed.proj.{part}"] for part in ("weight", "bias")}
    renamed |= {f"encoder.ln.{part}": t[f"norm.{part}"] for part in ("weight", "bias")}
    names = {
        "norm1": "ln_1",
        "norm2": "ln_2",
        "attn.proj": "self_attention.out_proj",
        "mlp.fc1": "mlp.0",
        "mlp.fc2": "mlp.3",
    }
    for block in range(12):
        new, old = f"encoder.layers.encoder_layer_{block}", f"blocks.{block}"
        for part in ("weight", "bias"):
            renamed[f"{new}.self_attention.in_proj_{part}"] = t[f"{old}.attn.qkv.{part}"]
            renamed |= {f"{new}.{b}.{part}": t[f"{old}.{a}.{part}"] for a, b in names.items()}
    network.load_state_dict(renamed, strict=True)
    return network.eval()(x)


def independent_backbone(listing, t, x):
    if listing.startswith("swav"):
        return resnet(t, x)
    if "mobilenet" in listing:
        return mobilenet(t, x)
    if "efficientnet" in listing:
        return efficientnet(t, x, 224 if listing.endswith("b0") else 240)
    if "vits" in listing:
        return vision_transformer(t, x, 12 if "moco_v3" in listing else 6)
    return torchvision_resnet(
        "resnet18" if {"resnet18", "rn18", "sthalles"} & set(re.split("[_/]", listing)) else "resnet50", t, x
    )


def independent_head(kind, t, rows):
    match kind:
        case "linear":
            return F.linear(rows, t["weight"], t["bias"])
        case "mlp":
            return F.linear(F.relu(F.linear(rows, t["0.weight"], t["0.bias"])), t["2.weight"], t["2.bias"])
        case "mlp-bn":
            hidden = F.relu(batch_norm(F.linear(rows, t["0.weight"], t["0.bias"]), t, "1"))
            return F.linear(hidden, t["3.weight"], t["3.bias"])
        case "moco-v3":
            for place in (0, 3):
                rows = F.relu(batch_norm(F.linear(rows, t[f"{place}.weight"]), t, str(place + 1)))
            rows = F.linear(rows, t["6.weight"])
            return (rows - t["7.running_mean"]) / (t["7.running_var"] + 1e-5).sqrt()
    return rows


def under(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def check(name, listing, random_tensors, wrapped, folder, side):
    method, architecture, prefix, head_prefix, kind, std, interpolation = CASES[name]
    about = listing(name)
    layout, places = about["file_layout"], about.get("tensors_by_place", {})
    state = random_tensors(next(iter(places.values())) if places else about["tensors"], UNUSED)
    if "moco_v3" in name:
        state[f"{prefix}pos_embed"] = sine_cosine(14, 384)[None]
    path = folder / ("checkpoint.pth" if isinstance(layout, str) else "checkpoint.pth.tar")
    beside = {key: torch.tensor(55.5) for key in places.get("(top level)", {})}
    torch.save(wrapped(state, layout) | beside, path)

    encoder, described = load_file(path, ModelSpec(path))

    assert (described.method, described.architecture) == (method, architecture)
    assert described.head == KINDS.get(kind, kind)
    assert described.input.mean == ((0.0, 0.0, 0.0) if std == (1.0, 1.0, 1.0) else (0.485, 0.456, 0.406))
    assert described.input.std == std
    assert (described.input.size, described.input.interpolation) == (224, interpolation)
    assert described.epochs == (200 if "epoch" in layout else None)
    counted = sum(described.used.values()) + sum(described.unused.values())
    assert counted == len(state) + len(beside) + ("optimizer" in layout)
    own = under(state, prefix)
    head = under(own, head_prefix) if head_prefix else {}
    others = (head_prefix, "prototypes.") if head_prefix else ("fc.",)
    backbone = {key: value for key, value in own.items() if not key.startswith(others)}
    loaded = encoder.backbone.network.state_dict()
    assert set(loaded) == set(backbone)
    assert all(torch.equal(loaded[key], value) for key, value in backbone.items())
    if head:
        given = encoder.projector.state_dict()
        linear = kind == "linear"
        assert all(torch.equal(given[f"0.{key}" if linear else key], value) for key, value in head.items())
        assert len(given) == len(head)
    images = noise(side)
    with torch.no_grad():
        features = independent_backbone(name, backbone, images)
        wanted = F.normalize(independent_head(kind, head, features), dim=1)
        torch.testing.assert_close(
            encoder.features(images), features, rtol=1e-5, atol=1e-5 * features.abs().max().item()
        )
        assert wanted.isfinite().all()
        assert (wanted[0] - wanted[1]).abs().max() > 1e-4  # rows of length 1 agree to 1e-5
        torch.testing.assert_close(encoder(images), wanted, rtol=0, atol=1e-5)
    return encoder, images, wanted


@pytest.mark.parametrize("name", QUICK)
def test_a_listed_checkpoint_embeds_as_its_own_code_would(name, listing, random_tensors, wrapped, tmp_path):
    encoder, images, wanted = check(
        name,
        listing,
        random_tensors,
        wrapped,
        tmp_path,
        224 if "vit" in name or "efficientnet" in name else 64,
    )
    if (
        "resnet18" in name or "efficientnet_b0" in name or name == "more/moco_v3_vits"
    ):  # folded batch norms included
        torch.testing.assert_close(Teacher(encoder, name)(images), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_widest_listed_checkpoint_embeds_as_its_own_code_would(
    listing, random_tensors, wrapped, tmp_path
):
    check("swav_resnet50w4", listing, random_tensors, wrapped, tmp_path, 32)
