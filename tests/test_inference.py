"""Prediction and evaluation, against NumPy, explicit loops and by hand."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torch.multiprocessing import start_processes

from segdeconv.data.labels import CAMVID, CITYSCAPES
from segdeconv.inference import (
    BLENDS,
    MEMORIES,
    TTA_SCALES,
    WHOLE,
    OnnxModel,
    Prediction,
    ahead,
    confidence_of,
    evaluate,
    largest,
    predict,
    predict_scores,
    resize_logits,
    save_label_ids,
    slide_rows,
    window_starts,
    window_weights,
)


@pytest.fixture
def network():
    """Sees 13 pixels around each, so that a window's logits differ from the whole image's."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 7, padding=3), nn.Tanh(), nn.Conv2d(8, 5, 7, padding=3)
    return nn.Sequential(*layers).double().eval().requires_grad_(False)


def pictures(*size, number=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(number, 3, *size, generator=generator, dtype=torch.float64)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)


def one_hot_model(images):
    """Logits that name the class written in the first channel."""
    return torch.nn.functional.one_hot(images[:, 0].long(), 11).permute(0, 3, 1, 2).float()


def images_of(labels):
    return labels[:, None].repeat(1, 3, 1, 1).float()


def random_labels(*shape, high=11):
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(0))


def test_a_prediction_is_the_class_of_the_largest_logit():
    labels = random_labels(2, 6, 8)
    found = predict(one_hot_model, images_of(labels))
    assert found.dtype == torch.int64
    assert torch.equal(found, labels)


def test_logits_are_resized_not_labels():
    logits = torch.tensor([[0.0, 4.0], [1.0, 1.0]]).view(1, 2, 1, 2)  # class 1 left, class 0 right
    found = predict(lambda images: logits.flip(1), torch.zeros(1, 3, 1, 2), (1, 8))
    # bilinear between 0 and 4 passes 1 between the fourth and the fifth of eight pixels
    assert found.flatten().tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_logits_of_the_right_size_are_left_alone():
    logits = torch.randn(1, 2, 3, 4)
    assert resize_logits(logits, (3, 4)) is logits


def test_a_prediction_keeps_no_gradients():
    layer = torch.nn.Conv2d(3, 11, 1)
    assert not predict(layer, torch.zeros(1, 3, 2, 2)).requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (1, 19, 40, 3000), (1, 1, 4, 4), (1, 300, 3, 5)])
def test_the_largest_score_is_the_one_that_max_finds(shape, layout, dtype):
    scores = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores = scores.to(memory_format=layout)
    best, classes = largest(scores)
    expected = scores.max(1)
    assert torch.equal(best, expected.values)
    assert torch.equal(classes.long(), expected.indices) or dtype == torch.bfloat16  # has ties
    torch.testing.assert_close(
        confidence_of(scores.float(), best.float()),
        scores.float().softmax(1).amax(1),
        rtol=0,
        atol=1e-6,
    )


def test_of_equal_scores_the_first_class_is_taken_and_scores_stay_as_they_are():
    scores = torch.tensor([1.0, 3, 3, -2, 3]).view(1, 5, 1, 1).repeat(1, 1, 2, 3)
    before = scores.clone()
    assert largest(scores)[1].unique().tolist() == [1]
    assert torch.equal(scores, before)


def test_batches_come_in_order_with_their_tensors_on_the_device():
    batches = [{"image": torch.full((1,), float(n)), "name": [str(n)]} for n in range(5)]
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        moved = list(ahead(batches, ["image"], torch.device(device)))
        assert [batch["image"].item() for batch in moved] == list(range(5))
        assert {batch["image"].device.type for batch in moved} == {device}
        assert [batch["name"] for batch in moved] == [batch["name"] for batch in batches]


@pytest.mark.gpu
def test_a_batch_is_not_overwritten_while_the_next_is_copied():
    batches = [{"image": torch.full((2**22,), float(n)).pin_memory()} for n in range(8)]
    found = []
    for batch in ahead(batches, ["image"], torch.device("cuda")):
        torch.cuda._sleep(10_000_000)
        found.append(batch["image"].mean())
    assert torch.stack(found).tolist() == list(range(8))


