"""tools/predict.py: what a network sees, as files, and nothing is lost."""

from pathlib import Path
from shutil import copytree

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from segdeconv.data.labels import CAMVID
from segdeconv.data.media import Video, video_writer


@pytest.fixture
def photos(trained, tmp_path, tiny_camvid):
    """Images in a folder of their own, two of them in a sub-folder; the run is in runs/run."""
    folder = copytree(tiny_camvid / "val" / "images", tmp_path / "photos")
    (folder / "more").mkdir()
    for name in ("03.png", "04.png"):
        (folder / name).rename(folder / "more" / name)
    return folder


def pictures_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def read(path):
    return np.array(Image.open(path))


def assert_alike(found, expected):
    """Within what JPEG and MPEG lose: the network's patches are as small as their own."""
    blocks = [each.reshape(5, 8, -1, 8, 3).mean((1, 3)) for each in (found, expected)]
    assert np.abs(blocks[0] - blocks[1]).max() < 12


def test_ids_are_those_that_the_evaluation_writes(tool, photos):
    assert tool("predict", "runs/run", photos, "--write", "ids", "--out", "mine")[0] == 0
    assert pictures_in(Path("mine")) == [
        f"ids/{name}.png" for name in ("00", "01", "02", "more/03", "more/04")
    ]
    for options in ([], ["--slide", "--tta"]):
        out = "-".join(["mine", *options])
        code = tool("predict", "runs/run", photos, "--write", "ids", "--out", out, *options)[0]
        assert code == (1 if out == "mine" else 0)  # the first is there already
        theirs = "-".join(["theirs", *options])
        assert tool("eval", "runs/run", "--save-predictions", theirs, *options)[0] == 0
        for name in ("00", "more/03"):
            mine, there = Path(out, f"ids/{name}.png"), Path(theirs, f"{name[-2:]}.png")
            assert np.array_equal(read(mine), read(there))


def test_results_may_lie_among_the_images_and_are_not_predicted_again(tool, photos):
    for options in ([], ["--overwrite"]):
        code, out, err = tool("predict", "runs/run", photos, "--out", photos, *options)
        assert code == 0, err
        assert "5 of 5 files predicted" in out
    assert len(pictures_in(photos / "overlay")) == 5


def test_each_kind_shows_the_same_classes(tool, photos):
    kinds = ("colour", "overlay", "ids", "side")
    assert tool("predict", "runs/run", photos / "00.png", "--write", *kinds)[0] == 0
    image, ids = read(photos / "00.png").astype(float), read("predictions/ids/00.png")
    colours = np.array(CAMVID.colours)[ids]
    assert np.array_equal(read("predictions/colour/00.png"), colours)
    blurred = {"overlay": (image + colours) / 2, "side": np.hstack([image, colours])}
    for kind, expected in blurred.items():
        assert_alike(read(f"predictions/{kind}/00.jpg"), expected)


def test_a_palette_gives_names_colours_and_ids(tool, photos, tmp_path, expect):
    classes = [{"name": str(n), "id": 100 + n, "colour": [n, 2 * n, 250 - n]} for n in range(11)]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"classes": classes}))
    given = ("predict", "runs/run", photos / "00.png")
    assert tool(*given, "--write", "ids", "--out", "plain")[0] == 0
    options = ("--palette", "mine.yaml", "--write", "ids", "colour")
    assert tool(*given, *options)[0] == 0
    plain, ids = read("plain/ids/00.png"), read("predictions/ids/00.png")
    assert np.array_equal(ids, plain + 100)
    assert np.array_equal(read("predictions/colour/00.png")[..., 1], 2 * plain)
    result = tool(*given, "--palette", "cityscapes", "--out", "other")
    expect(result, 1, "--palette cityscapes has 19 classes", "11")


def test_the_data_set_need_not_be_there(tool, photos, trained):
    config = yaml.safe_load((trained / "config.yaml").read_text())
    config["data"]["root"] = "gone"
    (trained / "config.yaml").write_text(yaml.safe_dump(config))
    assert tool("predict", "last", photos / "00.png")[0] == 0
    assert pictures_in(Path("predictions")) == ["overlay/00.jpg"]


def test_what_cannot_be_read_is_left_out_and_reported_at_the_end(tool, photos):
    (photos / "01.png").write_bytes((photos / "01.png").read_bytes()[:300])
    (photos / "more" / "notes.mp4").write_text("no video")
    code, out, err = tool("predict", "runs/run", photos)
    assert code == 1
    assert pictures_in(Path("predictions/overlay")) == ["00.jpg", "02.jpg", "more/03.jpg",
                                                        "more/04.jpg"]  # fmt: skip
    assert "4 of 6 files predicted" in out
    last = err[err.index("left out:\n") :]
    assert "01.png" in last and "notes.mp4" in last
    assert "error: 2 files could not be read" in last


def test_a_file_that_cannot_be_read_is_named_once_and_a_folder_only_if_there_is_one(tool, photos):
    bad = photos / "bad.png"
    bad.write_bytes(b"no image")
    code, out, err = tool("predict", "runs/run", bad)
    assert code == 1 and out == "0 of 1 files predicted\n" and not Path("predictions").exists()
    assert err.count("bad.png") == 1


