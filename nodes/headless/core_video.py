"""ComfyUI's own video nodes, for running workflows without ComfyUI; OpenCV reads and writes the files.

Same ids and inputs as ComfyUI's (0.3.64; 0.33.0 adds outputs and choices behind them). Different from ComfyUI's: there is
no sound, which OpenCV cannot read (the output `audio` is None), files hold MPEG-4 video in place of H.264, which OpenCV's
wheels cannot write, and the workflow is not stored in them.
"""

from __future__ import annotations

import mimetypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...core.errors import CorruptFileError, InvalidInputError
from .. import _comfy
from .._comfy import io
from .._paths import inside
from ._input_files import check_input_file, input_file, input_files
from .stand_in import get_save_image_path

_Video, _Audio = io.Custom("VIDEO"), io.Custom("AUDIO")
_SUFFIX, _CODE = ".mp4", "mp4v"
_AUTO = "auto"


@dataclass(frozen=True)
class VideoFile:
    """A file; nothing of it is held in memory."""

    path: Path

    @property
    def fps(self) -> float:
        """Frames per second; 1 where the file does not tell, as in ComfyUI."""
        import cv2

        capture = self._opened()
        fps = float(capture.get(cv2.CAP_PROP_FPS))
        capture.release()
        return fps if fps > 0 else 1.0

    def frames(self) -> Iterator[np.ndarray[Any, Any]]:
        """RGB frames [H, W, 3] of 8 bits, one after another."""
        capture = self._opened()
        try:
            while True:
                found, frame = capture.read()
                if not found:
                    return
                yield frame[..., ::-1]
        finally:
            capture.release()

    def _opened(self) -> Any:
        import cv2

        capture = cv2.VideoCapture(str(self.path))
        if not capture.isOpened():
            raise CorruptFileError(f"{self.path}: not a readable video. Expected MP4, WebM, MKV, MOV or the like.")
        return capture


@dataclass(frozen=True)
class VideoOfImages:
    """Pictures [N, H, W, 3] in 0..1 and their number per second."""

    images: Tensor
    fps: float

    def frames(self) -> Iterator[np.ndarray[Any, Any]]:
        """RGB frames [H, W, 3] of 8 bits, one after another."""
        for image in self.images:
            yield (image[..., :3] * 255.0).clamp(0, 255).byte().cpu().numpy()


class LoadVideo(io.ComfyNode):
    """A video file as VIDEO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="LoadVideo",
            display_name="Load Video",
            category="image/video",
            inputs=[io.Combo.Input("file", options=input_files(_is_video), upload="video_upload")],
            outputs=[_Video.Output()],
        )

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        """The file, which is read where its frames are needed."""
        return io.NodeOutput(VideoFile(input_file(file)))

    @classmethod
    def fingerprint_inputs(cls, file: str) -> str:
        """The file's time and size: videos are too large to be read for this."""
        facts = input_file(file).stat()
        return f"{facts.st_mtime_ns} {facts.st_size}"

    @classmethod
    def validate_inputs(cls, file: str) -> bool | str:
        """Whether the file is there."""
        return check_input_file(file, "a video")


class GetVideoComponents(io.ComfyNode):
    """The frames of a VIDEO and their rate."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="GetVideoComponents",
            display_name="Get Video Components",
            category="image/video",
            inputs=[_Video.Input("video", tooltip="The video to take apart.")],
            outputs=[
                io.Image.Output(display_name="images"),
                _Audio.Output(display_name="audio"),
                io.Float.Output(display_name="fps"),
            ],
        )

    @classmethod
    def execute(cls, video: VideoFile | VideoOfImages) -> io.NodeOutput:
        """[N, H, W, 3] in 0..1 in the CPU's memory, None for the sound, and frames per second."""
        if isinstance(video, VideoOfImages):
            return io.NodeOutput(video.images, None, float(video.fps))
        frames = [torch.from_numpy(frame.copy()) for frame in video.frames()]
        if not frames:
            raise CorruptFileError(f"{video.path}: holds no readable frame. Expected a video with at least one.")
        images = torch.empty(len(frames), *frames[0].shape)
        for index, frame in enumerate(frames):
            torch.div(frame, 255.0, out=images[index])
        return io.NodeOutput(images, None, video.fps)


class CreateVideo(io.ComfyNode):
    """Pictures as VIDEO."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="CreateVideo",
            display_name="Create Video",
            category="image/video",
            inputs=[
                io.Image.Input("images", tooltip="The frames, in order."),
                io.Float.Input("fps", default=30.0, min=1.0, max=120.0, step=1.0, tooltip="Frames per second."),
                _Audio.Input("audio", optional=True, tooltip="Sound; left out without ComfyUI."),
            ],
            outputs=[_Video.Output()],
        )

    @classmethod
    def execute(cls, images: Tensor, fps: float, audio: Any = None) -> io.NodeOutput:
        """The frames; nothing is written yet."""
        return io.NodeOutput(VideoOfImages(images, float(fps)))


class SaveVideo(io.ComfyNode):
    """Writes a VIDEO to the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Schema."""
        return io.Schema(
            node_id="SaveVideo",
            display_name="Save Video",
            category="image/video",
            inputs=[
                _Video.Input("video", tooltip="The video to save."),
                io.String.Input("filename_prefix", default="video/ComfyUI", tooltip="Start of the file's name."),
                io.Combo.Input("format", options=[_AUTO, "mp4"], default=_AUTO, tooltip="Both write an MP4 file."),
                io.Combo.Input("codec", options=[_AUTO], default=_AUTO, tooltip="MPEG-4; with ComfyUI H.264."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls, video: VideoFile | VideoOfImages, filename_prefix: str, format: str = _AUTO, codec: str = _AUTO
    ) -> io.NodeOutput:
        """A numbered file `prefix_00001_.mp4`, written frame by frame."""
        root = Path(_comfy.output_directory()).resolve()
        inside(root, filename_prefix, "output folder")
        first = next(iter(video.frames()), None)
        height, width = (0, 0) if first is None else first.shape[:2]
        folder, stem, number, subfolder, _ = get_save_image_path(filename_prefix, str(root), width, height)
        name = f"{stem}_{number:05}_{_SUFFIX}"
        write_video(Path(folder) / name, video)
        saved = [{"filename": name, "subfolder": subfolder, "type": "output"}]
        return io.NodeOutput(ui={"images": saved, "animated": (True,)})


def write_video(path: Path, video: VideoFile | VideoOfImages) -> None:
    """Writes an MP4 file with MPEG-4 video, frame by frame.

    Raises InvalidInputError for a video without frames, or one that OpenCV cannot write here.
    """
    import cv2

    writer = None
    try:
        for frame in video.frames():
            height, width = frame.shape[:2]
            if writer is None:
                writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*_CODE), video.fps, (width, height))
                if not writer.isOpened():
                    raise InvalidInputError(
                        f"{path}: OpenCV cannot write {width}x{height} pixels at {video.fps:g} frames per second here. "
                        "Run the workflow in ComfyUI, or save the frames with SaveImage."
                    )
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
    finally:
        if writer is not None:
            writer.release()
    if writer is None:
        raise InvalidInputError("Input 'video' holds no frame: expected at least one.")


def _is_video(path: Path) -> bool:
    kind, _ = mimetypes.guess_type(path.name)
    return kind is not None and kind.startswith("video/")


NODES = (LoadVideo, GetVideoComponents, CreateVideo, SaveVideo)
