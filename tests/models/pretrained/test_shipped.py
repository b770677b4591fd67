"""The small SegFlow that comes with mtsp."""

import numpy as np
import torch
from safetensors import safe_open

from data.synthetic.dead_leaves import DeadLeavesConfig, draw_dead_leaves
from models.pretrained.files import SHIPPED
from models.pretrained.load_trained import load_trained
from mtsp.anchors import penalized
from tools.build import build_network, read_experiment

torch.set_num_threads(1)


def test_it_is_small_and_loads_into_every_branch_with_anchors() -> None:
    assert SHIPPED.stat().st_size < 4_000_000
    weights = ["branches.segmentation.weights=shipped", "branches.flow.weights=shipped"]
    pretrained = build_network(read_experiment("shipped_segflow.yaml", weights))
    assert pretrained.anchors.keys() == set(penalized(pretrained.model))  # every convolution and linear weight
    with safe_open(SHIPPED, "pt") as file:
        name = "flow.network.estimator.0.weight"
        assert torch.equal(pretrained.model.state_dict()[name], file.get_tensor(name).float())


def test_it_sees_a_patch_that_moves_over_a_still_image() -> None:
    """A patch of 64x96 pixels moves by 6 pixels to the right and 3 up; nothing of this image was trained on."""
    config = DeadLeavesConfig(height=128, width=192)
    background, patch = (draw_dead_leaves(config, np.random.default_rng(seed)) for seed in (1000, 1001))
    first, second = background.copy(), background.copy()
    first[40:104, 60:156] = second[37:101, 66:162] = patch[:64, :96]
    model = load_trained(read_experiment("shipped_segflow.yaml"), SHIPPED).eval()
    with torch.no_grad():
        outputs = model(*(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in (first, second)))
    flow = outputs["flow"][0].numpy()
    assert np.hypot(flow[0, 44:96, 68:148] - 6, flow[1, 44:96, 68:148] + 3).mean() < 1.0
    still = np.hypot(flow[0], flow[1])
    still[32:112, 52:170] = 0  # the patch and its surroundings
    assert still.mean() < 0.5
    found = outputs["mask_logits"][0].argmax(0).numpy().astype(bool)
    truth = np.zeros_like(found)
    truth[40:104, 60:156] = True
    assert (found & truth).sum() / (found | truth).sum() > 0.6
