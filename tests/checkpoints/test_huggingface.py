"""transformers' vision models as teachers, against transformers' own forward."""

import json
import sys

import pytest
import torch

pytest.importorskip("transformers")

from tinyseed.checkpoints.load import describe_model, load_model, load_teacher
from tinyseed.errors import InputError
from tinyseed.models.backbones import build_backbone

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def images(size=32):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def save(folder, model, **preprocessor):
    torch.manual_seed(0)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.2)
    model.eval().save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return model


def vit(**settings):
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(**SMALL, intermediate_size=32), **settings)


def test_a_vit_without_pooler_gives_its_class_token(tmp_path):
    theirs = save(
        tmp_path,
        vit(add_pooling_layer=False),
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.5, 0.5, 0.5],
        size={"height": 32, "width": 32},
        resample=2,
    )
    teacher = load_teacher(f"transformers:{tmp_path}")
    assert (teacher.mean, teacher.std) == ((0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert (teacher.input.size, teacher.input.interpolation, teacher.input.multiple) == (32, "bilinear", 8)
    assert (teacher.width, teacher.dim) == (16, 16)
    with torch.no_grad():
        wanted = theirs(pixel_values=images()).last_hidden_state[:, 0]
        torch.testing.assert_close(teacher.features(images()), wanted)
        torch.testing.assert_close(teacher(images()), torch.nn.functional.normalize(wanted, dim=1))
        bigger = theirs(pixel_values=images(48), interpolate_pos_encoding=True).last_hidden_state[:, 0]
        rounded = load_teacher(f"transformers:{tmp_path}", image_size=44)
        assert rounded.input.size == 48
        torch.testing.assert_close(rounded.features(images(48)), bigger)


def test_a_vit_with_pooler_gives_its_pooled_output(tmp_path):
    theirs = save(tmp_path, vit())
    model = load_model(f"transformers:{tmp_path}")
    assert (model.input.mean, model.input.size, model.input.interpolation) == (
        (0.485, 0.456, 0.406),
        32,
        "bicubic",
    )
    with torch.no_grad():
        torch.testing.assert_close(model.features(images()), theirs(pixel_values=images()).pooler_output)


def test_dinov2_gives_its_pooled_output(tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    settings = SMALL | {"image_size": 28, "patch_size": 14, "mlp_ratio": 2}
    theirs = save(
        tmp_path,
        Dinov2Model(Dinov2Config(**settings)),
        crop_size={"height": 28, "width": 28},
        size={"shortest_edge": 256},
    )
    teacher = load_teacher(f"transformers:{tmp_path}", image_size=32)
    assert (teacher.input.size, teacher.input.multiple) == (42, 14)
    with torch.no_grad():
        torch.testing.assert_close(
            teacher.features(images(42)), theirs(pixel_values=images(42)).pooler_output
        )
    assert load_teacher(f"transformers:{tmp_path}").input.size == 28


def test_clip_gives_its_vision_towers_pooled_output(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = small | {"vocab_size": 30, "max_position_embeddings": 8}
    vision = small | {"image_size": 32, "patch_size": 8}
    theirs = save(tmp_path, CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)))
    with torch.no_grad():
        wanted = theirs.vision_model(pixel_values=images()).pooler_output
        torch.testing.assert_close(load_model(f"transformers:{tmp_path}").features(images()), wanted)


def test_it_is_described(tmp_path):
    save(tmp_path, vit())
    described = describe_model(f"transformers:{tmp_path}")
    assert (described.method, described.library, described.width, described.head) == (
        "transformers",
        "transformers",
        16,
        "none",
    )


def refused(call, *arguments, **settings):
    with pytest.raises(InputError) as caught:
        call(*arguments, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mistakes_are_reported(tmp_path, monkeypatch):
    assert "cannot be loaded (" in refused(load_teacher, f"transformers:{tmp_path / 'gone'}")
    (tmp_path / "config.json").write_text("{}")
    assert "cannot be loaded (" in refused(load_teacher, f"transformers:{tmp_path}")
    assert "unknown model" in refused(build_backbone, "transformers:google/vit")
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    save(tmp_path / "bert", BertModel(BertConfig(**small, vocab_size=20)))
    assert "is a BertModel, which does not take images" in refused(
        load_teacher, f"transformers:{tmp_path / 'bert'}"
    )
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = refused(load_teacher, "transformers:google/vit")
    assert message == "transformers:google/vit: needs transformers: pip install 'tinyseed[transformers]'"


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save(tmp_path, vit())
    state = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in state if "embeddings" in name)
    del state[lost]
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    message = refused(load_teacher, f"transformers:{tmp_path}")
    assert "lacks weights of ViTModel" in message
    assert lost.rpartition(".")[2] in message


def test_without_a_network_it_is_reported_quickly(monkeypatch):
    from huggingface_hub import utils

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(utils, "get_session", unreachable)
    message = refused(load_teacher, "transformers:google/no-such-vit-here")
    assert "cannot be loaded (no route to host)" in message
