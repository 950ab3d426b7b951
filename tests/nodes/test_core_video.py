"""ComfyUI's video nodes as they run without ComfyUI."""

import numpy as np
import pytest
import torch

from gan_inversion.core.errors import CorruptFileError, InvalidInputError
from gan_inversion.nodes.headless import schemas, stand_in
from gan_inversion.nodes.headless.core_video import (
    CreateVideo,
    GetVideoComponents,
    LoadVideo,
    SaveVideo,
    VideoFile,
    VideoOfImages,
    write_video,
)
from gan_inversion.nodes.headless.runner import Runner
from gan_inversion.nodes.headless.workflow_files import WorkflowError

HEIGHT, WIDTH, FPS = 48, 64, 12.5


def frames(count: int) -> torch.Tensor:
    """Red frames with a green right half, each brighter than the one before."""
    images = torch.zeros(count, HEIGHT, WIDTH, 3)
    for index in range(count):
        images[index, :, : WIDTH // 2, 0] = images[index, :, WIDTH // 2 :, 1] = 0.4 + 0.1 * index
    return images


@pytest.fixture
def clip(tmp_path):
    write_video(tmp_path / "clip.mp4", VideoOfImages(frames(5), FPS))
    (tmp_path / "notes.txt").write_text("not a video")
    return tmp_path / "clip.mp4"


@pytest.fixture
def folders(tmp_path):
    with stand_in.folders(input=tmp_path, output=tmp_path / "out"):
        yield tmp_path


def test_frames_come_back_in_order_and_in_their_colours(clip):
    images, audio, fps = GetVideoComponents.execute(VideoFile(clip)).result
    assert images.shape == (5, HEIGHT, WIDTH, 3) and images.dtype == torch.float32
    assert audio is None and fps == pytest.approx(FPS)
    assert (images - frames(5)).abs().mean() < 0.03
    left, right = images[:, :, : WIDTH // 2 - 4], images[:, :, WIDTH // 2 + 4 :]
    assert (left[..., 0] > left[..., 1] + 0.2).all() and (right[..., 1] > right[..., 0] + 0.2).all()
    assert (left[..., 0].mean((1, 2)).diff() > 0.05).all()


def test_pictures_pass_through_a_video_that_was_never_written():
    images = frames(3)
    (video,) = CreateVideo.execute(images, 24, audio={"waveform": torch.zeros(1, 1, 8)}).result
    again, audio, fps = GetVideoComponents.execute(video).result
    assert torch.equal(again, images) and audio is None and fps == 24.0


def test_only_videos_are_offered_and_only_files_that_are_there_accepted(clip, folders):
    assert schemas.inputs_of(LoadVideo)["file"].options == ["clip.mp4"]
    assert LoadVideo.validate_inputs("clip.mp4") is True
    assert "does not exist, expected a video in that folder" in LoadVideo.validate_inputs("other.mp4")
    assert "input folder" in LoadVideo.validate_inputs("../clip.mp4")


def test_a_replaced_file_has_another_fingerprint(clip, folders):
    before = LoadVideo.fingerprint_inputs("clip.mp4")
    assert LoadVideo.fingerprint_inputs("clip.mp4") == before
    write_video(clip, VideoOfImages(frames(2), FPS))
    assert LoadVideo.fingerprint_inputs("clip.mp4") != before


def test_saved_files_are_numbered_and_shown_as_comfyui_shows_them(clip, folders):
    for number in (1, 2):
        ui = SaveVideo.execute(VideoFile(clip), "video/short", "auto", "auto").ui
        assert ui["images"] == [{"filename": f"short_0000{number}_.mp4", "subfolder": "video", "type": "output"}]
        assert ui["animated"] == (True,)
    saved = VideoFile(folders / "out" / "video" / "short_00002_.mp4")
    assert len(list(saved.frames())) == 5 and saved.fps == pytest.approx(FPS)


def test_odd_sizes_and_an_alpha_channel_can_be_written(tmp_path):
    write_video(tmp_path / "odd.mp4", VideoOfImages(torch.rand(2, 33, 47, 4), 10.0))
    read = list(VideoFile(tmp_path / "odd.mp4").frames())
    assert len(read) == 2 and all(abs(a - b) <= 1 for a, b in zip(read[0].shape, (33, 47, 3), strict=True))


def test_what_cannot_be_read_or_written_is_said(tmp_path, folders):
    (tmp_path / "page.mp4").write_text("<!DOCTYPE html>")
    with pytest.raises(CorruptFileError, match="not a readable video"):
        GetVideoComponents.execute(VideoFile(tmp_path / "page.mp4"))
    with pytest.raises(InvalidInputError, match="no frame"):
        SaveVideo.execute(VideoOfImages(torch.zeros(0, 8, 8, 3), 10.0), "empty")
    with pytest.raises(InvalidInputError, match="output folder"):
        SaveVideo.execute(VideoOfImages(frames(1), 10.0), "../outside")


def workflow(**save):
    return {
        "load": {"class_type": "LoadVideo", "inputs": {"file": "clip.mp4"}},
        "parts": {"class_type": "GetVideoComponents", "inputs": {"video": ["load", 0]}},
        "make": {
            "class_type": "CreateVideo",
            "inputs": {"images": ["parts", 0], "fps": ["parts", 2], "audio": ["parts", 1]},
        },
        "save": {
            "class_type": "SaveVideo",
            "inputs": {"video": ["make", 0], "filename_prefix": "new", "format": "auto", "codec": "auto"} | save,
        },
    }


def test_a_workflow_takes_a_video_apart_and_makes_it_again(clip, tmp_path):
    runner = Runner(input_dir=tmp_path, output_dir=tmp_path / "out")
    result = runner.run(workflow())
    (path,) = result.images
    assert path.name == "new_00001_.mp4"
    before, after = (np.stack(list(VideoFile(p).frames())).astype(int) for p in (clip, path))
    assert before.shape == after.shape and np.abs(before - after).mean() < 6
    assert not any(runner.run(workflow()).executions.values())


def test_a_workflow_with_a_codec_that_is_not_there_is_refused_before_it_runs(clip, tmp_path):
    with pytest.raises(WorkflowError, match="'codec': found 'av1'"):
        Runner(input_dir=tmp_path, output_dir=tmp_path / "out").run(workflow(codec="av1"))


def test_a_video_that_opencv_cannot_write_names_the_node(clip, tmp_path, monkeypatch):
    import cv2

    class Closed:
        def __init__(self, *_):
            pass

        def isOpened(self):
            return False

        def release(self):
            pass

    monkeypatch.setattr(cv2, "VideoWriter", type("Writer", (Closed,), {"fourcc": staticmethod(lambda *_: 0)}))
    with pytest.raises(InvalidInputError, match=r"Node save .*OpenCV cannot write 64x48"):
        Runner(input_dir=tmp_path, output_dir=tmp_path / "out").run(workflow())
