from __future__ import annotations

import numpy as np
import torch

from protoseg.analysis.adaptation import GAINED, ConfusionCollector, change_map, compared, comparison_panel, iou_figure
from protoseg.evaluation.metrics import confusion_matrix
from protoseg.evaluation.pictures import WRONG, confusions_figure
from protoseg.evaluation.predictor import Predictor
from tests.analysis.toy import SPACE, Images, Toy, loader


def test_confusions_are_those_of_each_network() -> None:
    models = {"before": Toy(prototypes=False), "after": Toy()}
    collector = ConfusionCollector(SPACE)
    for seen in compared(models, loader()):
        collector.update(seen)
    found = collector.scores()
    for network, model in models.items():
        want = torch.zeros(3, 3, dtype=torch.int64)
        for image, label, _ in Images().items:
            batch, size = image.unsqueeze(0), torch.tensor([label.shape])
            want += confusion_matrix(Predictor().predict(model.eval(), batch, size)[0], label, 3)
        assert torch.equal(found[network]["confusion"], want)
    some = ConfusionCollector(SPACE, [1])
    some.metrics = collector.metrics
    assert all(entry["IoU"][1].isnan() for entry in some.scores().values())  # the data do not label it
    titles = {network: entry["confusion"] for network, entry in found.items()}
    assert len(confusions_figure(titles, SPACE).axes) == 3  # two and the colour bar
    assert iou_figure(found, SPACE).axes[0].get_title().endswith("after against before")


def test_change_map_colours_what_changed() -> None:
    truth = torch.tensor([[0, 0, 0, 0, -1]])
    before = torch.tensor([[0, 1, 0, 1, 0]])
    after = torch.tensor([[0, 0, 1, 1, 1]])
    row = change_map(torch.zeros(3, 1, 5, dtype=torch.uint8), truth, before, after)[0]
    gained, lost = (0.75 * np.array(color) for color in (GAINED, WRONG))
    assert np.abs(row[1] - gained).max() <= 0.5
    assert np.abs(row[2] - lost).max() <= 0.5
    assert row[0].tolist() == row[3].tolist() == [166, 166, 166]
    assert row[4].tolist() == [0, 0, 0]


def test_panels_with_and_without_truth() -> None:
    models = {"before": Toy(prototypes=False), "after": Toy()}
    (labelled, *_), (bare, *_) = list(compared(models, loader())), list(compared(models, loader(void=True)))
    wide, narrow = comparison_panel(labelled, SPACE), comparison_panel(bare, SPACE)
    assert wide.shape[1] > narrow.shape[1]
