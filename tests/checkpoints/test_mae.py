"""MAE: the file of pre-training, whose decoder is not used, and released encoders."""

import argparse
import math

import pytest
import torch

BICUBIC = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "interpolation": "bicubic",
    "size": 224,
}


def fixed_positions(width):
    """util/pos_embed.py, number by number: sine and cosine of column, then of row; zeros for the class token."""
    table = torch.zeros(1, 197, width)
    quarter = width // 4
    for row in range(14):
        for column in range(14):
            for each in range(quarter):
                rate = 10_000 ** (each / quarter)
                for half, place in enumerate((column, row)):
                    at = table[0, 1 + 14 * row + column, half * width // 2 :]
                    at[each], at[quarter + each] = math.sin(place / rate), math.cos(place / rate)
    return table


def decoder(depth=1, width=64):
    state = {"mask_token": torch.zeros(1, 1, width), "decoder_pos_embed": torch.zeros(1, 197, width)}
    for name in (
        "decoder_embed",
        "decoder_norm",
        "decoder_pred",
        *(f"decoder_blocks.{n}.norm1" for n in range(depth)),
    ):
        state |= {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}
    return state


@pytest.mark.slow
def test_the_file_of_pre_training(noise, vit_tensors, vit_tokens, published, refused):
    """models_mae.py and util/misc.py, a ViT-B/16; features are the class token, as in its linear probing."""
    encoder = vit_tensors(768, 12, 16, 224) | {"pos_embed": fixed_positions(768)}

    def file(state):
        return {
            "model": state | decoder(),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
            "epoch": 799,
            "scaler": {"scale": 65536.0},
            "args": argparse.Namespace(model="mae_vit_base_patch16"),
        }

    images = noise(224)
    features = vit_tokens(encoder, images, 12)[:, 0]
    _, described = published(file(encoder), images, features, method="MAE", epochs=799, **BICUBIC)
    assert described.architecture.partition(".")[0] == "vit_base_patch16_224"
    groups = [group for group in described.unused if "decoder" in group or "mask" in group]
    assert sum(described.unused[group] for group in groups) == len(decoder())
    refused(file, encoder, "blocks.11.attn.proj.weight")