def test_a_network_of_other_classes_than_the_labels_is_refused():
    batch = {"image": torch.zeros(1, 3, 4, 5), "mask": random_labels(1, 4, 5), "name": ["a"]}
    twelve = torch.zeros(1, 12, 4, 5)
    twelve[:, 11] = 1  # all pixels are of a class that the labels do not have
    with pytest.raises(ValueError, match=r"20 of 20 pixels.*the network and its labels must have"):
        evaluate(lambda images: twelve, [batch], CAMVID)


def test_an_evaluation_keeps_no_gradients():
    layer, seen = torch.nn.Conv2d(3, 11, 1), []

    def spy(images):
        seen.append(layer(images))
        return seen[-1]

    batch = {"image": torch.zeros(1, 3, 4, 5), "mask": random_labels(1, 4, 5), "name": ["a"]}
    evaluate(spy, [batch], CAMVID, observe=lambda names, *seen_too: seen.extend(seen_too))
    assert len(seen) == 4 and not any(each.requires_grad for each in seen)


def test_evaluation_counts_pixels_over_the_whole_set_and_leaves_out_ignored_ones():
    truth = random_labels(3, 10, 12)
    truth[:, :2] = 255
    guess = random_labels(3, 10, 12, high=9)
    batches = [
        {"image": images_of(guess[i : i + 1]), "mask": truth[i : i + 1], "name": [str(i)]}
        for i in range(3)
    ]
    scores = evaluate(one_hot_model, batches, CAMVID)
    valid = (truth != 255).numpy()
    expected = np.zeros((11, 11), int)
    np.add.at(expected, (truth.numpy()[valid], guess.numpy()[valid]), 1)
    assert np.array_equal(scores.confusion.numpy(), expected)


def test_evaluation_works_at_the_size_of_the_labels(tmp_path):
    labels = random_labels(1, 5, 7)
    batch = {"image": images_of(labels), "mask": labels.repeat_interleave(4, 1), "name": ["a"]}
    scores = evaluate(one_hot_model, [batch], CAMVID, save_to=tmp_path)
    assert scores.confusion.sum() == 20 * 7
    assert Image.open(tmp_path / "a.png").size == (7, 20)


def test_label_files_hold_label_ids(tmp_path):
    labels = torch.arange(19).view(1, 19)
    save_label_ids(tmp_path / "new" / "a.png", labels, CITYSCAPES)
    image = Image.open(tmp_path / "new" / "a.png")
    assert image.mode == "L"
    expected = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert np.array(image)[0].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_label_files_take_any_integers(tmp_path, dtype):
    save_label_ids(tmp_path / "a.png", torch.tensor([[1, 2]], dtype=dtype), CITYSCAPES)
    assert np.array(Image.open(tmp_path / "a.png")).tolist() == [[8, 11]]


# ------------------------------------------------------------------------------ sliding windows


@pytest.mark.parametrize(
    ("size", "crop", "stride", "starts"),
    [  # mmsegmentation's rule, worked out by hand
        (1024, 1024, 768, [0]),
        (2048, 1024, 768, [0, 768, 1024]),
        (1025, 769, 513, [0, 256]),
        (2049, 769, 513, [0, 513, 1026, 1280]),
        (2048, 768, 512, [0, 512, 1024, 1280]),
        (10, 30, 20, [0]),
        (5, 2, 1, [0, 1, 2, 3]),
        (6, 2, 2, [0, 2, 4]),
    ],
)
def test_windows_start_every_stride_and_the_last_ends_at_the_border(size, crop, stride, starts):
    assert window_starts(size, crop, stride) == starts


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [(97, 31, 17), (97, 31, 31), (64, 32, 1), (7, 31, 20), (31, 31, 9), (2049, 769, 513)],
)
def test_the_weights_of_all_windows_add_up_to_one_everywhere(size, crop, stride, blend):
    weights = window_weights(size, crop, stride, blend)
    total = torch.zeros(size, dtype=torch.float64)
    for start, row in zip(window_starts(size, crop, stride), weights, strict=True):
        assert (row > 0).all()
        total[start : start + len(row)] += row
    close(total, torch.ones_like(total))


