"""What a notebook needs besides ``protoseg.analysis``: a training by the real command line, images, pictures."""

import shlex
import sys
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from protoseg.text import command, override, say
from protoseg.types import LabelSpace, ProtosegError

if TYPE_CHECKING:
    from protoseg.analysis.stream import Loader
    from protoseg.models.segmentor import Segmentor


class Run(NamedTuple):
    """A trained model, its classes and labelled images of its data."""

    model: "Segmentor"  # in eval mode, on a GPU where there is one
    label_space: LabelSpace
    images: "Loader"  # unchanged and whole; ``images.dataset[i]`` is one with its label and path


def train(folder: str | Path, settings: str) -> Path:
    """What ``python train.py SETTINGS hydra.run.dir=FOLDER`` does, here, unless it was done before.

    Returns the run's last checkpoint, or the folder of a sweep (``-m``). Raises ProtosegError: the training failed.
    """
    from protoseg import cli

    folder, words = Path(folder), shlex.split(settings)
    sweep = "-m" in words
    result = folder if sweep else folder / "checkpoints" / "last.ckpt"
    words.append(override(f"hydra.{'sweep' if sweep else 'run'}.dir", folder))
    if not sweep and folder.exists():
        words.append("resume=auto")  # interrupted, or done: it is not done again
    say(f"python train.py {command(*words)}")
    argv = sys.argv
    try:
        sys.argv = ["train.py", *words]
        cli.train()
    except SystemExit as error:
        raise ProtosegError(f"the training in {folder} ended with exit code {error.code}: see above") from None
    finally:
        sys.argv = argv
    return result


def open_run(checkpoint: str | Path, *settings: str, limit: int | None = None, training: bool = False) -> Run:
    """Open a checkpoint with images of its data, as the commands of ``protoseg.analysis`` do.

    ``settings`` are those of ``evaluate.py``: ``network=teacher``, ``data=…``, ``split=…``, ``root=…``; at most
    ``limit`` images, spread evenly over the validation split (of domain adaptation, of the target), or with
    ``training`` over the training split (of the source). Raises ProtosegError: no such checkpoint, or no such data.
    """
    from protoseg.run.config import composed
    from protoseg.run.evaluate import image_loader, open_checkpoint

    cfg = composed("evaluate", ["num_workers=0", *settings, override("ckpt_path", checkpoint)])
    trained = open_checkpoint(cfg)
    with image_loader(cfg, trained, limit, training) as loader:
        return Run(trained.model, trained.label_space, loader)


def show(picture: Any) -> None:
    """Display what ``protoseg.analysis`` draws: a matplotlib figure, or an RGB picture ``h w 3``."""
    from IPython.display import Image, display
    from PIL.Image import fromarray

    file = BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(file, format="png", dpi=80)
    else:
        fromarray(picture).save(file, format="PNG")
    display(Image(file.getvalue()))
