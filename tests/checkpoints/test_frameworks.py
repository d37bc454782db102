"""Checkpoints of solo-learn, lightly, LightlyTrain and VISSL."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from tinyseed.checkpoints.public import load_file
from tinyseed.errors import InputError
from tinyseed.models.spec import ModelSpec

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear"}
RESNET18 = {"architecture": "torchvision/resnet18", **IMAGENET}


def mlp(*widths, norm=True, bias=True, last=()):
    layers = []
    for inputs, outputs in pairwise(widths[:-1]):
        layers += [
            nn.Linear(inputs, outputs, bias=bias),
            *([nn.BatchNorm1d(outputs)] if norm else []),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]), *last)


def computed(network, projector, images):
    with torch.no_grad():
        features = network(images).flatten(1)
        return features, projector(features)


def weight_normed(inputs, outputs):
    """The tensors of a linear layer under torch.nn.utils.weight_norm."""
    module = nn.Module()
    module.weight_g, module.weight_v = (
        nn.Parameter(torch.ones(outputs, 1)),
        nn.Parameter(torch.ones(outputs, inputs)),
    )
    return module


def asked(path, *words):
    with pytest.raises(InputError) as caught:
        load_file(path, ModelSpec(path))
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


SOLO = {
    # method: its projector, and what lies beside it
    "barlow_twins": (mlp(512, 256, 256, 256), {}),
    "simclr": (mlp(512, 256, 128, norm=False), {}),
    "simsiam": (mlp(512, 256, 256, last=[nn.BatchNorm1d(256, affine=False)]), {"predictor": mlp(256, 64, 256)}),
    "nnclr": (
        mlp(512, 256, 256, 64, last=[nn.BatchNorm1d(64)]),
        {"predictor": mlp(64, 64, 64), "queue": torch.ones(8, 64), "queue_y": torch.ones(8).long(),
         "queue_ptr": torch.zeros(1).long()},
    ),
    "swav": (mlp(512, 256, 64), {"prototypes": weight_normed(64, 30)}),
    "mocov2plus": (
        mlp(512, 256, 64, norm=False),
        {"momentum_backbone": None, "momentum_projector": mlp(512, 256, 64, norm=False),
         "momentum_classifier": nn.Linear(512, 100), "queue": torch.ones(2, 64, 8),
         "queue_ptr": torch.zeros(1).long()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", SOLO)
def test_solo_learn(method, resnet, settled, noise, lightning, published, refused):
    """solo/methods/base.py and the methods' files: `backbone`, an online classifier, and the method's own modules."""
    projector, others = SOLO[method]
    model = nn.Module()
    model.backbone = resnet()
    model.classifier = nn.Linear(512, 100)
    model.projector = copy.deepcopy(projector)
    for name, value in others.items():
        if isinstance(value, torch.Tensor):
            model.register_buffer(name, value)
        else:
            model.add_module(name, resnet() if value is None else copy.deepcopy(value))
    settled(model)
    features, projected = computed(model.backbone, model.projector, noise(64))
    _, described = published(
        lightning(model.state_dict()),
        noise(64),
        features,
        projected,
        method="solo-learn",
        epochs=99,
        **RESNET18,
    )
    names = {*others, "classifier"}
    assert names <= described.unused.keys()
    if method == "simsiam":
        refused(lightning, model.state_dict(), "projector.3.weight")
        refused(lightning, model.state_dict(), "backbone.layer2.0.conv1.weight")


def test_solo_learn_s_first_layer_for_cifar_is_refused(resnet, settled, lightning, saved):
    """Its 3×3 convolution pads by 2, so that maps are larger than any other library's: nothing here computes that."""
    model = nn.Module()
    model.backbone = resnet()
    model.backbone.conv1 = nn.Conv2d(3, 64, 3, 1, 2, bias=False)
    model.classifier, model.projector = nn.Linear(512, 10), mlp(512, 64, 64)
    asked(saved(lightning(settled(model).state_dict())), "conv1")


def layered(head):
    """lightly's heads hold their layers as `layers`; those that a batch norm follows have no bias."""
    module = nn.Module()
    module.layers = head
    return module


def listed(network):
    """A ResNet's layers in a list, without the last: `0` is its first convolution, `4` its first stage."""
    return nn.Sequential(*list(network.children())[:-1])


def test_lightly_s_byol_example(resnet, settled, noise, lightning, published, refused):
    """examples/pytorch_lightning/byol.py: a listed ResNet, and copies with momentum."""
    model = nn.Module()
    model.backbone, model.projection_head = listed(resnet()), layered(mlp(512, 1024, 256, bias=False))
    model.prediction_head = layered(mlp(256, 1024, 256, bias=False))
    model.backbone_momentum = copy.deepcopy(model.backbone)
    model.projection_head_momentum = copy.deepcopy(model.projection_head)
    settled(model)
    features, projected = computed(model.backbone, model.projection_head.layers, noise(64))
    _, described = published(
        lightning(model.state_dict()), noise(64), features, projected, method="lightly", **RESNET18
    )
    unused = {"prediction_head", "backbone_momentum", "projection_head_momentum"}
    assert unused <= described.unused.keys()
    refused(lightning, model.state_dict(), "backbone.5.0.downsample.0.weight")