def test_smooth_weights_fall_towards_the_border_and_uniform_ones_share_alike():
    smooth = window_weights(30, 20, 10, "smooth")
    assert (smooth[0, 10:].diff() < 0).all() and (smooth[1, :10].diff() > 0).all()
    assert smooth[0, :10].eq(1).all()  # where there is but one window
    close(smooth[0, 10:], torch.sin((torch.arange(10, 20).double() + 0.5) * torch.pi / 20) ** 2)
    uniform = window_weights(30, 20, 10, "uniform")
    assert uniform[0].tolist() == [1.0] * 10 + [0.5] * 10


def by_hand(network, images, settings):
    """Window after window into one sum and one map of weights."""
    height, width = images.shape[-2:]
    crop_h, crop_w = min(settings.crop_size[0], height), min(settings.crop_size[1], width)
    total, weight = 0.0, torch.zeros(height, width, dtype=torch.float64)
    total = torch.zeros(len(images), 5, height, width, dtype=torch.float64)
    for i in range(0, height - crop_h + settings.steps[0], settings.steps[0]):
        for j in range(0, width - crop_w + settings.steps[1], settings.steps[1]):
            top, left = min(i, height - crop_h), min(j, width - crop_w)
            here = (..., slice(top, top + crop_h), slice(left, left + crop_w))
            shape = torch.ones(crop_h, crop_w, dtype=torch.float64)
            if settings.blend == "smooth":
                down, across = (
                    torch.sin(torch.pi * (torch.arange(n).double() + 0.5) / n) ** 2
                    for n in (crop_h, crop_w)
                )
                shape = torch.outer(down, across)
            total[here] += network(images[here]) * shape
            weight[here] += shape
    return total / weight


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("tile_batch", [1, 2, 5])
@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [((41, 53), (24, 32), (16, 21)), ((41, 20), (24, 32), None), ((9, 11), (5, 4), (1, 4))],
    ids=["odd", "narrower than the window", "many small windows"],
)
def test_sliding_windows_equal_an_explicit_loop(network, size, crop, stride, blend, tile_batch):
    images = pictures(*size)
    settings = Prediction(crop, stride, blend, tile_batch=tile_batch)
    rows = list(slide_rows(network, images, settings))
    expected = by_hand(network, images, settings)
    close(torch.cat(rows, -2), expected)
    close(predict_scores(network, images, settings=settings), expected)
    for memory in MEMORIES:
        mine = Prediction(crop, stride, blend, tile_batch=tile_batch, memory=memory)
        assert torch.equal(predict(network, images, settings=mine), expected.argmax(1))
    if len(rows) > 1:  # windows do show, so the comparison can fail
        assert not torch.allclose(expected, network(images))


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_one_window_is_the_whole_image_to_the_last_bit(network, blend, dtype):
    images, network = pictures(33, 47).to(dtype), network.to(dtype)
    for crop in ((33, 47), (33, 99), (500, 500)):
        settings = Prediction(crop, blend=blend)
        assert torch.equal(predict_scores(network, images, settings=settings), network(images))


def test_no_more_than_a_row_of_windows_is_held(network):
    settings = Prediction((16, 16), (8, 8))
    heights = [rows.shape[-2] for rows in slide_rows(network, pictures(64, 40), settings)]
    assert heights == [8] * 6 + [16]


def test_a_network_with_smaller_logits_slides_too(network):
    def coarse(images):
        return F.avg_pool2d(network(images), 4)

    images = pictures(32, 32)
    found = predict_scores(coarse, images, settings=WHOLE)
    settings = Prediction((16, 16), (16, 16))
    assert predict(coarse, images, settings=settings).shape == (2, 32, 32)
    close(found, resize_logits(coarse(images), (32, 32)))


# --------------------------------------------------------------------- scales and mirror images


def test_scale_one_alone_is_the_whole_image_to_the_last_bit(network):
    images = pictures(21, 35)
    settings = Prediction(scales=(1.0,))
    assert settings == WHOLE
    assert torch.equal(predict_scores(network, images, settings=settings), network(images))


