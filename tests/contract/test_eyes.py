"""Each teacher sees the same view as it wants it: size, mean, std and channels, live and from the cache."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.batch import ViewSpace
from helper.errors import UsageError
from helper.session import folder_name
from helper.teachers.asked import Teachers
from helper.teachers.cache import TeacherCache
from helper.teachers.conversion import Conversion, conversion_for
from helper.teachers.files import TeacherFile, chosen_teachers, fingerprint
from helper.teachers.loading import Around, load_teachers
from helper.teachers.record import Eyes, Teacher
from helper.weights import Labels
from models import model_dict

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
SHOWN = Eyes(MEAN, STD, 16, "RGB").checked("noise")
CLASSES = 10
OTHERS = [
    Eyes(0.0, 1 / 255),
    Eyes((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), channels="BGR"),
    Eyes(size=24),
    Eyes(0.5, 0.5, 8),
    Eyes(0.2, 0.3, 24, 1),
]


def column(three: Any) -> Tensor:
    return torch.tensor(three).view(3, 1, 1)


def pixels(count: int = 4, size: int = 16) -> Tensor:
    """Values from 0 to 1."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def handed_out(values: Tensor) -> Tensor:
    return ((values - column(MEAN)) / column(STD)).contiguous(memory_format=torch.channels_last)


def seen(eyes: Eyes, values: Tensor) -> Tensor:
    """What a network wants, made of the pixel values themselves."""
    complete = eyes.checked("x").over(SHOWN)
    if complete.size != values.shape[-1]:
        values = F.interpolate(values, (complete.size, complete.size), mode="bilinear", antialias=True)
    if complete.channels == 1:
        values = (values * column((0.299, 0.587, 0.114))).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    values = values.flip(1) if complete.channels == "BGR" else values
    return (values - column(complete.mean)) / column(complete.std)


def converted(eyes: Eyes, network: nn.Module | None = None) -> Conversion | None:
    checked = eyes.checked("x")
    return conversion_for(network or model_dict["resnet8"](num_classes=3), checked, SHOWN, handed_out(pixels()), "x")


@pytest.mark.parametrize("eyes", OTHERS, ids=str)
def test_a_network_sees_what_it_would_see_of_the_pixels(eyes: Eyes) -> None:
    conversion = converted(eyes)
    assert conversion is not None
    made = conversion(handed_out(pixels()))
    torch.testing.assert_close(made, seen(eyes, pixels()), rtol=1e-4, atol=1e-4)
    assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("eyes", [Eyes(), SHOWN, Eyes(MEAN, STD), Eyes(size=16, channels=3)], ids=str)
def test_what_is_the_same_costs_nothing(eyes: Eyes) -> None:
    """The very tensor that the loader made, for all that want it."""
    assert converted(eyes) is None
    images = handed_out(pixels())
    teachers = Teachers([model_dict["resnet8"](num_classes=3)] * 2, [None, None])
    assert all(each is images for each in teachers.shown(images))


def test_those_that_want_the_same_share_it() -> None:
    one, same, other = (converted(each) for each in (OTHERS[3], OTHERS[3], OTHERS[0]))
    networks = [model_dict["resnet8"](num_classes=3) for _ in range(3)]
    first, second, third = Teachers(networks, [one, same, other]).shown(handed_out(pixels()))
    assert first is second
    assert third.shape[-1] == 16


class Bright(nn.Module):
    """Takes one channel, or has a wish."""

    def __init__(self, wants: Eyes | None = None, channels: int = 1) -> None:
        super().__init__()
        self.wants = wants
        self.conv = nn.Conv2d(channels, CLASSES, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3))


def test_a_network_of_one_channel_gets_one() -> None:
    conversion = converted(OTHERS[4], Bright())
    assert conversion is not None
    torch.testing.assert_close(conversion(handed_out(pixels())), seen(OTHERS[4], pixels())[:, :1], rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"^x: channels: it takes one; say its mean and std"):
        converted(Eyes(channels=1), Bright())


class Picky(Bright):
    """Takes images of 24×24 alone, and says so with an error of its own."""

    def __init__(self, channels: int, error: type[Exception]) -> None:
        super().__init__(channels=channels)
        self.shape, self.error = (channels, 24, 24), error

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != self.shape:
            raise self.error("of another shape")
        return super().forward(images)


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, ValueError])
@pytest.mark.parametrize("channels", [1, 3])
def test_whether_one_channel_is_taken_is_asked_at_the_networks_own_size(channels: int, error: type[Exception]) -> None:
    conversion = converted(Eyes(0.2, 0.3, 24, 1), Picky(channels, error))
    assert conversion is not None
    assert conversion.channels == channels


