import pytest
import torch

from gan_inversion.nodes import _comfy
from gan_inversion.nodes._comfy import io
from gan_inversion.nodes.headless import stand_in


def test_comfyui_is_not_taken_for_running_here():
    assert not _comfy.RUNNING and io is stand_in


def test_progress_sends_one_update_for_each_percent(monkeypatch):
    sent = []
    monkeypatch.setattr(stand_in.ProgressBar, "update_absolute", lambda self, *args: sent.append(args))
    report = _comfy.progress()
    for done in range(10_001):
        report(done, 10_000)
    assert len(sent) == 101 and sent[-1] == (10_000, 10_000, None)
    report(5)
    report(7, None)
    assert len(sent) == 101


def test_every_report_checks_for_an_interrupt():
    report = _comfy.progress(10)
    stand_in.interrupt_current_processing()
    with pytest.raises(stand_in.InterruptProcessingException):
        report(1)
    report(2)


def test_chunks_shrink_when_memory_runs_out():
    sizes = []

    def work(part):
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.cuda.OutOfMemoryError
        return part * 2

    batch = torch.arange(7.0)[:, None]
    assert torch.equal(_comfy.in_chunks(work, batch, 4, [], _comfy.progress(7)), batch * 2)
    assert sizes == [4, 2, 2, 2, 1]

    def never(part):
        raise torch.cuda.OutOfMemoryError

    with pytest.raises(torch.cuda.OutOfMemoryError):
        _comfy.in_chunks(never, batch, 4, [], _comfy.progress(7))


def test_optimising_leaves_inference_mode():
    with torch.inference_mode():
        with _comfy.optimising():
            x = torch.ones(2, requires_grad=True)
            x.square().sum().backward()
            assert x.grad is not None
        assert torch.is_inference_mode_enabled()


def test_stand_in_refuses_options_that_comfyui_does_not_have():
    with pytest.raises(TypeError, match="maximum"):
        io.Int.Input("a", maximum=3)
    with pytest.raises(TypeError, match="default"):
        io.Image.Input("a", default=None)


def test_hidden_values_reach_a_copy_of_the_class():
    class Node(io.ComfyNode):
        pass

    copy = Node.PREPARE_CLASS_CLONE({io.Hidden.unique_id: "7", "PROMPT": {}})
    assert (copy.hidden.unique_id, copy.hidden.prompt, copy.hidden.extra_pnginfo) == ("7", {}, None)
    assert Node.hidden.unique_id is None


def test_previews_go_to_the_temporary_folder(tmp_path):
    with stand_in.folders(temp=tmp_path / "temp"):
        shown = stand_in.PreviewImage(torch.rand(2, 4, 4, 3)).as_dict()["images"]
        assert [(tmp_path / "temp" / one["filename"]).is_file() for one in shown] == [True, True]
        assert {one["type"] for one in shown} == {"temp"}
    assert stand_in.get_output_directory().endswith("output")
