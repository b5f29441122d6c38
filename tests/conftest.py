"""A data set and a network that fit in a test: a run of them takes about a second."""

import shutil
import signal

import numpy as np
import pytest
from PIL import Image
from small_sets import write_all

# A shell that runs the tests in the background lets them, and so all they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_camvid(tmp_path_factory):
    """CamVid's folders with 10 training and 5 validation images of 48 x 40 pixels.

    Sky (0) above, road (3) below, a building (1) of random width between, a strip of void (11);
    each class has its colour, with noise.
    """
    root = tmp_path_factory.mktemp("tiny") / "camvid"
    colours = {0: (120, 160, 220), 1: (150, 90, 60), 3: (90, 90, 95), 11: (0, 0, 0)}
    for split, count in {"train": 10, "val": 5}.items():
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for number in range(count):
            generator = np.random.default_rng([len(split), number])
            mask = np.zeros((40, 48), np.uint8)
            mask[24:] = 3
            mask[8:24, : generator.integers(10, 40)] = 1
            mask[:2] = 11
            image = np.zeros((40, 48, 3), np.int64)
            for label, colour in colours.items():
                image[mask == label] = colour
            image += generator.integers(-20, 20, image.shape)
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(
                root / split / "images" / f"{number:02}.png"
            )
            Image.fromarray(mask).save(root / split / "masks" / f"{number:02}.png")
    return root


@pytest.fixture(scope="session")
def tiny_config(tiny_camvid):
    """A config of a very small network on very small images."""
    return {
        "name": "run",
        "write_report": False,
        "model": {
            "arch": "unet",
            "encoder": "tu-mobilenetv3_small_050",
            "operator": "deconv",
            "operator_options": {"block": 8},
            "arch_options": {"encoder_depth": 2, "decoder_channels": [12, 8]},
        },
        "data": {
            "dataset": "camvid",
            "root": str(tiny_camvid),
            "batch_size": 2,
            "crop_size": [24, 32],
            "num_workers": 0,
        },
        "optimizer": {"lr": 0.05},
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }


@pytest.fixture(scope="session")
def small_sets(tmp_path_factory):
    """A folder with small CIFAR, MNIST and Fashion-MNIST, `imagenet` and `shards`."""
    return write_all(tmp_path_factory.mktemp("small"))


CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium here; on Debian: apt-get install chromium")
    with library.sync_playwright() as started:
        # the page is ours, and a container has no namespaces for the sandbox
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