def saved(folder: Path, name: str, **more: Any) -> Path:
    torch.manual_seed(len(name))
    network = model_dict["resnet8"](num_classes=CLASSES)
    torch.save({"model": network.state_dict(), **more}, folder / name)
    return folder / name


def ours(**more: Any) -> dict[str, Any]:
    return {"arch": "resnet8", "num_classes": CLASSES, "dataset": "noise", "precision": "fp32", **more}


def around(size: int = 16) -> Around:
    return Around(Labels("noise", CLASSES), SHOWN, handed_out(pixels(size=size)))


def build(arch: str, num_classes: int = CLASSES) -> nn.Module:
    return model_dict[arch](num_classes=num_classes)


def loaded(files: list[TeacherFile], make: Callable[..., nn.Module] = build) -> tuple[Teachers, list[str]]:
    return load_teachers(files, make, around(), "fp32")


def alone(path: Path, images: Tensor) -> Tensor:
    """What a checkpoint's network says of images that are made for it."""
    network = build("resnet8")
    network.load_state_dict(torch.load(path, weights_only=True)["model"])
    with torch.no_grad():
        return network.eval()(images)


@pytest.mark.parametrize("eyes", OTHERS, ids=str)
def test_a_loaded_teacher_says_what_it_says_alone(tmp_path: Path, eyes: Eyes) -> None:
    path = saved(tmp_path, "x.pth")
    teachers, notes = loaded([TeacherFile("resnet8", path, None, eyes.checked("x")), TeacherFile("resnet8", path)])
    said = teachers.logits(handed_out(pixels()))
    torch.testing.assert_close(said[0], alone(path, seen(eyes, pixels())), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(said[1], alone(path, handed_out(pixels())), rtol=1e-4, atol=1e-4)
    (note,) = notes
    assert note.startswith(f"{path}: sees ")


def test_a_checkpoint_of_ours_says_how_it_saw(tmp_path: Path) -> None:
    """A person is believed before it, and it before the network's own wish; others' checkpoints are not asked."""
    about = {"mean": [0.1, 0.1, 0.1], "std": [0.5, 0.5, 0.5], "image_size": 24}
    path, others = saved(tmp_path, "ours.pth", **ours(**about)), saved(tmp_path, "others.pth", **about)

    def wishing(arch: str) -> nn.Module:
        network = build(arch)
        network.wants = Eyes(0.7, size=32)  # type: ignore[assignment]
        return network

    files = [TeacherFile("resnet8", each) for each in (path, others)]
    files.append(TeacherFile("resnet8", path, None, Eyes(std=0.3, size=8).checked("x")))
    sees = [each and each.wanted for each in loaded(files)[0].conversions]
    tenth, half = (0.1,) * 3, (0.5,) * 3
    assert sees == [Eyes(tenth, half, 24, "RGB"), None, Eyes(tenth, (0.3,) * 3, 8, "RGB")]
    wished = loaded(files[:2], wishing)[0].conversions
    assert [each and each.wanted for each in wished] == [sees[0], Eyes((0.7,) * 3, STD, 32, "RGB")]
    same = saved(tmp_path, "same.pth", **ours(mean=list(MEAN), std=list(STD), image_size=16))
    teachers, notes = loaded([TeacherFile("resnet8", same)])
    assert (teachers.conversions, notes) == ([None], [])


def test_a_stem_of_one_channel_is_loaded(tmp_path: Path) -> None:
    path = saved(tmp_path, "x.pth")
    state = torch.load(path, weights_only=True)
    state["model"]["conv1.weight"] = state["model"]["conv1.weight"].sum(1, keepdim=True)
    torch.save(state, tmp_path / "one.pth")
    eyes = Eyes(0.2, 0.3, channels=1).checked("x")
    one, three = (loaded([TeacherFile("resnet8", tmp_path / name, None, eyes)])[0] for name in ("one.pth", "x.pth"))
    said = one.logits(handed_out(pixels()))
    torch.testing.assert_close(said, three.logits(handed_out(pixels())), rtol=1e-4, atol=1e-4)
    with pytest.raises(UsageError, match=r"conv1\.weight"):
        loaded([TeacherFile("resnet8", tmp_path / "one.pth")])


def test_an_image_that_a_teacher_cannot_take_is_said_at_its_size(tmp_path: Path) -> None:
    torch.save(model_dict["vgg8"](num_classes=CLASSES).state_dict(), tmp_path / "x.pth")
    with pytest.raises(UsageError, match=r"vgg8 cannot take noise's images of 4×4"):
        loaded([TeacherFile("vgg8", tmp_path / "x.pth", None, Eyes(size=4))])


def test_the_cache_holds_what_is_said_live(tmp_path: Path) -> None:
    """For each way of seeing a file of its own; the plain teacher's is that of before."""
    path = saved(tmp_path, "x.pth")
    files = [TeacherFile("resnet8", path), *(TeacherFile("resnet8", path, None, each.checked("x")) for each in OTHERS)]
    teachers, _ = loaded(files)
    live = teachers.logits(handed_out(pixels()))
    for _ in range(2):  # filled, then read
        teachers.cache = TeacherCache(tmp_path / "c", 1.0, ViewSpace("noise", 9), teachers.identities, "fp32", CLASSES)
        stored = teachers.logits(handed_out(pixels()), torch.arange(4))
        torch.testing.assert_close(stored.log_softmax(-1), live.log_softmax(-1), atol=2e-2, rtol=0)
    assert len(list((tmp_path / "c").iterdir())) == len(files)
    assert teachers.identities[0][2] == {}


WRONG = [
    (Eyes(size=0), "size: 0 is no number of pixels"),
    (Eyes(size=-3), "size: -3"),
    (Eyes(size="32"), "size: '32'"),  # type: ignore[arg-type]
    (Eyes(size=True), "size: True"),
    (Eyes(mean=127.5), "mean: 127.5 is above 1; .* divide it by 255"),
    (Eyes(mean=(0.5, 0.5)), r"mean: \(0.5, 0.5\) is neither a number nor three of them"),
    (Eyes(mean=float("nan")), "mean: nan"),
    (Eyes(mean="0.5"), "mean: '0.5'"),  # type: ignore[arg-type]
    (Eyes(std=0), "std: 0 divides the pixel values"),
    (Eyes(std=(0.5, -0.5, 0.5)), "std: "),
    (Eyes(channels=2), "channels: unknown value 2; choose from"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("eyes", "why"), WRONG)
def test_what_makes_no_sense_is_refused(eyes: Eyes, why: str) -> None:
    listed = [Teacher("resnet8", "x.pth", **eyes.said())]
    with pytest.raises(UsageError, match=f"^setting.py: 'x.pth': {why}") as caught:
        chosen_teachers(listed, None, None, "noise", model_dict)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [[], {}, "cat", 3])
def test_classes_are_a_list_or_a_mapping(classes: Any) -> None:
    with pytest.raises(UsageError, match=r"^setting.py: 'x.pth': classes: .* names no classes; give a list of them"):
        chosen_teachers([Teacher("resnet8", "x.pth", classes=classes)], None, None, "noise", model_dict)


def test_what_is_typed_and_recorded_is_the_same_teacher() -> None:
    """Through parameters.json, whose words are typed again, and through result.json."""
    listed: list[Any] = [
        Teacher("resnet8", "x.pth", mean=0.5, size=24, channels="BGR"),
        Teacher("resnet8", "x.pth", classes={"cat": 2, 3: 1}),
        Teacher("resnet8", "x.pth", classes=["cat", 3]),
        ("resnet8", "x.pth"),
    ]
    files = chosen_teachers(listed, None, None, "noise", model_dict)
    again = chosen_teachers([], [str(file) for file in files], None, "noise", model_dict)
    assert again == [TeacherFile.recorded({**file.about(), "accuracy": 3.0}) for file in files] == files
    assert len({fingerprint([file]) for file in files}) == len(files)
    assert str(files[-1]) == "x.pth:resnet8"
    assert fingerprint(files[-1:]) == "1xresnet8@eae467"  # as ever
    assert folder_name([fingerprint(files)]).startswith("4xresnet8@")


@pytest.mark.parametrize(
    ("typed", "why"),
    [('x.pth:resnet8 {"siz": 3}', "unknown value 'siz'. did you mean 'size'"), ('x.pth:resnet8 {"size": ', "no JSON")],
)
def test_what_is_typed_wrongly_is_refused(typed: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        chosen_teachers([], [typed], None, "noise", model_dict)


def test_setting_needs_no_torch() -> None:
    program = "import sys; from helper.teachers.record import Teacher; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