def test_lightly_s_simclr_benchmark(resnet, settled, noise, lightning, published, refused):
    """benchmarks/imagenet/resnet50/simclr.py: a head without biases, batch norm after its last layer, a classifier."""
    model = nn.Module()
    model.backbone = resnet()
    head = [nn.Linear(512, 256, bias=False), nn.BatchNorm1d(256), nn.ReLU()]
    head += [nn.Linear(256, 128, bias=False), nn.BatchNorm1d(128)]
    model.projection_head = layered(nn.Sequential(*head))
    model.online_classifier = nn.Module()
    model.online_classifier.classification_head = nn.Linear(512, 1000)
    settled(model)
    features, projected = computed(model.backbone, model.projection_head.layers, noise(64))
    _, described = published(
        lightning(model.state_dict()), noise(64), features, projected, method="lightly", **RESNET18
    )
    assert described.unused["online_classifier"] == 2
    refused(lightning, model.state_dict(), "projection_head.layers.4.running_var")


def test_lightly_s_dino_benchmark(resnet, settled, noise, lightning, published):
    """benchmarks/imagenet/resnet50/dino.py: `backbone` is the teacher; GELU between the head's layers."""

    def head():
        module = layered(
            nn.Sequential(
                nn.Linear(512, 64, bias=False), nn.BatchNorm1d(64), nn.GELU(),
                nn.Linear(64, 64, bias=False), nn.BatchNorm1d(64), nn.GELU(),
                nn.Linear(64, 32),
            )
        )  # fmt: skip
        module.last_layer = weight_normed(32, 100)
        return module

    model = nn.Module()
    model.backbone, model.projection_head = resnet(), head()
    model.student_backbone, model.student_projection_head = resnet(), head()
    model.online_classifier = nn.Module()
    model.online_classifier.classification_head = nn.Linear(512, 1000)
    settled(model)
    features, projected = computed(model.backbone, model.projection_head.layers, noise(64))
    _, described = published(
        lightning(model.state_dict()), noise(64), features, projected, method="lightly (DINO)", **RESNET18
    )
    assert {"student_backbone", "student_projection_head"} <= described.unused.keys()


def test_lightly_train_s_checkpoint_of_two_models_asks_which(resnet, settled, lightning, saved):
    """Its distillation learns the student, other methods export the teacher: the tensors do not say which it was."""
    state = settled(resnet()).state_dict()
    both = {
        f"{whose}_embedding_model.wrapped_model._model.{name}": value
        for whose in ("student", "teacher")
        for name, value in state.items()
    }
    asked(saved(lightning(both)), "student_embedding_model", "`prefix`")


def test_lightly_train_s_exported_model_is_a_state_dict(resnet, settled, noise, published):
    network = settled(resnet(nn.Linear(512, 1000)))
    state = network.state_dict()
    network.fc = nn.Identity()
    with torch.no_grad():
        features = network(noise(64))
    published(state, noise(64), features, method="state dict", architecture="torchvision/resnet18")


def test_vissl(resnet, settled, noise, published, refused):
    """vissl/models/base_ssl_model.py: a trunk of feature blocks; activations between its heads have no tensors."""
    network = settled(resnet())
    heads = {"0.clf.0.weight": torch.ones(512, 512), "0.clf.0.bias": torch.ones(512)}
    heads |= {"1.clf.0.weight": torch.ones(128, 512), "1.clf.0.bias": torch.ones(128)}

    def file(trunk):
        state = {
            "train": True,
            "base_model": {"model": {"trunk": trunk, "heads": heads}, "meta": {"trunk": {}, "heads": []}},
            "meters": [],
            "optimizer": {"optim": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []}},
            "phase_idx": 99,
            "train_phase_idx": 99,
            "num_updates": 1000,
            "losses": [7.5],
            "hooks": {},
            "loss": {"name": "simclr_info_nce_loss"},
        }
        return {
            "phase_idx": 99,
            "iteration": 1000,
            "loss": {},
            "type": "consolidated",
            "classy_state_dict": state,
        }

    trunk = {f"_feature_blocks.{name}": value for name, value in network.state_dict().items()}
    with torch.no_grad():
        features = network(noise(64))
    _, described = published(file(trunk), noise(64), features, method="VISSL", **RESNET18)
    assert sum(count for group, count in described.unused.items() if "heads" in group) == 4
    refused(file, trunk, "_feature_blocks.layer3.0.bn2.running_mean")