def test_scales_and_mirror_images_average_probabilities_as_an_explicit_loop_does(network):
    images, size = pictures(21, 35), (40, 60)
    total = torch.zeros(2, 5, *size, dtype=torch.float64)
    for scale in TTA_SCALES:
        height, width = round(21 * scale + 1e-9), round(35 * scale + 1e-9)  # halves go up
        scaled = F.interpolate(images, (height, width), mode="bilinear", align_corners=False)
        for image, back in ((scaled, lambda x: x), (scaled.flip(3), lambda x: x.flip(3))):
            logits = F.interpolate(back(network(image)), size, mode="bilinear", align_corners=False)
            total += logits.exp() / logits.exp().sum(1, keepdim=True)
    settings = Prediction(scales=TTA_SCALES, flip=True)
    close(predict_scores(network, images, size, settings), total / 12)
    assert torch.equal(predict(network, images, size, settings), total.argmax(1))


@pytest.mark.parametrize("crop_size", [None, (16, 20)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.75)])
def test_the_mirrored_image_gives_the_mirrored_result(network, scales, crop_size):
    images = pictures(23, 37)
    settings = Prediction(crop_size, scales=scales, flip=True)
    one = predict_scores(network, images, settings=settings)
    close(predict_scores(network, images.flip(-1), settings=settings).flip(-1), one)
    lone = Prediction(crop_size, scales=scales)
    other = predict_scores(network, images.flip(-1), settings=lone).flip(-1)
    assert not torch.allclose(other, predict_scores(network, images, settings=lone))


def test_windows_of_each_scale_are_slid_at_their_own_size(network):
    seen = []

    def spy(images):
        seen.append(tuple(images.shape[-2:]))
        return network(images)

    predict(spy, pictures(20, 30), settings=Prediction((16, 16), (16, 16), scales=(0.5, 1.0)))
    assert seen == [(10, 15)] + [(16, 16)] * 4


def test_in_rows_all_views_are_taken_of_each_window(network):
    images = pictures(40, 24)
    settings = Prediction((16, 24), scales=(1.0, 1.5), flip=True, memory="rows")
    views = Prediction(scales=(1.0, 1.5), flip=True)

    def within(windows):
        return predict_scores(network, windows, settings=views)

    expected = by_hand(within, images, settings)
    assert torch.equal(predict(network, images, settings=settings), expected.argmax(1))


def test_in_rows_the_answer_has_the_size_of_the_images(network):
    settings = Prediction((16, 16), memory="rows")
    with pytest.raises(ValueError, match=r"size of the images.*\(20, 20\).*memory='cpu'"):
        predict(network, pictures(20, 20), (40, 40), settings)


# ------------------------------------------------------------------------- precision and device


def test_half_precision_runs_the_network_in_it_and_blends_in_float32(network):
    network, seen = network.float(), []

    def spy(images):
        logits = network(images)
        seen.append(logits.dtype)
        return logits

    images = pictures(20, 30).float()
    settings = Prediction((16, 16), precision="bfloat16")
    found = predict(spy, images, settings=settings)
    assert set(seen) == {torch.bfloat16}
    exact = predict(network, images, settings=Prediction((16, 16)))
    assert (found == exact).float().mean() > 0.97


@pytest.mark.gpu
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("crop_size", [None, (24, 32)])
def test_a_gpu_predicts_what_the_cpu_does(network, memory, crop_size):
    if crop_size is None and memory == "rows":
        pytest.skip("rows of windows need windows")
    images = pictures(41, 53)
    settings = Prediction(crop_size, scales=(0.5, 1.0), flip=True, tile_batch=2, memory=memory)
    expected = predict(network, images, settings=settings)
    found = predict(network.cuda(), images, settings=settings, device="cuda")
    assert found.device.type == ("cuda" if memory == "device" else "cpu")
    assert torch.equal(found.cpu(), expected)


