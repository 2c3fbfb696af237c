"""A trained model that is saved as a folder, and loaded from a folder or a repository of the Hugging Face hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from bevreshape.bev_spec import BEVSpec
from bevreshape.config.groups import FROM_CHECKPOINT, MODEL_PARTS
from bevreshape.config.load_model import load_model
from bevreshape.deployment.model_card import LIBRARY, model_card
from bevreshape.errors import InputError
from bevreshape.model import BEVModel
from bevreshape.storage.checkpoint import FORMAT
from bevreshape.storage.files import read_text, write_text
from bevreshape.storage.plain_values import check_plain
from bevreshape.storage.pretrained import CONFIG, WEIGHTS, write_pretrained

STORED = (*MODEL_PARTS, *FROM_CHECKPOINT)
"""Groups of a run's config that the folder holds: the model's, and those that evaluation takes from it."""


CARD = "README.md"
"""The model card, by the name that the hub expects."""


class PretrainedBEVModel(BEVModel, ModelHubMixin, library_name=LIBRARY):
    """A trained model with all that rebuilds it; ``save_pretrained`` and ``push_to_hub`` are the hub's own.

    Args:
        model: trained.
        spec: the cameras and the cells that it was trained for.
        config: of its run, as :func:`~bevreshape.config.load_model.load_model` returns it.
    """

    def __init__(self, model: BEVModel, spec: BEVSpec, config: Mapping[str, Any]) -> None:
        super().__init__(model.encoder, model.reshaper, model.heads)
        self.spec = spec
        self.config = dict(config)

    @classmethod
    def from_pretrained(  # the hub's own would read config.json unchecked
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        trust: Sequence[str] = (),
        **download: Any,
    ) -> "PretrainedBEVModel":
        """Load a model, on the CPU and in evaluation mode, without executing anything in its files.

        Args:
            pretrained_model_name_or_path: a folder of ``save_pretrained``, a checkpoint, or a repository of the hub.
            trust: packages whose classes it may name, in addition to bevreshape and the installed entry points.
            download: for a repository: ``revision``, ``token``, ``cache_dir``, ``local_files_only``,
                ``force_download``, as :func:`huggingface_hub.snapshot_download` takes them.

        Raises:
            InputError: as :func:`~bevreshape.config.load_model.load_model`; when a repository cannot be downloaded.
        """
        path = Path(pretrained_model_name_or_path)
        if not path.exists():
            path = _downloaded(str(pretrained_model_name_or_path), download)
        return cls(*load_model(str(path), trust)).eval()

    def generate_model_card(self, metrics: Mapping[str, Any] | None = None, **_: Any) -> ModelCard:
        """Return the README of the folder; ``metrics`` are those of a run's ``metrics.json``."""
        return model_card(self, self.spec, self.config, metrics or {})

    def write(self, folder: Path, metrics: Mapping[str, Any]) -> None:
        """Write the folder; if that fails, the files of a former model there are whole.

        The hub's own ``save_pretrained`` removes ``config.json`` first, and keeps the card of a former model.

        Args:
            folder: created if needed; other files in it are kept.
            metrics: of a run's ``metrics.json``, for the card.

        Raises:
            InputError: when the folder has another card, or cannot be written.
        """
        path, card = folder / CARD, str(self.generate_model_card(metrics))
        if path.exists() and read_text(path) != card:
            raise InputError(
                f"{path} is the card of another model, or was edited; remove it, and it is written again, or name "
                "another folder"
            )
        self._save_pretrained(folder)
        write_text(path, card)

    def _save_pretrained(self, save_directory: Path) -> None:
        config = {key: value for key, value in self.config.items() if key in STORED}
        recipe = {"format": FORMAT, "config": config, "spec": self.spec.to_plain()}
        check_plain(recipe, "config")
        write_pretrained(save_directory, recipe, self.state_dict())


def _downloaded(name: str, options: Mapping[str, Any]) -> Path:
    """Return the folder of a downloaded repository."""
    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG, WEIGHTS], **options))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{name} is no folder here, and cannot be downloaded from the Hugging Face hub ({reason}); name a folder "
            "with config.json and model.safetensors, or check the repository's name and the network"
        ) from error
