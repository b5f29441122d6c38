"""Which files a command line names, and frames of videos."""

import numpy as np
import pytest

from segdeconv.data.media import Source, Video, find_sources, video_writer


@pytest.fixture
def folder(tmp_path):
    names = ["a.png", "b/a.JPG", "b/c.mp4", "._a.png", "notes.txt", "b/deep/d.webp"]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "in"


def names(*inputs, without=()):
    return [source.name for source in find_sources([str(each) for each in inputs], without)]


def test_a_folder_gives_its_images_and_videos_with_their_sub_folders(folder):
    assert names(folder) == ["a", "b/a", "b/c", "b/deep/d"]
    assert [source.is_video for source in find_sources([str(folder)])] == [
        False,
        False,
        True,
        False,
    ]


def test_files_and_patterns_are_named_from_where_they_differ(folder):
    assert names(folder / "b" / "a.JPG") == ["a"]
    assert names(folder / "*" / "[ac].*") == ["b/a", "b/c"]
    assert names(folder / "**" / "d.webp") == ["b/deep/d"]
    assert find_sources([str(folder / "notes.txt")]) == [Source(folder / "notes.txt", "notes")]


def test_a_file_that_is_named_twice_counts_once(folder):
    assert names(folder / "a.png", folder) == ["a", "b/a", "b/c", "b/deep/d"]


def test_results_are_not_read_as_images(folder):
    assert names(folder, without=[folder / "b"]) == ["a"]


def test_two_files_of_one_name_are_refused(folder):
    with pytest.raises(ValueError, match=r"a\.png and .*a\.JPG would both .* called a"):
        find_sources([str(folder / "a.png"), str(folder / "b" / "a.JPG")])


def test_what_names_nothing_is_refused(folder, tmp_path):
    for given in (folder / "nowhere.png", folder / "*.bmp"):
        with pytest.raises(ValueError, match="there is no"):
            find_sources([str(given)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no images or videos in the folder"):
        find_sources([str(tmp_path / "empty")])


def write_video(path, count=12, size=(48, 64)):
    """Frames that get brighter, red on the left and blue on the right."""
    with video_writer(path, 10.0) as add:
        for number in range(count):
            frame = np.full((*size, 3), 10 * number, np.uint8)
            frame[:, : size[1] // 2, 0] = 250
            frame[:, size[1] // 2 :, 2] = 250
            add(frame)
    return path


@pytest.mark.parametrize("size", [(48, 64), (47, 63)])
def test_a_video_comes_back_frame_by_frame(tmp_path, size):
    video = Video(write_video(tmp_path / "new" / "a.mp4", size=size))
    assert (video.fps, video.length) == (10.0, 12)
    frames = list(video)
    even = (size[0] // 2 * 2, size[1] // 2 * 2, 3)
    assert [frame.shape for frame in frames] == [even] * 12
    greens = [float(frame[..., 1].mean()) for frame in frames]
    assert greens == pytest.approx([10 * number for number in range(12)], abs=6)
    left, right = frames[0][:, 4:24].mean((0, 1)), frames[0][:, 40:60].mean((0, 1))
    assert left[0] > 220 > 60 > left[2] and right[2] > 220 > 60 > right[0]


def test_a_video_that_was_cut_short_is_noticed_after_its_last_frame(tmp_path):
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "a.avi"  # its index is at the end, and it can be read without
    generator = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(30):
        writer.write(generator.integers(0, 255, (48, 64, 3), np.uint8))
    writer.release()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    frames = iter(Video(path))
    with pytest.raises(ValueError, match=r"ends after \d+ of \d+ frames"):
        for number, _ in enumerate(frames):
            assert number < 20


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"cannot read the video .*a\.mp4"):
        Video(tmp_path / "a.mp4")


def test_a_video_that_was_not_finished_keeps_another_name(tmp_path):
    def stop():
        with video_writer(tmp_path / "a.mp4", 10.0) as add:
            add(np.zeros((48, 64, 3), np.uint8))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert [path.name for path in tmp_path.iterdir()] == ["a.part.mp4"]
    assert len(list(Video(tmp_path / "a.part.mp4"))) == 1
