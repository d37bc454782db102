"""CLIP's visual tower with its projection: OpenAI's state dict, and open_clip's, whose activation is asked."""

import pytest
import torch

pytest.importorskip("transformers")

from tinyseed.checkpoints.public import load_file
from tinyseed.errors import InputError
from tinyseed.models.spec import ModelSpec

CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "size": 224,
}
LAYERS = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


TINY = {
    "hidden_size": 256,
    "num_hidden_layers": 10,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "patch_size": 16,
}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "patch_size": 32,
}


def clip(activation, size):
    """A tower as transformers computes it, and a CLIP state dict under the authors' names."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(**size, image_size=224, projection_dim=512, hidden_act=activation)
    torch.manual_seed(0)
    model = CLIPVisionModelWithProjection(config).eval().requires_grad_(False)
    for name, value in model.named_parameters():
        value.normal_(mean=float(value.ndim == 1 and "weight" in name), std=size["hidden_size"] ** -0.5)
    theirs = {name.removeprefix("vision_model."): value for name, value in model.state_dict().items()}
    state = {
        "visual.class_embedding": theirs["embeddings.class_embedding"],
        "visual.positional_embedding": theirs["embeddings.position_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T.contiguous(),
        "visual.conv1.weight": theirs["embeddings.patch_embedding.weight"],
    }
    for part in ("weight", "bias"):
        state[f"visual.ln_pre.{part}"] = theirs[f"pre_layrnorm.{part}"]
        state[f"visual.ln_post.{part}"] = theirs[f"post_layernorm.{part}"]
        for number in range(size["num_hidden_layers"]):
            new, old = f"visual.transformer.resblocks.{number}", f"encoder.layers.{number}"
            qkv = [theirs[f"{old}.self_attn.{each}_proj.{part}"] for each in "qkv"]
            state[f"{new}.attn.in_proj_{part}"] = torch.cat(qkv)
            state |= {f"{new}.{b}.{part}": theirs[f"{old}.{a}.{part}"] for a, b in LAYERS.items()}
    text = {
        "positional_embedding": torch.ones(77, 32),
        "text_projection": torch.ones(32, 512),
        "logit_scale": torch.tensor(4.6),
        "token_embedding.weight": torch.ones(100, 32),
        "ln_final.weight": torch.ones(32),
        "ln_final.bias": torch.ones(32),
        "transformer.resblocks.0.attn.in_proj_weight": torch.ones(96, 32),
    }
    return model, {**text, **state}


def computed(model, images):
    with torch.no_grad():
        output = model.vision_model(pixel_values=images)
        return output.pooler_output, model.visual_projection(output.pooler_output)


def sizes():
    numbers = {"input_resolution": 224, "context_length": 77, "vocab_size": 100}
    return {name: torch.tensor(value) for name, value in numbers.items()}


@pytest.mark.slow
def test_openai_s_state_dict(noise, published, refused):
    """Its JIT archives also hold three numbers, which open_clip's files lack: so its QuickGELU is known."""
    model, state = clip("quick_gelu", BASE)
    state |= sizes()
    _, described = published(state, noise(224), *computed(model, noise(224)), method="CLIP (OpenAI)", **CLIP)
    assert described.dim == 512
    assert described.architecture == "vit_base_patch32_clip_quickgelu_224"
    refused(dict, state, "visual.ln_post.weight")


def test_a_size_that_openai_has_not_published_is_asked(saved):
    """timm has only a network with GELU of this size, which would give other embeddings."""
    path = saved(clip("quick_gelu", TINY)[1] | sizes())
    with pytest.raises(InputError, match="QuickGELU"):
        load_file(path, ModelSpec(path))


def test_open_clip_s_activation_is_asked(saved, noise):
    """GELU (LAION) or QuickGELU (OpenAI, MetaCLIP, DFN): the tensors are the same."""
    model, state = clip("gelu", TINY)
    path = saved(
        {"epoch": 32, "name": "run", "state_dict": {f"module.{name}": value for name, value in state.items()}}
    )
    with pytest.raises(InputError, match="vit_xsmall_patch16_clip_224") as caught:
        load_file(path, ModelSpec(path))
    message = str(caught.value)
    assert "QuickGELU" in message
    assert "\n" not in message
    features, projected = computed(model, noise(224))
    encoder, described = load_file(path, ModelSpec(path, arch="vit_xsmall_patch16_clip_224"))
    assert (described.method, described.input.mean) == ("CLIP (open_clip)", CLIP["mean"])
    with torch.no_grad():
        wanted = torch.nn.functional.normalize(projected, dim=1)
        torch.testing.assert_close(encoder(noise(224)), wanted, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            encoder.features(noise(224)), features, rtol=1e-5, atol=1e-5 * features.abs().max()
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_jit_archive_is_refused_with_a_remedy(tmp_path):
    """OpenAI's own downloads are TorchScript, which is code."""
    path = tmp_path / "ViT-B-32.pt"
    torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(InputError, match=r"TorchScript.*state_dict") as caught:
        load_file(path, ModelSpec(path))
    assert "\n" not in str(caught.value)