def test_nothing_is_replaced_unless_asked_for(tool, photos, expect):
    assert tool("predict", "runs/run", photos / "00.png")[0] == 0
    path = Path("predictions/overlay/00.jpg")
    path.write_bytes(b"mine")
    result = tool("predict", "runs/run", photos)
    expect(result, 1, "1 results are there already", "00.jpg", "--overwrite", "--out")
    assert pictures_in(Path("predictions")) == ["overlay/00.jpg"]
    assert path.read_bytes() == b"mine"
    assert tool("predict", "runs/run", photos, "--overwrite")[0] == 0
    assert read(path).shape == (40, 48, 3)


def test_an_interruption_loses_nothing_that_is_done(tool, photos, monkeypatch):
    from segdeconv.training import prediction

    done = []

    def interrupted(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return original(*arguments)

    original = prediction.predict_image
    monkeypatch.setattr(prediction, "predict_image", interrupted)
    assert tool("predict", "runs/run", photos)[0] == 130
    assert pictures_in(Path("predictions")) == ["overlay/00.jpg", "overlay/01.jpg"]
    assert read("predictions/overlay/01.jpg").shape == (40, 48, 3)


def test_a_video_becomes_a_video_of_overlays_and_frames_if_asked_for(tool, photos, expect):
    with video_writer(Path("drive.mp4"), 5.0) as add:
        for _ in range(3):
            add(read(photos / "00.png"))
    options = ("--write", "ids", "overlay", "--frames")
    assert tool("predict", "runs/run", "drive.mp4", *options)[0] == 0
    frames = [f"drive/{number:06}" for number in range(3)]
    assert pictures_in(Path("predictions/ids")) == [f"{name}.png" for name in frames]
    assert pictures_in(Path("predictions/overlay")) == ["drive.mp4"] + [
        f"{name}.jpg" for name in frames
    ]
    video = Video(Path("predictions/overlay/drive.mp4"))
    assert (video.fps, video.length) == (5.0, 3)
    colours = np.array(CAMVID.colours)[read("predictions/ids/drive/000000.png")]
    first, original = next(iter(video)), next(iter(Video(Path("drive.mp4"))))
    assert_alike(first, (colours + original.astype(float)) / 2)
    expect(tool("predict", "last", "drive.mp4"), 1, "1 results are there already", "drive.mp4")


def test_a_video_that_was_cut_short_is_predicted_up_to_there(tool, photos):
    path = Path("cut.avi")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (48, 40))
    for _ in range(30):
        writer.write(read(photos / "00.png")[..., ::-1])
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    code, _, err = tool("predict", "runs/run", "cut.avi")
    assert code == 1 and "cut.avi ends after" in err
    assert 5 < len(list(Video(Path("predictions/overlay/cut.part.mp4")))) < 25


def test_an_onnx_file_can_take_the_place_of_the_weights(tool, photos, trained):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    import segdeconv as sd
    from segdeconv.models import load_weights

    options = yaml.safe_load((trained / "config.yaml").read_text())["model"]
    network = sd.create_model(
        options["arch"], encoder=options["encoder"], num_classes=11, operator=options["operator"],
        operator_options=options["operator_options"], **options["arch_options"],
    )  # fmt: skip
    load_weights(network, trained / "weights.safetensors")
    plain = sd.fold(network.eval())
    torch.onnx.export(plain, (torch.zeros(1, 3, 40, 48),), "a.onnx", dynamo=True, verbose=False)
    for out, given in (("a", []), ("b", ["--onnx", "a.onnx"])):
        assert tool("predict", "last", photos, "--write", "ids", "--out", out, *given)[0] == 0
    same = [
        np.mean(read(f"a/ids/{name}.png") == read(f"b/ids/{name}.png")) for name in ("00", "02")
    ]
    assert min(same) > 0.999


# ---------------------------------------------------------------------------------- mistakes


def test_help_has_examples(tool, capsys):
    for arguments in ([], ["--help"]):
        with pytest.raises(SystemExit):
            tool("predict", *arguments)
        shown = capsys.readouterr().out
        assert "usage: python tools/predict.py RUN_DIR" in shown
        assert "\nExamples\n" in shown and "--tta" in shown


def test_mistakes_are_one_sentence_before_anything_is_written(tool, photos, expect):
    expect(tool("predict", "runs/run"), 2, "name the folder of a run, then images")
    expect(tool("predict", "runs/run", "nowhere.png"), 1, "there is no nowhere.png")
    given = ("predict", "runs/run", photos)
    expect(tool(*given, "--write", "color"), 1, "--write color", "colour, overlay, ids, side")
    expect(tool(*given, "--onnx", "nowhere.onnx"), 1, "nowhere.onnx")
    expect(tool(*given, "--crop", "24", "32"), 1, "--crop is for sliding windows; give --slide")
    expect(tool(*given, "--overwrit"), 2, "unknown key overwrit; did you mean overwrite?")
    assert not Path("predictions").exists()
