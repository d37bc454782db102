"""Every listed public format: a checkpoint built from it is loaded, and embeds as an independent forward does."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from tinyseed.checkpoints.public import load_file
from tinyseed.models.spec import ModelSpec
from tinyseed.models.teacher import Teacher

IMAGENET = (0.229, 0.224, 0.225)
UNUSED = ("module.queue", "module.encoder_k.", "module.teacher.", "module.prototypes.")
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
    "dino_resnet50": ("DINO", "torchvision/resnet50", "", "", "none", IMAGENET, "bicubic"),
    "dino_vits16": ("DINO", "vit_small_patch16_224.dino", "", "", "none", IMAGENET, "bicubic"),
    **{
        f"swav_resnet50{width}": (
            "SwAV", f"swav/resnet50{width}", "module.", "projection_head.", "mlp-bn", (0.228, 0.224, 0.225), "bilinear",
        )
        for width in ("", "w2", "w4")
    },
}  # fmt: skip
QUICK = [name for name in CASES if name != "swav_resnet50w4"]


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
    """SEED's MobileNetV3-Large from its tensors; strides and activations by number, kernels by the tensors' shapes."""
    x = hard_swish(batch_norm(F.conv2d(x, t["features.0.0.weight"], stride=2, padding=1), t, "features.0.1"))
    for number in range(1, 16):
        x = inverted_residual(
            t, x, f"features.{number}.conv", 2 if number in (2, 4, 7, 13) else 1, number >= 7
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
    if f"{at}.5.fc.0.weight" in t:
        squeezed = F.relu(F.linear(y.mean(dim=(2, 3)), t[f"{at}.5.fc.0.weight"], t[f"{at}.5.fc.0.bias"]))
        weights = F.relu6(F.linear(squeezed, t[f"{at}.5.fc.2.weight"], t[f"{at}.5.fc.2.bias"]) + 3) / 6
        y = y * weights[:, :, None, None]
    last = 7 if first else 4
    y = batch_norm(F.conv2d(activate(y), t[f"{at}.{last}.weight"]), t, f"{at}.{last + 1}")
    return x + y if stride == 1 and x.shape == y.shape else y


def torchvision_resnet(name, t, x):
    from torchvision import models

    network = getattr(models, name)()
    network.fc = torch.nn.Identity()
    network.load_state_dict(t, strict=True)
    return network.eval()(x)


def vision_transformer(t, x):
    """torchvision's VisionTransformer with timm's tensors under its names."""
    from torchvision.models import VisionTransformer

    network = VisionTransformer(
        x.shape[-1], 16, 12, 6, 384, 1536, norm_layer=lambda width: torch.nn.LayerNorm(width, 1e-6)
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
    if "vits16" in listing:
        return vision_transformer(t, x)
    return torchvision_resnet("resnet18" if "resnet18" in listing else "resnet50", t, x)


def independent_head(kind, t, rows):
    match kind:
        case "linear":
            return F.linear(rows, t["weight"], t["bias"])
        case "mlp":
            return F.linear(F.relu(F.linear(rows, t["0.weight"], t["0.bias"])), t["2.weight"], t["2.bias"])
        case "mlp-bn":
            hidden = F.relu(batch_norm(F.linear(rows, t["0.weight"], t["0.bias"]), t, "1"))
            return F.linear(hidden, t["3.weight"], t["3.bias"])
    return rows


def under(state, prefix):
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def check(name, listing, random_tensors, wrapped, folder, side):
    method, architecture, prefix, head_prefix, kind, std, interpolation = CASES[name]
    about = listing(name)
    state = random_tensors(about["tensors"], UNUSED)
    path = folder / ("checkpoint.pth" if isinstance(about["file_layout"], str) else "checkpoint.pth.tar")
    torch.save(wrapped(state, about["file_layout"]), path)

    encoder, described = load_file(path, ModelSpec(path))

    assert (described.method, described.architecture, described.head) == (method, architecture, kind)
    assert (described.input.mean, described.input.std) == ((0.485, 0.456, 0.406), std)
    assert (described.input.size, described.input.interpolation) == (224, interpolation)
    assert described.epochs == (200 if "epoch" in about["file_layout"] else None)
    counted = sum(described.used.values()) + sum(described.unused.values())
    assert counted == len(state) + ("optimizer" in about["file_layout"])
    own = under(state, prefix)
    head = under(own, head_prefix) if head_prefix else {}
    others = (head_prefix, "prototypes.") if head_prefix else ()
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
        assert (wanted[0] - wanted[1]).abs().max() > 1e-3
        torch.testing.assert_close(encoder(images), wanted, rtol=0, atol=1e-5)
    return encoder, images, wanted


@pytest.mark.parametrize("name", QUICK)
def test_a_listed_checkpoint_embeds_as_its_own_code_would(name, listing, random_tensors, wrapped, tmp_path):
    encoder, images, wanted = check(
        name, listing, random_tensors, wrapped, tmp_path, 224 if "vit" in name else 64
    )
    if "resnet18" in name:  # folded batch norms included
        torch.testing.assert_close(Teacher(encoder, name)(images), wanted, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_widest_listed_checkpoint_embeds_as_its_own_code_would(
    listing, random_tensors, wrapped, tmp_path
):
    check("swav_resnet50w4", listing, random_tensors, wrapped, tmp_path, 32)
