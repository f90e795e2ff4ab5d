"""ClassMix and the strong augmentation."""

from __future__ import annotations

import colorsys

import pytest
import torch

from protoseg.functional.mixing import class_mix_mask, cut_mix_mask, kornia_jitter, paste, strong_transform


def labels() -> torch.Tensor:
    label = torch.full((3, 6, 8), -1)
    label[0, :, :2], label[0, :, 2:4], label[0, :, 4:6] = 0, 2, 4  # three classes and ignored pixels
    label[1] = 3  # one class
    return label  # the third image has none


def test_half_of_the_classes_rounded_up_whole_and_never_the_ignored() -> None:
    label = labels()
    for seed in range(20):
        torch.manual_seed(seed)
        mask = class_mix_mask(label, 5)
        chosen = [set(label[i][mask[i]].tolist()) for i in range(3)]
        assert len(chosen[0]) == 2
        assert chosen[0] <= {0, 2, 4}
        assert chosen[1:] == [{3}, set()]
        for c in chosen[0]:
            assert mask[0][label[0] == c].all()  # a class is pasted as a whole


def test_every_class_is_chosen_equally_often() -> None:
    torch.manual_seed(0)
    label = torch.arange(4).repeat(2000, 1, 1)  # four classes, two of them chosen
    share = class_mix_mask(label, 4).float().mean((0, 1))
    torch.testing.assert_close(share, torch.full((4,), 0.5), atol=0.05, rtol=0)


def test_images_choose_apart() -> None:
    torch.manual_seed(0)
    mask = class_mix_mask(torch.arange(4).repeat(50, 1, 1), 4)
    assert len(mask.unique(dim=0)) > 1


def test_released_choice_is_from_all_images_and_takes_the_ignored_label_for_a_class() -> None:
    label = torch.tensor([[[0, 0, -1]], [[1, 2, 3]]])
    seen = set()
    for seed in range(200):
        torch.manual_seed(seed)
        mask = class_mix_mask(label, 5, of_batch=True, ignored=True)
        ones = [set(label[i][mask[i]].tolist()) for i in range(2)]
        seen |= ones[0] | ones[1]
        # three of the five labels of both images (0, 1, 2, 3 and ignored): of them at most two lie in one image …
        assert len(ones[0]) <= 2
        assert len(ones[1]) <= 3
    assert seen == {-1, 0, 1, 2, 3}
    torch.manual_seed(0)
    empty = [class_mix_mask(label, 5, of_batch=True, ignored=True)[0].any().item() for _ in range(200)]
    # … and the first is pasted nothing of with both of its labels left out: 3 choices of 10
    assert not all(empty)
    alone = [class_mix_mask(label, 5, ignored=True)[0].sum().item() for _ in range(50)]
    assert set(alone) == {1, 2}  # one of its two labels: void, of one pixel, or class 0, of two


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_kornias_jitter_by_its_formula(order: list[int]) -> None:
    """kornia 0.5: v + b; v * c; and in HSV s * s', h + 2 pi h'; each clamped. Here pixel by pixel, with colorsys."""
    image = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image[:, 0, 0] = 128  # grey, which has no hue
    b, c, s, h = shifts = [0.17, -0.13, 0.2, -0.09]

    def saturate(rgb: list[float]) -> list[float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return list(colorsys.hsv_to_rgb(hue, min(1.0, saturation * (1 + s)), value))

    def turn(rgb: list[float]) -> list[float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return list(colorsys.hsv_to_rgb((hue + h) % 1, saturation, value))

    steps = [
        lambda rgb: [min(1.0, max(0.0, v + b)) for v in rgb],
        lambda rgb: [min(1.0, max(0.0, v * (1 + c))) for v in rgb],
        saturate,
        turn,
    ]
    out = kornia_jitter(image, shifts, order)
    for y in range(5):
        for x in range(7):
            rgb = (image[:, y, x] / 255).tolist()
            for step in order:
                rgb = steps[step](rgb)
            assert (out[:, y, x].float() - 255 * torch.tensor(rgb)).abs().max() < 0.51


def test_kornias_jitter_moves_the_mean_twice_as_far_as_ours() -> None:
    image = torch.full((400, 3, 4, 4), 128, dtype=torch.uint8)
    torch.manual_seed(0)
    spread = [
        strong_transform(image, 0.2, 1.0, False, kornia).float().mean((1, 2, 3)).std().item() / 255
        for kornia in (False, True)
    ]
    assert spread[1] > 1.5 * spread[0]


def test_cut_mix_is_a_rectangle_of_its_share_of_the_image() -> None:
    torch.manual_seed(0)
    mask = cut_mix_mask((200, 40, 60), (0.2, 0.4))
    rows, columns = mask.any(2), mask.any(1)
    assert torch.equal(mask, rows.unsqueeze(2) & columns.unsqueeze(1))
    for side in (rows, columns):
        edges = (side[:, 1:] != side[:, :-1]).sum(1) + side[:, 0] + side[:, -1]
        assert edges.eq(2).all()  # one interval
        assert side.any(0).all()  # anywhere
    share = mask.float().mean((1, 2))
    assert 0.15 < share.min() < 0.22 < 0.38 < share.max() < 0.45
    assert rows.sum(1).float().std() > 3
    half = cut_mix_mask((400, 40, 60), probability=0.25).flatten(1)
    torch.testing.assert_close(half.any(1).float().mean(), torch.tensor(0.25), atol=0.08, rtol=0)
    torch.testing.assert_close(
        half[half.any(1)].float().mean(1), torch.full((), 0.5).expand(int(half.any(1).sum())), atol=0.03, rtol=0
    )


def test_paste() -> None:
    pasted = torch.tensor([[[True, False]]])
    image = paste(pasted, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    assert image[0, :, 0].tolist() == [[1, 0]] * 3
    assert paste(pasted, torch.tensor([[[7, 7]]]), torch.tensor([[[8, 9]]])).tolist() == [[[7, 9]]]


def test_strong_transform_is_drawn_per_image_and_repeats_with_the_seed() -> None:
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).repeat(8, 1, 1, 1)
    torch.manual_seed(3)
    first = strong_transform(image)
    assert first.dtype == torch.uint8
    assert len({tuple(one.flatten().tolist()) for one in first}) > 4
    torch.manual_seed(3)
    assert torch.equal(strong_transform(image), first)
    assert torch.equal(strong_transform(image, jitter=0, blur=False), image)


def test_blur_keeps_the_mean_and_lowers_the_contrast() -> None:
    torch.manual_seed(0)
    image = torch.randint(0, 256, (20, 3, 64, 64), dtype=torch.uint8)
    blurred = strong_transform(image, jitter=0, blur=True).float()
    changed = (blurred != image.float()).flatten(1).any(1)
    assert 3 <= changed.sum() <= 17  # about every second image
    assert (blurred[changed].std((1, 2, 3)) < image[changed].float().std((1, 2, 3))).all()
    torch.testing.assert_close(blurred.mean(), image.float().mean(), atol=1.0, rtol=0)
