"""Blocks of networks, and shallower networks after a cut: they run, load the whole network's weights, and can be pruned."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from toolchain.config.recipe import ModelSpec, PruneSpec, ReuseSpec
from toolchain.core.errors import ToolchainError
from toolchain.models import blocks, build, profile
from toolchain.pruning import search_space, surgery
from toolchain.pruning.criteria import magnitude

NETS = {
    "mobilenet_v2": ("features.0", "features.18", 19), "mobilenet_v3_small": ("features.0", "features.12", 13),
    "resnet18": ("conv1", "layer4.1", 9), "squeezenet1_1": ("features.0", "features.12", 9),
    "shufflenet_v2_x0_5": ("conv1", "conv5", 18), "efficientnet_b0": ("features.0", "features.8", 18),
    "densenet121": ("features.conv0", "features.denseblock4", 8), "vgg11_bn": ("features.0", "features.25", 8),
    "regnet_y_400mf": ("stem", "trunk_output.block4.block4-5", 17), "convnext_tiny": ("features.0", "features.7.2", 22),
    "mnasnet0_5": ("layers.0", "layers.14", 20),
}  # fmt: skip
IMAGE = torch.zeros(2, 3, 96, 64)


def save_network(folder: Path) -> tuple[nn.Module, ModelSpec]:
    """Return a network with a head for nine classes, and the specification of its checkpoint."""
    model = build.build_untrained(ModelSpec(name="squeezenet1_1"), 9)
    save_file(model.state_dict(), folder / "w.safetensors")
    return model, ModelSpec(name="squeezenet1_1", weights=str(folder / "w.safetensors"))


@pytest.mark.parametrize("name", NETS)
def test_networks_are_cut_where_their_blocks_end(name: str) -> None:
    model = build.build_untrained(ModelSpec(name=name), 7).eval()
    head = build.find_head(model, 7)
    chain = blocks.find(model, head)
    assert (chain[0].name, chain[-1].name, len(chain)) == NETS[name]
    shapes = {}
    model.get_submodule(chain[3].last_module).register_forward_hook(
        lambda *inputs: shapes.update(features=inputs[2].mean((2, 3)))
    )
    with torch.inference_mode():
        model(IMAGE)
    whole = sum(parameter.numel() for parameter in model.parameters())
    small = blocks.cut(model, head, chain[3].name, 7)
    inputs = []
    small.get_submodule(build.find_head(small, 7)).register_forward_pre_hook(
        lambda _, features: inputs.append(features[0])
    )
    with torch.inference_mode():
        assert small(IMAGE).shape == (2, 7)
    assert sum(parameter.numel() for parameter in small.parameters()) < whole
    if not name.startswith("vgg"):  # its pooling leaves 7x7 positions
        torch.testing.assert_close(inputs[0].flatten(1), shapes["features"])  # nothing runs in between


@pytest.mark.parametrize("name", ["vit_b_16", "swin_t", "googlenet"])
def test_networks_that_are_no_chain_have_no_blocks(name: str) -> None:
    model = build.build_untrained(ModelSpec(name=name, arguments={"init_weights": False} if "goo" in name else {}), 3)
    assert blocks.find(model, build.find_head(model, 3)) == ()
    with pytest.raises(ToolchainError, match=r"\[reuse\] there is no block 'x'; this \w+ is not a chain of blocks"):
        blocks.cut(model, build.find_head(model, 3), "x", 3)


def test_a_block_that_is_not_there_is_named_with_the_nearest() -> None:
    with pytest.raises(ToolchainError, match=r"no block 'layer2.5'; did you mean 'layer2.\d'\?"):
        build.build_untrained(ModelSpec(name="resnet18"), 3, ReuseSpec(keep="layer2.5"))


def test_a_cut_network_loads_the_weights_of_the_whole_and_reports_no_rest(tmp_path: Path) -> None:
    whole, spec = save_network(tmp_path)
    model, head, loaded = build.build_with_new_head(spec, 4, seed=0, reuse=ReuseSpec(keep="features.6"))
    assert loaded.share == 1.0
    assert str(loaded) == "w.safetensors: 100% of the backbone loaded"
    assert isinstance(model.get_submodule("features.12"), nn.Identity)
    torch.testing.assert_close(model.features[6].squeeze.weight, whole.features[6].squeeze.weight)
    assert model.get_submodule(head).weight.shape == (4, 256)


def test_blocks_that_start_anew_take_no_weights(tmp_path: Path) -> None:
    whole, spec = save_network(tmp_path)
    model, _, loaded = build.build_with_new_head(spec, 4, seed=0, reuse=ReuseSpec(fresh="features.9"))
    assert loaded.share == 1.0
    torch.testing.assert_close(model.features[7].squeeze.weight, whole.features[7].squeeze.weight)
    for name in ("9", "12"):
        assert not torch.equal(
            model.get_submodule(f"features.{name}.squeeze").weight,
            whole.get_submodule(f"features.{name}.squeeze").weight,
        )
    bare, _, loaded = build.build_with_new_head(spec, 4, seed=0, reuse=ReuseSpec(fresh="features.0"))
    assert loaded.share == 0.0
    assert not torch.equal(bare.features[0].weight, whole.features[0].weight)


def test_a_cut_network_can_be_pruned() -> None:
    model = build.build_untrained(ModelSpec(name="mobilenet_v2"), 5, ReuseSpec(keep="features.10")).eval()
    image = torch.zeros(1, 3, 64, 64)
    plan = search_space.plan_for_ratio(
        model, image, head=build.find_head(model, 5), spec=PruneSpec(ratio=0.4), alignment=8, criterion=magnitude.score
    )
    small = surgery.apply(model, plan)
    assert small(image).shape == (1, 5)
    assert profile.total_macs(profile.measure_layers(small, image)) < 0.65 * profile.total_macs(
        profile.measure_layers(model, image)
    )


def test_modules_between_two_blocks() -> None:
    model = build.build_untrained(ModelSpec(name="resnet18"), 3)
    assert blocks.modules_between(model, "fc", last="layer1.0") == ("conv1", "bn1", "relu", "maxpool", "layer1.0")
    assert blocks.modules_between(model, "fc", first="layer4.0") == ("layer4.0", "layer4.1")


def test_random_weights_cannot_be_frozen() -> None:
    spec = ModelSpec(name="squeezenet1_1")
    for freeze in ("features.9", "features.12"):
        with pytest.raises(ToolchainError, match=f"freeze = '{freeze}' would freeze random weights.*'features.9'"):
            build.build_untrained(spec, 3, ReuseSpec(freeze=freeze, fresh="features.9"))
    build.build_untrained(spec, 3, ReuseSpec(freeze="features.7", fresh="features.9"))


@pytest.mark.parametrize(("name", "side"), [("squeezenet1_1", 8), ("vit_b_16", 96)])
def test_an_image_size_that_a_model_does_not_accept_is_an_error(name: str, side: int) -> None:
    with pytest.raises(ToolchainError, match=f"{name} does not accept images of {side}x{side}: "):
        build.build_for_image_size(ModelSpec(name=name), 3, torch.zeros(1, 3, side, side))
