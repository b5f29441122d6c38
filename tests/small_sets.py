"""Data sets of a few small images with labels, written in the formats of the real ones."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def images(count, size, channels, seed, classes=10):
    """(N, channels, size, size) uint8 whose brightness is their class, with noise; (N,) classes."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    noise = generator.integers(-20, 20, (count, channels, size, size))
    pixels = noise + (20 + 215 * labels / classes).astype(int)[:, None, None, None]
    return pixels.clip(0, 255).astype(np.uint8), labels


def write_cifar(root, classes=10, per_file=20):
    """CIFAR-10's or CIFAR-100's pickles."""
    folder = root / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    folder.mkdir(parents=True)
    train = [f"data_batch_{number}" for number in range(1, 6)] if classes == 10 else ["train"]
    test, meta = ("test_batch", "batches.meta") if classes == 10 else ("test", "meta")
    key, names = ("labels", "label_names") if classes == 10 else ("fine_labels", "fine_label_names")
    for seed, name in enumerate([*train, test]):
        pixels, labels = images(per_file, 32, 3, seed, classes)
        content = {"data": pixels.reshape(len(pixels), -1), key: labels.tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    classes_named = {names: [f"class {number}" for number in range(classes)]}
    (folder / meta).write_bytes(pickle.dumps(classes_named))


def write_mnist(root, name="MNIST", count=20):
    """The four files of MNIST or Fashion-MNIST, unpacked."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for seed, stem in enumerate(("train", "t10k")):
        pixels, labels = images(count, 28, 1, seed)
        sizes = np.array([count, 28, 28], ">i4").tobytes()
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(b"\0\0\x08\3" + sizes + pixels.tobytes())
        head = b"\0\0\x08\1" + np.array([count], ">i4").tobytes()
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + labels.astype(np.uint8).tobytes())


def jpeg(pixels):
    """A JPEG of an image (3, H, W)."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "JPEG")
    return file.getvalue()


def write_folder(root, classes=2, per_class=4):
    """Class folders of JPEGs of several sizes."""
    for seed, split in enumerate(("train", "val")):
        for label in range(classes):
            folder = root / split / f"n{label:04}"
            folder.mkdir(parents=True)
            for number in range(per_class):
                pixels, _ = images(classes, 40 + number, 3, seed * 100 + number, classes)
                (folder / f"{number}.JPEG").write_bytes(jpeg(pixels[label]))


def write_shard(path, keys, classes=2):
    """A tar file with a JPEG and a class for each key, a number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for key in keys:
            pixels, _ = images(classes, 40, 3, key, classes)
            label = key % classes
            parts = {"jpg": jpeg(pixels[label]), "cls": str(label).encode()}
            for ending, data in parts.items():
                info = tarfile.TarInfo(f"{key:06}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_all(root):
    """All of them: root itself for those of small images, `imagenet`, `shards`."""
    root = Path(root)
    write_cifar(root)
    write_cifar(root, classes=100, per_file=100)
    write_mnist(root)
    write_mnist(root, "FashionMNIST")
    write_folder(root / "imagenet")
    for number, keys in enumerate((range(3), range(3, 8))):
        write_shard(root / "shards" / f"train-{number}.tar", keys)
    write_shard(root / "shards" / "val-0.tar", range(5))
    return root
