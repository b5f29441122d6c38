"""Images and videos without labels: what a list of files, folders and patterns names, and frames.

Videos go through OpenCV's FFMPEG, in its headless build too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import has_magic
from itertools import takewhile
from pathlib import Path
from typing import Any

import cv2

from segdeconv.data.pairs import IMAGE_ENDINGS, ends_in, stem_in
from segdeconv.data.readers import ImageArray

VIDEO_ENDINGS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg")
USUAL_FPS = 25.0  # where a file does not say


@dataclass(frozen=True)
class Source:
    """One image or video.

    Args:
        path: The file.
        name: What its results are called: its path without ending, in the folder that was given,
            or in the part of a pattern that holds no wildcards.
    """

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Told by the ending."""
        return self.path.suffix.lower() in VIDEO_ENDINGS


def find_sources(inputs: Sequence[str], without: Sequence[Path] = ()) -> list[Source]:
    """Images and videos that files, folders (with sub-folders) and patterns such as a/*.png name.

    Args:
        inputs: Paths and patterns.
        without: Folders whose files are left out: those of results, should they lie in another.

    Raises:
        ValueError: If one of them names nothing, or two files would have results of one name.
    """
    found: dict[Path, Source] = {}
    left_out = [folder.resolve() for folder in without]
    for given in inputs:
        for source in _sources_of(given):
            path = source.path.resolve()
            if not any(path.is_relative_to(folder) for folder in left_out):
                found.setdefault(path, source)
    first: dict[str, Source] = {}
    for source in found.values():
        other = first.setdefault(source.name, source)
        if other is not source:
            raise ValueError(
                f"{other.path} and {source.path} would both have results called {source.name}; "
                "give the folder that holds both, or predict one after the other"
            )
    if not found:
        raise ValueError(f"no images or videos in {', '.join(inputs) or 'nothing'}")
    return list(found.values())


def _sources_of(given: str) -> Iterator[Source]:
    path = Path(given).expanduser()
    if path.is_dir():
        endings = IMAGE_ENDINGS + VIDEO_ENDINGS
        files = [file for file in sorted(path.rglob("*")) if ends_in(file, endings)]
        if not files:
            raise ValueError(
                f"no images or videos in the folder {path}; expected files ending in "
                f"{', '.join(endings)}"
            )
        for file in files:
            yield Source(file, stem_in(path, file))
    elif path.exists():
        yield Source(path, path.stem)
    else:
        fixed = list(takewhile(lambda part: not has_magic(part), path.parts))
        root, pattern = Path(*fixed), str(Path(*path.parts[len(fixed) :]))
        matches = sorted(root.glob(pattern)) if len(fixed) < len(path.parts) else []
        if not matches:
            raise ValueError(f"there is no {given}; give images, videos, folders or patterns")
        for match in matches:
            if match.is_file():
                yield Source(match, stem_in(root, match))


class Video:
    """Frames of a video file, in their order.

    Args:
        path: The file.

    Raises:
        ValueError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise ValueError(f"cannot read the video {path}; it is damaged or of an unknown kind")
        self.fps = float(self._capture.get(cv2.CAP_PROP_FPS)) or USUAL_FPS
        self.length = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        """Number of frames by the file's own account; 0 if it does not say."""

    def __iter__(self) -> Iterator[ImageArray]:
        """Frames (H, W, 3) uint8, red green blue.

        Raises:
            ValueError: At the end, if the file was cut short.
        """
        count = 0
        while True:
            there, frame = self._capture.read()
            if not there:
                break
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        self._capture.release()
        # some containers tell a duration only, and the number made of it is a little off
        if count < 0.98 * self.length - 2 or count == 0:
            raise ValueError(
                f"{self.path} ends after {count} of {self.length} frames; it is damaged"
            )


@contextmanager
def video_writer(path: Path, fps: float) -> Iterator[Any]:
    """A function that adds a frame (H, W, 3) to the MP4 file ``path``.

    Until the last frame is written, the file is called NAME.part.mp4; what is interrupted stays
    under that name, as far as it came. The encoder drops the last column and row of odd sizes.

    Raises:
        OSError: If the file cannot be written.
    """
    part = path.with_name(f"{path.stem}.part.mp4")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter()

    def add(frame: ImageArray) -> None:
        height, width = frame.shape[:2]
        if not writer.isOpened():
            codec = cv2.VideoWriter.fourcc(*"mp4v")  # the MPEG-4 encoder that every build has
            if not writer.open(str(part), codec, fps, (width, height)):
                raise OSError(f"cannot write the video {part}; is the disk full or not writable?")
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))

    try:
        yield add
    finally:
        writer.release()
    if part.exists():
        part.replace(path)