# ------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(stride=(2, 2)), "stride is for sliding windows; give crop_size"),
        (dict(memory="rows"), "memory='rows' is for sliding windows; give crop_size"),
        (dict(crop_size=(0, 4)), "expected 1 or more"),
        (dict(crop_size=(8, 8), stride=(8, 9)), "pixels would lie between windows"),
        (dict(crop_size=(8, 8), stride=(0, 8)), "expected 1 to"),
        (dict(blend="smoth"), "did you mean 'smooth'"),
        (dict(scales=()), "one or more numbers above 0"),
        (dict(scales=(1.0, -0.5)), "one or more numbers above 0"),
        (dict(precision="float8"), "float32, bfloat16, float16"),
        (dict(memory="disk"), "device, cpu, rows"),
        (dict(tile_batch=0), "expected 1 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Prediction(**settings)


def test_settings_say_in_words_what_belongs_beside_a_result():
    assert str(WHOLE) == "whole image"
    assert str(Prediction((8, 9), (4, 6), "smooth", scales=(0.5, 1.0), flip=True)) == (
        "windows of 8 x 9 every 4 x 6, smooth blending, scales 0.5 1, mirrored too"
    )


# ------------------------------------------------------------------------------------ processes


def evaluate_share(rank, world, folder):
    torch.set_num_threads(1)  # as OpenMP's threads do not survive a fork
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world)
    truth, guess = random_labels(5, 6, 8), random_labels(5, 6, 8, high=9)
    mine = [
        {"image": images_of(guess[i : i + 1]), "mask": truth[i : i + 1], "name": [str(i)]}
        for i in range(rank, 5, world)
    ]
    torch.save(evaluate(one_hot_model, mine, CAMVID).confusion, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 3])
def test_all_processes_get_the_scores_of_all_images(tmp_path, world):
    truth, guess = random_labels(5, 6, 8), random_labels(5, 6, 8, high=9)
    batch = {"image": images_of(guess), "mask": truth, "name": list("abcde")}
    expected = evaluate(one_hot_model, [batch], CAMVID).confusion
    start_processes(evaluate_share, (world, tmp_path), world, start_method="fork")
    for rank in range(world):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), expected)
    assert expected.sum() == 5 * 6 * 8


# ----------------------------------------------------------------------------------------- ONNX


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory):
    """``onnx_file(batch, height, width)`` writes a network of one 3 x 3 convolution."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"

    def write(*sizes):
        make, kind = onnx.helper, onnx.TensorProto.FLOAT
        weights = onnx.numpy_helper.from_array(KERNEL.numpy(), "kernel")
        graph = make.make_graph(
            [make.make_node("Conv", ["images", "kernel"], ["logits"], pads=[1] * 4)],
            "network",
            [make.make_tensor_value_info("images", kind, [sizes[0], 3, *sizes[1:]])],
            [make.make_tensor_value_info("logits", kind, [sizes[0], 5, *sizes[1:]])],
            [weights],
        )
        opset = [make.make_opsetid("", 17)]
        onnx.save(make.make_model(graph, ir_version=8, opset_imports=opset), path)
        return OnnxModel(path)

    return write


KERNEL = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(2))


def test_an_onnx_file_predicts_what_its_network_does(onnx_file):
    images = pictures(20, 31, number=3).float()
    expected = F.conv2d(images, KERNEL, padding=1)
    close_enough = dict(rtol=1e-4, atol=1e-4)
    model = onnx_file("batch", "height", "width")
    torch.testing.assert_close(model(images), expected, **close_enough)
    found = predict_scores(model, images, settings=Prediction((20, 31)))
    torch.testing.assert_close(found, expected, **close_enough)


def test_an_onnx_file_of_one_size_gets_filled_batches_and_padded_images(onnx_file):
    images = pictures(20, 31, number=3).float()
    model = onnx_file(2, 24, 32)
    padded = F.pad(images, (0, 1, 0, 4), mode="replicate")
    expected = F.conv2d(padded, KERNEL, padding=1)[..., :20, :31]
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"24 x 32.*25 x 32.*--slide --crop 24 32"):
        model(torch.zeros(1, 3, 25, 32))


def test_what_is_no_onnx_file_is_refused_in_a_sentence(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "a.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"cannot read .*a\.onnx as an ONNX file"):
        OnnxModel(tmp_path / "a.onnx")
